"""Predictions, metrics, and the files under ``results/`` from which every number in the course comes.

Explained in ``notebooks/03_vgg16_transfer_learning.ipynb`` and ``notebooks/05_evaluation_and_visualization.ipynb``.
"""

import datetime
import json
import platform
import re
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset, Subset

from fmnist_utils import ROOT, profile
from fmnist_utils.cache import CachedFeatures, as_input
from fmnist_utils.data import CLASSES, FashionMNIST, make_loader, replacing
from fmnist_utils.models import Classifier, check_name, summary
from fmnist_utils.processes import exchange, own_share, shares


@torch.no_grad()
def predict(model: Classifier, data: Dataset, batch_size: int = 250, flip: bool = False) -> np.ndarray:
    """Class probabilities, float32 [N, 10], of images or of :class:`~fmnist_utils.cache.CachedFeatures`.

    ``flip`` gives the mean over each image and its mirror image, and features with several views the mean over the
    views (test-time augmentation; Simonyan & Zisserman, 2015, section 3.2). Several processes share the images, and all
    get the whole.
    """
    model.eval()
    device = next(model.head.parameters()).device
    cached = isinstance(data, CachedFeatures)
    if cached:
        data.check(model)
        if flip:
            raise ValueError("Cached features cannot be mirrored: pass the images, or features with a mirrored view.")
        views = [data.view(i) for i in range(len(data.features))]
    else:
        views = [data, FashionMNIST(data.images.flip(-1), data.labels, data.source)] if flip else [data]
    part = (model.split(data.border)[1] if cached else model).eval().to(device, memory_format=torch.channels_last)
    means, own = torch.zeros(len(data), len(CLASSES)), own_share(len(data))
    for view in views:
        start = own.start
        for inputs, _ in make_loader(Subset(view, own), batch_size):
            probabilities = part(as_input(inputs.to(device))).float().softmax(1).cpu()
            means[start : start + len(inputs)] += probabilities / len(views)
            start += len(inputs)
    exchange(means, shares(len(data)))
    return means.numpy()


def score(probabilities: np.ndarray, labels: torch.Tensor) -> dict[str, float]:
    """``accuracy``, ``macro_f1`` and ``loss`` (mean cross-entropy, natural logarithm), by scikit-learn."""
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    labels, predicted = np.asarray(labels), probabilities.argmax(1)
    probabilities = probabilities.astype(np.float64) / probabilities.sum(1, keepdims=True, dtype=np.float64)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
        "loss": float(log_loss(labels, probabilities, labels=range(probabilities.shape[1]))),
    }


def accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """95% interval of an accuracy from ``correct`` of ``count`` test images (Wilson, 1927; by SciPy).

    It covers the choice of the test images, not the luck of a training run. Explained in
    notebooks/05_evaluation_and_visualization.ipynb.
    """
    from scipy.stats import binomtest

    interval = binomtest(int(correct), int(count)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> dict[str, float]:
    """Do two models differ on the same images? Exact test on the images that only one of them gets right.

    ``only_a`` and ``only_b`` count these images, ``p_value`` is two-sided (McNemar, 1947). Explained in
    notebooks/05_evaluation_and_visualization.ipynb.
    """
    from scipy.stats import binomtest

    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p_value": p_value}


def reliability(probabilities: np.ndarray, labels: torch.Tensor, bins: int = 15) -> tuple[pd.DataFrame, float]:
    """(one row per non-empty confidence bin, expected calibration error).

    Bins have equal width; ``confidence`` and ``accuracy`` are means in the bin, ``count`` its images. The error is the
    mean distance of the two, weighted by ``count`` (Guo et al., 2017, arXiv:1706.04599). Explained in
    notebooks/05_evaluation_and_visualization.ipynb.
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == np.asarray(labels)
    edges = np.linspace(0, 1, bins + 1)
    table = pd.DataFrame({"bin": np.digitize(confidence, edges[1:-1], right=True), "confidence": confidence})
    table = (
        table.assign(accuracy=correct)
        .groupby("bin")
        .agg(confidence=("confidence", "mean"), accuracy=("accuracy", "mean"), count=("accuracy", "size"))
    )
    error = (table["count"] * (table.confidence - table.accuracy).abs()).sum() / table["count"].sum()
    return table, float(error)


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities after dividing the logits by ``temperature``: above 1 less sure, the same predicted classes."""
    logits = torch.from_numpy(np.log(np.maximum(probabilities, 1e-12), dtype=np.float64))
    return (logits / temperature).softmax(1).numpy()


def fit_temperature(probabilities: np.ndarray, labels: torch.Tensor) -> float:
    """The temperature with the smallest cross-entropy (Guo et al., 2017); fit it on *validation* predictions.

    Explained in notebooks/05_evaluation_and_visualization.ipynb.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return score(with_temperature(probabilities, np.exp(log_temperature)), labels)["loss"]

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def peak_memory_mb() -> float:
    """Largest memory this process has had so far, in MB (10⁶ bytes)."""
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6


def hardware() -> dict[str, str | int]:
    """``device`` (cuda, mps or cpu), name of the processor (and GPU), number of ``cores`` torch's threads use."""
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file() and (match := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        cpu = match[1]
    found = {"device": device, "cpu": cpu, "cores": torch.get_num_threads()}
    return found | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "torchvision", "accelerate", "numpy", "scikit-learn")
    }


