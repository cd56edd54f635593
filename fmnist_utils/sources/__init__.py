"""The files that data, weights and saved models come from: read, found on this computer or downloaded.

Readers of data return numpy arrays and lie below `fmnist_utils.data`, which makes Datasets of them.
"""
