"""The usual notebook against ours: ten epochs of a head on a frozen network, from the CSV file to the test accuracy.

``python benchmarks/usual_loop.py`` writes ``results/benchmarks/usual_loop-<profile>.json`` and the figure of the same
name. The usual loop reads the CSV file with pandas, turns one image at a time into a normalised RGB tensor with PIL and
torchvision in two worker processes, and runs the frozen backbone again in every epoch; :func:`usual` is that loop,
written with care. :func:`ours` runs the backbone once and trains on what it put out. Both start from the same weights
of the backbone and the head and see the same images in the same order under the same dropout masks; both validate after
each epoch, keep the best epoch and are tested with it.

``cases`` in the JSON holds one row per case, with what ``usual_`` and ``ours_`` took. ``total_seconds``: reading the
CSV files and all epochs with their validation; for ours the one pass through the backbone (``pass_seconds``, reading
included) and the training of the head. Apart from it: importing and building the network, ``warm_up_seconds`` (two
images) and ``test_seconds``. ``epoch_seconds`` is the median. ``pipeline_images_per_second`` is the input pipeline
alone, the start of the workers included; ``pipeline_steady_…`` counts from the first batch on. Every variant runs in a
process of its own, for ``peak_memory_mb``; ``workers_peak_memory_mb`` is its largest worker, pages shared with the
parent included. ``largest_val_loss_difference`` compares epoch by epoch: both differ in PIL's rounding of pixels to
whole grey levels and in features kept as float16. One case runs once more with the frozen layers in int8. The last case
sets the usual loop at 224 px against the default recipe ``vgg16-block3``, on the same images and, in
``ours_equal_time_…``, on about as many as it gets through in the time that the usual loop took.

What it shows: at equal image size both learn the same, and ours takes the time of about one epoch whatever their
number; the default recipe is faster again, and can spend that time on many more images. With as few images as the
``cpu`` profile has, accuracies are uncertain by several points; those of random weights say nothing about transfer.
"""

import functools
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, set_start_method
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from fmnist_utils import pick
from fmnist_utils.cache import cache_features
from fmnist_utils.data import FashionMNIST, load, make_loader, read_csv, train_val_split, write_csv
from fmnist_utils.evaluate import predict, score
from fmnist_utils.models import Classifier, WeightsUnavailable, build_model, find_weights
from fmnist_utils.plots import COLORS, use_style
from fmnist_utils.recipes import RECIPES
from fmnist_utils.results import peak_memory_mb, save_benchmark
from fmnist_utils.scale.engines import default_device
from fmnist_utils.train import fit

BATCH, LR, WORKERS = 32, 1e-3, 2
EPOCHS = pick(smoke=2, cpu=10, full=10)
LARGE = pick(smoke=40, cpu=224, full=224)
#: Backbone, side in pixels, and images for training, validation and test: on a CPU what half an hour allows for all.
CASES = [
    ("vgg16", 64, pick(smoke=(32, 4, 4), cpu=(2_000, 100, 1_000), full=(55_000, 5_000, 10_000))),
    ("vgg16", LARGE, pick(smoke=(32, 4, 4), cpu=(48, 16, 200), full=(55_000, 5_000, 10_000))),
    ("resnet50", 64, pick(smoke=(32, 4, 4), cpu=(300, 100, 200), full=(55_000, 5_000, 10_000))),
    ("resnet50", LARGE, pick(smoke=(32, 4, 4), cpu=(32, 16, 50), full=(55_000, 5_000, 10_000))),
]
NAMES = {"vgg16": "VGG16", "resnet50": "ResNet50"}
#: The equal-time run: its longest time in seconds, the part of it planned for the pass through the backbone (the head
#: takes the rest), validation images per training image, and most training images.
EQUAL_SECONDS, PASS_SHARE, VAL_SHARE = 180, 0.8, 0.1
EQUAL_IMAGES = pick(smoke=64, cpu=20_000, full=55_000)
#: Images that set the ranges of int8.
CALIBRATION = 64
#: The input pipeline alone is timed on this many output pixels: a second or more of the faster one.
PIPELINE_PIXELS = pick(smoke=200_000, cpu=80_000_000, full=400_000_000)


