"""What do exported files gain, and what do they cost? Each shipped model by each runtime: size, speed and accuracy.

``python benchmarks/exported_models.py`` writes ``results/benchmarks/exported_models-<profile>.json``, one row per
model, runtime and precision, and the figure of the same name. All run on the CPU with the same number of threads, one
after the other, and all classify the same test images as they are. (The recorded accuracy of these models is that of
mirrored images as well, which no file makes.) ``latency_ms`` is the median of single images, ``images_per_second`` that
of batches of 64; a LiteRT file takes one image at a time, also in a batch. ``file_mb`` of PyTorch is its weights in
float32. ``max_difference`` (of a probability) and ``same_class`` compare with PyTorch's eager mode.

LiteRT is measured where its environment is: ``python -m fmnist_utils.export small-cnn --litert`` makes it. The cpu
profile takes a quarter of an hour and more, because each of up to six runtimes classifies 10,000 images with VGG16.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from fmnist_utils import ROOT, pick
from fmnist_utils.checkpoints import load_model
from fmnist_utils.data import FashionMNIST, load, train_val_split
from fmnist_utils.export import litert
from fmnist_utils.export.onnx import export_litert, export_onnx, load_onnx
from fmnist_utils.plots import COLORS, use_style
from fmnist_utils.results import save_benchmark
from fmnist_utils.scale.engines import compile_frozen, find_compiler

MODELS = ("small-cnn", "wide-resnet-16-4", "vgg16-block3-two-views")[: pick(smoke=1, cpu=3, full=3)]
TEST, CALIBRATION = pick(smoke=(100, 32), cpu=(10_000, 512), full=(10_000, 512))
BATCH = pick(smoke=1, cpu=64, full=64)
CALLS, WARM_UP = pick(smoke=(10, 2), cpu=(300, 20), full=(300, 20))
THREADS = torch.get_num_threads()

Network = Callable[[np.ndarray], np.ndarray]


def timed(network: Network, batches: np.ndarray) -> tuple[np.ndarray, float]:
    """(probabilities of all images, median seconds of a batch), after a few batches that do not count."""
    for batch in batches[:WARM_UP]:
        network(batch)
    probabilities, seconds = [], []
    for batch in batches:
        began = perf_counter()
        probabilities.append(network(batch))
        seconds.append(perf_counter() - began)
    return np.concatenate(probabilities), float(np.median(seconds))


def in_torch(model: nn.Module, compiled: bool, batch: int) -> Network:
    model = model.to(memory_format=torch.channels_last)
    if compiled:
        torch.compiler.reset()  # or a second size would make the code general, and slower
        with torch.no_grad():
            model = compile_frozen(model, torch.zeros(batch, 28, 28, dtype=torch.uint8))

    @torch.no_grad()
    def network(images: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(images)).numpy()

    return network


def runs(name: str, images: np.ndarray, calibration: FashionMNIST, python: Path | None) -> Iterator[tuple]:
    """(runtime, precision, size in MB, probabilities, median seconds of one image, of a batch of ``BATCH``)."""
    model = load_model(ROOT / "data" / "models" / name)
    whole, megabytes = nn.Sequential(model, nn.Softmax(1)).eval(), sum(p.nbytes for p in model.parameters()) / 1e6
    # The last batch is filled up with the first images.
    batches = np.resize(images, (-(-len(images) // BATCH), BATCH, 28, 28))

    def measure(make: Callable[[int], Network]) -> tuple:
        network = make(1)
        # Not [:, None], whose stride of 0 would make torch compile once more, without frozen weights.
        _, single = timed(network, images[:CALLS].reshape(-1, 1, 28, 28))
        probabilities, many = timed(network if BATCH == 1 else make(BATCH), batches)
        return probabilities[: len(images)], single, many

    for compiled in (False, True) if find_compiler() else (False,):
        found = measure(lambda batch, compiled=compiled: in_torch(whole, compiled, batch))
        yield f"PyTorch {'compiled' if compiled else 'eager'}", "float32", megabytes, *found
    with TemporaryDirectory() as folder:
        for precision, data in (("float32", None), ("int8", calibration)):
            file = export_onnx(model, Path(folder, name), int8=data)
            found = measure(lambda _, file=file: load_onnx(file, THREADS))
            yield "ONNX Runtime", precision, file.stat().st_size / 1e6, *found
        for precision in ("float32", "int8") if python else ():
            file = export_litert(model, Path(folder, name), python=python, int8=precision == "int8")
            probabilities, seconds = litert.run(file, images, python, THREADS)
            single = float(np.median(seconds[WARM_UP:]))
            yield "LiteRT", precision, file.stat().st_size / 1e6, probabilities, single, single * BATCH


def table(name: str, test: FashionMNIST, calibration: FashionMNIST, python: Path | None) -> list[dict]:
    """The rows of one model."""
    found = list(runs(name, test.images.numpy(), calibration, python))
    expected = found[0][3]  # PyTorch eager
    return [
        {
            "model": name,
            "runtime": runtime,
            "precision": precision,
            "file_mb": round(megabytes, 2),
            "latency_ms": round(1e3 * single, 3),
            "images_per_second": round(BATCH / many, 1),
            "accuracy": round(float((probabilities.argmax(1) == test.labels.numpy()).mean()), 4),
            "max_difference": float(f"{np.abs(probabilities - expected).max():.2g}"),
            "same_class": round(float((probabilities.argmax(1) == expected.argmax(1)).mean()), 4),
            "threads": THREADS,
        }
        for runtime, precision, megabytes, probabilities, single, many in found
    ]


def draw(rows: list[dict]) -> plt.Figure:
    """Latency as bars, accuracy written behind them."""
    use_style()
    figure, axes = plt.subplots(1, len(MODELS), figsize=(6.2 * len(MODELS), 3.8), squeeze=False)
    for axis, name in zip(axes[0], MODELS, strict=True):
        own = sorted((row for row in rows if row["model"] == name), key=lambda row: -row["latency_ms"])
        color = [COLORS["accent" if row["precision"] == "int8" else "train"] for row in own]
        names = [f"{row['runtime']}, {row['precision']}" for row in own]
        bars = axis.barh(names, [row["latency_ms"] for row in own], color=color)
        axis.bar_label(bars, [f"{row['latency_ms']:.3g} ms, {row['accuracy']:.2%}" for row in own], padding=4)
        axis.set_xlim(0, 1.6 * own[0]["latency_ms"])
        axis.set_title(f"{name}: time for one image, test accuracy")
        axis.set_xlabel(f"milliseconds, {THREADS} thread{'s' if THREADS > 1 else ''}")
        axis.grid(axis="y", visible=False)
    return figure


def main() -> None:
    python, left_out, packages = litert.find(), [], {"onnxruntime": version("onnxruntime")}
    if python:
        ask = "from importlib.metadata import version; print(version('ai-edge-litert'))"
        packages["ai-edge-litert"] = subprocess.check_output([python, "-c", ask], text=True).strip()
    else:
        left_out.append("LiteRT: no environment; python -m fmnist_utils.export small-cnn --litert makes one")
    if not find_compiler():
        left_out.append("PyTorch compiled: no C++ compiler was found")
    test, calibration = load("test"), train_val_split(load("train"))[0].subset(CALIBRATION)
    test = test if len(test) == TEST else test.subset(TEST)
    rows = [row for name in MODELS for row in table(name, test, calibration, python)]
    first = {row["runtime"]: row for row in rows if row["model"] == MODELS[0] and row["precision"] == "float32"}
    path = save_benchmark(
        "exported_models",
        setting=f"{MODELS[0]}, one image, float32, {THREADS} threads: ONNX Runtime against PyTorch eager",
        ours=first["ONNX Runtime"]["latency_ms"],
        reference=first["PyTorch eager"]["latency_ms"],
        unit="ms",
        figure=draw(rows),
        test_images=len(test),
        calibration_images=CALIBRATION,
        batch=BATCH,
        calls=CALLS,
        packages=packages,
        left_out=left_out,
        rows=rows,
    )
    print(json.dumps(json.loads(path.read_text()), indent=1))


if __name__ == "__main__":
    main()
