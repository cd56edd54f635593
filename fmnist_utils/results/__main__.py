"""``python -m fmnist_utils.results``: README's tables from the files under ``results/``."""

import sys

from fmnist_utils.results import update_readme

if __name__ == "__main__":
    try:
        print("README.md has new tables" if update_readme() else "README.md shows what is recorded")
    except (OSError, ValueError) as error:
        sys.exit(str(error))
