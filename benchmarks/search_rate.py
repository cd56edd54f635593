"""What do cached features buy a hyperparameter search? Trials per minute with them and without.

``python benchmarks/search_rate.py`` writes ``results/benchmarks/search_rate-<profile>.json`` and the figure of the same
name. With: ``fmnist_utils.tune.search`` from nothing, so its passes through the frozen layers count. Without: the same
trials, as many epochs each, on the same images, the frozen layers run in every epoch; one epoch is measured per cut and
number of views, since the head is a small part of it, and stands for the others.
"""

import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from optuna import TrialPruned

from fmnist_utils import pick
from fmnist_utils.data import load, train_val_split
from fmnist_utils.models import build_model
from fmnist_utils.plots import COLORS, use_style
from fmnist_utils.preprocess import Augment
from fmnist_utils.results import save_benchmark
from fmnist_utils.train import fit
from fmnist_utils.tune.study import DONE, as_recipe, search

TRIALS, TRAIN, VAL, EPOCHS = pick(smoke=(2, 60, 40, 2), cpu=(12, 1_000, 500, 5), full=(30, 6_000, 2_000, 10))


def space(trial) -> dict:
    recipe = as_recipe(trial)
    return recipe | {"phases": [recipe["phases"][0] | {"epochs": EPOCHS}]}


def epoch_on_images(recipe: dict, train, val) -> float:
    """Seconds of the first epoch of ``recipe`` with images in place of features."""
    mirrored = {"augment": Augment(flip=0.5)} if recipe["views"] == 2 else {}
    model = build_model(**recipe["model"] | mirrored)
    phase, rows = {k: v for k, v in recipe["phases"][0].items() if k != "trainable"}, []

    def first_only(row: dict) -> None:
        rows.append(row)
        raise TrialPruned

    try:
        fit(model, train, val, **phase, progress=False, on_epoch=first_only)
    except TrialPruned:
        return rows[0]["seconds"]


def draw(with_cache: np.ndarray, without: np.ndarray) -> plt.Figure:
    """Finished trials against minutes."""
    use_style()
    figure, axis = plt.subplots(figsize=(8, 3.8))
    for seconds, label, color in (
        (with_cache, "features cached", COLORS["train"]),
        (without, "frozen layers in every epoch", COLORS["muted"]),
    ):
        axis.step(np.r_[0, seconds] / 60, range(len(seconds) + 1), where="post", color=color, lw=2.5, label=label)
        axis.annotate(f"{60 * len(seconds) / seconds[-1]:.3g} per minute", (seconds[-1] / 60, len(seconds)),
                      (-6, 6), textcoords="offset points", ha="right", color=color)  # fmt: skip
    axis.set(xlabel="minutes", ylabel="finished trials", ylim=(0, 1.15 * len(without)), xlim=(0, None))
    axis.set_title(f"The same {len(without)} trials of a search, with cached features and without")
    axis.legend(loc="lower right")
    return figure


def main() -> None:
    train, val = train_val_split(load("train"))
    train, val = train.subset(TRAIN), val.subset(VAL)
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        database = "sqlite:///:memory:"
        study = search("rate", trials=TRIALS, train=train, val=val, storage=database, cache=Path(folder), space=space)
    trials = study.get_trials(states=DONE)
    ends = np.array([trial.datetime_complete.timestamp() - began for trial in trials])
    epochs = [len(trial.intermediate_values) for trial in trials]
    seconds, per_trial = {}, []
    for trial, count in zip(trials, epochs, strict=True):
        recipe = space(trial)
        kind = (recipe["model"]["cut_after"], recipe["views"])
        if kind not in seconds:
            seconds[kind] = epoch_on_images(recipe, train, val)
        per_trial.append(count * seconds[kind])
    without = np.cumsum(per_trial)
    path = save_benchmark(
        "search_rate",
        setting=f"VGG16, {recipe['model']['image_size']} px, {TRIALS} trials of at most {EPOCHS} epochs, "
        f"{TRAIN:,} training and {VAL:,} validation images, passes included; without cache = epochs × one measured",
        ours=60 * len(trials) / ends[-1],
        reference=60 * len(trials) / without[-1],
        unit="trials/min",
        figure=draw(ends, without),
        trials=[
            {
                "state": trial.state.name,
                "epochs": count,
                "params": trial.params,
                "cached_end_seconds": round(end, 2),
                "uncached_seconds": round(own, 2),
            }
            for trial, count, end, own in zip(trials, epochs, ends, per_trial, strict=True)
        ],
        weights=trials[0].user_attrs["weights"],
        epoch_on_images_seconds={f"{cut}, {views} views": round(s, 2) for (cut, views), s in seconds.items()},
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
