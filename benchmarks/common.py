"""What the benchmarks share: command line, clock, calls per second, fresh processes, images, weights, and the file."""

import argparse
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch

from fmnist_utils import ROOT
from fmnist_utils.data import FashionMNIST, load, train_val_split
from fmnist_utils.models import WeightsUnavailable, find_weights
from fmnist_utils.results import save_benchmark
from fmnist_utils.results.machine import per_second as per_second  # as all benchmarks do


def options(question: str, **switches: str | dict) -> argparse.Namespace:
    """What the command line asks for: ``--record``, and for each further name a switch with this help, or an option
    with these arguments of ``add_argument``."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--record", action="store_true", help="write to results/, where README and notebooks look")
    for name, text in switches.items():
        arguments = text if isinstance(text, dict) else {"action": "store_true", "help": text}
        parser.add_argument(f"--{name}", **arguments)
    asked = parser.parse_args()
    if asked.record:
        os.environ["FMNIST_RECORD"] = "1"
    return asked


def clock() -> float:
    """Seconds, once a GPU has done what it was asked to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable, *arguments) -> tuple:
    """(what ``work(*arguments)`` returns, its seconds)."""
    began = clock()
    output = work(*arguments)
    return output, clock() - began


def each(work: Callable, inputs: Iterable) -> tuple[list, list[float]]:
    """(what ``work`` returns for each input, seconds of each call)."""
    calls = [timed(work, one) for one in inputs]
    return [output for output, _ in calls], [seconds for _, seconds in calls]


def in_fresh_process(work: Callable, *arguments, preload: Iterable[str] = ()):
    """``work(*arguments)`` in a process of its own, so that its peak memory is its own; the processes take turns.

    Importing takes seconds: where forking is safe, a server imports torchvision, for which models and optimisers ask,
    and ``preload`` once, and is copied for each process.
    """
    fork = sys.platform == "linux" and not torch.cuda.is_available()
    context = get_context("forkserver" if fork else "spawn")
    context.set_forkserver_preload(["torchvision", *preload])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def splits(**counts: int) -> dict[str, FashionMNIST]:
    """As many images as asked for of ``train``, ``val`` and ``test``, classes in proportion."""
    whole = dict(zip(("train", "val"), train_val_split(load("train")), strict=True))
    if "test" in counts:
        whole["test"] = load("test")
    return {name: whole[name].subset(count) for name, count in counts.items()}


@functools.cache
def weights_of(name: str) -> dict:
    """ImageNet weights, or random ones, just as frozen, where those cannot be had: arguments of ``build_model``."""
    try:
        find_weights(name)
    except WeightsUnavailable as error:
        print(error, "\nGoing on with random weights, on purpose: the time is the same, the accuracy is not.")
        return {"weights": None, "trainable": "head"}
    return {}


def rounded(value):
    """``value`` with every number in it cut to five digits that count."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else value


def record(name: str, setting: str, ours: float, reference: float, unit: str, *, figure=None, **fields) -> None:
    """Write the file of benchmark ``name``, and say what it found; the arguments of ``save_benchmark``."""
    headline = rounded({"setting": setting, "ours": ours, "reference": reference, "unit": unit})
    path = save_benchmark(name, **headline, figure=figure, **rounded(fields))
    print("{setting}: {ours:,} against {reference:,} {unit}".format(**headline))
    print("wrote", path.relative_to(ROOT).as_posix())
