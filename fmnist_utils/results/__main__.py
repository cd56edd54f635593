"""``python -m fmnist_utils.results``: the tables of the Markdown pages from the files under ``results/``."""

import sys

from fmnist_utils.results import update_pages

if __name__ == "__main__":
    try:
        changed = update_pages()
        print(f"new tables in {', '.join(changed)}" if changed else "the tables show what is recorded")
    except (OSError, ValueError) as error:
        sys.exit(str(error))
