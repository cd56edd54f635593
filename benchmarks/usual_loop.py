"""The usual notebook against ours: ten epochs of a head on a frozen network, from the CSV file to the test accuracy."""

import functools
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from common import in_fresh_process, options, record, splits, weights_of
from loops import BATCH, EPOCHS, LR, WORKERS, ours, usual

from fmnist_utils import pick
from fmnist_utils.data import write_csv
from fmnist_utils.plots import COLORS, use_style
from fmnist_utils.recipes import RECIPES

SMALL, LARGE = pick(smoke=(32, 40), cpu=(64, 224), full=(64, 224))
#: Backbone, side in pixels, and images for training, validation and test: on a CPU what half an hour allows for all, on
#: a GPU what six minutes allow the usual loop, which waits for two processes that prepare images.
CASES = [
    (name, size, pick(smoke=(32, 4, 4), cpu=images, full=more))
    for name, size, images, more in (
        ("vgg16", SMALL, (2_000, 100, 1_000), (10_000, 1_000, 5_000)),
        ("vgg16", LARGE, (48, 16, 200), (3_000, 500, 2_000)),
        ("resnet50", SMALL, (300, 100, 200), (10_000, 1_000, 5_000)),
        ("resnet50", LARGE, (32, 16, 50), (3_000, 500, 2_000)),
    )
][: pick(smoke=3, cpu=4, full=4)]
NAMES = {"vgg16": "VGG16", "resnet50": "ResNet50"}
#: A test takes the first blocks only: quantising all layers is most of its time.
CUT = pick(smoke={"vgg16": "block2", "resnet50": "layer1"}, cpu={}, full={})
#: The equal-time run: its longest time in seconds, the part of it planned for the pass through the backbone (the head
#: takes the rest), validation images per training image, and most training images.
EQUAL_SECONDS, PASS_SHARE, VAL_SHARE = 180, 0.8, 0.1
EQUAL_IMAGES = pick(smoke=64, cpu=20_000, full=55_000)
PRELOAD = ("fmnist_utils.recipes", "fmnist_utils.plots", "accelerate", "openvino", "nncf")


fresh = functools.partial(in_fresh_process, preload=PRELOAD)


def write_splits(folder: Path, images: tuple[int, ...]) -> Path:
    """A new ``folder`` with CSV files of that many training, validation and test images, classes in proportion."""
    folder.mkdir()
    for name, split in splits(**dict(zip(("train", "val", "test"), images, strict=True))).items():
        write_csv(split, folder / f"{name}.csv")
    return folder


def compared(name: str, settings: dict, images: tuple, theirs: dict, own: dict) -> dict:
    """The flat row of a case; ``images`` counts training, validation and test."""
    row = {"case": name, "model": settings["name"], "image_size": settings["image_size"], "weights": own["weights"]}
    row |= dict(zip(("train_images", "val_images", "test_images"), images, strict=True)) | {"epochs": EPOCHS}
    for prefix, measured in (("usual", theirs), ("ours", own)):
        row |= {f"{prefix}_{key}": v for key, v in measured.items() if key not in ("weights", "val_losses")}
        row[f"{prefix}_last_val_loss"] = measured["val_losses"][-1]
    print(f"{name}: {theirs['total_seconds']:.1f} s, ours {own['total_seconds']:.1f} s", flush=True)
    return row | {
        "speedup_total": theirs["total_seconds"] / own["total_seconds"],
        "speedup_pipeline": own["pipeline_images_per_second"] / theirs["pipeline_images_per_second"],
        "accuracy_difference_points": 100 * (own["test_accuracy"] - theirs["test_accuracy"]),
    }


def default_recipe(folder: Path, images: tuple, theirs: dict) -> dict:
    """What the usual loop measured (``theirs``) against the default recipe: on the same images, in the same time."""
    settings, training = RECIPES["vgg16-block3"]["model"] | weights_of("vgg16"), {"epochs": EPOCHS}
    own = fresh(ours, settings, write_splits(folder / "same", images), training)
    seconds = min(theirs["total_seconds"], EQUAL_SECONDS)
    rate = sum(images) / (own["pass_seconds"] + own["test_seconds"])
    more = min(EQUAL_IMAGES, int(PASS_SHARE * seconds * rate / (1 + VAL_SHARE)))
    many = (more, min(5_000, int(VAL_SHARE * more)), images[2])
    longer = fresh(ours, settings, write_splits(folder / "more", many), training)
    return compared("default_recipe", settings, images, theirs, own) | {
        "usual_image_size": LARGE,
        "ours_equal_time_train_images": many[0],
        "ours_equal_time_val_images": many[1],
        "ours_equal_time_total_seconds": longer["total_seconds"],
        "ours_equal_time_test_accuracy": longer["test_accuracy"],
    }


