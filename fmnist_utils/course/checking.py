"""Checks of a reader's answers: right, nearly (and what to look at) or wrong, without giving the answer away.

The exercises of notebook 01 are in ``notebook_01.py`` of this folder, and so on: each has a dictionary ``EXERCISES`` of
functions from an answer to a verdict. Numbers are kept as digests, functions are judged by what they do.
"""

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

TITLES = {"right": "Right", "nearly": "Nearly", "wrong": "Not yet", "open": "No answer yet"}


@dataclass(frozen=True)
class Verdict:
    """``level`` is right, nearly, wrong or open; true if right. A notebook shows it as one line of text."""

    level: str
    message: str

    def __bool__(self) -> bool:
        return self.level == "right"

    def __repr__(self) -> str:
        return f"{TITLES[self.level]}: {self.message}"


#: For an answer that is a function whose body is still the three dots.
NOTHING_YET = Verdict("open", "your function returns nothing yet.")


def of_a_function(judge: Callable[[Callable], Verdict]) -> Callable[[Any], Verdict]:
    """``judge``, where the answer has to be a function: anything else, such as its result, is wrong."""

    @functools.wraps(judge)
    def judged(answer: Any) -> Verdict:
        if not callable(answer):
            kind = type(answer).__name__
            return Verdict("wrong", f"pass the function itself, without calling it, not a {kind}.")
        return judge(answer)

    return judged


def check(exercise: str, answer: Any = ...) -> Verdict:
    """What an answer to an exercise such as ``"01.2"`` is worth. ``...`` stands for no answer.

    A function that fails when it is tried counts as wrong, and the message says how it failed.
    Raises ``ValueError`` for an exercise that does not exist.
    """
    number, module = exercise.partition(".")[0], f"fmnist_utils.course.notebook_{exercise.partition('.')[0]}"
    exercises = import_module(module).EXERCISES if number.isdigit() and find_spec(module) else {}
    if exercise not in exercises:
        known = f" Those of notebook {number}: {', '.join(exercises)}." if exercises else ""
        raise ValueError(f"There is no exercise {exercise!r} with a check.{known}")
    if answer is ... or answer is None:
        return Verdict("open", "replace the three dots by yours, and run the cell again.")
    try:
        return exercises[exercise](answer)
    except Exception as error:  # whatever a reader's function does, the notebook goes on
        return Verdict("wrong", f"trying your answer ended with {type(error).__name__}: {error}")


def digest(text: str) -> str:
    """What is stored in place of an answer, so that reading the file does not spoil the exercise."""
    return hashlib.sha256(f"fashion {text}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Number:
    """A number that is right within ``tolerance`` steps of size ``step``; stored is the digest of the count of steps.

    ``slips`` are usual mistakes: a function that would repair the answer, and the hint for whoever made it. ``others``
    are digests of wrong numbers that have a known cause, with the hint.
    """

    stored: str
    step: float
    tolerance: int
    right: str
    wrong: str
    slips: tuple[tuple[Callable[[float], float], str], ...] = ()
    others: dict[str, str] = field(default_factory=dict)

    def __call__(self, answer: Any) -> Verdict:
        try:
            value = float(answer)
        except (TypeError, ValueError):
            return Verdict("wrong", f"one number is asked for, and this is a {type(answer).__name__}.")
        if self._among((self.stored,), value):
            return Verdict("right", self.right)
        for repair, hint in self.slips:
            if value and self._among((self.stored,), repair(value)):
                return Verdict("nearly", hint)
        if cause := self._among(self.others, value):
            return Verdict("nearly", self.others[cause])
        return Verdict("wrong", self.wrong)

    def _among(self, digests, value: float) -> str | None:
        if not math.isfinite(value) or abs(value) > 1e9:
            return None
        count = round(value / self.step)
        around = [digest(str(count + i)) for i in range(-self.tolerance, self.tolerance + 1)]
        return next((known for known in digests if known in around), None)
