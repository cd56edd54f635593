"""Fashion-MNIST as tensors: load, write, split and batch it. Below it, `sources` reads and finds the files.

Images stay `uint8` and labels `int64` until a model needs something else, so the whole training set takes 47 MB.
Explained in `notebooks/01_exploration.ipynb` (the data) and `notebooks/02_preprocessing.ipynb` (Dataset, DataLoader).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler, Subset, TensorDataset

from fmnist_utils.scale.processes import BatchShare
from fmnist_utils.sources import csv_files, idx
from fmnist_utils.sources.files import DataError, check_labels, expanded, fingerprint, replacing, shown
from fmnist_utils.sources.idx import read_idx

__all__ = [
    "CLASSES", "DataError", "FashionMNIST", "as_images", "fingerprint", "load", "make_loader", "read_csv", "read_idx",
    "replacing", "row_numbers", "train_val_split", "write_csv",
]  # fmt: skip

#: Which images: their indices, or a Boolean mask.
Indices = Sequence[int] | np.ndarray | Tensor

CLASSES: tuple[str, ...] = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class FashionMNIST(Dataset):
    """Images and labels held in memory; the Dataset that notebook 02 explains.

    `images` is uint8 [N, 28, 28] (0 = background), `labels` int64 [N] (an index into `CLASSES`), `source` a text
    that says where they come from. Raises DataError for any other shape or dtype, for N = 0 and for labels outside 0-9.
    """

    def __init__(self, images: Tensor, labels: Tensor, source: str = "tensors in memory"):
        if images.dtype != torch.uint8 or images.shape[1:] != (28, 28) or len(images) == 0:
            expected = "uint8 [N, 28, 28] with N >= 1"
            raise DataError(f"{source}: images must be {expected}, not {images.dtype} {list(images.shape)}.")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            expected = f"int64 [{len(images)}], one per image"
            raise DataError(f"{source}: labels must be {expected}, not {labels.dtype} {list(labels.shape)}.")
        check_labels(labels.numpy(), source)
        self.images, self.labels, self.source = images, labels, source

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image, uint8 [28, 28], and its label. Raises IndexError past the end."""
        return self.images[index], int(self.labels[index])

    def __getitems__(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """A batch at once: uint8 [B, 28, 28] and int64 [B]. PyTorch's DataLoader calls this when a Dataset has it."""
        chosen = row_numbers(indices, self.images.device)
        return self.images[chosen], self.labels[chosen]

    def select(self, indices: Indices) -> "FashionMNIST":
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
    Raises DataError when nothing is found, or what is found is damaged; warns where a folder holds MNIST's digits.
    """
    if split not in idx.PUBLISHED:
        raise DataError(f'There is no split {split!r}. Ask for "train" or "test".')
    if source is None:
        return _dataset(*idx.read_published(split))
    path = expanded(source)
    if path.is_dir():
        return _dataset(*idx.read_folder(idx.data_folder(path, split), split))
    if path.exists() and not path.name.lower().endswith((".csv", ".csv.gz")):
        raise DataError(f"{path} is a file, but not a .csv or .csv.gz. For IDX files, give the folder they are in.")
    return read_csv(path)


def read_csv(path: str | Path) -> FashionMNIST:
    """A `.csv` or `.csv.gz` file with the columns label, pixel1, ..., pixel784 (Kaggle's layout), UTF-8, N >= 1 rows.

    Raises DataError naming the line (the header is line 1), column and value of the first thing that is wrong.
    """
    path = expanded(path)
    table = csv_files.read_table(path)
    return _dataset(table[:, 1:].reshape(-1, 28, 28), table[:, 0], shown(path))


def write_csv(dataset: FashionMNIST, path: str | Path) -> None:
    """Write what `read_csv` reads back exactly. An existing file is replaced only once the new one is complete.

    Raises DataError for a name that is not `.csv` or `.csv.gz` or a folder that does not exist, OSError when the disk
    refuses.
    """
    labels, pixels = dataset.labels.numpy().astype(np.uint8), dataset.images.numpy().reshape(-1, 784)
    csv_files.write_table(np.column_stack([labels, pixels]), expanded(path))


def as_images(data: Any, labels: bool = True) -> Any:
    """What training and prediction take, made of what they are given.

    A Subset of FashionMNIST becomes the selection, a TensorDataset of images and labels the data set; with
    `labels=False` images alone, uint8 [N, 28, 28], do (their labels are 0). Whatever has images or features, and
    labels, is returned as it is. Raises DataError for anything else.
    """
    if hasattr(data, "labels") and (hasattr(data, "images") or hasattr(data, "features")):
        return data
    if isinstance(data, Subset) and hasattr(data.dataset, "select"):
        return data.dataset.select(data.indices)
    if isinstance(data, Subset) and isinstance(data.dataset, Subset | TensorDataset):
        return as_images(data.dataset).select(data.indices)
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return FashionMNIST(*data.tensors)
    if isinstance(data, Tensor) and not labels:
        return FashionMNIST(data, torch.zeros(len(data), dtype=torch.int64))
    kind = type(data).__name__ + (f" of {type(data.dataset).__name__}" if isinstance(data, Subset) else "")
    raise DataError(
        f"A {kind} has no images and labels to take: pass FashionMNIST(images, labels) or what load() gives."
    )


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
    dataset: Any, batch_size: int, shuffle: bool = False, seed: int = 0, process: int = 0, processes: int = 1
) -> DataLoader:
    """A DataLoader over any Dataset with `__getitems__`, such as FashionMNIST: uint8 [B, 28, 28] and int64 [B].

    Two loaders with the same seed give the same order. Of each batch, process number `process` of `processes` gets
    every `processes`-th image, so that together they see each image once. See `notebooks/02_preprocessing.ipynb`.
    Raises DataError for a `batch_size` below 1.
    """
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size}: a batch needs at least 1 image.")
    # Its own generator: the order then depends on nothing else that draws random numbers, nor disturbs it.
    generator = torch.Generator().manual_seed(seed)
    # Batch normalisation cannot learn from a single image, so a last training batch of one is left out of the epoch.
    drop_last = shuffle and len(dataset) > batch_size and 0 < len(dataset) % batch_size < max(2, processes)
    if processes == 1:
        return DataLoader(dataset, batch_size, shuffle, collate_fn=_as_it_is, generator=generator, drop_last=drop_last)
    order = RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
    batches = BatchShare(BatchSampler(order, batch_size, drop_last), process, processes)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_as_it_is, generator=generator)


def _as_it_is(batch):
    # `__getitems__` has already put the batch together.
    return batch


def row_numbers(indices: Indices, device: torch.device) -> Tensor:
    """`indices` as a tensor on `device`; a GPU is not made to wait for it."""
    rows = torch.as_tensor(indices)
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows


def _stratified_order(labels: Tensor, seed: int) -> Tensor:
    """All indices, int64 [N], so that every beginning of them has the classes in (nearly) the same proportions."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = labels[order] == label
        # Spread each class evenly over 0..1, in its shuffled order.
        place[members] = (torch.arange(members.sum(), dtype=torch.float64) + 0.5) / members.sum()
    return order[place.argsort(stable=True)]


def _dataset(images: np.ndarray, labels: np.ndarray, source: str) -> FashionMNIST:
    images, labels = np.ascontiguousarray(images), labels.astype(np.int64)
    return FashionMNIST(torch.from_numpy(images), torch.from_numpy(labels), source)
