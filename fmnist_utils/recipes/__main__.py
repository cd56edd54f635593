"""``python -m fmnist_utils.recipes vgg16-frozen`` trains, tests once and writes the result."""

import argparse
import os

from fmnist_utils import ROOT
from fmnist_utils.recipes.runner import run
from fmnist_utils.recipes.table import ADDITIONS, INGREDIENTS, RECIPES
from fmnist_utils.scale.processes import is_first
from fmnist_utils.sources.files import shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each; means and deviations are kept")
    parser.add_argument("--random-weights", action="store_true", help="the same recipe without pretrained weights")
    parser.add_argument(
        "--with", nargs="*", default=[], choices=ADDITIONS, dest="added", help="add these to the recipe"
    )
    parser.add_argument("--without", nargs="+", default=[], choices=INGREDIENTS, help="leave these out of the recipe")
    parser.add_argument(
        "--teachers", nargs="+", default=[], metavar="RUN", help="learn from the means of these runs' predictions"
    )
    parser.add_argument(
        "--predict-train", action="store_true", help="keep the predictions for training images, as --teachers needs"
    )
    parser.add_argument("--save", action="store_true", help="put the first seed's model into data/models")
    parser.add_argument(
        "--cache", nargs="?", const=ROOT / "data" / "cache", help="folder for the features (data/cache)"
    )
    parser.add_argument(
        "--checkpoint", nargs="?", const=ROOT / "data" / "checkpoints", help="folder to resume from (data/checkpoints)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--record", action="store_true", help="write to results/ instead of runs/")
    where.add_argument("--results", metavar="FOLDER", help="write to this folder instead of runs/")
    arguments = vars(parser.parse_args())
    if arguments.pop("record"):
        os.environ["FMNIST_RECORD"] = "1"
    path = run(arguments.pop("name"), **arguments)
    if is_first():
        print("wrote", shown(path))


if __name__ == "__main__":
    main()
