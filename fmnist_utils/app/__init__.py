"""The web page that names a garment: ``python -m fmnist_utils.app``. On top of everything; nothing imports it."""
