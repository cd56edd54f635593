"""How cost grows: seconds and memory by number of images, image size, epochs and depth of the frozen part.

``python benchmarks/cost_growth.py`` varies one of the four at a time round a base point (VGG16 to block3, ImageNet
weights, a small head on features pooled to 4×4) and writes ``results/benchmarks/cost_growth-<profile>.json`` and a
figure. ``points``: one fresh process each, so that peak memory (on the CPU's side, with imports) is the point's own;
the pass and the epochs are timed after a warm-up of both. ``predicted_pass_seconds`` is the FLOPs of all frozen layers
at the rate of the base point. ``growth``: slopes of straight lines fitted to two of the sweeps. The headline: the pass
of the largest pictures, measured against predicted. The pass grows with images, pixels and depth, not with epochs; the
cache grows with images, and hardly with pixels, because it holds the pooled map where that is smaller.

``python benchmarks/cost_growth.py --large`` writes ``cost_growth_large-<profile>.json``: one pass and one epoch whose
cached features are larger than 8 GB, in a memory-mapped file that is removed afterwards. They are ResNet50's stem at
224 px, with random weights, kept before the pooling that would make them small: speed and memory are measured, not
accuracy. Linux only: the process may not have more than 8 GB of data (``RLIMIT_DATA``: all private writable memory) and
fails if it asks for more. ``peak_anonymous_gb``, the headline, is what it needed of that; ``peak_resident_gb`` also
counts pages of the mapped file, which the kernel takes back whenever something else needs the memory.
"""

import argparse
import multiprocessing
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from fmnist_utils import ROOT, pick, profile
from fmnist_utils.cache import cache_features
from fmnist_utils.data import load
from fmnist_utils.models import build_model, leaves, summary
from fmnist_utils.plots import COLORS, use_style
from fmnist_utils.results import peak_memory_mb, save_benchmark
from fmnist_utils.train import fit

BASE = pick(
    smoke={"images": 32, "image_size": 28, "epochs": 2, "cut_after": "block3"},
    cpu={"images": 400, "image_size": 56, "epochs": 10, "cut_after": "block3"},
    full={"images": 6_400, "image_size": 56, "epochs": 10, "cut_after": "block3"},
)
BLOCKS = ["block1", "block2", "block3", "block4", "block5"]
SWEEPS = {
    "images": pick(smoke=[16, 32], cpu=[100, 200, 400, 800, 1_600], full=[1_600, 3_200, 6_400, 12_800, 25_600, 51_200]),
    "image_size": pick(smoke=[28, 56], cpu=[28, 56, 112, 224], full=[28, 56, 112, 224]),
    "epochs": pick(smoke=[1, 2], cpu=[1, 10, 30], full=[1, 10, 30]),
    "cut_after": pick(smoke=["block1", "block3"], cpu=BLOCKS, full=BLOCKS),
}
LABELS = {"images": "images", "image_size": "image size (px)", "epochs": "epochs", "cut_after": "frozen up to"}
LIMIT_GB = 8


def measure(images: int, image_size: int, epochs: int, cut_after: str) -> dict:
    """One point, in this process: seconds of the pass and of the epochs, MB, and FLOPs of all frozen layers."""
    model = build_model("vgg16", cut_after=cut_after, head="pooled", image_size=image_size)
    data = load("train").subset(images + 50)
    val = cache_features(model, data.select(range(50)), verbose=False)
    fit(model, val, val, epochs=1, progress=False)  # the first step of an optimiser loads a part of torch
    train = cache_features(model, data.select(range(50, len(data))), verbose=False)
    history = fit(model, train, val, epochs=epochs, progress=False)
    return {
        "pass_seconds": round(train.report.seconds, 3),
        "training_seconds": round(float(history.seconds.sum()), 3),
        "cache_mb": round(train.report.bytes / 1e6, 3),
        "peak_memory_mb": round(peak_memory_mb()),
        "gflop": round(images * summary(model).MFLOPs.drop(["head", "total"]).sum() / 1e3, 1),
        "engine": train.report.engine,
        "weights": model.weights,
    }


def sweep() -> pd.DataFrame:
    """All points, measured one after another, with the predicted seconds of the pass."""
    # A server forks each process after the imports; none of it has computed anything before.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["fmnist_utils.train", "fmnist_utils.plots", "accelerate"])
    rows, measured = [], {}
    with context.Pool(1, maxtasksperchild=1) as processes:
        for name, values in SWEEPS.items():
            for value in values:
                point = BASE | {name: value}
                key = tuple(point.values())
                if key not in measured:  # the base point belongs to every sweep
                    measured[key] = processes.apply(measure, kwds=point)
                rows.append({"sweep": name, **point, **measured[key]})
    points, base = pd.DataFrame(rows), measured[tuple(BASE.values())]
    points["predicted_pass_seconds"] = (points.gflop * base["pass_seconds"] / base["gflop"]).round(3)
    return points


