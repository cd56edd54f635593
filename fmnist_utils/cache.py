"""Frozen-prefix caching: never compute a frozen layer twice.

While the first layers of a model are frozen and its input is not augmented, their output is the same in every epoch. So
it is computed once, kept as float16, and only the layers behind it are trained. Explained and timed in
``notebooks/03_vgg16_transfer_learning.ipynb``.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fmnist_utils import check_name
from fmnist_utils.data import FashionMNIST, as_images, fingerprint, row_numbers
from fmnist_utils.models import Classifier
from fmnist_utils.scale.engines import OpenVINOEngine, TorchEngine, default_device, half_precision
from fmnist_utils.scale.passes import run_prefix
from fmnist_utils.scale.processes import from_first, is_first, rank_and_count
from fmnist_utils.scale.storage import PrefixPass, open_file, read_report
from fmnist_utils.sources.files import expanded

__all__ = ["CachedFeatures", "Inputs", "PrefixPass", "as_input", "cache_features", "layers_for", "prefix_key"]


@dataclass(eq=False, repr=False)
class CachedFeatures(Dataset):
    """Activations at the freeze border, in place of the images: a Dataset for :func:`fmnist_utils.train.fit`.

    ``features`` float16 [views, N, …], ``labels`` int64 [N], ``key`` names the data, weights and settings that made
    them, ``border`` is the number of layers they have passed, ``report`` says what it cost. With several views a batch
    takes one at random per image (torch's generator).
    """

    features: Tensor
    labels: Tensor
    key: str
    prefix_key: str
    border: int
    report: PrefixPass

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.features[0, index], int(self.labels[index])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        rows = row_numbers(indices, self.features.device)
        views = len(self.features)
        view = torch.randint(views, rows.shape, device=rows.device) if views > 1 else torch.zeros_like(rows)
        return self.features[view, rows], self.labels[rows]

    def check(self, model: Classifier) -> None:
        """Raise ``ValueError`` unless the features come from the frozen layers of ``model``."""
        try:
            same = self.prefix_key == prefix_key(model.split(self.border)[0])
        except ValueError:  # a layer in front of the border can change now
            same = False
        if not same:
            raise ValueError(
                "These features were computed with other frozen layers, weights or image size than this model has, or "
                "layers in front of their border learn now: call cache_features(model, …) again."
            )

    def view(self, number: int) -> "CachedFeatures":
        """One view alone; number 0 is the one without augmentation."""
        return replace(self, features=self.features[number : number + 1])


#: What training and prediction take.
Inputs = FashionMNIST | CachedFeatures


def layers_for(model: Classifier, data: Inputs) -> nn.Module:
    """What takes ``data``: the model, or for cached features, which are checked, the layers behind their border."""
    if not isinstance(data, CachedFeatures):
        return model
    data.check(model)
    return model.split(data.border)[1]


def as_input(batch: Tensor) -> Tensor:
    """What the layers take: cached float16 features as float32, images as they are."""
    return batch.float() if batch.is_floating_point() else batch


def prefix_key(prefix: nn.Sequential) -> str:
    """Hash of a frozen prefix (the first part of ``model.split()``): layers, weights, statistics and image size."""
    tensors = (*prefix.parameters(), *prefix.buffers())
    return fingerprint(repr((prefix[0].image_size, prefix[1:])), *tensors)[:16]


def cache_features(
    model: Classifier,
    dataset: FashionMNIST,
    *,
    views: int = 1,
    border: int | None = None,
    folder: str | Path | None = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    engine: str = "torch",
    calibration: FashionMNIST | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> CachedFeatures:
    """Run the frozen prefix of ``model`` once over ``dataset`` and keep its output.

    The first view is plain; each further one is drawn from the model's ``augment`` (``Augment(flip=1.0)`` makes the
    second view the mirror image). ``border`` (a number of layers) stops the pass earlier than necessary, for phases
    that train more later: ``len(model.split()[0])`` of the later model. ``folder=None`` keeps the features in memory; a
    folder keeps them in a memory-mapped file there, named by data, weights, image size, border, views and seed, and
    reuses it. Long passes on a CPU go through ``torch.compile`` with frozen weights where a C++ compiler is present;
    ``report.engine`` says which. ``engine="openvino"`` lets OpenVINO run the frozen layers on the CPU, and with
    ``calibration`` images (a few hundred of the training set) in int8, whose ranges they set (post-training
    quantisation by NNCF; Jacob et al., 2018, arXiv:1712.05877): features of one training and its evaluation must share
    them. benchmarks/prefix_engine.py measures speed and accuracy.

    Started in several processes, each computes a part; in memory all of them then hold the whole, and a ``folder``
    must be on a disk that all share. Features from a folder are for reading only: writing into them ends Python.

    Raises ``ValueError`` where nothing is frozen, ``FloatingPointError`` where activations do not fit float16,
    ``OSError`` where the disk is too small and ``ImportError`` where OpenVINO is wanted but not installed.
    """
    check_name("engine", engine, ("torch", "openvino"))
    dataset = as_images(dataset)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: a batch needs at least 1 image.")
    if calibration is not None and engine != "openvino":
        raise ValueError('Only engine="openvino" takes calibration images.')
    rank_and_count()  # connects the processes before the GPU is used, so that each has its own
    device = torch.device("cpu" if engine == "openvino" else device or default_device())
    prefix, _ = model.to(device).split(border)
    if not any(True for _ in prefix.parameters()):
        raise ValueError("This model has no frozen layers to cache: pass the images themselves to fit().")
    if views > 1 and model.preprocess.augment is None:
        raise ValueError(f"views={views} needs changes to draw from: build the model with augment=Augment(…).")
    frozen, augment = prefix_key(prefix), model.preprocess.augment
    parts = (frozen, views, (asdict(augment), seed) if views > 1 and augment else None)
    if half := half_precision(device.type):  # such features differ a little from those of a CPU
        parts += (str(half),)
    calibrated = fingerprint(calibration.images) if calibration is not None else None
    if engine == "openvino":
        parts += (engine, calibrated)
    key = fingerprint(repr(parts), dataset.images)[:16]
    store = expanded(folder) / f"{key}.npy" if folder else None
    if store and (report := from_first(lambda: read_report(store))):
        features = open_file(store)
    else:
        make_engine: Callable = partial(TorchEngine, model, prefix, frozen, device)
        if engine == "openvino":
            make_engine = partial(OpenVINOEngine, model, prefix, (frozen, calibrated), calibration)
        settings = {"views": views, "batch_size": batch_size, "seed": seed}
        features, report = run_prefix(model, prefix, make_engine, dataset.images, store, **settings, verbose=verbose)
    if verbose and is_first():
        print(report)
    return CachedFeatures(features, dataset.labels, key, frozen, len(prefix), report)
