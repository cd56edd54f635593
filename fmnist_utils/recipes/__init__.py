"""Whole runs by name: ``python -m fmnist_utils.recipes vgg16-frozen`` trains, tests once and writes ``runs/``."""

from fmnist_utils.recipes.runner import run
from fmnist_utils.recipes.table import (
    ADDITIONS,
    IMAGES,
    INGREDIENTS,
    MIRROR,
    RECIPES,
    ByProfile,
    add,
    leave_out,
    of_profile,
)

__all__ = [
    "ADDITIONS",
    "IMAGES",
    "INGREDIENTS",
    "MIRROR",
    "RECIPES",
    "ByProfile",
    "add",
    "leave_out",
    "of_profile",
    "run",
]
