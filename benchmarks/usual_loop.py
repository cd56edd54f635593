"""The usual notebook against ours: ten epochs of a head on a frozen network, from the CSV file to the test accuracy."""

import functools
import sys
import tempfile
from multiprocessing import set_start_method
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from common import clock, in_fresh_process, options, record, splits, weights_of
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from fmnist_utils import pick
from fmnist_utils.cache import cache_features
from fmnist_utils.data import make_loader, read_csv, write_csv
from fmnist_utils.evaluate import predict, score
from fmnist_utils.models import Classifier, build_model
from fmnist_utils.plots import COLORS, use_style
from fmnist_utils.recipes import RECIPES
from fmnist_utils.results import peak_memory_mb
from fmnist_utils.scale.engines import default_device
from fmnist_utils.train import fit

BATCH, LR, WORKERS = 32, 1e-3, 2
EPOCHS = pick(smoke=2, cpu=10, full=10)
SMALL, LARGE = pick(smoke=(32, 40), cpu=(64, 224), full=(64, 224))
#: Backbone, side in pixels, and images for training, validation and test: on a CPU what half an hour allows for all.
ALL_IMAGES = (55_000, 5_000, 10_000)
CASES = [
    (name, size, pick(smoke=(32, 4, 4), cpu=images, full=ALL_IMAGES))
    for name, size, images in (
        ("vgg16", SMALL, (2_000, 100, 1_000)),
        ("vgg16", LARGE, (48, 16, 200)),
        ("resnet50", SMALL, (300, 100, 200)),
        ("resnet50", LARGE, (32, 16, 50)),
    )
][: pick(smoke=3, cpu=4, full=4)]
NAMES = {"vgg16": "VGG16", "resnet50": "ResNet50"}
#: The equal-time run: its longest time in seconds, the part of it planned for the pass through the backbone (the head
#: takes the rest), validation images per training image, and most training images.
EQUAL_SECONDS, PASS_SHARE, VAL_SHARE = 180, 0.8, 0.1
EQUAL_IMAGES = pick(smoke=64, cpu=20_000, full=55_000)
#: Images that set the ranges of int8.
CALIBRATION = pick(smoke=4, cpu=64, full=64)
#: The input pipeline alone is timed on this many output pixels: a second or more of the faster one.
PIPELINE_PIXELS = pick(smoke=200_000, cpu=80_000_000, full=400_000_000)
PRELOAD = ("fmnist_utils.recipes", "fmnist_utils.plots", "accelerate", "openvino", "nncf")


class CsvImages(Dataset):
    """Rows of a CSV file (label, 784 pixels), turned into images one at a time."""

    def __init__(self, path: Path, transform) -> None:
        table = pd.read_csv(path)
        self.labels = table["label"].to_numpy()
        self.pixels = table.drop(columns="label").to_numpy(np.uint8)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.pixels[index].reshape(28, 28))
        return self.transform(image), int(self.labels[index])


