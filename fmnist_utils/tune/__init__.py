"""Search for the best settings with Optuna, on validation images only: ``python -m fmnist_utils.tune``."""

from fmnist_utils.tune.figures import plot_study
from fmnist_utils.tune.study import as_recipe, save_study, search

__all__ = ["as_recipe", "plot_study", "save_study", "search"]
