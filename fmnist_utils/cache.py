"""Frozen-prefix caching: never compute a frozen layer twice.

While the first layers of a model are frozen and its input is not augmented, their output is the same in every epoch. So
it is computed once, kept as float16, and only the layers behind it are trained. Explained and timed in
``notebooks/03_vgg16_transfer_learning.ipynb``.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from fmnist_utils.data import FashionMNIST, replacing
from fmnist_utils.models import Classifier

#: Compiling takes up to a minute and saves little where channels-last convolutions are near the machine's limit
#: already (benchmarks/prefix_engine.py measures both), so eager passes shorter than this stay eager.
COMPILE_ABOVE_SECONDS = 300.0


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
        rows = torch.as_tensor(indices)
        views = len(self.features)
        view = torch.randint(views, rows.shape) if views > 1 else torch.zeros_like(rows)
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
    seed: int = 0,
    verbose: bool = True,
) -> CachedFeatures:
    """Run the frozen prefix of ``model`` once over ``dataset`` and keep its output.

    The first view is plain; each further one is drawn from the model's ``augment`` (``Augment(flip=1.0)`` makes the
    second view the mirror image). ``border`` (a number of layers) stops the pass earlier than necessary, for phases
    that train more later: ``len(model.split()[0])`` of the later model. ``folder=None`` keeps the features in memory; a
    folder keeps them in a memory-mapped file there, named by data, weights, image size, border, views and seed, and
    reuses it. Long passes on a CPU go through ``torch.compile`` with frozen weights where a C++ compiler is present;
    ``report.engine`` says which.

    Raises ``ValueError`` where nothing is frozen, ``FloatingPointError`` where activations do not fit float16, and
    ``OSError`` where the disk is too small.
    """
    device = torch.device(device or _default_device())
    prefix, _ = model.to(device).split(border)
    if not any(True for _ in prefix.parameters()):
        raise ValueError("This model has no frozen layers to cache: pass the images themselves to fit().")
    if views > 1 and model.preprocess.augment is None:
        raise ValueError(f"views={views} needs changes to draw from: build the model with augment=Augment(…).")
    own_key = prefix_key(prefix)
    settings = (own_key, views, (asdict(model.preprocess.augment), seed) if views > 1 else None)
    if half := half_precision(device.type):  # such features differ a little from those of a CPU
        settings += (str(half),)
    digest = hashlib.sha256(repr(settings).encode())
    digest.update(dataset.images.numpy().tobytes())
    key = digest.hexdigest()[:16]
    store = Path(folder) / f"{key}.npy" if folder else None
    if store and store.is_file() and store.with_suffix(".json").is_file():
        report = PrefixPass(**json.loads(store.with_suffix(".json").read_text()), reused=True)
        features = _open(store)
    else:
        # Small batches keep activations in the CPU's reused memory; a GPU needs large ones to be busy.
        batch_size = batch_size or (32 if device.type == "cpu" else 256)
        if store:
            store.parent.mkdir(parents=True, exist_ok=True)
        features, report = _run(model, prefix, own_key, dataset, views, store, batch_size, device, seed, verbose)
    if verbose:
        print(report)
    return CachedFeatures(features, dataset.labels, key, own_key, len(prefix), report)


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def half_precision(device_type: str) -> torch.dtype | None:
    """The 16-bit type that is fast: bfloat16 from NVIDIA's Ampere GPUs on, float16 on earlier ones, else None."""
    if device_type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16


