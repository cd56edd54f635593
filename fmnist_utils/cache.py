"""Frozen-prefix caching: never compute a frozen layer twice.

While the first layers of a model are frozen and its input is not augmented, their output is the same in every epoch. So
it is computed once, kept as float16, and only the layers behind it are trained. Explained and timed in
``notebooks/03_vgg16_transfer_learning.ipynb``.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from fmnist_utils.data import FashionMNIST
from fmnist_utils.models import Classifier

#: Compiling takes about half a minute, so it must save at least that: eager passes shorter than this stay eager.
COMPILE_ABOVE_SECONDS = 90.0


@dataclass(frozen=True)
class PrefixPass:
    """What one pass through the frozen layers did: ``images`` (all views), ``seconds``, ``engine``, size in ``bytes``."""

    images: int
    seconds: float
    engine: str
    bytes: int
    reused: bool = False

    def __str__(self) -> str:
        where = "read from disk; computed earlier" if self.reused else "computed"
        rate = self.images / max(self.seconds, 1e-9)
        return (
            f"frozen layers: {self.images:,} images {where} in {self.seconds:.1f} s ({rate:,.0f} images/s, {self.engine}), "
            f"{self.bytes / 1e6:,.0f} MB"
        )


class CachedFeatures(Dataset):
    """Activations at the freeze border, in place of the images: a Dataset for :func:`fmnist_utils.train.fit`.

    ``features`` float16 [views, N, …], ``labels`` int64 [N], ``key`` names the data, weights and settings that made
    them, ``report`` says what it cost. With several views a batch takes one at random per image (torch's generator).
    """

    def __init__(self, features: Tensor, labels: Tensor, key: str, prefix_key: str, report: PrefixPass) -> None:
        self.features, self.labels, self.report = features, labels, report
        self.key, self.prefix_key = key, prefix_key

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.features[0, index], int(self.labels[index])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(indices)
        views = len(self.features)
        view = torch.randint(views, rows.shape) if views > 1 else torch.zeros_like(rows)
        return self.features[view, rows], self.labels[rows]

    def plain(self) -> "CachedFeatures":
        """Only the first view, the one without augmentation: what evaluation uses."""
        return CachedFeatures(self.features[:1], self.labels, self.key, self.prefix_key, self.report)


def prefix_key(model: Classifier) -> str:
    """Hash of the frozen prefix: its layers, weights, statistics and image size."""
    prefix, _ = model.split()
    digest = hashlib.sha256(repr((model.config["image_size"], prefix[1:])).encode())
    for tensor in [*prefix.parameters(), *prefix.buffers(), model.preprocess.scale, model.preprocess.offset]:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def cache_features(
    model: Classifier,
    dataset: FashionMNIST,
    *,
    views: int = 1,
    folder: str | Path | None = None,
    batch_size: int = 250,
    device: str | torch.device | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> CachedFeatures:
    """Run the frozen prefix of ``model`` once over ``dataset`` and keep its output.

    The first view is plain; each further one is drawn from the model's ``augment`` (``Augment(flip=1.0)`` makes the
    second view the mirror image). ``folder=None`` keeps the features in memory; a folder keeps them in a memory-mapped
    file there, named by data, weights, image size, border, views and seed, and reuses it. Long passes on a CPU go
    through ``torch.compile`` with frozen weights where a C++ compiler is present; ``report.engine`` says which.

    Raises ``ValueError`` where nothing is frozen, ``FloatingPointError`` where activations do not fit float16, and
    ``OSError`` where the disk is too small.
    """
    prefix, _ = model.split()
    if not any(True for _ in prefix.parameters()):
        raise ValueError("This model has no frozen layers to cache: pass the images themselves to fit().")
    if views > 1 and model.preprocess.augment is None:
        raise ValueError(f"views={views} needs random changes to draw them from: build the model with augment=Augment(…).")
    own_key = prefix_key(model)
    settings = (own_key, views, (asdict(model.preprocess.augment), seed) if views > 1 else None)
    digest = hashlib.sha256(repr(settings).encode())
    digest.update(dataset.images.numpy().tobytes())
    key = digest.hexdigest()[:16]
    store = Path(folder) / f"{key}.npy" if folder else None
    if store and store.is_file() and store.with_suffix(".json").is_file():
        report = PrefixPass(**json.loads(store.with_suffix(".json").read_text()), reused=True)
        features = torch.from_numpy(np.load(store, mmap_mode="c"))
    else:
        device = torch.device(device or _default_device())
        features, report = _run(model, prefix.to(device), dataset, views, store, batch_size, device, seed, verbose)
    if verbose:
        print(report)
    return CachedFeatures(features, dataset.labels, key, own_key, report)


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _run(model, prefix, dataset, views, store, batch_size, device, seed, verbose) -> tuple[Tensor, PrefixPass]:
    count = len(dataset)
    batch_size = min(batch_size, count)
    part = store.with_name(store.name + ".part") if store else None
    began = time.perf_counter()
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), tqdm(
            total=views * count, unit=" images", disable=not verbose, leave=False
        ) as bar:
            engine = _Engine(model, prefix, device, views * count)
            sample = engine(dataset.images[:1])
            shape = (views, count, *sample.shape[1:])
            features = _allocate(part, shape)
            for view in range(views):
                torch.manual_seed(seed + view)
                model.preprocess.train(view > 0)
                for start in range(0, count, batch_size):
                    # The last batch is filled up from before it, so that a compiled pass sees one shape only.
                    start = min(start, count - batch_size)
                    output = engine(dataset.images[start : start + batch_size]).half()
                    if not torch.isfinite(output).all():
                        raise FloatingPointError("An activation of the frozen layers does not fit float16 (over 65504).")
                    features[view, start : start + batch_size] = output.cpu()
                    bar.update(batch_size)
        if store:
            del features
        report = PrefixPass(views * count, time.perf_counter() - began, engine.name, 2 * int(np.prod(shape)))
        if store:
            os.replace(part, store)
            card = {k: v for k, v in asdict(report).items() if k != "reused"}
            store.with_suffix(".json").write_text(json.dumps(card))
            features = torch.from_numpy(np.load(store, mmap_mode="c"))
        return features, report
    except BaseException:
        if part:
            part.unlink(missing_ok=True)
        raise
    finally:
        model.train(training)


def _allocate(part: Path | None, shape: tuple[int, ...]) -> Tensor:
    if part is None:
        return torch.empty(shape, dtype=torch.float16)
    part.parent.mkdir(parents=True, exist_ok=True)
    needed, free = 2 * int(np.prod(shape)), shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(f"The features need {needed / 1e9:.1f} GB in {part.parent}, where {free / 1e9:.1f} GB are free.")
    return torch.from_numpy(np.lib.format.open_memmap(part, "w+", np.float16, shape))


class _Engine:
    """Calls the frozen layers: eagerly at first, compiled as soon as the rest of the pass is known to be long enough."""

    def __init__(self, model: Classifier, prefix: nn.Sequential, device: torch.device, images: int) -> None:
        self.preprocess, self.device = prefix[0], device
        self.layers: Callable = prefix[1:].to(memory_format=torch.channels_last)
        self.images, self.name, self.model, self.calls = images, "eager", model, 0
        self.half = {"cuda": torch.bfloat16}.get(device.type)
        compiled = getattr(model, "_compiled_prefix", None)
        if compiled and compiled[0] == len(prefix) and device.type == "cpu":
            self.layers, self.name, self.calls = compiled[1], "compiled", 3

    def __call__(self, images: Tensor) -> Tensor:
        x = self.preprocess(images.to(self.device)).contiguous(memory_format=torch.channels_last)
        self.calls += 1
        began = time.perf_counter()
        with torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None):
            output = self.layers(x)
        # Call 1 sees a single image and call 2 warms up; call 3 is timed.
        if self.calls == 3 and self.device.type == "cpu" and find_compiler():
            if (time.perf_counter() - began) / len(x) * self.images > COMPILE_ABOVE_SECONDS:
                self._compile(x)
        return output

    def _compile(self, x: Tensor) -> None:
        import torch._inductor.config as inductor

        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a missing GPU
        eager = self.layers
        try:
            with inductor.patch(freezing=True):
                compiled = torch.compile(eager)
                compiled(x)
        except Exception as error:  # a compiler that is present but does not work must not stop the pass
            self.name = f"eager, because compiling failed: {type(error).__name__}"
            return
        self.layers, self.name = compiled, "compiled"
        length = len(list(eager)) + 1
        object.__setattr__(self.model, "_compiled_prefix", (length, compiled))


def find_compiler() -> str | None:
    """The C++ compiler torch.compile would use on a CPU, or None."""
    names = [os.environ.get("CXX"), "cl" if os.name == "nt" else "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)