@torch.no_grad()
def usual_test(backbone: nn.Module, head: nn.Module, loader: DataLoader, device: str) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over the samples of ``loader``."""
    head.eval()
    loss, correct = 0.0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = head(backbone(images))
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(1) == labels).sum().item()
    return loss / len(loader.dataset), correct / len(loader.dataset)


def usual(settings: dict, folder: Path) -> dict:
    """Train and test as most notebooks do; returns what it took and reached."""
    device, model, measured = prepare(settings)
    backbone = model.backbone.to(device).eval()  # BatchNorm keeps its statistics
    hidden, output = nn.Linear(model.head[2].in_features, 256), nn.Linear(256, 10)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), hidden, nn.ReLU(), nn.Dropout(0.5), output).to(device)
    head.load_state_dict(model.head.state_dict())
    size, std = settings["image_size"], 1 / (255 * model.preprocess.scale.flatten())
    mean = -model.preprocess.offset.flatten() * std
    resize, normalize = transforms.Resize((size, size)), transforms.Normalize(mean.tolist(), std.tolist())
    transform = transforms.Compose([resize, transforms.Grayscale(3), transforms.ToTensor(), normalize])
    began = clock()
    train, val = (CsvImages(folder / f"{split}.csv", transform) for split in ("train", "val"))
    loader = functools.partial(DataLoader, batch_size=BATCH, num_workers=WORKERS, pin_memory=device == "cuda")
    generator = torch.Generator()
    train_loader, val_loader = loader(train, shuffle=True, generator=generator), loader(val)
    optimizer = torch.optim.Adam(head.parameters(), lr=LR)
    rows, best, best_accuracy = [], None, -1.0
    for epoch in range(EPOCHS):
        epoch_began = clock()
        # As fit() seeds its first run's epochs: the same order and dropout masks for both.
        torch.manual_seed(epoch)
        generator.manual_seed(epoch)
        head.train()
        for images, labels in train_loader:
            images, labels = images.to(device), labels.to(device)
            with torch.no_grad():
                features = backbone(images)
            loss = F.cross_entropy(head(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        val_loss, val_accuracy = usual_test(backbone, head, val_loader, device)
        if val_accuracy >= best_accuracy:
            best, best_accuracy = {k: v.clone() for k, v in head.state_dict().items()}, val_accuracy
        rows.append({"val_loss": val_loss, "val_accuracy": val_accuracy, "seconds": clock() - epoch_began})
    total = clock() - began
    head.load_state_dict(best)
    tested = clock()
    _, accuracy = usual_test(backbone, head, loader(CsvImages(folder / "test.csv", transform)), device)
    test_seconds = clock() - tested
    many = Subset(train, pipeline_indices(len(train), size))
    rates = pipeline_rates(loader(many), lambda images: images.to(device))
    measured |= {"workers_peak_memory_mb": workers_peak_memory_mb()}
    return measured | outcome(pd.DataFrame(rows), total, test_seconds, accuracy, rates)


def ours(settings: dict, folder: Path, training: dict, int8: bool = False) -> dict:
    """The same with features that are computed once; ``training`` holds arguments of :func:`fmnist_utils.train.fit`."""
    device, model, measured = prepare(settings)
    began = clock()
    train, val = (read_csv(folder / f"{split}.csv") for split in ("train", "val"))
    engine = {"engine": "openvino", "calibration": train.subset(min(len(train), CALIBRATION))} if int8 else {}
    features = [cache_features(model, data, **engine, verbose=False) for data in (train, val)]
    measured |= {"pass_seconds": clock() - began, "engine": features[0].report.engine}
    history = fit(model, *features, **training, progress=False)
    total = clock() - began
    tested = clock()
    test = cache_features(model, read_csv(folder / "test.csv"), **engine, verbose=False)
    accuracy = score(predict(model, test), test.labels)["accuracy"]
    test_seconds = clock() - tested
    many = train.select(pipeline_indices(len(train), model.preprocess.image_size))
    rates = pipeline_rates(make_loader(many, BATCH), lambda images: model.preprocess(images.to(device)))
    return measured | outcome(history.reset_index(), total, test_seconds, accuracy, rates)


def prepare(settings: dict) -> tuple[str, Classifier, dict]:
    """(device, model, its weights and the seconds of a first call): the same for both, and counted for neither."""
    set_start_method(None, force=True)  # workers start in the platform's way, not in that of in_fresh_process()
    device = default_device()
    model, began = build_model(**settings), clock()
    with torch.no_grad():
        model.to(device)(torch.zeros(2, 28, 28, dtype=torch.uint8, device=device))
    return device, model, {"weights": model.weights, "warm_up_seconds": clock() - began}


def pipeline_indices(count: int, image_size: int) -> list[int]:
    """Indices of ``count`` images, over and over, as many as ``PIPELINE_PIXELS`` says."""
    return [i % count for i in range(max(2 * BATCH, PIPELINE_PIXELS // image_size**2))]


@torch.no_grad()
def pipeline_rates(loader: DataLoader, work) -> tuple[float, float]:
    """Images per second through ``loader`` and ``work``, from the start on and from the first batch on."""
    began, first = clock(), None
    for images, _ in loader:
        work(images)
        first = first or clock()
    ended, count = clock(), len(loader.dataset)
    return count / (ended - began), (count - BATCH) / (ended - first)


def outcome(history: pd.DataFrame, total: float, test_seconds: float, accuracy: float, rates: tuple) -> dict:
    """What both variants report, by the names of the JSON."""
    best = int(history.val_accuracy[::-1].idxmax()) + 1  # the last of equally good epochs, as both keep it
    row = {"total_seconds": total, "epoch_seconds": history.seconds.median(), "test_seconds": test_seconds}
    row |= {"test_accuracy": accuracy, "best_epoch": best, "val_losses": history.val_loss.tolist()}
    row |= {"pipeline_images_per_second": rates[0], "pipeline_steady_images_per_second": rates[1]}
    return row | {"peak_memory_mb": peak_memory_mb()}


def workers_peak_memory_mb() -> float | None:
    """Largest memory of a finished child process in MB; None on Windows, which does not keep it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


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
        settings = {"name": name, "head": (0, 1, (256,), False), "image_size": size} | weights_of(name)
        files = write_splits(folder / f"{name}-{size}", images)
        theirs, own = fresh(usual, settings, files), fresh(ours, settings, files, training)
        row = compared(f"{NAMES[name]}, {size} px", settings, images, theirs, own)
        differences = [abs(a - b) for a, b in zip(theirs["val_losses"], own["val_losses"], strict=True)]
        rows.append(row | {"largest_val_loss_difference": max(differences)})
        if len(rows) == 1:  # once more with the frozen layers in int8, whose preparation counts
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
        f"{first['case']}, 13 frozen convolutions ({first['weights']}), {first['train_images']:,} training images, "
        f"{EPOCHS} epochs, {first['val_images']:,} images for validation after each, batch {BATCH}, float32, "
        f"usual loop with {WORKERS} workers"
    )
    record("usual_loop", setting, *rates, "images·epochs/s", figure=draw(rows), cases=rows)


if __name__ == "__main__":
    main()
