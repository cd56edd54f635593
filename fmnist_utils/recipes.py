"""Whole runs by name: ``python -m fmnist_utils.recipes vgg16-frozen`` trains, tests once and writes ``results/``.

A recipe is the arguments of ``build_model``, ``cache_features`` and ``fit_phases``; the notebooks show what each one
means. Images: all 60,000 in the ``full`` profile (5,000 of them for validation), a subset in ``cpu`` and ``smoke``.
"""

import argparse
import functools
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmnist_utils import ROOT, pick, profile
from fmnist_utils.cache import CachedFeatures, cache_features
from fmnist_utils.data import FashionMNIST, load, train_val_split
from fmnist_utils.evaluate import predict, score
from fmnist_utils.models import Classifier, build_model, check_name, save_model, set_trainable
from fmnist_utils.preprocess import Augment
from fmnist_utils.results import save_result
from fmnist_utils.scale.processes import from_first, is_first, rank_and_count
from fmnist_utils.train import fit_phases


class ByProfile(NamedTuple):
    """A value that depends on the profile; any other tuple in a recipe, such as a head of your own, is what it is."""

    smoke: Any
    cpu: Any
    full: Any


MIRROR = Augment(flip=1.0)
#: Training images in the profiles smoke, cpu and full, unless a recipe has its own.
IMAGES = ByProfile(300, 20_000, 55_000)
#: Sides in pixels that ResNet50 sees: on a CPU a small picture, so that a run takes minutes.
RESNET_PIXELS = ByProfile(32, 32, 224)
RESNET_IMAGES = ByProfile(300, 10_000, 55_000)
#: What most descriptions of this task train with; the rate falls by a tenth per epoch.
ADAM = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "schedule": "exponential"}

