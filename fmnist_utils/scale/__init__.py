"""Faster and larger: several processes, and engines that run frozen layers. Below the core, which calls it."""
