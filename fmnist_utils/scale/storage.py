"""Arrays of float16 in memory or in a memory-mapped file that several processes fill together."""

import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def open_file(store: Path) -> Tensor:
    """What :func:`new_file` made and others filled, for reading only: writing into it ends Python."""
    # Linux counts a copy-on-write mapping as memory and refuses one that is larger; a read-only one may be any size.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.load(store, mmap_mode="r"))


def new_file(part: Path, shape: tuple[int, ...]) -> Path:
    """An empty .npy file of float16; ``OSError`` where the disk is too small."""
    needed, free = 2 * math.prod(shape), shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(f"The features need {needed / 1e9:.1f} GB in {part.parent}, where {free / 1e9:.1f} GB are free.")
    np.lib.format.open_memmap(part, "w+", np.float16, shape)
    return part


def allocate(part: Path | None, shape: tuple[int, ...]) -> Tensor:
    """A tensor to fill, float16: in the file ``part``, or in memory without one."""
    if part is None:
        return torch.empty(shape, dtype=torch.float16)
    if not part.is_file():  # another machine's process has made it
        raise OSError(f"{part.parent} must be a folder that all machines share, but not all of them see its files.")
    return torch.from_numpy(np.lib.format.open_memmap(part, "r+"))
