"""``python -m fmnist_utils.results``: README's tables from the files under ``results/``."""

from fmnist_utils.results import update_readme

if __name__ == "__main__":
    update_readme()