def _run(model, prefix, own_key, dataset, views, store, batch_size, device, seed, verbose) -> tuple[Tensor, PrefixPass]:
    count = len(dataset)
    batch_size = min(batch_size, count)
    began = time.perf_counter()
    training = model.training
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            tqdm(total=views * count, unit=" images", disable=not verbose, leave=False) as bar,
            replacing(store) if store else nullcontext() as part,
        ):
            engine = _Engine(model, prefix, own_key, device, views * count, batch_size)
            shape = (views, count, *prefix(dataset.images[:1].to(device)).shape[1:])
            features = _allocate(part, shape)
            for view in range(views):
                torch.manual_seed(seed + view)
                model.preprocess.train(view > 0)
                for start in range(0, count, batch_size):
                    # The last batch reaches back, so that a compiled pass sees one shape only.
                    rows = slice(min(start, count - batch_size), min(start + batch_size, count))
                    output = engine(dataset.images[rows]).half()
                    if not torch.isfinite(output).all():
                        raise FloatingPointError("An activation of the frozen layers exceeds float16's 65504.")
                    features[view, rows] = output.cpu()
                    bar.update(rows.stop - start)
            if store:
                del features  # closes the file, without which it could not be renamed everywhere
    finally:
        model.train(training)
    report = PrefixPass(views * count, time.perf_counter() - began, engine.name, 2 * math.prod(shape))
    if store:
        with replacing(store.with_suffix(".json")) as part:
            part.write_text(json.dumps({k: v for k, v in asdict(report).items() if k != "reused"}))
        features = _open(store)
    return features, report


def _open(store: Path) -> Tensor:
    return torch.from_numpy(np.load(store, mmap_mode="c"))


def _allocate(part: Path | None, shape: tuple[int, ...]) -> Tensor:
    if part is None:
        return torch.empty(shape, dtype=torch.float16)
    needed, free = 2 * math.prod(shape), shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(f"The features need {needed / 1e9:.1f} GB in {part.parent}, where {free / 1e9:.1f} GB are free.")
    return torch.from_numpy(np.lib.format.open_memmap(part, "w+", np.float16, shape))


class _Engine:
    """Calls the frozen layers: eagerly at first, compiled once the pass is known to be long enough."""

    def __init__(
        self, model: Classifier, prefix: nn.Sequential, own_key: str, device: torch.device, images: int, batch_size: int
    ) -> None:
        self.preprocess, self.device = prefix[0], device
        self.layers: Callable = prefix[1:].to(memory_format=torch.channels_last)
        self.images, self.name, self.model, self.calls = images, "eager", model, 0
        self.half = half_precision(device.type)
        # Compiled code holds the weights it was made with, and is made anew for another batch size.
        self.compiled_for = (own_key, batch_size)
        compiled = getattr(model, "_compiled_prefix", None)
        if compiled and compiled[0] == self.compiled_for and device.type == "cpu":
            self.layers, self.name, self.calls = compiled[1], "compiled", 2

    def __call__(self, images: Tensor) -> Tensor:
        x = self.preprocess(images.to(self.device)).contiguous(memory_format=torch.channels_last)
        self.calls += 1
        began = time.perf_counter()
        with torch.autocast(self.device.type, dtype=self.half) if self.half else nullcontext():
            output = self.layers(x)
        # Call 1 warms up; call 2 is timed.
        expected = (time.perf_counter() - began) / len(x) * self.images
        if self.calls == 2 and self.device.type == "cpu" and expected > COMPILE_ABOVE_SECONDS and find_compiler():
            self._compile(x)
        return output

    def _compile(self, x: Tensor) -> None:
        try:
            compiled = compile_frozen(self.layers, x)
        except Exception as error:  # a compiler that is present but does not work must not stop the pass
            self.name = f"eager, because compiling failed: {type(error).__name__}"
            return
        # Kept with the model, so that the next pass need not compile again; not registered as a submodule.
        object.__setattr__(self.model, "_compiled_prefix", (self.compiled_for, compiled))
        self.layers, self.name = compiled, "compiled"


def compile_frozen(layers: nn.Module, x: Tensor) -> Callable:
    """``layers`` compiled by inductor for inputs like ``x``, with the weights built in as constants.

    Takes up to a minute. Raises whatever torch.compile does where no working C++ compiler is found.
    """
    import torch._inductor.config as inductor

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a missing GPU
    with inductor.patch(freezing=True):
        compiled = torch.compile(layers)
        compiled(x)
    return compiled


def find_compiler() -> str | None:
    """The C++ compiler torch.compile would use on a CPU, or None."""
    names = [os.environ.get("CXX"), "cl" if os.name == "nt" else "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)
