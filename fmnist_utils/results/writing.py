"""The one writer of the files under ``runs/`` and ``results/``, from which every number in the course comes.

Used in ``notebooks/03_vgg16_transfer_learning.ipynb``.
"""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from fmnist_utils import ROOT, profile
from fmnist_utils.models import Classifier, summary
from fmnist_utils.results.machine import peak_memory_mb, where_and_when
from fmnist_utils.results.schema import Result
from fmnist_utils.sources.files import replacing, shown


def default_folder() -> Path:
    """Where a run is written: ``runs/``, which git ignores, or ``results/`` where ``FMNIST_RECORD`` is ``1``.

    The option ``--record`` of the commands sets this environment variable, which notebooks started by them inherit.
    Raises ``ValueError`` where it is neither empty nor ``0`` nor ``1``.
    """
    record = os.environ.get("FMNIST_RECORD", "").strip()
    if record not in ("", "0", "1"):
        raise ValueError(f"FMNIST_RECORD={record!r} is not known: set it to 1 to write to results/, or take it away.")
    return ROOT / ("results" if record == "1" else "runs")


def check_writable(folder: Path) -> None:
    """Make ``folder`` and try to write there; raises ``OSError``, which says why, where that is not possible.

    So a run whose result would be lost ends before it begins.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise OSError(
            f"Nothing can be written to {shown(folder)} ({error.strerror}): make it writable, or give another folder."
        ) from error


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
    folder: Path | None = None,
    **more,
) -> Path:
    """Write one finished run, a :class:`~fmnist_utils.results.Result`, to ``<recipe>-<profile>.json``; its path.

    ``metrics`` (shares) and ``seconds`` are named as in the project's schema (``test_accuracy``, ``val_accuracy``, …;
    ``prefix_pass``, ``training``, ``evaluation``, ``total``). ``predictions`` (probabilities [N, 10] by split, such as
    ``{"val": …, "test": …}``) go to ``predictions/`` beside it, for ``load_predictions``. ``folder`` is
    :func:`default_folder` unless given. A second run of the same name replaces the first; README stays as it is.

    Raises ``ValueError`` where a metric or a time is missing that the tables show.
    """
    folder = folder or default_folder()
    parameters = list(model.parameters())
    result = Result(
        recipe=recipe,
        profile=profile(),
        backbone=model.config["name"],
        weights=model.weights,
        cut_after=model.config["cut_after"],
        image_size=model.config["image_size"],
        train_images=train_images,
        epochs=len(history),
        seeds=list(seeds),
        metrics={k: round(v, 5) for k, v in metrics.items()},
        seconds={k: round(v, 1) for k, v in seconds.items()},
        peak_memory_mb=round(peak_memory_mb()),
        parameters={
            "total": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        },
        history=json.loads(history.reset_index().to_json(orient="records", double_precision=6)),
        **where_and_when(),
        more={
            "weights_origin": model.weights_origin,
            "mflops_per_image": round(float(summary(model).MFLOPs["total"]), 1),
            **more,
        },
    )
    if predictions:
        (folder / "predictions").mkdir(parents=True, exist_ok=True)
        with replacing(folder / "predictions" / f"{result.name}.npz") as temporary, temporary.open("wb") as file:
            # Logarithms, because float16 holds no probability below 6e-8.
            logs = {k: np.log(np.maximum(v, 1e-12)).astype(np.float16) for k, v in predictions.items()}
            np.savez_compressed(file, **logs)
    return write_record(folder / f"{result.name}.json", result.record())


def save_benchmark(
    name: str,
    *,
    setting: str,
    ours: float,
    reference: float,
    unit: str,
    figure=None,
    folder: Path | None = None,
    **more,
) -> Path:
    """Write ``benchmarks/<name>-<profile>.json``: two measurements of one run and their ratio ours : reference.

    ``unit`` says what was measured, for example ``"images/s"``. A matplotlib ``figure`` goes to
    ``figures/<name>-<profile>.png``. ``folder`` is :func:`default_folder` unless given.
    """
    folder = folder or default_folder()
    benchmark = {
        "name": name,
        "profile": profile(),
        "setting": setting,
        "ours": round(ours, 2),
        "reference": round(reference, 2),
        "ratio": round(ours / reference, 2),
        "unit": unit,
        **where_and_when(),
        **more,
    }
    if figure is not None:
        save_figure(figure, f"{name}-{profile()}", folder)
    return write_record(folder / "benchmarks" / f"{name}-{profile()}.json", benchmark)


def save_figure(figure, name: str, folder: Path | None = None) -> Path:
    """Write a matplotlib ``figure`` to ``figures/<name>.png`` in ``folder``, :func:`default_folder` unless given.

    Used in ``notebooks/03_vgg16_transfer_learning.ipynb``.
    """
    path = (folder or default_folder()) / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight", format="png")
    return path


def write_record(path: Path, record: dict) -> Path:
    """Write a record as JSON, whole or not at all; its folder is made. Returns ``path``."""
    write_text(path, json.dumps(record, indent=1) + "\n")
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8 with ``\\n``, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
