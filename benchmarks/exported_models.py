"""What do exported files gain, and what do they cost? Each shipped model by each runtime: size, speed and accuracy."""

import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import each, options, record, splits
from torch import nn

from fmnist_utils import ROOT, pick
from fmnist_utils.checkpoints import load_model
from fmnist_utils.data import FashionMNIST
from fmnist_utils.export import litert
from fmnist_utils.export.onnx import export_litert, export_onnx, load_onnx
from fmnist_utils.plots import COLORS, use_style
from fmnist_utils.scale.engines import compile_frozen, find_compiler

MODELS = ("small-cnn", "wide-resnet-16-4", "vgg16-block3-two-views")[: pick(smoke=1, cpu=3, full=3)]
TEST, CALIBRATION = pick(smoke=(100, 32), cpu=(10_000, 512), full=(10_000, 512))
BATCH = pick(smoke=1, cpu=64, full=64)
CALLS, WARM_UP = pick(smoke=(10, 2), cpu=(300, 20), full=(300, 20))
THREADS = torch.get_num_threads()

Network = Callable[[np.ndarray], np.ndarray]


def timed(network: Network, batches: np.ndarray) -> tuple[np.ndarray, float]:
    """(probabilities of all images, median seconds of a batch), after a few batches that do not count."""
    each(network, batches[:WARM_UP])
    probabilities, seconds = each(network, batches)
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
        numbers = measure(lambda batch, compiled=compiled: in_torch(whole, compiled, batch))
        yield f"PyTorch {'compiled' if compiled else 'eager'}", "float32", megabytes, *numbers
    with TemporaryDirectory() as folder:
        for precision, data in (("float32", None), ("int8", calibration)):
            file = export_onnx(model, Path(folder, name), int8=data)
            numbers = measure(lambda _, file=file: load_onnx(file, THREADS))
            yield "ONNX Runtime", precision, file.stat().st_size / 1e6, *numbers
        for precision in ("float32", "int8") if python else ():
            file = export_litert(model, Path(folder, name), python=python, int8=precision == "int8")
            probabilities, seconds = litert.interpret(file, images, python, THREADS)
            single = float(np.median(seconds[WARM_UP:]))
            yield "LiteRT", precision, file.stat().st_size / 1e6, probabilities, single, single * BATCH


def table(name: str, test: FashionMNIST, calibration: FashionMNIST, python: Path | None) -> list[dict]:
    """The rows of one model."""
    measured, labels = list(runs(name, test.images.numpy(), calibration, python)), test.labels.numpy()
    expected = measured[0][3]  # PyTorch eager
    rows = []
    for runtime, precision, megabytes, probabilities, single, many in measured:
        row = {"model": name, "runtime": runtime, "precision": precision, "file_mb": megabytes, "threads": THREADS}
        row |= {"latency_ms": 1e3 * single, "images_per_second": BATCH / many}
        row["accuracy"] = (probabilities.argmax(1) == labels).mean()
        row["max_difference"] = np.abs(probabilities - expected).max()
        row["same_class"] = (probabilities.argmax(1) == expected.argmax(1)).mean()
        rows.append(row)
    return rows


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
    options(__doc__)
    python, left_out, packages = litert.find(), [], {"onnxruntime": version("onnxruntime")}
    if python:
        ask = "from importlib.metadata import version; print(version('ai-edge-litert'))"
        packages["ai-edge-litert"] = subprocess.check_output([python, "-c", ask], text=True).strip()
    else:
        left_out.append("LiteRT: no environment; python -m fmnist_utils.export small-cnn --litert makes one")
    if not find_compiler():
        left_out.append("PyTorch compiled: no C++ compiler was found")
    calibration, test = splits(train=CALIBRATION, test=TEST).values()
    rows = [row for name in MODELS for row in table(name, test, calibration, python)]
    first = {row["runtime"]: row for row in rows if row["model"] == MODELS[0] and row["precision"] == "float32"}
    latencies = (first[runtime]["latency_ms"] for runtime in ("ONNX Runtime", "PyTorch eager"))
    setting = f"{MODELS[0]}, one image, float32, {THREADS} threads: ONNX Runtime against PyTorch eager"
    fields = {"test_images": TEST, "calibration_images": CALIBRATION, "batch": BATCH, "calls": CALLS, "rows": rows}
    fields |= {"packages": packages, "left_out": left_out}
    record("exported_models", setting, *latencies, "ms", figure=draw(rows), **fields)


if __name__ == "__main__":
    main()
