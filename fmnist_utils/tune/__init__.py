"""Search for the best settings with Optuna, on validation images only: ``python -m fmnist_utils.tune``."""

from fmnist_utils.tune.figures import importances, plot_study
from fmnist_utils.tune.study import as_recipe, as_study, save_study, search

__all__ = ["as_recipe", "as_study", "importances", "plot_study", "save_study", "search"]