def measure(folder: Path) -> list[dict]:
    """One row per case; CSV files go to ``folder``."""
    same = {"batch_size": BATCH, "lr": LR, "optimizer": "adam", "weight_decay": 0.0, "schedule": "constant"}
    training, rows = {"epochs": EPOCHS, **same}, []
    for name, size, images in CASES:
        frozen = {"name": name, "cut_after": CUT.get(name), **weights_of(name)}
        settings = {"head": (0, 1, (256,), False), "image_size": size, **frozen}
        files = write_splits(folder / f"{name}-{size}", images)
        theirs, own = fresh(usual, settings, files), fresh(ours, settings, files, training)
        row = compared(f"{NAMES[name]}, {size} px", settings, images, theirs, own)
        differences = [abs(a - b) for a, b in zip(theirs["val_losses"], own["val_losses"], strict=True)]
        rows.append(row | {"largest_val_loss_difference": max(differences)})
        if len(rows) == 1 and not torch.cuda.is_available():  # once more in int8, whose preparation counts
            own = fresh(ours, settings, files, training, True)
            rows.append(compared(f"{row['case']}, int8", settings, images, theirs, own))
        if (name, size) == ("vgg16", LARGE):
            large = images, theirs
    return [*rows, default_recipe(folder, *large)]


def draw(rows: list[dict]) -> plt.Figure:
    """Seconds for all epochs, a pair of bars per case, and a third one for the default recipe with more images."""
    use_style()
    figure, axis = plt.subplots(figsize=(10, 6.4))
    ticks, seconds, position = {}, [], 0.0
    for row in rows:
        recipe = row["case"] == "default_recipe"
        bars = [("usual loop", "usual_", "muted"), ("ours", "ours_", "train")]
        bars += [("ours, more images in the usual loop's time", "ours_equal_time_", "test")] * recipe
        ticks[position + 0.2 * (len(bars) - 1)] = row_label(row)
        for label, prefix, color in bars:
            seconds.append(row[f"{prefix}total_seconds"])
            axis.barh(position, seconds[-1], 0.36, color=COLORS[color], label=label if recipe else None)
            text = f"{short(seconds[-1])} s · {row[f'{prefix}test_accuracy']:.1%}"
            if prefix == "ours_":
                text += f" · {short(row['speedup_total'])}× as fast"
            if prefix == "ours_equal_time_":
                text += f" · {row[f'{prefix}train_images']:,} images"
            axis.annotate(text, (seconds[-1], position), (5, 0), textcoords="offset points", va="center", fontsize=10)
            position += 0.4
        position += 0.35
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:,g}")
    axis.set(xlim=(min(seconds) / 3, max(seconds) * 14), yticks=list(ticks), yticklabels=list(ticks.values()))
    axis.set(xlabel=f"seconds for {EPOCHS} epochs (log scale)", title="Frozen layers run once: seconds · test accuracy")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def row_label(row: dict) -> str:
    weights = "random" if row["weights"] == "none" else "ImageNet"
    images = f"{row['train_images']:,} images, {weights} weights"
    if row["case"] == "default_recipe":
        return f"default recipe (block3, {row['image_size']} px)\nagainst VGG16, {row['usual_image_size']} px\n{images}"
    return f"{row['case']}\n{images}"


def main() -> None:
    options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    first = rows[0]
    rates = (first["train_images"] * EPOCHS / first[f"{who}_total_seconds"] for who in ("ours", "usual"))
    setting = (
        f"{first['case']}, frozen convolutions ({first['weights']}), {first['train_images']:,} training images, "
        f"{EPOCHS} epochs, {first['val_images']:,} images for validation after each, batch {BATCH}, float32, "
        f"usual loop with {WORKERS} workers"
    )
    record("usual_loop", setting, *rates, "images·epochs/s", figure=draw(rows), cases=rows)


if __name__ == "__main__":
    main()
