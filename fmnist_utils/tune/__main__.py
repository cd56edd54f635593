"""``python -m fmnist_utils.tune``: a search with Optuna, begun or gone on with, and written to ``runs/benchmarks``."""

import argparse
import os
from pprint import pformat

from fmnist_utils import ROOT, pick, profile
from fmnist_utils.results import check_writable, default_folder
from fmnist_utils.sources.files import expanded, shown
from fmnist_utils.tune.study import as_recipe, line, save_study, search, splits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=pick(smoke=3, cpu=15, full=40), help="finished trials wanted")
    parser.add_argument("--storage", help="SQLite file, .log or .journal file, or URL (data/cache/studies.db)")
    parser.add_argument("--study", default=f"search-{profile()}", help="name of the study")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", default=ROOT / "data" / "cache", help="folder for features (data/cache)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--record", action="store_true", help="write to results/ instead of runs/")
    where.add_argument("--results", metavar="FOLDER", type=expanded, help="write to this folder instead of runs/")
    given = parser.parse_args()
    if given.record:
        os.environ["FMNIST_RECORD"] = "1"
    folder = given.results or default_folder()
    check_writable(folder)
    train, val = splits()
    places = {"storage": given.storage, "cache": given.cache}
    study = search(given.study, trials=given.trials, train=train, val=val, seed=given.seed, **places)
    print("best", line(study.best_trial))
    print("as a recipe:", pformat(as_recipe(study.best_trial), sort_dicts=False, width=110), sep="\n")
    print("wrote", shown(save_study(study, folder)))


if __name__ == "__main__":
    main()