RECIPES = {
    # All 13 convolutions frozen and VGG's own kind of head: the run that most descriptions of this task mean.
    "vgg16-frozen": {
        "model": {"name": "vgg16", "head": "classic", "image_size": 64},
        "phases": [
            {"trainable": "head", "epochs": 10, **ADAM, "batch_size": 256, "lr": 2e-4},
        ],
    },
    # The same network with a schedule that ends near zero and with smoothed labels.
    "vgg16-frozen-one-cycle": {
        "model": {"name": "vgg16", "head": "classic", "image_size": 64},
        "phases": [{"trainable": "head", "epochs": 10, "batch_size": 512, "lr": 4e-4, "label_smoothing": 0.1}],
    },
    # Notebook 03: stop after the block that transfers best.
    "vgg16-block3": {
        "model": {"name": "vgg16", "cut_after": "block3", "head": "pooled", "image_size": 56},
        "phases": [{"trainable": "head", "epochs": 10}],
    },
    # The winner of the search of notebook 06, on 3,000 images: results/benchmarks/search-full.json.
    "vgg16-tuned": {
        "model": {"name": "vgg16", "cut_after": "block3", "head": "conv", "image_size": 56, "dropout": 0.19},
        "phases": [{"trainable": "head", "epochs": 10, "lr": 0.00034, "weight_decay": 0.0146}],
    },
    # The best frozen VGG16: each image and its mirror image, in training and in the mean of predictions when testing.
    "vgg16-block3-two-views": {
        "model": {"name": "vgg16", "cut_after": "block3", "head": "conv", "image_size": 56, "augment": MIRROR},
        "phases": [{"trainable": "head", "epochs": 12, "weight_decay": 0.05}],
        "views": 2,
    },
    # Fine-tuning that two CPU cores finish in half an hour: two convolutions of block3 stay frozen, the third learns.
    "vgg16-block3-fine-tuned": {
        "model": {"name": "vgg16", "cut_after": "block3", "head": "conv", "image_size": 56},
        "phases": [
            {"trainable": "head", "epochs": 1, "lr": 1e-3, "weight_decay": 0.05},
            {"trainable": 3, "epochs": 3, "lr": 1e-3, "backbone_lr": 3e-4, "weight_decay": 0.05},
        ],
    },
    # Fine-tuning for a GPU: the whole network, block by block from the top at decreasing rates (7 layers are a block).
    "vgg16-fine-tuned": {
        "model": {"name": "vgg16", "head": "conv", "image_size": 112, "augment": Augment(flip=0.5, erasing=0.5)},
        "phases": [
            {"trainable": "head", "epochs": 2},
            {"trainable": 7, "epochs": 2, "lr": 5e-4, "backbone_lr": 1e-4, "weight_decay": 0.05},
            {"trainable": 14, "epochs": 2, "lr": 3e-4, "backbone_lr": 7e-5, "weight_decay": 0.05},
            {"trainable": "all", "epochs": 8, "lr": 3e-4, "backbone_lr": 5e-5, "weight_decay": 0.05, "ema": 0.999},
        ],
        "images": ByProfile(64, 2_000, 55_000),
        "flip": True,
    },
    # The pictures VGG16 was made for, which only a GPU computes in minutes.
    "vgg16-frozen-224": {
        "model": {"name": "vgg16", "head": "classic", "image_size": ByProfile(32, 32, 224)},
        "phases": [{"trainable": "head", "epochs": 10, "batch_size": 512, "lr": 4e-4, "label_smoothing": 0.1}],
        "images": ByProfile(64, 2_000, 55_000),
    },
    "resnet50-two-phase": {
        "model": {"name": "resnet50", "head": "gap-256", "image_size": RESNET_PIXELS},
        "phases": [
            {"trainable": "head", "epochs": 10, **ADAM, "weight_decay": 1e-4},
            {"trainable": 16, "epochs": 5, **ADAM, "weight_decay": 1e-4, "lr": 1e-5, "schedule": "constant"},
        ],
        "images": RESNET_IMAGES,
    },
    # Published with batches of 16; four times as many images keep the cores busy at the same rate.
    "resnet50-two-hidden": {
        "model": {"name": "resnet50", "head": "gap-256-128", "image_size": RESNET_PIXELS},
        "phases": [{"trainable": 10, "epochs": 10, **ADAM, "batch_size": 64}],
        "images": RESNET_IMAGES,
    },
    "resnet50-linear": {
        "model": {
            "name": "resnet50",
            "head": "linear",
            "image_size": RESNET_PIXELS,
            "augment": Augment(flip=0.5, rotation=10),
        },
        "phases": [
            {"trainable": "head", "epochs": 15, **ADAM},
            {"trainable": "all", "epochs": 5, **ADAM, "backbone_lr": 3e-4, "schedule": "one-cycle"},
        ],
        "images": ByProfile(64, 3_000, 55_000),
    },
    # The baseline from scratch; its images are mirrored when testing, too.
    "small-cnn": {
        "model": {"name": "small_cnn", "weights": None, "augment": Augment(flip=0.5)},
        "phases": [{"trainable": "all", "epochs": 7, "lr": 4e-3, "weight_decay": 0.05, "label_smoothing": 0.05}],
        "flip": True,
    },
    # For the best accuracy in minutes of a GPU: WRN-28-10 with the changes of images that Zhong et al. (2017,
    # arXiv:1708.04896) trained it with on this data (mirroring, shifts by up to 4 pixels, erasing) and a schedule for
    # fewer epochs. Batches of 250 divide 55,000 and 5,000, so that compiled code meets one shape. Elsewhere small
    # pictures show that it runs.
    "wide-resnet-best": {
        "model": {
            "name": "wide_resnet",
            "weights": None,
            "image_size": ByProfile(8, 12, 28),
            "augment": Augment(flip=0.5, shift=4 / 28, erasing=0.5),
        },
        "phases": [
            {
                "trainable": "all",
                "epochs": ByProfile(1, 2, 80),
                "batch_size": ByProfile(32, 50, 250),
                "optimizer": "sgd",
                "lr": ByProfile(0.05, 0.05, 0.2),
                "weight_decay": 5e-4,
                "label_smoothing": 0.1,
                "ema": ByProfile(0.5, 0.9, 0.999),
                "compile": ByProfile(False, False, True),
            }
        ],
        "images": ByProfile(64, 2_000, 55_000),
        "flip": True,
    },
}

#: What can be left out of a recipe, to see what it contributes; ``mirror`` is the mirror image when testing.
INGREDIENTS = ("flip", "shift", "erasing", "label_smoothing", "ema", "mirror")


def leave_out(recipe: dict, ingredient: str) -> dict:
    """``recipe`` less one of ``INGREDIENTS``; raises ``ValueError`` where it has none of that."""
    check_name("ingredient", ingredient, INGREDIENTS)
    augment = recipe["model"].get("augment") or Augment()
    found = {"mirror": recipe.get("flip"), **asdict(augment)}
    for phase in recipe["phases"]:
        found |= phase
    if not found.get(ingredient):
        raise ValueError(f"This recipe has no {ingredient!r} to leave out.")
    if ingredient == "mirror":
        return recipe | {"flip": False}
    if ingredient in asdict(augment):
        return recipe | {"model": {**recipe["model"], "augment": replace(augment, **{ingredient: 0.0})}}
    return recipe | {"phases": [{k: v for k, v in phase.items() if k != ingredient} for phase in recipe["phases"]]}


