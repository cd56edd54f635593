"""How much data does transfer save? Test accuracy against the number of training images, four ways."""

import json

import numpy as np
import pandas as pd
import torch
from common import clock, options, record, splits
from sklearn.model_selection import train_test_split

from fmnist_utils import ROOT, pick, plots, profile
from fmnist_utils.cache import CachedFeatures, cache_features
from fmnist_utils.data import replacing
from fmnist_utils.evaluate import predict, score
from fmnist_utils.models import WeightsUnavailable, build_model
from fmnist_utils.recipes import RECIPES
from fmnist_utils.train import fit

IMAGES = pick(smoke=(20, 60), cpu=(100, 300, 1_000), full=(100, 300, 1_000, 3_000, 10_000, 30_000, 55_000))
TEST = pick(smoke=100, cpu=1_000, full=10_000)
SEEDS = pick(smoke=(0, 1), cpu=(0, 1, 2), full=(0, 1, 2))
#: Ten minutes a training on two cores: one seed less.
FEWER_SEEDS = {("small CNN from scratch", 30_000): (0, 1)}
#: Few images need many epochs: (up to so many images, epochs on features, epochs from scratch, images per step).
SCHEDULE = pick(
    smoke=[(60, 1, 1, 20)],
    cpu=[(300, 40, 60, 32), (1_000, 25, 40, 32)],
    full=[(300, 60, 100, 32), (1_000, 40, 40, 32), (3_000, 20, 20, 32), (10_000, 6, 10, 128), (55_000, 6, 7, 128)],
)
BLOCK3 = {"cut_after": "block3", "head": "pooled", "image_size": pick(smoke=32, cpu=56, full=56), "trainable": "head"}
#: Cut where benchmarks/backbones.py found it best, on validation images.
RESNET = {"name": "resnet50", "cut_after": "layer2", "head": "pooled", "image_size": pick(smoke=32, cpu=64, full=64)}
WAYS = {
    "VGG16, ImageNet features": {"name": "vgg16", **BLOCK3},
    "ResNet50, ImageNet features": {**RESNET, "trainable": "head"},
    "VGG16, random features": {"name": "vgg16", "weights": None, **BLOCK3},
    "small CNN from scratch": {**RECIPES["small-cnn"]["model"], "trainable": "all"},
}
#: The most images of a way that gets fewer: its features are computed per training, not once for all images.
MOST = {"ResNet50, ImageNet features": 3_000}
SCRATCH = {k: v for k, v in RECIPES["small-cnn"]["phases"][0].items() if k not in ("trainable", "epochs")}
FOLDER = ROOT / "data" / "cache" / f"training_images-{profile()}"


def some(inputs, rows: np.ndarray):
    """The images or features at ``rows``."""
    if not isinstance(inputs, CachedFeatures):
        return inputs.select(rows)
    rows = torch.from_numpy(rows)
    parts = inputs.features[:, rows], inputs.labels[rows]
    return CachedFeatures(*parts, inputs.key, inputs.prefix_key, inputs.border, inputs.report)


def drawn(labels: torch.Tensor, images: int, seed: int) -> np.ndarray:
    """Row numbers of ``images`` random images, in equal shares of the classes."""
    rows = np.arange(len(labels))
    if images >= len(rows):
        return rows
    return np.sort(train_test_split(rows, train_size=images, stratify=labels, random_state=seed)[0])


def train_once(way: str, inputs: dict, images: int, seed: int) -> dict:
    """One training with ``images`` images, and its test."""
    features, scratch, batch_size = next(row[1:] for row in SCHEDULE if images <= row[0])
    frozen = WAYS[way]["trainable"] == "head"
    training = {"epochs": features, "lr": 1e-3} if frozen else {"epochs": scratch, **SCRATCH}
    began = clock()
    model = build_model(**WAYS[way], seed=seed if not frozen else 0)
    if frozen and seed:  # the same frozen layers, another head
        torch.manual_seed(seed)
        for layer in model.head:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    train, val = (some(inputs[k], drawn(inputs[k].labels, images, seed)) for k in ("train", "val"))
    if frozen and not isinstance(train, CachedFeatures):
        train = cache_features(model, train, verbose=False)
    fit(model, train, val, batch_size=batch_size, seed=seed, progress=False, **training)
    seconds = clock() - began
    accuracy = score(predict(model, inputs["test"], mirror=not frozen), inputs["test"].labels)["accuracy"]
    row = {"way": way, "weights": model.weights, "images": images, "seed": seed}
    return row | {"test_accuracy": accuracy, "seconds": seconds}


