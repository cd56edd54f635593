"""Arrays of float16 in memory or in a memory-mapped file that several processes fill together."""

import math
import os
import shutil
import warnings
import zlib
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
    """An empty .npy file of float16, whose room on the disk is taken; ``OSError`` where the disk is too small."""
    needed, free = 2 * math.prod(shape), shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(f"The features need {needed / 1e9:.1f} GB in {part.parent}, where {free / 1e9:.1f} GB are free.")
    np.lib.format.open_memmap(part, "w+", np.float16, shape)
    if hasattr(os, "posix_fallocate"):  # else a disk that others fill meanwhile would end Python at a write
        with part.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
    return part


def checksum(path: Path) -> int:
    """CRC-32 of a file's bytes, to tell damage by."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
    return crc


def allocate(part: Path | None, shape: tuple[int, ...]) -> Tensor:
    """A tensor to fill, float16: in the file ``part``, or in memory without one."""
    if part is None:
        return torch.empty(shape, dtype=torch.float16)
    if not part.is_file():  # another machine's process has made it
        raise OSError(f"{part.parent} must be a folder that all machines share, but not all of them see its files.")
    return torch.from_numpy(np.lib.format.open_memmap(part, "r+"))
