"""A trained model as one file for other programs: ONNX, LiteRT. ``python -m fmnist_utils.export NAME``.

Imports nothing, because LiteRT's environment, which runs :mod:`fmnist_utils.export.litert`, has few packages.
"""
