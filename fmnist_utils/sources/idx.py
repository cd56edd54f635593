"""IDX files, the form in which Fashion-MNIST is published: read, found on this computer or downloaded."""

import hashlib
import math
import os
import struct
import warnings
from http.client import HTTPException
from pathlib import Path

import numpy as np

from fmnist_utils import ROOT
from fmnist_utils.sources.download import download
from fmnist_utils.sources.files import DataError, check_labels, home, read_bytes, replacing, shown

#: Images uint8 [N, 28, 28], labels uint8 [N] and a text that says where they come from.
Arrays = tuple[np.ndarray, np.ndarray, str]

# The files of a split, images first, and the SHA-256 of their uncompressed bytes: the same data compressed again
# makes another .gz but is just as good.
PUBLISHED = {
    "train": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    },
    "test": {
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
# The files of the same names that hold MNIST's handwritten digits (LeCun et al., 1998), images and labels.
_MNIST = {
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MIRRORS = (
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)


def read_idx(path: str | Path) -> np.ndarray:
    """An IDX file, plain or `.gz`: uint8 [N, 28, 28] for images, uint8 [N] for labels.

    The format is Yann LeCun's for MNIST: a magic number, the dimensions (both big-endian), the bytes.
    Raises DataError when the file is missing, damaged, of another kind or not exactly as long as it declares.
    """
    return _parse_idx(read_bytes(path), path)


def read_published(split: str) -> Arrays:
    """The published files of a split, from the first of `search_folders` that has both, else downloaded.

    Images are uint8 [N, 28, 28], labels uint8 [N]. Raises DataError when a file found does not have the published
    SHA-256, or none is found and the download fails.
    """
    complete = (f for f in search_folders() if all(_find_idx(f, name) for name in PUBLISHED[split]))
    return read_folder(next(complete, None) or _download(split), split, must_be_published=True)


def read_folder(folder: Path, split: str, must_be_published: bool = False) -> Arrays:
    """A split's two files in `folder`: images uint8 [N, 28, 28], labels uint8 [N], and a text that names the folder.

    Raises DataError when a file is missing, damaged or does not belong to the other, and when `must_be_published` and
    its SHA-256 is another. Warns, and says so in the text, where the files are MNIST's handwritten digits.
    """
    arrays, verdict = [], "SHA-256 verified"
    for (name, sha256), ndim in zip(PUBLISHED[split].items(), (3, 1), strict=True):
        path = _find_idx(folder, name)
        if path is None:
            raise DataError(f"{folder} has no {name} or {name}.gz. {_what_to_give(folder)}.")
        raw = read_bytes(path)
        if (digest := hashlib.sha256(raw).hexdigest()) != sha256:
            verdict = "MNIST's handwritten digits" if digest in _MNIST else "not the published files: SHA-256 differs"
            if must_be_published:
                hint = f"Delete it, to have it fetched again, or use it as it is with source={str(folder)!r}"
                raise DataError(f"{path} does not hold the published data (its SHA-256 differs). {hint}.")
        arrays.append(_parse_idx(raw, path))
        if arrays[-1].ndim != ndim:
            raise DataError(f"{path} does not hold what its name says. Were images and labels exchanged?")
    images, labels = arrays
    if len(images) != len(labels):
        counts = f"{len(images)} images but {len(labels)} labels"
        raise DataError(f"{folder}: {counts} in {' and '.join(PUBLISHED[split])}. Take both from the same place.")
    if verdict.startswith("MNIST"):
        warnings.warn(f"{folder} holds MNIST's handwritten digits, not Fashion-MNIST's clothes.", stacklevel=4)
    return images, labels, f"{shown(folder)} ({verdict})"


def search_folders() -> list[Path]:
    """Where the files may be. Downloads go to the first, or to the last where the project cannot be written to."""
    base = home()
    roots = [Path("data"), ROOT / "data", *([base / "data"] if base else [])]
    keras = os.environ.get("KERAS_HOME") or (base and base / ".keras")
    return [
        ROOT / "data" / "fashion-mnist",
        *(root / "FashionMNIST" / "raw" for root in roots),
        *([Path(keras) / "datasets" / "fashion-mnist"] if keras else []),
        *([base / ".cache" / "fmnist_utils" / "fashion-mnist"] if base else []),
    ]


def data_folder(path: Path, split: str) -> Path:
    """Where a split's files are in a folder that somebody gives: in itself, or below it as torchvision puts them."""
    places = (path, path / "FashionMNIST" / "raw", path / "raw", path / "fashion-mnist")
    return next((place for place in places if any(_find_idx(place, name) for name in PUBLISHED[split])), path)


def _what_to_give(folder: Path) -> str:
    """What a folder without the files has instead, and so what to do."""
    tables = sorted(p.name for p in folder.glob("*.[cC][sS][vV]*") if p.is_file() and not p.name.startswith("."))
    if tables:
        return (
            f"It has {', '.join(tables[:3])}: give the path of such a file, {folder / tables[0]}, instead of the folder"
        )
    return "Put it there, or give the folder that has it"


def _parse_idx(raw: bytes, path: str | Path) -> np.ndarray:
    ndim = {b"\0\0\x08\x03": 3, b"\0\0\x08\x01": 1}.get(raw[:4])
    if ndim is None:
        expected = "0x00000803 (images) or 0x00000801 (labels)"
        raise DataError(f"{path} has the magic number 0x{raw[:4].hex()}, not {expected}. Is it an IDX file of bytes?")
    start = 4 + 4 * ndim
    if len(raw) < start:
        raise DataError(f"{path} ends inside its {start}-byte header. Fetch it again.")
    shape = struct.unpack(f">{ndim}I", raw[4:start])
    if shape[1:] not in ((28, 28), ()):
        raise DataError(f"{path} has images of {shape[1]}x{shape[2]}, not 28x28. Is it another data set?")
    if math.prod(shape) != len(raw) - start:
        size = f"declares {math.prod(shape)} bytes of data ({shape[0]} items) but has {len(raw) - start}"
        raise DataError(f"{path} {size}. Fetch it again.")
    # Unlike bytes, a bytearray may be written to, which tensors insist on.
    values = np.frombuffer(bytearray(raw), np.uint8, offset=start).reshape(shape)
    if ndim == 1:
        check_labels(values, path)
    return values


def _find_idx(folder: Path, name: str) -> Path | None:
    dotted = name.replace("-idx", ".idx")
    paths = (folder / spelling for spelling in (name, f"{name}.gz", dotted, f"{dotted}.gz"))
    return next((path for path in paths if path.is_file()), None)


def _download(split: str) -> Path:
    """Fetch the files of a split; returns their folder. Raises DataError when no mirror has a sound copy."""
    folder = search_folders()[0 if os.access(ROOT, os.W_OK) else -1]
    for name, sha256 in PUBLISHED[split].items():
        failures = []
        for mirror in MIRRORS:
            url = f"{mirror}{name}.gz"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with replacing(folder / f"{name}.gz") as temporary:
                    download(url, temporary, mirrors=len(MIRRORS))
                    if hashlib.sha256(read_bytes(temporary)).hexdigest() != sha256:
                        raise DataError("what arrived is not the published data (its SHA-256 differs)")
                break
            except (OSError, HTTPException, DataError) as error:
                failures.append(f"\n  {url}: {error}")
        else:
            hint = f"Check the connection, or fetch {name}.gz in a browser and put it in {folder}"
            raise DataError(f"{name}.gz could not be downloaded. {hint}. Tried:{''.join(failures)}")
    return folder
