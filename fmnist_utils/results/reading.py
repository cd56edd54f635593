"""What has been recorded under ``results/``, or run by yourself: runs as one table, and their predictions.

Explained in ``notebooks/05_evaluation_and_visualization.ipynb``.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fmnist_utils import ROOT, check_name
from fmnist_utils.results.schema import Result, records_in
from fmnist_utils.sources.files import shown


def load_results(
    folder: Path = ROOT / "results", profiles: Iterable[str] = ("cpu", "full"), own: Path | None = None
) -> pd.DataFrame:
    """Every recorded run as one row, best test accuracy first, with columns named like ``metrics.macro_f1``.

    ``own`` is a second folder, such as ``ROOT / "runs"``, whose runs stand beside those of ``folder`` and in the place
    of those of the same name. Raises ``ValueError``, naming the file, for one that is no run or is damaged.
    """
    folders = [folder, own] if own else [folder]
    files = {path.name: path for place in folders for path in records_in(place)}
    runs = [run for run in map(Result.read, files.values()) if run.profile in profiles]
    if not runs:
        return pd.DataFrame(columns=["recipe", "profile", "metrics.test_accuracy"])
    table = pd.json_normalize([{k: v for k, v in run.record().items() if k != "history"} for run in runs])
    return table.sort_values("metrics.test_accuracy", ascending=False, ignore_index=True)


def load_predictions(run: str, split: str = "test", folder: Path = ROOT / "results") -> np.ndarray:
    """Recorded probabilities, float32 [N, 10], of a run such as ``"small-cnn-full"``; ``split``: ``val`` or ``test``.

    They belong to the run's first seed; the images are those of ``load("test")`` or of ``train_val_split``. Those of
    your own runs are in ``folder=ROOT / "runs"``. Raises ``FileNotFoundError`` with the names there are, and
    ``ValueError`` for an unknown split or, naming it, a damaged file.
    """
    path = folder / "predictions" / f"{run}.npz"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in path.parent.glob("*.npz")))
        own = " Your own runs are read with folder=ROOT / 'runs'." if folder == ROOT / "results" else ""
        raise FileNotFoundError(f"No predictions of a run {run!r} in {path.parent}; there are: {names or 'none'}.{own}")
    try:
        with np.load(path) as file:
            arrays = {name: file[name].astype(np.float32) for name in file.files}
        if not arrays:
            raise ValueError("nothing is in it")
    except Exception as error:  # of many kinds: a zip file can be damaged in many places
        problem = f"it is not a sound .npz file ({error})"
        raise ValueError(f"{shown(path)} cannot be used: {problem}. Make it again, or copy it again.") from error
    check_name("split", split, tuple(arrays))
    return torch.from_numpy(arrays[split]).softmax(1).numpy()
