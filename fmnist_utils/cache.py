"""Frozen-prefix caching: never compute a frozen layer twice.

While the first layers of a model are frozen and its input is not augmented, their output is the same in every epoch. So
it is computed once, kept as float16, and only the layers behind it are trained. Explained and timed in
``notebooks/03_vgg16_transfer_learning.ipynb``.
"""

import hashlib
import math
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from fmnist_utils import check_name
from fmnist_utils.data import FashionMNIST, as_images, fingerprint, replacing, row_numbers
from fmnist_utils.models import Classifier
from fmnist_utils.scale.engines import OpenVINOEngine, TorchEngine, default_device, half_precision
from fmnist_utils.scale.processes import exchange, from_first, is_first, rank_and_count, shares, wait
from fmnist_utils.scale.storage import PrefixPass, allocate, new_file, open_file, read_report, write_report
from fmnist_utils.sources.files import expanded

__all__ = ["CachedFeatures", "Inputs", "PrefixPass", "as_input", "cache_features", "prefix_key"]


class CachedFeatures(Dataset):
    """Activations at the freeze border, in place of the images: a Dataset for :func:`fmnist_utils.train.fit`.

    ``features`` float16 [views, N, …], ``labels`` int64 [N], ``key`` names the data, weights and settings that made
    them, ``border`` is the number of layers they have passed, ``report`` says what it cost. With several views a batch
    takes one at random per image (torch's generator).
    """

    def __init__(
        self, features: Tensor, labels: Tensor, key: str, prefix_key: str, border: int, report: PrefixPass
    ) -> None:
        self.features, self.labels, self.report = features, labels, report
        self.key, self.prefix_key, self.border = key, prefix_key, border

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
        chosen = self.features[number : number + 1]
        return CachedFeatures(chosen, self.labels, self.key, self.prefix_key, self.border, self.report)


#: What training and prediction take.
Inputs = FashionMNIST | CachedFeatures


def as_input(batch: Tensor) -> Tensor:
    """What the layers take: cached float16 features as float32, images as they are."""
    return batch.float() if batch.is_floating_point() else batch


def prefix_key(prefix: nn.Sequential) -> str:
    """Hash of a frozen prefix (the first part of ``model.split()``): layers, weights, statistics and image size."""
    digest = hashlib.sha256(repr((prefix[0].image_size, prefix[1:])).encode())
    for tensor in [*prefix.parameters(), *prefix.buffers()]:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


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
    must be on a disk that all share. Features from a folder are for reading only:
    writing into them ends Python.

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
    settings = (frozen, views, (asdict(augment), seed) if views > 1 and augment else None)
    if half := half_precision(device.type):  # such features differ a little from those of a CPU
        settings += (str(half),)
    calibrated = fingerprint(calibration.images) if calibration is not None else None
    if engine == "openvino":
        settings += (engine, calibrated)
    key = fingerprint(repr(settings), dataset.images)[:16]
    store = expanded(folder) / f"{key}.npy" if folder else None
    if store and (report := from_first(lambda: read_report(store))):
        features = open_file(store)
    else:
        # Small batches keep activations in the CPU's reused memory; a GPU needs large ones to be busy.
        fitting = max(8, min(32, 32 * 64**2 // model.preprocess.image_size**2)) if device.type == "cpu" else 256
        batch_size = min(batch_size or fitting, len(dataset))
        if store:
            store.parent.mkdir(parents=True, exist_ok=True)
        make_engine = partial(TorchEngine, model, prefix, frozen, device, batch_size)
        if engine == "openvino":
            make_engine = partial(OpenVINOEngine, model, prefix, (frozen, calibrated), calibration)
        features, report = _run(model, prefix, make_engine, dataset, views, store, batch_size, device, seed, verbose)
    if verbose and is_first():
        print(report)
    return CachedFeatures(features, dataset.labels, key, frozen, len(prefix), report)


def _run(model, prefix, make_engine, dataset, views, store, batch_size, device, seed, verbose):
    """(features, report) of a pass over ``dataset``; every process gets the whole."""
    count, (rank, _) = len(dataset), rank_and_count()
    # Whole batches are shared out, so that random views depend on the seed and the batch alone.
    edges = [min(number * batch_size, count) for number in shares(-(-count // batch_size))]
    began, training = time.perf_counter(), model.training
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            tqdm(total=views * count, unit=" images", disable=not verbose or rank > 0, leave=False) as bar,
            replacing(store) if store and rank == 0 else nullcontext() as part,
        ):
            engine = make_engine(views * (edges[rank + 1] - edges[rank]))
            shape = (views, count, *prefix(dataset.images[:1].to(device)).shape[1:])
            features = allocate(from_first(lambda: part and new_file(part, shape)), shape)
            for view in range(views):
                model.preprocess.train(view > 0)
                for start in range(edges[rank], edges[rank + 1], batch_size):
                    torch.manual_seed((seed + view) * 1_000_003 + start)
                    # The last batch reaches back, so that a compiled pass sees one shape only.
                    stop = min(start + batch_size, count)
                    output = engine(dataset.images[stop - batch_size : stop])[start - stop :].half()
                    if not torch.isfinite(output).all():
                        raise FloatingPointError("An activation of the frozen layers exceeds float16's 65504.")
                    features[view, start:stop] = output.cpu()
                    bar.update(stop - start)
                if not store:
                    exchange(features[view], edges)
            if store:
                del features  # closes the file, without which it could not be renamed everywhere
                wait()
    finally:
        model.train(training)
    report = PrefixPass(views * count, time.perf_counter() - began, engine.name, 2 * math.prod(shape))
    if store:
        from_first(lambda: write_report(store, report))
        features = open_file(store)
    return features, report