def run(
    name: str,
    *,
    seeds: Sequence[int] = (0,),
    random_weights: bool = False,
    without: Sequence[str] = (),
    cache: str | Path | None = None,
    checkpoint: str | Path | None = None,
    save: bool = False,
    verbose: bool = True,
) -> Path:
    """Train recipe ``name`` once per seed, evaluate each once on the test set, write the result file; returns its path.

    With several seeds, ``metrics`` are means (and ``*_sd`` sample standard deviations), ``seconds`` are means per
    seed, and history and predictions are those of the first. ``random_weights`` trains the same recipe without
    pretrained weights and says so in its name, as does ``without``, a list of ``INGREDIENTS``.
    ``cache`` is a folder for the features of frozen layers (in memory without it), ``checkpoint`` one from which an
    interrupted run goes on. ``save`` puts the first seed's model into ``data/models/``. Under ``torchrun`` or
    ``accelerate launch`` the processes share the work.

    Raises ``ValueError`` for an unknown name or an ingredient that the recipe does not have. Used in
    notebooks/03_vgg16_transfer_learning.ipynb and notebooks/04_resnet50_fine_tuning.ipynb.
    """
    check_name("recipe", name, tuple(RECIPES))
    recipe = functools.reduce(leave_out, without, RECIPES[name])
    settings = {k: of_profile(v) for k, v in recipe["model"].items()}
    phases = [{k: of_profile(v) for k, v in phase.items()} for phase in recipe["phases"]]
    recipe_name = "-without-".join([name, *without])
    if random_weights:
        settings |= {"weights": None}
        recipe_name += "-random-weights"
    command = f"FMNIST_PROFILE={profile()} python -m fmnist_utils.recipes {name}"
    command += " --random-weights" * random_weights
    command += f" --without {' '.join(without)}" * bool(without)
    command += f" --seeds {' '.join(map(str, seeds))}" * (tuple(seeds) != (0,))

    train, val = train_val_split(load("train"))
    splits = {
        "train": train.subset(of_profile(recipe.get("images", IMAGES))),
        "val": val.subset(pick(smoke=200, cpu=len(val), full=len(val))),
        "test": load("test").subset(pick(smoke=200, cpu=10_000, full=10_000)),
    }
    runs, inputs = [], None
    for seed in seeds:
        began = time.perf_counter()
        model = build_model(**settings, seed=seed)
        inputs, prefix_pass, earlier = _inputs(model, recipe, splits, inputs, cache, verbose)
        progress_files = Path(checkpoint) / f"{recipe_name}-{profile()}-seed{seed}" if checkpoint else None
        history = fit_phases(
            model, inputs["train"], inputs["val"], phases, checkpoint=progress_files, seed=seed, progress=verbose
        )
        evaluating = time.perf_counter()
        flip = recipe.get("flip", False)
        predictions = {split: predict(model, inputs[split], flip=flip) for split in ("val", "test")}
        tested = score(predictions["test"], splits["test"].labels)
        seconds = {
            "prefix_pass": prefix_pass,
            "compiling": history.attrs["compile_seconds"],
            "training": history.seconds.sum(),
            "evaluation": time.perf_counter() - evaluating,
            # Features that an earlier seed or run computed count as if it were this one.
            "total": time.perf_counter() - began + earlier,
        }
        metrics = {
            "test_accuracy": tested["accuracy"],
            "macro_f1": tested["macro_f1"],
            "val_accuracy": score(predictions["val"], splits["val"].labels)["accuracy"],
            "train_accuracy": score(predict(model, inputs["train"], flip=flip), splits["train"].labels)["accuracy"],
        }
        runs.append((model, history, metrics, seconds, predictions))
        if verbose and is_first():
            print(f"seed {seed}: test accuracy {tested['accuracy']:.2%} in {seconds['total']:.0f} s")

    model, history, metrics, _, predictions = runs[0]
    mirrored = bool(recipe.get("flip", False) or recipe.get("views", 1) > 1)
    table = {key: [metrics[key] for _, _, metrics, _, _ in runs] for key in metrics}
    summarised = {key: float(np.mean(values)) for key, values in table.items()}
    if len(runs) > 1:
        summarised |= {f"{key}_sd": float(np.std(values, ddof=1)) for key, values in table.items()}
    if save:
        card = _card(recipe_name, command, model, metrics, mirrored, splits)
        from_first(lambda: save_model(model, ROOT / "data" / "models" / recipe_name, **card))
    engine = inputs["train"].report.engine if isinstance(inputs["train"], CachedFeatures) else "no cache"
    rate = _images_per_second(model, splits["test"])
    write = functools.partial(
        save_result,
        recipe_name,
        model,
        train_images=len(splits["train"]),
        history=history,
        metrics=summarised,
        seconds={key: float(np.mean([seconds[key] for _, _, _, seconds, _ in runs])) for key in runs[0][3]},
        seeds=seeds,
        predictions=predictions,
        per_seed={key: [round(value, 5) for value in values] for key, values in table.items()}
        | {"seconds": [round(seconds["total"], 1) for _, _, _, seconds, _ in runs]},
        views=recipe.get("views", 1),
        test_time_flip=mirrored,
        engine=engine,
        processes=rank_and_count()[1],
        inference_images_per_second=round(rate, 1),
        command=command,
    )
    return from_first(write)


