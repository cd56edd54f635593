"""One recipe from its images to its result file."""

import copy
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fmnist_utils import ROOT, check_name, pick, profile
from fmnist_utils.cache import CachedFeatures, cache_features
from fmnist_utils.checkpoints import save_model
from fmnist_utils.data import FashionMNIST, load, train_val_split
from fmnist_utils.evaluate import measure, predict
from fmnist_utils.models import Classifier, build_model, set_trainable
from fmnist_utils.recipes.table import IMAGES, RECIPES, add, leave_out, of_profile
from fmnist_utils.results import check_writable, default_folder, load_predictions, save_result
from fmnist_utils.results.machine import per_second
from fmnist_utils.scale.processes import from_first, is_first, rank_and_count
from fmnist_utils.sources.files import expanded
from fmnist_utils.train import fit_phases


@dataclass
class _Trained:
    """What one seed gave: the model, its history, metrics, seconds by part, and predictions by split."""

    model: Classifier
    history: pd.DataFrame
    metrics: dict[str, float]
    seconds: dict[str, float]
    predictions: dict[str, np.ndarray]


def run(
    name: str,
    *,
    seeds: Sequence[int] = (0,),
    random_weights: bool = False,
    added: Sequence[str] = (),
    without: Sequence[str] = (),
    teachers: Sequence[str] = (),
    predict_train: bool = False,
    cache: str | Path | None = None,
    checkpoint: str | Path | None = None,
    save: bool = False,
    results: str | Path | None = None,
    verbose: bool = True,
) -> Path:
    """Train recipe ``name`` once per seed, evaluate each once on the test set, write the result file; returns its path.

    With several seeds, ``metrics`` are means (and ``*_sd`` sample standard deviations), ``seconds`` are means per
    seed, and history and predictions are those of the first. ``random_weights`` trains the same recipe without
    pretrained weights and says so in its name, as do ``added``, a list of ``ADDITIONS``, and ``without``, one of
    ``INGREDIENTS``. ``teachers`` are runs whose predictions for the training images were kept by ``predict_train``, in
    the same folder: their mean takes the place of the labels (Hinton et al., 2015, arXiv:1503.02531).
    ``cache`` is a folder for the features of frozen layers (in memory without it), ``checkpoint`` one from which an
    interrupted run goes on. ``save`` puts the first seed's model into ``data/models/``. ``results`` is the folder for
    the result, that of ``fmnist_utils.results.default_folder`` unless given. Under ``torchrun`` or
    ``accelerate launch`` the processes share the work.

    Raises ``ValueError`` for an unknown name, an ingredient that the recipe does not have or teachers of other images
    and, before training, ``OSError`` where one of the folders cannot be written to. Used in
    notebooks/03_vgg16_transfer_learning.ipynb and notebooks/04_resnet50_fine_tuning.ipynb.
    """
    check_name("recipe", name, tuple(RECIPES))
    recipe = functools.reduce(leave_out, without, functools.reduce(add, added, RECIPES[name]))
    folder = expanded(results) if results else default_folder()
    written = (folder, cache, checkpoint, save and ROOT / "data" / "models")
    from_first(lambda: [check_writable(expanded(place)) for place in written if place])
    title, splits = "-without-".join(["-with-".join([name, *added]), *without]), _splits(recipe)
    title += "-distilled" * bool(teachers) + "-random-weights" * random_weights
    soft = _soft_labels(teachers, folder, len(splits["train"])) if teachers else None
    model_settings = {k: of_profile(v) for k, v in recipe["model"].items()}
    if random_weights:
        model_settings |= {"weights": None}
    command = f"FMNIST_PROFILE={profile()} python -m fmnist_utils.recipes {name}"
    command += " --random-weights" * random_weights
    for option, values in (("with", added), ("without", without), ("teachers", teachers)):
        command += f" --{option} {' '.join(values)}" * bool(values)
    command += " --predict-train" * predict_train
    command += f" --seeds {' '.join(map(str, seeds))}" * (tuple(seeds) != (0,))

    runs, inputs = [], None
    for seed in seeds:
        began = time.perf_counter()
        model = build_model(**model_settings, seed=seed)
        inputs, prefix_pass, earlier = _inputs(model, recipe, splits, inputs, cache, verbose)
        progress = expanded(checkpoint) / f"{title}-{profile()}-seed{seed}" if checkpoint else None
        # Features that an earlier seed or run computed count as if it were this one.
        began -= earlier
        trained = _train_and_test(model, recipe, splits, inputs, soft, progress, seed, prefix_pass, began, verbose)
        if not predict_train:
            del trained.predictions["train"]
        runs.append(trained)
        if verbose and is_first():
            accuracy, total = runs[-1].metrics["test_accuracy"], runs[-1].seconds["total"]
            print(f"seed {seed}: test accuracy {accuracy:.2%} in {total:.0f} s")

    if save:
        card = _card(title, command, runs[0], _mirrors(recipe), splits)
        from_first(lambda: save_model(runs[0].model, ROOT / "data" / "models" / title, **card))
    engine = inputs["train"].report.engine if isinstance(inputs["train"], CachedFeatures) else "no cache"
    facts = {"folder": folder, "seeds": seeds, "engine": engine, "processes": rank_and_count()[1], "command": command}
    facts |= {"views": recipe.get("views", 1), "mirror": _mirrors(recipe)}
    if teachers:
        facts["teachers"] = [*teachers]
    if "val" not in splits:
        facts["validation"] = "none: every training image was trained on; the weights are those after the last step"
    return _write(title, runs, splits, facts)


