"""What the readers of both formats share: their error, a file's content and how a file is written safely."""

import errno
import gzip
import hashlib
import os
import platform
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from torch import Tensor

from fmnist_utils import ROOT


class DataError(ValueError):
    """The data cannot be used; the message says where (file, line, column, value) and what to do about it."""


# What the system says where a disk, a quota or the largest file allowed is full.
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)

#: What files often are that are not what their name says: how they begin, and what to do about it.
_DISGUISES = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the data", "Run git lfs pull where the file comes from"),
    (b"PK\x03\x04", "is a zip archive", "Unpack it, and give the file that was in it"),
    (b"\x1f\x8b", "is compressed by gzip", "Put .gz behind its name, or uncompress it"),
    (b"BZh", "is compressed by bzip2", "Uncompress it"),
    (b"\xfd7zXZ", "is compressed by xz", "Uncompress it"),
    (b"7z\xbc\xaf", "is a 7z archive", "Unpack it, and give the file that was in it"),
    (b"<!doctype html", "is a web page", "Use the page's download button, and give the file that comes"),
    (b"<html", "is a web page", "Use the page's download button, and give the file that comes"),
)


def read_bytes(path: str | Path) -> bytes:
    """The content of a file, uncompressed when its name ends in `.gz`.

    Raises DataError when the file is missing, empty, not a sound gzip file though its name says so, or evidently
    something else: an archive, a web page, a Git LFS pointer.
    """
    path = expanded(path)
    try:
        content = path.read_bytes()
        compressed = path.suffix.lower() == ".gz"
        if not (compressed and content.startswith(b"\x1f\x8b")):
            _check_disguise(content, path)
        if compressed:
            content = gzip.decompress(content)
            _check_disguise(content, f"{path}, uncompressed,")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        hint = "Fetch it again; if it is not compressed at all, take .gz off its name"
        raise DataError(f"{path} is not a whole, sound gzip file ({error}). {hint}.") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Give the path of a file (not a folder) that exists.") from error
    if not content:
        raise DataError(f"{path} is empty. Fetch or write it again.")
    return content


def _check_disguise(content: bytes, path: Path | str) -> None:
    start = content[:32].lstrip().lower()
    for beginning, what, hint in _DISGUISES:
        if start.startswith(beginning.lower()):
            raise DataError(f"{path} {what}. {hint}.")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(*parts: Tensor | str) -> str:
    """SHA-256, in hexadecimal, of tensors' bytes and of texts in turn: the name of data and weights in caches."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`, moved to `path` if all goes well and removed if not.

    What processes of this machine that were killed meanwhile have left of the same file is removed, too. Raises OSError
    with a sentence where the disk is full.
    """
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
    temporary = path.with_name(f".{os.getpid()}-{machine}-{path.name}")
    for other in path.parent.iterdir() if path.parent.is_dir() else ():
        owner = re.fullmatch(rf"\.(\d+)-{machine}-{re.escape(path.name)}", other.name)
        if owner and not psutil.pid_exists(int(owner[1])):
            other.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        problem = f"{shown(path)} could not be written ({error.strerror}): make room and try again"
        raise OSError(f"{problem}. What was there before is as it was.") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_labels(labels: np.ndarray, where: str | Path) -> None:
    """Raises DataError, which begins with `where`, unless all `labels`, integers [N], are in 0-9."""
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if len(wrong):
        problem = f"label {labels[wrong[0]]} of item {wrong[0]} (counted from 0) is outside 0-9"
        raise DataError(f"{where}: {problem}. Fashion-MNIST has ten classes; is this another data set?")


def home() -> Path | None:
    """The home folder, which need not exist, or None where the system knows none: HOME unset, an unknown user."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def expanded(path: str | Path) -> Path:
    """The path with the home folder in place of `~`; DataError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path}: there is no such home folder. Give the whole path, or set HOME.") from error


def shown(path: Path) -> str:
    """The path as a reader anywhere would recognise it."""
    for base, prefix in ((ROOT, ""), (home(), "~/")):
        if base and path.is_absolute() and path.is_relative_to(base):
            return prefix + path.relative_to(base).as_posix()
    return str(path)