def of_profile(value):
    """``value``, or the one of a :class:`ByProfile` that the current profile picks."""
    return pick(**value._asdict()) if isinstance(value, ByProfile) else value


def _inputs(model, recipe, splits, earlier_inputs, cache, verbose) -> tuple[dict, float, float]:
    """(what to train on: features where every phase leaves layers frozen and nothing is random, else the images;
    seconds of the passes; those of them that were spent before)."""
    views = recipe.get("views", 1)
    set_trainable(model, recipe["phases"][-1]["trainable"])
    prefix, _ = model.split()
    if not any(True for _ in prefix.parameters()) or (model.preprocess.augment and views == 1):
        return splits, 0.0, 0.0
    if earlier_inputs:
        try:
            for features in earlier_inputs.values():
                features.check(model)
            seconds = sum(features.report.seconds for features in earlier_inputs.values())
            return earlier_inputs, seconds, seconds
        except ValueError:  # random frozen layers differ from seed to seed
            pass
    inputs = {
        split: cache_features(model, data, views=views, border=len(prefix), folder=cache, verbose=verbose)
        for split, data in splits.items()
    }
    reports = [features.report for features in inputs.values()]
    return inputs, sum(r.seconds for r in reports), sum(r.seconds for r in reports if r.reused)


def _images_per_second(model: Classifier, test: FashionMNIST) -> float:
    few = test.subset(min(250, len(test)))
    predict(model, few)
    began = time.perf_counter()
    predict(model, few)
    return len(few) / (time.perf_counter() - began)


def _card(recipe: str, command: str, model: Classifier, metrics: dict, mirrored: bool, splits: dict) -> dict:
    frozen = ""
    if model.weights_origin == "ImageNet" and model.config["name"] == "vgg16":
        frozen = " VGG16's weights in data/weights/ (CC BY 4.0) are part of it; the frozen ones are not in the file."
    return {
        "recipe": recipe,
        "profile": profile(),
        "command": f"{command} --save",
        "data": f"Fashion-MNIST (Zalando Research, MIT): {len(splits['train']):,} training images",
        "input": "uint8 [B, 28, 28], black background",
        "metrics": {key: round(value, 5) for key, value in metrics.items()},
        "test_time_flip": mirrored,
        "licence": f"MIT.{frozen}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each; means and deviations are kept")
    parser.add_argument("--random-weights", action="store_true", help="the same recipe without pretrained weights")
    parser.add_argument("--without", nargs="+", default=[], choices=INGREDIENTS, help="leave these out of the recipe")
    parser.add_argument("--save", action="store_true", help="put the first seed's model into data/models")
    parser.add_argument(
        "--cache", nargs="?", const=ROOT / "data" / "cache", help="folder for the features (data/cache)"
    )
    parser.add_argument(
        "--checkpoint", nargs="?", const=ROOT / "data" / "checkpoints", help="folder to resume from (data/checkpoints)"
    )
    arguments = vars(parser.parse_args())
    path = run(arguments.pop("name"), **arguments)
    if is_first():
        print("wrote", path.name)


if __name__ == "__main__":
    main()