def inputs_of(way: str) -> dict:
    """Images, or the features of the frozen layers where those of all images are needed."""
    inputs = splits(train=max(IMAGES), val=min(5_000, max(IMAGES)), test=TEST)
    if WAYS[way]["trainable"] != "head":
        return inputs
    model = build_model(**WAYS[way])
    parts = ("val", "test") if way in MOST else ("train", "val", "test")
    return inputs | {k: cache_features(model, inputs[k], folder=FOLDER) for k in parts}


def recorded() -> dict[tuple, dict]:
    """The trainings of the recorded file, by way, number of images and seed, each with where and when it was made."""
    file = ROOT / "results" / "benchmarks" / f"training_images-{profile()}.json"
    if not file.is_file():
        return {}
    old = json.loads(file.read_text(encoding="utf-8"))
    made = "{date}, {hardware[cpu]}, cores: {hardware[cores]}, torch {versions[torch]}".format(**old)
    return {(row["way"], row["images"], row["seed"]): {"made": made} | row for row in old["trainings"]}


def points(way: str, known: dict[tuple, dict]) -> list[dict]:
    """All trainings of one way; those ``known`` or already in ``FOLDER`` are read."""
    rows, inputs = [], None
    for images in (n for n in IMAGES if n <= MOST.get(way, n)):
        if way == "small CNN from scratch" and images == 55_000:  # the recipe itself, as it was recorded
            recipe = json.loads((ROOT / "results" / "small-cnn-full.json").read_text(encoding="utf-8"))
            for seed, accuracy in zip(recipe["seeds"], recipe["per_seed"]["test_accuracy"], strict=True):
                row = {"way": way, "weights": recipe["weights"], "images": images, "seed": seed}
                rows.append(row | {"test_accuracy": accuracy, "from": "small-cnn-full.json"})
            continue
        for seed in FEWER_SEEDS.get((way, images), SEEDS):
            if row := known.get((way, images, seed)):
                rows.append(row)
                continue
            file = FOLDER / f"{way}, {images} images, seed {seed}.json"
            if not file.is_file():
                inputs = inputs or inputs_of(way)
                row = train_once(way, inputs, images, seed)
                print(row, flush=True)
                file.parent.mkdir(parents=True, exist_ok=True)
                with replacing(file) as part:
                    part.write_text(json.dumps(row))
            rows.append(json.loads(file.read_text()))
    return rows


def found(known: dict[tuple, dict]) -> tuple[list[dict], list[str]]:
    """(all trainings, what is left out and why)."""
    rows, left_out = [], []
    for way in WAYS:
        try:
            rows += points(way, known)
        except WeightsUnavailable:
            left_out.append(f"{way}: its ImageNet weights could not be had")
            print(left_out[-1], flush=True)
    return rows, left_out


def main() -> None:
    asked = options(__doc__, add="train only what the recorded file lacks, and keep its lines")
    trainings, left_out = found(recorded() if asked.add else {})
    rows = pd.DataFrame(trainings)
    table = rows.groupby(["way", "weights", "images"], sort=False).test_accuracy.agg(["mean", "std", "count"])
    table = table.rename(columns={"std": "sd", "count": "seeds"}).reset_index()
    middle = pick(smoke=60, cpu=1_000, full=1_000)
    at = table[table.images == middle].set_index("way")["mean"]
    schedule = ("images", "epochs_features", "epochs_scratch", "batch")
    setting = f"VGG16 to block3, {BLOCK3['image_size']} px, against the small CNN, {middle:,} training images, "
    setting += f"{len(SEEDS)} seeds, {TEST:,} test images"
    fields = {"points": table.to_dict("records"), "trainings": rows.replace({np.nan: None}).to_dict("records")}
    fields["schedule"] = [dict(zip(schedule, row, strict=True)) for row in SCHEDULE]
    fields["left_out"] = left_out
    accuracies = (100 * at[way] for way in ("VGG16, ImageNet features", "small CNN from scratch"))
    record("training_images", setting, *accuracies, "% correct", figure=plots.data_curve(table), **fields)


if __name__ == "__main__":
    main()
