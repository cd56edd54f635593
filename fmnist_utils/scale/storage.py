"""Features of frozen layers, float16: in memory, or in a memory-mapped file that several processes fill together."""

import json
import math
import os
import shutil
import warnings
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmnist_utils.sources.files import replacing, shown


@dataclass(frozen=True)
class PrefixPass:
    """What one pass through the frozen layers did: ``images`` (all views), ``seconds``, ``engine`` and ``bytes``."""

    images: int
    seconds: float
    engine: str
    bytes: int
    reused: bool = False

    def __str__(self) -> str:
        where = "read from disk; computed earlier" if self.reused else "computed"
        rate = f"{self.images / max(self.seconds, 1e-9):,.0f} images/s, {self.engine}"
        return f"{self.images:,} images {where} in {self.seconds:.1f} s ({rate}), {self.bytes / 1e6:,.0f} MB kept"


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


def read_report(store: Path) -> PrefixPass | None:
    """What the pass that filled ``store`` reported; None where there is none, or the files are damaged."""
    text = store.with_suffix(".json")
    if not (store.is_file() and text.is_file()):
        return None
    try:
        report = json.loads(text.read_text(encoding="utf-8"))
        if report.pop("crc32") == checksum(store):
            return replace(PrefixPass(**report), reused=True)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    print(f"{shown(store)} is damaged, or of an earlier version: its features are computed anew.", flush=True)
    return None


def write_report(store: Path, report: PrefixPass) -> None:
    """Keep the report beside the features, with a checksum of them."""
    with replacing(store.with_suffix(".json")) as part:
        kept = {k: v for k, v in asdict(report).items() if k != "reused"} | {"crc32": checksum(store)}
        part.write_text(json.dumps(kept), encoding="utf-8")
