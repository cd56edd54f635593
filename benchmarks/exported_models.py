"""What do exported files gain, and what do they cost? Each shipped model by each runtime: size, speed and accuracy."""

import functools
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from common import each, options, record, splits
from torch import nn

from fmnist_utils import ROOT, pick
from fmnist_utils.checkpoints import load_model
from fmnist_utils.data import FashionMNIST
from fmnist_utils.export import litert
from fmnist_utils.export.onnx import export_litert, export_onnx, load_onnx
from fmnist_utils.plots import latencies as latencies_figure
from fmnist_utils.plots import use_style
from fmnist_utils.scale.engines import compile_frozen, find_compiler

MODELS = ("small-cnn", "wide-resnet-16-4", "vgg16-block3-two-views")[: pick(smoke=1, cpu=3, full=3)]
TEST, CALIBRATION = pick(smoke=(100, 32), cpu=(10_000, 512), full=(10_000, 512))
BATCH = pick(smoke=1, cpu=64, full=64)
ROUNDS, CALLS, WARM_UP = pick(smoke=(2, 5, 2), cpu=(5, 100, 20), full=(5, 100, 20))
THREADS = torch.get_num_threads()

Network = Callable[[np.ndarray], np.ndarray]
#: Images, uint8 [N, 28, 28], how many at once -> probabilities, float32 [N, 10]; seconds for each image, by call.
Measure = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def here(make: Callable[[int], Network]) -> Measure:
    """Runs in this process what ``make`` gives for a batch size."""
    make = functools.cache(make)

    def measure(images: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
        # The last batch is filled up with the first images. Not [:, None] for single ones, whose stride of 0 would make
        # torch compile once more, without frozen weights.
        batches = np.resize(images, (-(-len(images) // batch), batch, 28, 28))
        probabilities, seconds = each(make(batch), batches)
        return np.concatenate(probabilities)[: len(images)], np.array(seconds) / batch

    return measure


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


def ways(name: str, calibration: FashionMNIST, folder: str, python: Path | None) -> Iterator[tuple]:
    """(runtime, precision, size in MB, ``Measure``) of everything that can run the model."""
    model = load_model(ROOT / "data" / "models" / name)
    whole, megabytes = nn.Sequential(model, nn.Softmax(1)).eval(), sum(p.nbytes for p in model.parameters()) / 1e6
    for compiled in (False, True) if find_compiler() else (False,):
        make = functools.partial(in_torch, whole, compiled)
        yield f"PyTorch {'compiled' if compiled else 'eager'}", "float32", megabytes, here(make)
    for precision, data in (("float32", None), ("int8", calibration)):
        file = export_onnx(model, Path(folder, name), int8=data)
        yield "ONNX Runtime", precision, file.stat().st_size / 1e6, here(lambda _, file=file: load_onnx(file, THREADS))
    for precision in ("float32", "int8") if python else ():
        file = export_litert(model, Path(folder, name), python=python, int8=precision == "int8")
        # One image at a time, whatever is asked for.
        measure = functools.partial(lambda file, images, _: litert.interpret(file, images, python, THREADS), file)
        yield "LiteRT", precision, file.stat().st_size / 1e6, measure


def table(name: str, test: FashionMNIST, calibration: FashionMNIST, python: Path | None) -> list[dict]:
    """The rows of one model. Single images are timed in rounds, each runtime once in each, so that none has the better
    minutes; then each classifies all images."""
    images, labels, rows = test.images.numpy(), test.labels.numpy(), []
    with TemporaryDirectory() as folder:
        every = list(ways(name, calibration, folder, python))
        single = np.empty((ROUNDS, len(every)))
        for spent in single:
            for i, (*_, measure) in enumerate(every):
                spent[i] = 1e3 * np.median(measure(images[: WARM_UP + CALLS], 1)[1][WARM_UP:])
        for (runtime, precision, megabytes, measure), latencies in zip(every, single.T, strict=True):
            probabilities, seconds = measure(images, BATCH)
            if not rows:
                expected = probabilities  # PyTorch eager's
            right, before = probabilities.argmax(1) == labels, expected.argmax(1) == labels
            row = {"model": name, "runtime": runtime, "precision": precision, "file_mb": megabytes, "threads": THREADS}
            row |= {"latency_ms": np.median(latencies), "latency_ms_range": [latencies.min(), latencies.max()]}
            row["images_per_second"] = 1 / np.median(seconds[min(WARM_UP, len(seconds) // 2) :])
            row |= {"accuracy": right.mean(), "won": (right & ~before).sum(), "lost": (before & ~right).sum()}
            row["max_difference"] = np.abs(probabilities - expected).max()
            row["same_class"] = (probabilities.argmax(1) == expected.argmax(1)).mean()
            rows.append(row)
            print({key: value for key, value in row.items() if key != "model"}, flush=True)
    return rows


def main() -> None:
    options(__doc__)
    use_style()
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
    fields = {
        "test_images": TEST,
        "calibration_images": CALIBRATION,
        "batch": BATCH,
        "rounds": ROUNDS,
        "calls": CALLS,
        "rows": rows,
    }
    fields |= {"packages": packages, "left_out": left_out}
    record("exported_models", setting, *latencies, "ms", figure=latencies_figure(pd.DataFrame(rows)), **fields)


if __name__ == "__main__":
    main()
