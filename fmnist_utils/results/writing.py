"""The one writer of the files under ``results/``, from which every number in the course comes.

Used in ``notebooks/03_vgg16_transfer_learning.ipynb``.
"""

import datetime
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from fmnist_utils import ROOT, profile
from fmnist_utils.data import replacing
from fmnist_utils.models import Classifier, summary
from fmnist_utils.results.machine import hardware, peak_memory_mb, versions
from fmnist_utils.results.tables import update_readme, write_text


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
        "weights_origin": model.weights_origin,
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
    update_readme(folder)
    return path


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
    update_readme(folder)
    return path