def _splits(recipe: dict) -> dict[str, FashionMNIST]:
    whole, test = load("train"), load("test").subset(pick(smoke=200, cpu=10_000, full=10_000))
    count, (train, val) = of_profile(recipe.get("images", IMAGES)), train_val_split(whole)
    if not recipe.get("validation", True):
        return {"train": whole.subset(count), "test": test}
    val = val.subset(pick(smoke=200, cpu=len(val), full=len(val)))
    return {"train": train.subset(count), "val": val, "test": test}


def _soft_labels(teachers: Sequence[str], folder: Path, count: int) -> torch.Tensor:
    """Mean probabilities, float32 [N, 10], of runs in ``folder`` for the N training images."""
    predictions = [load_predictions(name, "train", folder) for name in teachers]
    if others := [name for name, found in zip(teachers, predictions, strict=True) if len(found) != count]:
        raise ValueError(f"{', '.join(others)} learned from other images than these {count:,}: take other teachers.")
    return torch.from_numpy(np.mean(predictions, 0))


def _train_and_test(model, recipe, splits, inputs, soft, progress_files, seed, prefix_pass, began, verbose) -> _Trained:
    phases = [{k: of_profile(v) for k, v in phase.items()} for phase in recipe["phases"]]
    train, held_out = copy.copy(inputs["train"]), "val" in inputs
    if soft is not None:
        train.labels = soft
    # fit() wants images to validate on. Where none are held out, a few that it learns from stand in: nothing is chosen
    # by them, and what they gave is not kept.
    few = train if inputs is not splits else splits["train"].subset(min(500, len(splits["train"])))
    val = inputs["val"] if held_out else few
    history = fit_phases(model, train, val, phases, checkpoint=progress_files, seed=seed, progress=verbose and held_out)
    history = history if held_out else history.drop(columns=["val_loss", "val_accuracy"])
    labels = {split: data.labels for split, data in splits.items()}
    mirror, evaluating = recipe.get("mirror", False), time.perf_counter()
    tested = {split: data for split, data in inputs.items() if split != "train"}
    metrics, predictions = measure(model, tested, labels, mirror)
    done = time.perf_counter()
    seconds = {
        "prefix_pass": prefix_pass,
        "compiling": history.get("compile_seconds", pd.Series(dtype=float)).sum(),
        "training": history.seconds.sum(),
        "evaluation": done - evaluating,
        "total": done - began,
    }
    on_train, predicted = measure(model, {"train": inputs["train"]}, labels, mirror)
    metrics, predictions = metrics | on_train, predictions | predicted
    return _Trained(model, history, metrics, seconds, predictions)


def _mirrors(recipe: dict) -> bool:
    """Whether predictions are means over each image and its mirror image."""
    return bool(recipe.get("mirror", False) or recipe.get("views", 1) > 1)


def _write(title: str, runs: list[_Trained], splits: dict, facts: dict) -> Path:
    """The result file of all seeds."""
    first, metrics = runs[0], pd.DataFrame([run.metrics for run in runs])
    seconds = pd.DataFrame([run.seconds for run in runs])
    summary = metrics.mean().to_dict()
    if len(runs) > 1:
        summary |= metrics.std().add_suffix("_sd").to_dict()
    few = splits["test"].subset(min(250, len(splits["test"])))
    rate = len(few) * per_second(lambda: predict(first.model, few), seconds=0.1)
    write = functools.partial(
        save_result,
        title,
        first.model,
        train_images=len(splits["train"]),
        history=first.history,
        metrics=summary,
        seconds=seconds.mean().to_dict(),
        predictions=first.predictions,
        per_seed=metrics.round(5).to_dict("list") | {"seconds": seconds.total.round(1).to_list()},
        inference_images_per_second=round(rate, 1),
        **facts,
    )
    return from_first(write)


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


def _card(title: str, command: str, trained: _Trained, mirrored: bool, splits: dict) -> dict:
    model, metrics = trained.model, trained.metrics
    frozen = ""
    if model.weights_origin == "ImageNet" and model.config["name"] == "vgg16":
        frozen = " VGG16's weights in data/weights/ (CC BY 4.0) are part of it; the frozen ones are not in the file."
    return {
        "recipe": title,
        "profile": profile(),
        "command": f"{command} --save",
        "data": f"Fashion-MNIST (Zalando Research, MIT): {len(splits['train']):,} training images",
        "input": "uint8 [B, 28, 28], black background",
        "metrics": {key: round(value, 5) for key, value in metrics.items()},
        "mirror": mirrored,
        "licence": f"MIT.{frozen}",
    }