def growth(points: pd.DataFrame) -> dict[str, float]:
    """Slopes of straight lines: the pass by image, the epochs by image and epoch."""
    images, epochs = (points[points.sweep == name] for name in ("images", "epochs"))
    slope, start = np.polyfit(images.images, images.pass_seconds, 1)
    return {
        "pass_ms_per_image": round(1e3 * slope, 3),
        "pass_start_seconds": round(start, 3),
        "training_ms_per_image_and_epoch": round(
            1e3 * np.polyfit(epochs.epochs * BASE["images"], epochs.training_seconds, 1)[0], 4
        ),
    }


def draw(points: pd.DataFrame) -> plt.Figure:
    use_style()
    figure, axes = plt.subplots(2, 4, figsize=(13, 6), sharex="col", sharey="row")
    for (upper, lower), (name, values) in zip(axes.T, SWEEPS.items(), strict=True):
        rows, x = points[points.sweep == name], range(len(values))
        upper.plot(x, rows.predicted_pass_seconds, color=COLORS["muted"], lw=5, alpha=0.5, label="pass, from FLOPs")
        upper.plot(x, rows.pass_seconds, "o", color=COLORS["train"], label="pass, measured")
        upper.plot(x, rows.training_seconds, "s--", ms=5, color=COLORS["accent"], label="training, all epochs")
        lower.plot(x, rows.peak_memory_mb, "D-", ms=5, color=COLORS["muted"], label="peak memory of the process")
        lower.plot(x, rows.cache_mb, "o-", color=COLORS["test"], label="cached features")
        lower.set_xticks(x, [f"{v:,}" if isinstance(v, int) else v for v in values])
        lower.set_xlabel(LABELS[name])
        for axis in (upper, lower):
            axis.set_yscale("log")
            axis.axvline(values.index(BASE[name]), color="#3F444B", ls=":", lw=1.4, zorder=0.5)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("MB")
    for axis in axes[:, 0]:
        axis.legend(frameon=False, fontsize=9)
    rest = f"{BASE['images']:,} images, {BASE['image_size']} px, {BASE['epochs']} epochs, VGG16 to {BASE['cut_after']}"
    title = f"One thing varied at a time, all others as at the dotted lines: {rest}"
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return figure


@contextmanager
def peak_anonymous():
    """A list whose entry is the most anonymous memory (in GB, Linux) seen so far, looked at five times a second."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        finished = False
        while not finished:  # and once more at the end: a short pass may be over before the first look
            finished = done.wait(0.2)
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            peak[0] = max(peak[0], int(status["RssAnon"].split()[0]) * 1024 / 1e9)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def large(images: int, image_size: int) -> None:
    """Pass and one epoch over features that are larger than the memory the process may have."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_GB * 10**9, LIMIT_GB * 10**9))
    model = build_model("resnet50", weights=None, cut_after="stem", trainable="head", image_size=image_size)
    border = 1 + len(leaves(model.backbone))  # by default the head's pooling would be cached too, which is tiny
    data = load("train").subset(images)
    disk = ROOT / "data" / "cache"  # the system's temporary folder may be in memory
    disk.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=disk) as folder, peak_anonymous() as peak:
        # fit() wants validation data; its accuracy is not reported.
        val = cache_features(model, data.subset(max(images // 100, 50)), border=border, folder=folder)
        train = cache_features(model, data, border=border, folder=folder)
        history = fit(model, train, val, epochs=1)
        report = train.report
        del train, val  # closes the files
    path = save_benchmark(
        "cost_growth_large",
        setting=f"ResNet50's stem at {image_size} px (random weights), {images:,} images cached in a file, 1 epoch",
        ours=peak[0],
        reference=LIMIT_GB,
        unit="GB",
        images=images,
        image_size=image_size,
        weights=model.weights,
        engine=report.engine,
        cache_gb=round(report.bytes / 1e9, 2),
        pass_seconds=round(report.seconds, 1),
        epoch_seconds=round(float(history.seconds.sum()), 1),
        peak_anonymous_gb=round(peak[0], 2),
        peak_resident_gb=round(peak_memory_mb() / 1e3, 2),
        data_limit_gb=LIMIT_GB,
    )
    print(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--large", action="store_true", help="features that do not fit into memory (24 GB of disk)")
    if parser.parse_args().large:
        if sys.platform != "linux":
            parser.error("--large reads /proc and sets RLIMIT_DATA, which only Linux has")
        large(images=pick(smoke=300, cpu=60_000, full=60_000), image_size=pick(smoke=56, cpu=224, full=224))
        return
    points = sweep()
    largest = points[points.sweep == "image_size"].iloc[-1]
    path = save_benchmark(
        "cost_growth",
        setting=f"pass of {BASE['images']:,} images at {largest.image_size} px through VGG16 to {BASE['cut_after']}, "
        f"measured against predicted from FLOPs ({profile()} profile)",
        ours=largest.pass_seconds,
        reference=largest.predicted_pass_seconds,
        unit="s",
        figure=draw(points),
        growth=growth(points),
        points=points.to_dict("records"),
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