def save_result(
    recipe: str,
    model: Classifier,
    *,
    train_images: int,
    history: pd.DataFrame,
    metrics: dict[str, float],
    seconds: dict[str, float],
    seeds: Iterable[int] = (0,),
    predictions: dict[str, np.ndarray] | None = None,
    folder: Path = ROOT / "results",
    **extra,
) -> Path:
    """Write ``results/<recipe>-<profile>.json``, one finished run, and bring README's results table up to date.

    ``metrics`` and ``seconds`` are named as in the project's schema (``test_accuracy``, ``val_accuracy``, …;
    ``prefix_pass``, ``training``, ``evaluation``, ``total``). ``predictions`` (probabilities by split, such as
    ``{"val": …, "test": …}``) go to ``results/predictions/``, where :func:`load_predictions` finds them. A second run
    of the same name replaces the first.
    """
    parameters = list(model.parameters())
    result = {
        "recipe": recipe,
        "profile": profile(),
        "backbone": model.config["name"],
        "weights": model.weights,
        "cut_after": model.config["cut_after"],
        "image_size": model.config["image_size"],
        "train_images": train_images,
        "epochs": len(history),
        "seeds": list(seeds),
        "metrics": {k: round(v, 5) for k, v in metrics.items()},
        "seconds": {k: round(v, 1) for k, v in seconds.items()},
        "peak_memory_mb": round(peak_memory_mb()),
        "parameters": {
            "total": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        },
        "mflops_per_image": round(float(summary(model).MFLOPs["total"]), 1),
        "history": json.loads(history.reset_index().to_json(orient="records", double_precision=6)),
        "hardware": hardware(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        **extra,
    }
    path = folder / f"{recipe}-{profile()}.json"
    if predictions:
        (folder / "predictions").mkdir(parents=True, exist_ok=True)
        with replacing(folder / "predictions" / f"{path.stem}.npz") as temporary, temporary.open("wb") as file:
            # Logarithms, because float16 holds no probability below 6e-8.
            logs = {k: np.log(np.maximum(v, 1e-12)).astype(np.float16) for k, v in predictions.items()}
            np.savez_compressed(file, **logs)
    write_text(path, json.dumps(result, indent=1) + "\n")
    _update_readme(folder)
    return path


def _update_readme(folder: Path) -> None:
    readme = folder.parent / "README.md"
    if profile() != "smoke" and readme.is_file():
        write_text(readme, with_tables(readme.read_text(encoding="utf-8"), folder))


def save_benchmark(
    name: str,
    *,
    setting: str,
    ours: float,
    reference: float,
    unit: str,
    figure=None,
    folder: Path = ROOT / "results",
    **extra,
) -> Path:
    """Write ``results/benchmarks/<name>-<profile>.json``: two measurements of one run and their ratio ours : reference.

    ``unit`` says what was measured, for example ``"images/s"``. A matplotlib ``figure`` goes to
    ``results/figures/<name>-<profile>.png``. README's table of benchmarks is brought up to date.
    """
    benchmark = {
        "name": name,
        "profile": profile(),
        "setting": setting,
        "ours": round(ours, 2),
        "reference": round(reference, 2),
        "ratio": round(ours / reference, 2),
        "unit": unit,
        "hardware": hardware(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        **extra,
    }
    path = folder / "benchmarks" / f"{name}-{profile()}.json"
    write_text(path, json.dumps(benchmark, indent=1) + "\n")
    if figure is not None:
        (folder / "figures").mkdir(exist_ok=True)
        with replacing(folder / "figures" / f"{path.stem}.png") as temporary:
            figure.savefig(temporary, dpi=110, bbox_inches="tight", format="png")
    _update_readme(folder)
    return path


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def load_results(folder: Path = ROOT / "results", profiles: Iterable[str] = ("cpu", "full")) -> pd.DataFrame:
    """Every recorded run as one row, best test accuracy first, with columns named like ``metrics.macro_f1``."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    runs = [run for run in runs if run["profile"] in profiles]
    if not runs:
        return pd.DataFrame(columns=["recipe", "profile", "metrics.test_accuracy"])
    table = pd.json_normalize([{k: v for k, v in run.items() if k != "history"} for run in runs])
    return table.sort_values("metrics.test_accuracy", ascending=False, ignore_index=True)


def load_predictions(run: str, split: str = "test", folder: Path = ROOT / "results") -> np.ndarray:
    """Recorded probabilities, float32 [N, 10], of a run such as ``"small-cnn-full"``; ``split``: ``val`` or ``test``.

    They belong to the run's first seed; the images are those of ``load("test")`` or of ``train_val_split``. Raises
    ``FileNotFoundError`` with the names there are, and ``ValueError`` for an unknown split.
    """
    path = folder / "predictions" / f"{run}.npz"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in path.parent.glob("*.npz")))
        raise FileNotFoundError(f"No predictions of a run {run!r} in {path.parent}; there are: {names or 'none'}.")
    with np.load(path) as file:
        check_name("split", split, tuple(file.files))
        return torch.from_numpy(file[split].astype(np.float32)).softmax(1).numpy()


def results_table(folder: Path = ROOT / "results") -> str:
    """README's results table in Markdown, made from ``results/`` alone."""
    lines = [
        "| run | weights | training images | size | test accuracy | macro F1 | trainable | time | hardware |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for run in load_results(folder).to_dict("records"):
        cores = run["hardware.cores"]
        device = f"{cores} CPU core{'s' if cores > 1 else ''} ({run['hardware.cpu']})"
        if run["hardware.device"] != "cpu":
            device = run["hardware.gpu"] if run["hardware.device"] == "cuda" else f"Apple GPU ({run['hardware.cpu']})"
        weights = "ImageNet" if run["weights"].startswith("imagenet") else "random"
        accuracy = f"{run['metrics.test_accuracy']:.2%}"
        if len(run["seeds"]) > 1:
            accuracy += f" ± {100 * run['metrics.test_accuracy_sd']:.2f} ({len(run['seeds'])} seeds)"
        lines.append(
            f"| `{run['recipe']}-{run['profile']}` | {weights} | {run['train_images']:,} | {run['image_size']} px "
            f"| {accuracy} | {run['metrics.macro_f1']:.4f} | {run['parameters.trainable']:,} "
            f"| {run['seconds.total'] / 60:.1f} min | {device} |"
        )
    return "\n".join(lines)


def benchmarks_table(folder: Path = ROOT / "results") -> str:
    """README's table of benchmarks in Markdown: the headline pair of each file under ``results/benchmarks``."""
    lines = ["| benchmark | ours | against | | what was measured |", "|---|---:|---:|---|---|"]
    for path in sorted((folder / "benchmarks").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["profile"] == "smoke" or "ratio" not in found:
            continue
        link = f"[`{path.stem}`](results/benchmarks/{path.name})"
        pair = " | ".join(
            f"{value:,.0f}" if (value := found[key]) >= 100 else f"{value:.3g}" for key in ("ours", "reference")
        )
        lines.append(f"| {link} | {pair} | {found['unit']} | {found['setting']} |")
    return "\n".join(lines)


def with_tables(readme: str, folder: Path = ROOT / "results") -> str:
    """``readme`` with :func:`results_table` and :func:`benchmarks_table` between the markers of each."""
    for marker, table in (("results", results_table(folder)), ("benchmarks", benchmarks_table(folder))):
        between = re.compile(rf"(?<=<!-- {marker}:start)([^>]*-->\n).*?(?=<!-- {marker}:end -->)", re.DOTALL)
        readme = between.sub(lambda match, table=table: match[1] + table + "\n", readme)
    return readme
