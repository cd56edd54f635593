"""Fashion-MNIST as tensors: find, verify, read, write, split and batch it.

Images stay `uint8` and labels `int64` until a model needs something else, so the whole training set takes 47 MB.
Explained in `notebooks/01_exploration.ipynb` (the data) and `notebooks/02_preprocessing.ipynb` (Dataset, DataLoader).
"""

import codecs
import csv
import functools
import gzip
import hashlib
import io
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler

from fmnist_utils import ROOT

CLASSES: tuple[str, ...] = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# The files of a split, images first, and the SHA-256 of their uncompressed bytes: the same data compressed again
# makes another .gz but is just as good.
_FILES = {
    "train": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    },
    "test": {
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
_MIRRORS = (
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
_HEADER = ["label", *(f"pixel{i}" for i in range(1, 785))]


class DataError(ValueError):
    """The data cannot be used; the message says where (file, line, column, value) and what to do about it."""


class FashionMNIST(Dataset):
    """Images and labels held in memory; the Dataset of `notebooks/02_preprocessing.ipynb`.

    `images` is uint8 [N, 28, 28] (0 = background), `labels` int64 [N] (an index into `CLASSES`), `source` a text
    that says where they come from. Raises DataError for any other shape or dtype, for N = 0 and for labels outside 0-9.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, source: str = "tensors in memory"):
        if images.dtype != torch.uint8 or images.shape[1:] != (28, 28) or len(images) == 0:
            expected = "uint8 [N, 28, 28] with N >= 1"
            raise DataError(f"{source}: images must be {expected}, not {images.dtype} {list(images.shape)}.")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            expected = f"int64 [{len(images)}], one per image"
            raise DataError(f"{source}: labels must be {expected}, not {labels.dtype} {list(labels.shape)}.")
        _check_labels(labels.numpy(), source)
        self.images, self.labels, self.source = images, labels, source

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One image, uint8 [28, 28], and its label. Raises IndexError past the end."""
        return self.images[index], int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch at once: uint8 [B, 28, 28] and int64 [B]. PyTorch's DataLoader calls this when a Dataset has it."""
        chosen = row_numbers(indices, self.images.device)
        return self.images[chosen], self.labels[chosen]

    def select(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> "FashionMNIST":
        """A new data set of the images at `indices` (or where a Boolean mask is true), in that order."""
        images, labels = self.__getitems__(indices)
        return FashionMNIST(images, labels, f"{self.source}, {len(labels):,} of {len(self):,} images")

    def subset(self, n: int, seed: int = 0) -> "FashionMNIST":
        """`n` random images with the classes in the same proportions, in their original order.

        A smaller subset of the same seed lies inside a larger one. Raises DataError unless 1 <= n <= len(self).
        """
        if not 1 <= n <= len(self):
            raise DataError(f"{self.source}: cannot take {n} of {len(self)} images. Ask for 1 to {len(self)}.")
        return self.select(_stratified_order(self.labels, seed)[:n].sort().values)


def load(split: str = "train", source: str | Path | None = None) -> FashionMNIST:
    """Fashion-MNIST's "train" (60,000 images) or "test" (10,000) split; see `notebooks/01_exploration.ipynb`.

    Without `source`: from `data/fashion-mnist`, else from torchvision's or Keras's cache, else downloaded; what is
    found must match the published SHA-256. `source` may be a folder of IDX files (`.gz` or not, or a torchvision
    root), whose structure is checked, or a `.csv` or `.csv.gz` file, which is read whole whatever the split.
    Raises DataError when nothing is found, or what is found is damaged.
    """
    if split not in _FILES:
        raise DataError(f'There is no split {split!r}. Ask for "train" or "test".')
    if source is None:
        complete = (f for f in _search_folders() if all(_find_idx(f, name) for name in _FILES[split]))
        return _read_folder(next(complete, None) or _download(split), split, must_be_published=True)
    path = Path(source).expanduser()
    if path.is_dir():
        torchvision_folder = path / "FashionMNIST" / "raw"
        return _read_folder(torchvision_folder if torchvision_folder.is_dir() else path, split)
    if path.exists() and not path.name.lower().endswith((".csv", ".csv.gz")):
        raise DataError(f"{path} is a file, but not a .csv or .csv.gz. For IDX files, give the folder they are in.")
    return read_csv(path)


def read_idx(path: str | Path) -> np.ndarray:
    """An IDX file, plain or `.gz`: uint8 [N, 28, 28] for images, uint8 [N] for labels.

    The format is Yann LeCun's for MNIST: a magic number, the dimensions (both big-endian), the bytes.
    Raises DataError when the file is missing, damaged, of another kind or not exactly as long as it declares.
    """
    return _parse_idx(_read_bytes(path), path)


def read_csv(path: str | Path) -> FashionMNIST:
    """A `.csv` or `.csv.gz` file with the columns label, pixel1, ..., pixel784 (Kaggle's layout), UTF-8, N >= 1 rows.

    Raises DataError naming the line (the header is line 1), column and value of the first thing that is wrong.
    """
    raw = _read_bytes(path)
    table = _read_csv_fast(raw)
    if table is None:
        table = _read_csv_carefully(raw, path)
    return _dataset(table[:, 1:].reshape(-1, 28, 28), table[:, 0], _shown(Path(path)))


def write_csv(dataset: FashionMNIST, path: str | Path) -> None:
    """Write what `read_csv` reads back exactly. An existing file is replaced only once the new one is complete.

    Raises DataError for a name that is not `.csv` or `.csv.gz` or a folder that does not exist, OSError when the disk
    refuses.
    """
    path = Path(path)
    if not path.name.lower().endswith((".csv", ".csv.gz")) or not path.parent.is_dir():
        raise DataError(f"{path}: give a name that ends in .csv or .csv.gz, in a folder that exists.")
    # Joining 256 ready-made texts is several times faster than formatting 47 million numbers.
    texts = [str(value) for value in range(256)]
    rows = np.column_stack([dataset.labels.numpy().astype(np.uint8), dataset.images.numpy().reshape(-1, 784)])
    lines = (",".join([texts[value] for value in row.tobytes()]) for row in rows)
    content = "\n".join([",".join(_HEADER), *lines, ""]).encode()
    if path.name.lower().endswith(".gz"):
        content = gzip.compress(content, compresslevel=6, mtime=0)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def train_val_split(dataset: FashionMNIST, val: int = 5000, seed: int = 0) -> tuple[FashionMNIST, FashionMNIST]:
    """Split into (train, validation) with `val` images in the second, both with the classes in the same proportions.

    The two are disjoint and together the whole; see `notebooks/02_preprocessing.ipynb`.
    Raises DataError unless both get at least one image.
    """
    if not 1 <= val < len(dataset):
        raise DataError(f"{dataset.source}: cannot hold out {val} of {len(dataset)}. Use 1 to {len(dataset) - 1}.")
    order = _stratified_order(dataset.labels, seed)
    return dataset.select(order[val:].sort().values), dataset.select(order[:val].sort().values)


def make_loader(
    dataset: Dataset, batch_size: int, shuffle: bool = False, seed: int = 0, process: int = 0, processes: int = 1
) -> DataLoader:
    """A DataLoader over any Dataset with `__getitems__`, such as FashionMNIST: uint8 [B, 28, 28] and int64 [B].

    Two loaders with the same seed give the same order. Of each batch, process number `process` of `processes` gets
    every `processes`-th image, so that together they see each image once. See `notebooks/02_preprocessing.ipynb`.
    """
    # Its own generator: the order then depends on nothing else that draws random numbers, nor disturbs it.
    generator = torch.Generator().manual_seed(seed)
    # Batch normalisation cannot learn from a single image, so a last training batch of one is left out of the epoch.
    drop_last = shuffle and len(dataset) > batch_size and 0 < len(dataset) % batch_size < max(2, processes)
    if processes == 1:
        return DataLoader(dataset, batch_size, shuffle, collate_fn=_as_it_is, generator=generator, drop_last=drop_last)
    order = RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
    batches = _BatchShare(BatchSampler(order, batch_size, drop_last), process, processes)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_as_it_is, generator=generator)


def batch_weights(loader: DataLoader) -> list[float]:
    """What each batch's mean loss counts in the mean over processes: 1, unless they cannot share the batch evenly."""
    if not isinstance(share := getattr(loader, "batch_sampler", None), _BatchShare):
        return [1.0] * len(loader)
    count, size = len(loader.dataset), share.batches.batch_size
    sizes = [min(size, count - start) for start in range(0, count, size)][: len(share)]
    return [len(range(share.process, size, share.processes)) * share.processes / size for size in sizes]


class _BatchShare(Sampler):
    """One process's part of each batch."""

    def __init__(self, batches: BatchSampler, process: int, processes: int):
        self.batches, self.process, self.processes = batches, process, processes

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch[self.process :: self.processes] for batch in self.batches)


def _as_it_is(batch):
    # `__getitems__` has already put the batch together.
    return batch


def row_numbers(indices: Sequence[int] | np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """`indices` as a tensor on `device`; a GPU is not made to wait for it."""
    rows = torch.as_tensor(indices)
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows


def _stratified_order(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """All indices, int64 [N], so that every beginning of them has the classes in (nearly) the same proportions."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = labels[order] == label
        # Spread each class evenly over 0..1, in its shuffled order.
        place[members] = (torch.arange(members.sum(), dtype=torch.float64) + 0.5) / members.sum()
    return order[place.argsort(stable=True)]


def _check_labels(labels: np.ndarray, where: str | Path) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if len(wrong):
        problem = f"label {labels[wrong[0]]} of item {wrong[0]} (counted from 0) is outside 0-9"
        raise DataError(f"{where}: {problem}. Fashion-MNIST has ten classes; is this another data set?")


def _shown(path: Path) -> str:
    """The path as a reader anywhere would recognise it."""
    for base, prefix in ((ROOT, ""), (Path.home(), "~/")):
        if path.is_absolute() and path.is_relative_to(base):
            return prefix + path.relative_to(base).as_posix()
    return str(path)


def _read_bytes(path: str | Path) -> bytes:
    """The content of a file, uncompressed when its name ends in `.gz`."""
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
        _check_labels(values, path)
    return values


def _dataset(images: np.ndarray, labels: np.ndarray, source: str) -> FashionMNIST:
    images, labels = np.ascontiguousarray(images), labels.astype(np.int64)
    return FashionMNIST(torch.from_numpy(images), torch.from_numpy(labels), source)


def _find_idx(folder: Path, name: str) -> Path | None:
    dotted = name.replace("-idx", ".idx")
    paths = (folder / spelling for spelling in (name, f"{name}.gz", dotted, f"{dotted}.gz"))
    return next((path for path in paths if path.exists()), None)


def _read_folder(folder: Path, split: str, must_be_published: bool = False) -> FashionMNIST:
    arrays, published = [], True
    for (name, sha256), ndim in zip(_FILES[split].items(), (3, 1), strict=True):
        path = _find_idx(folder, name)
        if path is None:
            raise DataError(f"{folder} has no {name} or {name}.gz. Put it there, or give the folder that has it.")
        raw = _read_bytes(path)
        if hashlib.sha256(raw).hexdigest() != sha256:
            published = False
            if must_be_published:
                hint = f"Delete it, to have it fetched again, or use it as it is with source={str(folder)!r}"
                raise DataError(f"{path} does not hold the published data (its SHA-256 differs). {hint}.")
        arrays.append(_parse_idx(raw, path))
        if arrays[-1].ndim != ndim:
            raise DataError(f"{path} does not hold what its name says. Were images and labels exchanged?")
    images, labels = arrays
    if len(images) != len(labels):
        counts = f"{len(images)} images but {len(labels)} labels"
        raise DataError(f"{folder}: {counts} in {' and '.join(_FILES[split])}. Take both from the same place.")
    verdict = "SHA-256 verified" if published else "not the published files: SHA-256 differs"
    return _dataset(images, labels, f"{_shown(folder)} ({verdict})")


def _search_folders() -> list[Path]:
    """Where the files may be. Downloads go to the first, or to the last where the project cannot be written to."""
    home = Path.home()
    keras = Path(os.environ.get("KERAS_HOME") or home / ".keras")
    return [
        ROOT / "data" / "fashion-mnist",
        *(root / "FashionMNIST" / "raw" for root in (Path("data"), ROOT / "data", home / "data")),
        keras / "datasets" / "fashion-mnist",
        home / ".cache" / "fmnist_utils" / "fashion-mnist",
    ]


def _download(split: str) -> Path:
    """Fetch the files of a split; returns their folder."""
    from http.client import HTTPException
    from urllib.request import urlopen

    folder = _search_folders()[0 if os.access(ROOT, os.W_OK) else -1]
    for name, sha256 in _FILES[split].items():
        failures = []
        for mirror in _MIRRORS:
            url = f"{mirror}{name}.gz"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with replacing(folder / f"{name}.gz") as temporary:
                    with urlopen(url, timeout=60) as response:
                        temporary.write_bytes(response.read())
                    if hashlib.sha256(_read_bytes(temporary)).hexdigest() != sha256:
                        raise DataError("what arrived is not the published data (its SHA-256 differs)")
                break
            except (OSError, HTTPException, DataError) as error:
                failures.append(f"\n  {url}: {error}")
        else:
            hint = f"Check the connection, or fetch {name}.gz in a browser and put it in {folder}"
            raise DataError(f"{name}.gz could not be downloaded. {hint}. Tried:{''.join(failures)}")
    return folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`, moved to `path` if all goes well and removed if not."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_csv_fast(raw: bytes) -> np.ndarray | None:
    """Labels and pixels, uint8 [N, 785], or None when anything at all looks unusual."""
    import pandas as pd

    body = raw.removeprefix(codecs.BOM_UTF8)
    header = ",".join(_HEADER).encode()
    if not body.startswith((header + b"\n", header + b"\r\n")):
        return None
    try:
        # Without a header pandas neither renames duplicate columns nor takes a surplus one for an index.
        table = pd.read_csv(io.BytesIO(body), header=None, skiprows=1)
    except (ValueError, OverflowError):
        return None
    if table.shape[1] != 785 or (table.dtypes != np.int64).any() or body.count(b",") != 784 * (len(table) + 1):
        return None
    if table.min().min() < 0 or table.max().max() > 255 or table[0].max() > 9:
        return None
    return table.to_numpy(np.uint8)


def _read_csv_carefully(raw: bytes, path: str | Path) -> np.ndarray:
    """The same, row by row; raises DataError at the first thing that is wrong."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f'{path}, line {line}: not UTF-8 text. Save the file again as "CSV UTF-8".') from error
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8-sig", newline=""))
    rows = []
    try:
        _check_header(next(reader, []), path)
        # Empty lines are no rows, for pandas as here.
        for row in filter(None, reader):
            rows.append(_parse_row(row, f"{path}, line {reader.line_num}"))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}. Is it a CSV file?") from error
    if not rows:
        raise DataError(f"{path} has a header but no rows. Write the data again.")
    return np.frombuffer(bytearray().join(rows), np.uint8).reshape(-1, 785)


def _check_header(header: list[str], path: str | Path) -> None:
    pairs = enumerate(zip_longest(header, _HEADER, fillvalue="nothing"), start=1)
    for column, (found, expected) in pairs:
        if found != expected:
            problem = f"{found[:40]!r} where {expected!r} belongs ({len(header)} columns, expected 785)"
            hint = "The first line must be the header label,pixel1,pixel2,...,pixel784, each name once"
            raise DataError(f"{path}, line 1, column {column}: {problem}. {hint}.")


def _parse_row(row: list[str], where: str) -> bytes:
    if len(row) != 785:
        raise DataError(f"{where}: {len(row)} columns, expected 785. Write one label and 784 pixels in every row.")
    values = [_integer(cell) for cell in row]
    for column, cell, value in zip(_HEADER, row, values, strict=True):
        largest = 9 if column == "label" else 255
        if value is None or not 0 <= value <= largest:
            problem = "is not an integer" if value is None else f"is outside 0-{largest}"
            hint = f"Write a whole number from 0 to {largest}, without decimal point or exponent"
            raise DataError(f"{where}, column {column}: {cell[:40]!r} {problem}. {hint}.")
    return bytes(values)


# Remembered, since a file has up to 47 million cells but hardly more than 256 different ones.
@functools.lru_cache(maxsize=1024)
def _integer(text: str) -> int | None:
    # int() alone would take "1_0" and other scripts' digits, and fail beyond 4,300 digits.
    return int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,1000}\s*", text) else None
