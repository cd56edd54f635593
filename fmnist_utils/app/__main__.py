"""``python -m fmnist_utils.app``: the web page."""

from fmnist_utils.app.server import main

if __name__ == "__main__":
    main()
