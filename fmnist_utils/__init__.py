"""Helpers for the Fashion-MNIST transfer-learning course.

The notebooks explain every function once and import it afterwards; each docstring names its notebook.
The core is at this level and data flow through it one way: ``data -> preprocess -> models -> cache -> train ->
evaluate``, with ``settings`` (of a training), ``checkpoints`` (saved models) and ``resume`` (interrupted trainings).
Rooms below it, which it calls: ``sources`` (files, downloads, weights), ``networks`` (backbones and heads), ``results``
(what was measured), ``scale`` (several processes, engines, features on disk). Rooms above it: ``recipes`` (whole runs
by name), ``plots`` (figures and tables) and ``course`` (checks of exercises) for the notebooks, ``tune`` (searches),
``explain`` (Grad-CAM, outliers), ``export`` (ONNX, LiteRT) and ``app``, the web page.
"""

import difflib
import os
import warnings
from pathlib import Path
from typing import TypeVar

__all__ = ["PROFILES", "ROOT", "check_name", "pick", "profile"]

__version__ = "0.1.0"

# Accelerate, Optuna and cleanlab look for notebook widgets, which this course does not use, and warn without them.
warnings.filterwarnings("ignore", message="IProgress not found")


def _project() -> Path:
    """The folder that holds the package and ``data``; for a package installed elsewhere, the one Python runs in."""
    for folder in (Path(__file__).resolve().parents[1], Path.cwd(), *Path.cwd().parents):
        if (folder / "data" / "models").is_dir():
            return folder
    return Path.cwd()


#: The project folder: holds ``data/``, ``results/`` (recorded) and ``runs/`` (your own).
ROOT = _project()

T = TypeVar("T")
PROFILES = ("smoke", "cpu", "full")


def profile() -> str:
    """Name of the run profile: ``smoke`` (tests, seconds), ``cpu`` (a laptop, minutes) or ``full`` (all images).

    Read from the environment variable ``FMNIST_PROFILE``; without it, ``full`` where there is a CUDA GPU and ``cpu``
    elsewhere. Raises ``ValueError`` for any other name.
    """
    name = os.environ.get("FMNIST_PROFILE", "").strip()
    if not name:
        import torch

        return "full" if torch.cuda.is_available() else "cpu"
    if name not in PROFILES:
        raise ValueError(f"FMNIST_PROFILE={name!r} is not a profile: set it to one of {', '.join(PROFILES)}.")
    return name


def pick(*, smoke: T, cpu: T, full: T) -> T:
    """The value for the current :func:`profile`; notebooks use it in their parameters cell."""
    return {"smoke": smoke, "cpu": cpu, "full": full}[profile()]


def check_name(what: str, name: object, known: tuple) -> None:
    """Raise ``ValueError`` with the nearest of the ``known`` names unless ``name`` is one of them."""
    if name not in known:
        name = name[:100] if isinstance(name, str) else name  # what a visitor of the app sends may have millions
        alike = {k: difflib.SequenceMatcher(None, str(k), str(name)).ratio() for k in known}
        nearest = sorted(known, key=lambda k: alike[k], reverse=True)  # among equally near ones, the first stays first
        hint = f" Did you mean {nearest[0]!r}?" if alike[nearest[0]] >= 0.3 else ""
        choice = known if len(known) <= 20 else (*nearest[:8], f"{len(known) - 8} others")
        raise ValueError(f"{what}={name!r} is not known.{hint} Choose one of {', '.join(map(repr, choice))}.")
