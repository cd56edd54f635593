"""The files the data comes from: reads IDX and CSV files, and finds or downloads the published ones.

Everything here returns numpy arrays and lies below `fmnist_utils.data`, which makes Datasets of them.
"""