# --------------------------------------------------------------------------------------------- the usual notebook


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
    channels = model.head[2].in_features
    head = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10)
    ).to(device)
    head.load_state_dict(model.head.state_dict())
    size, std = settings["image_size"], 1 / (255 * model.preprocess.scale.flatten())
    mean = -model.preprocess.offset.flatten() * std
    transform = transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.Grayscale(3),
            transforms.ToTensor(),
            transforms.Normalize(mean.tolist(), std.tolist()),
        ]
    )
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


# ----------------------------------------------------------------------------------------------------------- ours


def ours(settings: dict, folder: Path, training: dict, int8: bool = False) -> dict:
    """The same with features that are computed once; ``training`` holds arguments of :func:`fmnist_utils.train.fit`."""
    device, model, measured = prepare(settings)
    began = clock()
    train, val = (read_csv(folder / f"{split}.csv") for split in ("train", "val"))
    engine = {"engine": "openvino", "calibration": train.subset(min(len(train), CALIBRATION))} if int8 else {}
    features = [cache_features(model, data, **engine, verbose=False) for data in (train, val)]
    passed = clock() - began
    history = fit(model, *features, **training, progress=False)
    total = clock() - began
    tested = clock()
    test = cache_features(model, read_csv(folder / "test.csv"), **engine, verbose=False)
    accuracy = score(predict(model, test), test.labels)["accuracy"]
    test_seconds = clock() - tested
    many = train.select(pipeline_indices(len(train), model.preprocess.image_size))
    rates = pipeline_rates(make_loader(many, BATCH), lambda images: model.preprocess(images.to(device)))
    measured |= {"pass_seconds": passed, "engine": features[0].report.engine}
    return measured | outcome(history.reset_index(), total, test_seconds, accuracy, rates)


# -------------------------------------------------------------------------------------------------------- measuring


def prepare(settings: dict) -> tuple[str, Classifier, dict]:
    """(device, model, its weights and the seconds of a first call): the same for both, and counted for neither."""
    set_start_method(None, force=True)  # workers start in the platform's way, not in that of in_fresh_process()
    device = default_device()
    model, began = build_model(**settings), clock()
    with torch.no_grad():
        model.to(device)(torch.zeros(2, 28, 28, dtype=torch.uint8, device=device))
    return device, model, {"weights": model.weights, "warm_up_seconds": clock() - began}


