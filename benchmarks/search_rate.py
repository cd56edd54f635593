"""What do cached features buy a hyperparameter search? Trials per minute with them and without."""

import tempfile
import time
from pathlib import Path

from common import options, record, splits

from fmnist_utils import pick
from fmnist_utils.models import build_model
from fmnist_utils.preprocess import Augment
from fmnist_utils.train import fit
from fmnist_utils.tune.study import DONE, as_recipe, search

TRIALS, TRAIN, VAL, EPOCHS = pick(smoke=(2, 60, 40, 2), cpu=(12, 1_000, 500, 5), full=(30, 6_000, 2_000, 10))


def space(trial) -> dict:
    recipe = as_recipe(trial)
    return recipe | {"phases": [recipe["phases"][0] | {"epochs": EPOCHS}]}


def epoch_on_images(recipe: dict, train, val) -> float:
    """Seconds of one epoch of ``recipe`` with images in place of features."""
    mirrored = {"augment": Augment(flip=0.5)} if recipe["views"] == 2 else {}
    model = build_model(**recipe["model"] | mirrored)
    phase = {k: v for k, v in recipe["phases"][0].items() if k != "trainable"} | {"epochs": 1}
    return fit(model, train, val, **phase, progress=False).seconds.sum()


def main() -> None:
    options(__doc__)
    images, seconds, rows = splits(train=TRAIN, val=VAL), {}, []
    with tempfile.TemporaryDirectory() as folder:
        began, where = time.time(), {"storage": "sqlite:///:memory:", "cache": Path(folder)}
        study = search("rate", trials=TRIALS, **images, **where, space=space)
    trials = study.get_trials(states=DONE)
    for trial in trials:
        recipe, epochs = space(trial), len(trial.intermediate_values)
        kind = f"{recipe['model']['cut_after']}, {recipe['views']} views"
        if kind not in seconds:
            seconds[kind] = epoch_on_images(recipe, **images)
        row = {"state": trial.state.name, "epochs": epochs, "params": trial.params}
        row["cached_end_seconds"] = trial.datetime_complete.timestamp() - began
        rows.append(row | {"uncached_seconds": epochs * seconds[kind]})
    setting = (
        f"VGG16, {recipe['model']['image_size']} px, {TRIALS} trials of at most {EPOCHS} epochs, {TRAIN:,} training "
        f"and {VAL:,} validation images, passes included; without cache = epochs × one measured"
    )
    minutes = rows[-1]["cached_end_seconds"] / 60, sum(row["uncached_seconds"] for row in rows) / 60
    fields = {"trials": rows, "weights": trials[0].user_attrs["weights"], "epoch_on_images_seconds": seconds}
    record("search_rate", setting, *(len(trials) / m for m in minutes), "trials/min", **fields)


if __name__ == "__main__":
    main()
