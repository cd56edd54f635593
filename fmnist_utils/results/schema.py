"""What a file under ``results/`` holds, and reading one so that a stray or damaged file is called by its name."""

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

from fmnist_utils.sources.files import shown

#: What the tables show of a run, beside its plain fields.
SHOWN = (
    *("metrics.test_accuracy", "metrics.macro_f1", "seconds.total", "parameters.total", "parameters.trainable"),
    *("hardware.device", "hardware.cpu", "hardware.cores"),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One finished run, as ``results/<recipe>-<profile>.json`` holds it.

    ``weights`` is ``"imagenet:"`` and the first 12 digits of a SHA-256, or ``"none"``; ``metrics`` are shares from 0 to
    1 (means over the ``seeds``, and ``*_sd`` where there are several); ``seconds`` has a time per part of the run;
    ``history`` has a row per epoch; ``peak_memory_mb`` counts 10⁶ bytes; ``more`` is what else is worth keeping.

    Raises ``ValueError`` where something is missing that the tables show.
    """

    recipe: str
    profile: str
    backbone: str
    weights: str
    cut_after: str | None
    image_size: int
    train_images: int
    epochs: int
    seeds: list[int]
    metrics: dict[str, float]
    seconds: dict[str, float]
    peak_memory_mb: int
    parameters: dict[str, int]
    history: list[dict]
    hardware: dict[str, str | int]
    versions: dict[str, str]
    date: str
    more: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        needed = list(SHOWN)
        needed += ["metrics.test_accuracy_sd"] * (len(self.seeds) > 1)
        needed += ["hardware.gpu"] * (self.hardware.get("device") == "cuda")
        if missing := lacking(vars(self), needed):
            raise ValueError(f"The run {self.name} lacks {', '.join(missing)}.")
        numbers = self.metrics | self.seconds | self.parameters
        if wrong := [key for key, value in numbers.items() if not isinstance(value, int | float)]:
            raise ValueError(f"The run {self.name} has no number as {', '.join(wrong)}.")

    @property
    def name(self) -> str:
        """Its name in tables, and of its files."""
        return f"{self.recipe}-{self.profile}"

    def record(self) -> dict:
        """What is written: all fields, those of ``more`` beside the others."""
        return {key: value for key, value in vars(self).items() if key != "more"} | self.more

    @classmethod
    def read(cls, path: Path) -> "Result":
        """The run in a file. Raises ``ValueError``, naming the file, where that is not a run or not called like it."""
        names = [f.name for f in fields(cls) if f.name != "more"]
        record = read_record(path, needed=names)
        plain = {name: record.pop(name) for name in names}
        try:
            result = cls(**plain, more=record)
        except (AttributeError, TypeError) as error:
            raise _stray(path, f"something in it is of the wrong kind ({error}).") from error
        except ValueError as error:
            raise _stray(path, str(error)) from error
        if path.stem != result.name:
            raise _stray(path, f"it holds the run {result.name}, so it should be called {result.name}.json.")
        return result


def read_record(path: Path, needed: Iterable[str] = ()) -> dict:
    """A JSON file as a dictionary. Raises ``ValueError``, naming the file, where it is none or lacks what is needed."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _stray(path, f"it is not sound JSON ({error}).") from error
    if not isinstance(record, dict):
        raise _stray(path, f"it holds a {type(record).__name__}, not named values.")
    if missing := lacking(record, needed):
        raise _stray(path, f"it lacks {', '.join(missing)}.")
    return record


def records_in(folder: Path) -> list[Path]:
    """The JSON files of a folder in the order of their names, without those that somebody is just writing."""
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


def lacking(record: dict, names: Iterable[str]) -> list[str]:
    """Those of the ``names``, such as ``"metrics.macro_f1"``, that lead to nothing in ``record``."""

    def inside(value, key: str):
        return value.get(key, nothing) if isinstance(value, dict) else nothing

    nothing = object()
    return [name for name in names if functools.reduce(inside, name.split("."), record) is nothing]


def _stray(path: Path, problem: str) -> ValueError:
    return ValueError(f"{shown(path)} cannot be used: {problem} Make it again, or take it out of this folder.")
