"""Whole runs by name: ``python -m fmnist_utils.recipes vgg16-frozen`` trains, tests once and writes ``results/``.

A recipe is the arguments of ``build_model``, ``cache_features`` and ``fit``; the notebooks show what each one means.
Images: all 60,000 in the ``full`` profile (5,000 of them for validation), a subset in ``cpu`` and ``smoke``.
"""

import argparse
import time
from pathlib import Path

from fmnist_utils import ROOT, pick
from fmnist_utils.cache import cache_features
from fmnist_utils.data import load, train_val_split
from fmnist_utils.evaluate import predict, save_result, score
from fmnist_utils.models import Augment, _check_name, build_model
from fmnist_utils.train import fit

MIRROR = Augment(flip=1.0)

RECIPES = {
    # All 13 convolutions frozen and VGG's own kind of head: the run that most descriptions of this task mean.
    "vgg16-frozen": {
        "model": {"name": "vgg16", "cut_after": "block5", "head": "classic", "image_size": 64},
        "fit": {
            "epochs": 10,
            "batch_size": 256,
            "optimizer": "adam",
            "lr": 2e-4,
            "weight_decay": 0.0,
            "schedule": "exponential",
        },
    },
    # The same network with a schedule that ends near zero and with smoothed labels.
    "vgg16-frozen-one-cycle": {
        "model": {"name": "vgg16", "cut_after": "block5", "head": "classic", "image_size": 64},
        "fit": {"epochs": 10, "batch_size": 512, "lr": 4e-4, "label_smoothing": 0.1},
    },
    # Notebook 03: stop after the block that transfers best.
    "vgg16-block3": {
        "model": {"name": "vgg16", "cut_after": "block3", "head": "pooled", "image_size": 56},
        "fit": {"epochs": 10},
    },
    # The best frozen VGG16: each image and its mirror image, in training and in the mean of predictions when testing.
    "vgg16-block3-two-views": {
        "model": {"name": "vgg16", "cut_after": "block3", "head": "conv", "image_size": 56, "augment": MIRROR},
        "fit": {"epochs": 12, "weight_decay": 0.05},
        "views": 2,
    },
}


def run(name: str, *, cache: str | Path | None = None, seed: int = 0, verbose: bool = True) -> Path:
    """Train recipe ``name``, evaluate it once on the test set and write its result file, whose path is returned.

    ``cache`` is a folder for the features of the frozen layers (in memory without it). Raises ``ValueError`` for an
    unknown name. Used in notebooks/03_vgg16_transfer_learning.ipynb.
    """
    _check_name("recipe", name, tuple(RECIPES))
    recipe = RECIPES[name]
    began = time.perf_counter()
    train, val = train_val_split(load("train"))
    train = train.subset(pick(smoke=300, cpu=20_000, full=len(train)))
    val, test = (data.subset(pick(smoke=200, cpu=len(data), full=len(data))) for data in (val, load("test")))
    model = build_model(**recipe["model"], seed=seed)
    views = recipe.get("views", 1)
    features = cache_features(model, train, views=views, folder=cache, verbose=verbose)
    val_features, test_features = (
        cache_features(model, data, views=views, folder=cache, verbose=verbose) for data in (val, test)
    )
    history = fit(model, features, val_features, **recipe["fit"], seed=seed, progress=verbose)
    evaluating = time.perf_counter()
    tested = score(predict(model, test_features), test.labels)
    metrics = {
        "test_accuracy": tested["accuracy"],
        "macro_f1": tested["macro_f1"],
        "val_accuracy": score(predict(model, val_features), val.labels)["accuracy"],
        "train_accuracy": score(predict(model, features), train.labels)["accuracy"],
    }
    passes = [part.report for part in (features, val_features, test_features)]
    seconds = {
        "prefix_pass": sum(report.seconds for report in passes),
        "training": history.seconds.sum(),
        "evaluation": time.perf_counter() - evaluating,
        # Features read from disk were computed in an earlier run; their time counts as if it were this one.
        "total": time.perf_counter() - began + sum(report.seconds for report in passes if report.reused),
    }
    return save_result(
        name,
        model,
        train_images=len(train),
        history=history,
        metrics=metrics,
        seconds=seconds,
        seeds=[seed],
        views=views,
        engine=features.report.engine,
        command=f"python -m fmnist_utils.recipes {name}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cache", nargs="?", const=ROOT / "data" / "cache", help="folder for the features (data/cache)"
    )
    arguments = parser.parse_args()
    print("wrote", run(arguments.name, cache=arguments.cache, seed=arguments.seed).name)


if __name__ == "__main__":
    main()
