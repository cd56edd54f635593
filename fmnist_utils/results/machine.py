"""Where a number was measured: processor, versions, memory; and how often something can be done in a second."""

import datetime
import platform
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from fmnist_utils.scale.engines import default_device


def peak_memory_mb(of_children: bool = False) -> float:
    """Largest memory this process has had so far, in MB (10⁶ bytes); or of the largest of its children that ended.

    Windows keeps no record of children: 0.
    """
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_CHILDREN if of_children else resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
    except ImportError:  # Windows
        import psutil

        return 0.0 if of_children else psutil.Process().memory_info().peak_wset / 1e6


def per_second(work: Callable[[], object], seconds: float) -> float:
    """Calls of ``work`` per second: the median over at least ``seconds``, after calls that do not count."""
    from torch.utils.benchmark import Timer

    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return 1 / timer.blocked_autorange(min_run_time=seconds).median


def hardware() -> dict[str, str | int]:
    """``device`` (cuda, mps or cpu), name of the processor (and GPU), number of ``cores`` torch's threads use."""
    device = default_device()
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file() and (match := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        cpu = match[1]
    machine = {"device": device, "cpu": cpu, "cores": torch.get_num_threads()}
    return machine | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def versions(*others: str) -> dict[str, str]:
    """Versions of Python, of the packages that decide the numbers, and of ``others``."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "torchvision", "accelerate", "numpy", "scikit-learn", *others)
    }


def where_and_when(*packages: str) -> dict:
    """What every record holds: ``hardware``, ``versions`` (of ``packages``, too) and ``date``, as YYYY-MM-DD."""
    return {"hardware": hardware(), "versions": versions(*packages), "date": datetime.date.today().isoformat()}
