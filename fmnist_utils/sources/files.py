"""What the readers of both formats share: their error, a file's content and how a file is written safely."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fmnist_utils import ROOT


class DataError(ValueError):
    """The data cannot be used; the message says where (file, line, column, value) and what to do about it."""


def read_bytes(path: str | Path) -> bytes:
    """The content of a file, uncompressed when its name ends in `.gz`.

    Raises DataError when the file is missing, empty, or not a sound gzip file though its name says so.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        hint = "Fetch it again; if it is not compressed at all, take .gz off its name"
        raise DataError(f"{path} is not a whole, sound gzip file ({error}). {hint}.") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Give the path of a file (not a folder) that exists.") from error
    if not content:
        raise DataError(f"{path} is empty. Fetch or write it again.")
    return content


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`, moved to `path` if all goes well and removed if not."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_labels(labels: np.ndarray, where: str | Path) -> None:
    """Raises DataError, which begins with `where`, unless all `labels`, integers [N], are in 0-9."""
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if len(wrong):
        problem = f"label {labels[wrong[0]]} of item {wrong[0]} (counted from 0) is outside 0-9"
        raise DataError(f"{where}: {problem}. Fashion-MNIST has ten classes; is this another data set?")


def shown(path: Path) -> str:
    """The path as a reader anywhere would recognise it."""
    for base, prefix in ((ROOT, ""), (Path.home(), "~/")):
        if path.is_absolute() and path.is_relative_to(base):
            return prefix + path.relative_to(base).as_posix()
    return str(path)
