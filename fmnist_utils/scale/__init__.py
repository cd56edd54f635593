"""Faster and larger: several processes, engines for frozen layers, features and progress on disk. Below the core."""
