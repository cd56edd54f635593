"""What has been recorded under ``results/``: runs as one table, and their predictions.

Explained in ``notebooks/05_evaluation_and_visualization.ipynb``.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fmnist_utils import ROOT
from fmnist_utils.models import check_name


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
