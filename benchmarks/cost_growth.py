"""How do seconds and memory grow with the number of images, image size, epochs and depth of the frozen part?"""

import functools
import sys
import tempfile
import threading

import numpy as np
import pandas as pd
import psutil
from common import in_fresh_process, options, record

from fmnist_utils import ROOT, pick, profile
from fmnist_utils.cache import cache_features
from fmnist_utils.data import load
from fmnist_utils.models import build_model, leaves, summary
from fmnist_utils.results import peak_memory_mb
from fmnist_utils.train import fit

IMAGES, PIXELS, EPOCHS = pick(smoke=(32, 28, 2), cpu=(400, 56, 10), full=(6_400, 56, 10))
BASE = {"images": IMAGES, "image_size": PIXELS, "epochs": EPOCHS, "cut_after": "block3"}
BLOCKS = ["block1", "block2", "block3", "block4", "block5"]
SWEEPS = {
    "images": pick(smoke=[16, 32], cpu=[100, 200, 400, 800, 1_600], full=[1_600, 3_200, 6_400, 12_800, 25_600, 51_200]),
    "image_size": pick(smoke=[28, 56], cpu=[28, 56, 112, 224], full=[28, 56, 112, 224]),
    "epochs": pick(smoke=[1, 2], cpu=[1, 10, 30], full=[1, 10, 30]),
    "cut_after": pick(smoke=["block1", "block3"], cpu=BLOCKS, full=BLOCKS),
}
#: Of --large.
LIMIT_GB = 8
LARGE_IMAGES, LARGE_PIXELS = pick(smoke=(300, 56), cpu=(60_000, 224), full=(60_000, 224))


def measure(images: int, image_size: int, epochs: int, cut_after: str) -> dict:
    """One point, in this process: seconds of the pass and of the epochs, MB, and FLOPs of all frozen layers."""
    model = build_model("vgg16", cut_after=cut_after, head="pooled", image_size=image_size)
    data = load("train").subset(images + 50)
    val = cache_features(model, data.select(range(50)), verbose=False)
    fit(model, val, val, epochs=1, progress=False)  # the first step of an optimiser loads a part of torch
    train = cache_features(model, data.select(range(50, len(data))), verbose=False)
    history = fit(model, train, val, epochs=epochs, progress=False)
    gflop = images * summary(model).MFLOPs.drop(["head", "total"]).sum() / 1e3
    row = {"pass_seconds": train.report.seconds, "training_seconds": history.seconds.sum(), "gflop": gflop}
    row |= {"cache_mb": train.report.bytes / 1e6, "peak_memory_mb": round(peak_memory_mb())}
    return row | {"engine": train.report.engine, "weights": model.weights}


@functools.cache  # the base point belongs to every sweep
def measured(*point) -> dict:
    """:func:`measure` in a process of its own."""
    return in_fresh_process(measure, *point, preload=("fmnist_utils.train", "fmnist_utils.plots", "accelerate"))


def sweep() -> pd.DataFrame:
    """All points, measured one after another, with the predicted seconds of the pass."""
    points = [{"sweep": name} | BASE | {name: value} for name, values in SWEEPS.items() for value in values]
    table = pd.DataFrame([point | measured(*(point[name] for name in BASE)) for point in points])
    base = measured(*BASE.values())
    table["predicted_pass_seconds"] = table.gflop * base["pass_seconds"] / base["gflop"]
    return table


def growth(points: pd.DataFrame) -> dict[str, float]:
    """Slopes of straight lines: the pass by image, the epochs by image and epoch."""
    images, epochs = (points[points.sweep == name] for name in ("images", "epochs"))
    slope, start = np.polyfit(images.images, images.pass_seconds, 1)
    per_epoch = np.polyfit(epochs.epochs * IMAGES, epochs.training_seconds, 1)[0]
    names = ("pass_ms_per_image", "pass_start_seconds", "training_ms_per_image_and_epoch")
    return dict(zip(names, (1e3 * slope, start, 1e3 * per_epoch), strict=True))


class PeakAnonymous(threading.Thread):
    """Looks five times a second at the process's anonymous memory; ``gb`` is the most seen so far."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gb, self.done = 0.0, threading.Event()

    def run(self) -> None:
        finished = False
        while not finished:  # and once more at the end: a short pass may be over before the first look
            finished = self.done.wait(0.2)
            memory = psutil.Process().memory_info()  # shared: pages of files, in memory or not
            self.gb = max(self.gb, (memory.rss - memory.shared) / 1e9)


def large(images: int, image_size: int) -> None:
    """Pass and one epoch over features that are larger than the memory the process may have."""
    if sys.platform != "linux":
        raise SystemExit("--large limits and reads its own memory in ways that only Linux has.")
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_GB * 10**9, LIMIT_GB * 10**9))
    model = build_model("resnet50", weights=None, cut_after="stem", trainable="head", image_size=image_size)
    border = 1 + len(leaves(model.backbone))  # by default the head's pooling would be cached too, which is tiny
    data = load("train").subset(images)
    disk = ROOT / "data" / "cache"  # the system's temporary folder may be in memory
    disk.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=disk) as folder:
        peak = PeakAnonymous()
        peak.start()
        # fit() wants validation data; its accuracy is not reported.
        val = cache_features(model, data.subset(max(images // 100, 50)), border=border, folder=folder)
        train = cache_features(model, data, border=border, folder=folder)
        history = fit(model, train, val, epochs=1)
        report = train.report
        del train, val  # closes the files
        peak.done.set()
        peak.join()
    fields = {"images": images, "image_size": image_size, "weights": model.weights, "engine": report.engine}
    fields |= {"cache_gb": report.bytes / 1e9, "pass_seconds": report.seconds, "epoch_seconds": history.seconds.sum()}
    fields |= {"peak_anonymous_gb": peak.gb, "peak_resident_gb": peak_memory_mb() / 1e3, "data_limit_gb": LIMIT_GB}
    setting = f"ResNet50's stem at {image_size} px (random weights), {images:,} images cached in a file, 1 epoch"
    record("cost_growth_large", setting, peak.gb, LIMIT_GB, "GB", **fields)


def main() -> None:
    if options(__doc__, large="features that do not fit into memory (24 GB of disk; Linux)").large:
        return large(LARGE_IMAGES, LARGE_PIXELS)
    points = sweep()
    largest = points[points.sweep == "image_size"].iloc[-1]
    setting = f"pass of {IMAGES:,} images at {largest.image_size} px through VGG16 to {BASE['cut_after']}, measured "
    setting += f"against predicted from FLOPs ({profile()} profile)"
    fields = {"growth": growth(points), "points": points.to_dict("records")}
    record("cost_growth", setting, largest.pass_seconds, largest.predicted_pass_seconds, "s", **fields)


if __name__ == "__main__":
    main()