def clock() -> float:
    """Seconds, once a GPU has done what it was asked to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


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
    best = history.val_accuracy[::-1].idxmax()  # the last of equally good epochs, as both keep it
    return {
        "total_seconds": total,
        "epoch_seconds": history.seconds.median(),
        "test_seconds": test_seconds,
        "test_accuracy": accuracy,
        "best_epoch": int(best) + 1,
        "val_losses": history.val_loss.tolist(),
        "pipeline_images_per_second": rates[0],
        "pipeline_steady_images_per_second": rates[1],
        "peak_memory_mb": peak_memory_mb(),
    }


def workers_peak_memory_mb() -> float | None:
    """Largest memory of a finished child process in MB; None on Windows, which does not keep it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def in_fresh_process(variant, *arguments) -> dict:
    """``variant(*arguments)`` in a process of its own, so that its peak memory is its own; the processes take turns."""
    # Importing takes seconds. Where forking is safe, a server imports once and each process starts as its copy.
    fork = sys.platform == "linux" and not torch.cuda.is_available()
    context = get_context("forkserver" if fork else "spawn")
    context.set_forkserver_preload(["fmnist_utils.recipes", "fmnist_utils.plots", "accelerate", "openvino", "nncf"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(variant, *arguments).result()


# ------------------------------------------------------------------------------------------------------------ cases


@functools.cache
def weights_of(name: str) -> dict:
    """ImageNet weights, or random ones, just as frozen, where those cannot be had: arguments of ``build_model``."""
    try:
        find_weights(name)
    except WeightsUnavailable as error:
        print(error, "\nGoing on with random weights, on purpose: the time is the same, the accuracy is not.")
        return {"weights": None, "trainable": "head"}
    return {}


def write_splits(folder: Path, splits: tuple[FashionMNIST, ...], images: tuple[int, ...]) -> Path:
    """A new ``folder`` with CSV files of that many training, validation and test images, classes in proportion."""
    folder.mkdir()
    for name, split, count in zip(("train", "val", "test"), splits, images, strict=True):
        write_csv(split.subset(count), folder / f"{name}.csv")
    return folder


def compared(name: str, settings: dict, images: tuple, theirs: dict, own: dict) -> dict:
    """The flat row of a case; ``images`` counts training, validation and test."""
    row = {"case": name, "model": settings["name"], "image_size": settings["image_size"], "weights": own["weights"]}
    row |= dict(zip(("train_images", "val_images", "test_images"), images, strict=True)) | {"epochs": EPOCHS}
    for prefix, measured in (("usual", theirs), ("ours", own)):
        row |= {f"{prefix}_{key}": v for key, v in measured.items() if key not in ("weights", "val_losses")}
        row[f"{prefix}_last_val_loss"] = measured["val_losses"][-1]
    row |= {
        "speedup_total": theirs["total_seconds"] / own["total_seconds"],
        "speedup_pipeline": own["pipeline_images_per_second"] / theirs["pipeline_images_per_second"],
        "accuracy_difference_points": 100 * (own["test_accuracy"] - theirs["test_accuracy"]),
    }
    print(f"{name}: {theirs['total_seconds']:.1f} s, ours {own['total_seconds']:.1f} s", flush=True)
    return row


def default_recipe(folder: Path, splits: tuple, images: tuple, theirs: dict) -> dict:
    """What the usual loop measured (``theirs``) against the default recipe: on the same images, in the same time."""
    settings, training = RECIPES["vgg16-block3"]["model"] | weights_of("vgg16"), {"epochs": EPOCHS}
    own = in_fresh_process(ours, settings, write_splits(folder / "same", splits, images), training)
    row = compared("default_recipe", settings, images, theirs, own)
    seconds = min(theirs["total_seconds"], EQUAL_SECONDS)
    rate = sum(images) / (own["pass_seconds"] + own["test_seconds"])
    more = min(EQUAL_IMAGES, int(PASS_SHARE * seconds * rate / (1 + VAL_SHARE)))
    many = (more, min(len(splits[1]), int(VAL_SHARE * more)), images[2])
    longer = in_fresh_process(ours, settings, write_splits(folder / "more", splits, many), training)
    return row | {
        "usual_image_size": LARGE,
        "ours_equal_time_train_images": many[0],
        "ours_equal_time_val_images": many[1],
        "ours_equal_time_total_seconds": longer["total_seconds"],
        "ours_equal_time_test_accuracy": longer["test_accuracy"],
    }


def measure(folder: Path) -> list[dict]:
    """One row per case; CSV files go to ``folder``."""
    same = {"batch_size": BATCH, "lr": LR, "optimizer": "adam", "weight_decay": 0.0, "schedule": "constant"}
    splits = (*train_val_split(load("train")), load("test"))
    rows, large = [], None
    for name, size, images in CASES:
        settings = {"name": name, "head": (0, 1, (256,), False), "image_size": size} | weights_of(name)
        files = write_splits(folder / f"{name}-{size}", splits, images)
        theirs = in_fresh_process(usual, settings, files)
        own = in_fresh_process(ours, settings, files, {"epochs": EPOCHS, **same})
        row = compared(f"{NAMES[name]}, {size} px", settings, images, theirs, own)
        differences = [abs(a - b) for a, b in zip(theirs["val_losses"], own["val_losses"], strict=True)]
        rows.append(row | {"largest_val_loss_difference": max(differences)})
        if len(rows) == 1:  # once more with the frozen layers in int8, whose preparation counts
            own = in_fresh_process(ours, settings, files, {"epochs": EPOCHS, **same}, True)
            rows.append(compared(f"{row['case']}, int8", settings, images, theirs, own))
        if (name, size) == ("vgg16", LARGE):
            large = images, theirs
    rows.append(default_recipe(folder, splits, *large))
    return [{key: round(v, 5) if isinstance(v, float) else v for key, v in row.items()} for row in rows]


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
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    first = rows[0]
    rates = {who: first["train_images"] * EPOCHS / first[f"{who}_total_seconds"] for who in ("ours", "usual")}
    path = save_benchmark(
        "usual_loop",
        setting=f"{first['case']}, 13 frozen convolutions ({first['weights']}), {first['train_images']:,} training "
        f"images, {EPOCHS} epochs, {first['val_images']:,} images for validation after each, batch {BATCH}, float32, "
        f"usual loop with {WORKERS} workers",
        ours=rates["ours"],
        reference=rates["usual"],
        unit="images·epochs/s",
        figure=draw(rows),
        cases=rows,
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
