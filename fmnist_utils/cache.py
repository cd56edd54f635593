"""Frozen-prefix caching: never compute a frozen layer twice.

While the first layers of a model are frozen and its input is not augmented, their output is the same in every epoch. So
it is computed once, kept as float16, and only the layers behind it are trained. Explained and timed in
``notebooks/03_vgg16_transfer_learning.ipynb``.
"""

import hashlib
import io
import json
import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from fmnist_utils.data import FashionMNIST, replacing, row_numbers
from fmnist_utils.models import Classifier, check_name
from fmnist_utils.processes import exchange, from_first, is_first, rank_and_count, shares, wait

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a missing GPU

#: Compiling takes up to a minute and saves little where channels-last convolutions are near the machine's limit
#: already (benchmarks/prefix_engine.py measures both), so eager passes shorter than this stay eager.
COMPILE_ABOVE_SECONDS = 300.0

# What the engines made of a model's frozen layers, with what it was made for: the next pass need not make it again, and
# all splits go through the same quantised layers. Beside the models, not on them: they stay what pickle can store.
_COMPILED: WeakKeyDictionary[Classifier, tuple] = WeakKeyDictionary()
_OPENVINO: WeakKeyDictionary[Classifier, tuple] = WeakKeyDictionary()


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
    if calibration is not None and engine != "openvino":
        raise ValueError('Only engine="openvino" takes calibration images.')
    rank_and_count()  # connects the processes before the GPU is used, so that each has its own
    device = torch.device("cpu" if engine == "openvino" else device or _default_device())
    prefix, _ = model.to(device).split(border)
    if not any(True for _ in prefix.parameters()):
        raise ValueError("This model has no frozen layers to cache: pass the images themselves to fit().")
    if views > 1 and model.preprocess.augment is None:
        raise ValueError(f"views={views} needs changes to draw from: build the model with augment=Augment(…).")
    own_key = prefix_key(prefix)
    settings = (own_key, views, (asdict(model.preprocess.augment), seed) if views > 1 else None)
    if half := half_precision(device.type):  # such features differ a little from those of a CPU
        settings += (str(half),)
    calibrated = calibration and hashlib.sha256(calibration.images.numpy().tobytes()).hexdigest()
    if engine == "openvino":
        settings += (engine, calibrated)
    digest = hashlib.sha256(repr(settings).encode())
    digest.update(dataset.images.numpy().tobytes())
    key = digest.hexdigest()[:16]
    store = Path(folder) / f"{key}.npy" if folder else None
    if store and (found := from_first(lambda: _read_report(store))):
        report, features = PrefixPass(**found, reused=True), _open(store)
    else:
        # Small batches keep activations in the CPU's reused memory; a GPU needs large ones to be busy.
        fitting = max(8, min(32, 32 * 64**2 // model.preprocess.image_size**2)) if device.type == "cpu" else 256
        batch_size = min(batch_size or fitting, len(dataset))
        if store:
            store.parent.mkdir(parents=True, exist_ok=True)
        make_engine = partial(_Engine, model, prefix, own_key, device, batch_size)
        if engine == "openvino":
            make_engine = partial(_OpenVINO, model, prefix, (own_key, calibrated), calibration)
        features, report = _run(model, prefix, make_engine, dataset, views, store, batch_size, device, seed, verbose)
    if verbose and is_first():
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


def _run(model, prefix, make_engine, dataset, views, store, batch_size, device, seed, verbose):
    count, (rank, _) = len(dataset), rank_and_count()
    # Whole batches are shared out, so that random views depend on the seed and the batch alone.
    edges = [min(number * batch_size, count) for number in shares(-(-count // batch_size))]
    own = range(edges[rank], edges[rank + 1], batch_size)
    began = time.perf_counter()
    training = model.training
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
            features = _allocate(from_first(lambda: part and _new_file(part, shape)), shape)
            for view in range(views):
                model.preprocess.train(view > 0)
                for start in own:
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
        from_first(lambda: _write_report(store, report))
        features = _open(store)
    return features, report


def _read_report(store: Path) -> dict | None:
    text = store.with_suffix(".json")
    return json.loads(text.read_text()) if store.is_file() and text.is_file() else None


def _write_report(store: Path, report: PrefixPass) -> None:
    with replacing(store.with_suffix(".json")) as part:
        part.write_text(json.dumps({k: v for k, v in asdict(report).items() if k != "reused"}))


def _open(store: Path) -> Tensor:
    # Linux counts a copy-on-write mapping as memory and refuses one that is larger; a read-only one may be any size.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.load(store, mmap_mode="r"))


def _new_file(part: Path, shape: tuple[int, ...]) -> Path:
    needed, free = 2 * math.prod(shape), shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(f"The features need {needed / 1e9:.1f} GB in {part.parent}, where {free / 1e9:.1f} GB are free.")
    np.lib.format.open_memmap(part, "w+", np.float16, shape)
    return part


def _allocate(part: Path | None, shape: tuple[int, ...]) -> Tensor:
    if part is None:
        return torch.empty(shape, dtype=torch.float16)
    if not part.is_file():  # another machine's process has made it
        raise OSError(f"{part.parent} must be a folder that all machines share, but not all of them see its files.")
    return torch.from_numpy(np.lib.format.open_memmap(part, "r+"))


class _Engine:
    """Calls the frozen layers: eagerly at first, compiled once the pass is known to be long enough."""

    def __init__(
        self, model: Classifier, prefix: nn.Sequential, own_key: str, device: torch.device, batch_size: int, images: int
    ) -> None:
        self.preprocess, self.device = prefix[0], device
        self.layers: Callable = prefix[1:].to(memory_format=torch.channels_last)
        self.images, self.name, self.model, self.calls = images, "eager", model, 0
        self.half = half_precision(device.type)
        # Compiled code holds the weights it was made with, and is made anew for another batch size.
        self.compiled_for = (own_key, batch_size)
        compiled = _COMPILED.get(model)
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
        _COMPILED[self.model] = (self.compiled_for, compiled)
        self.layers, self.name = compiled, "compiled"


class _OpenVINO:
    """Calls the frozen layers through OpenVINO, in float32, or in int8 where there are images to calibrate with."""

    def __init__(
        self, model: Classifier, prefix: nn.Sequential, made_for: tuple, calibration: FashionMNIST | None, images: int
    ) -> None:
        self.preprocess = prefix[0]
        self.name = "OpenVINO, int8" if calibration is not None else "OpenVINO, float32"
        kept = _OPENVINO.get(model)
        if kept is None or kept[0] != made_for:
            batches = [self.preprocess(part) for part in calibration.images.split(32)] if calibration else []
            kept = (made_for, openvino_frozen(prefix[1:], model.preprocess.image_size, batches))
            _OPENVINO[model] = kept
        self.layers = kept[1]

    def __call__(self, images: Tensor) -> Tensor:
        return self.layers(self.preprocess(images))


def openvino_frozen(layers: nn.Module, image_size: int, calibration: list[Tensor] = ()) -> Callable[[Tensor], Tensor]:
    """``layers`` run by OpenVINO on the CPU for float32 [B, 3, S, S]; in int8 with ``calibration`` batches of such.

    Raises ``ImportError`` with what to install where OpenVINO or, for int8, NNCF is missing.
    """
    try:
        import openvino

        if calibration:
            import nncf
    except ImportError as error:
        raise ImportError(f'{error.name} is not installed: pip install "fmnist-utils[fast]"') from error
    example = torch.zeros(2, 3, image_size, image_size)
    program = torch.export.export(layers, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    network = openvino.convert_model(program)
    if calibration:
        nncf.set_log_level(logging.ERROR)
        data = nncf.Dataset([batch.numpy() for batch in calibration])
        with redirect_stdout(io.StringIO()):  # progress bars
            network = nncf.quantize(network, data, subset_size=len(calibration))
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"} | threads)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])


def compile_frozen(layers: nn.Module, x: Tensor) -> Callable:
    """``layers`` compiled by inductor for inputs like ``x``, with the weights built in as constants.

    Takes up to a minute. Raises whatever torch.compile does where no working C++ compiler is found.
    """
    import torch._inductor.config as inductor

    with inductor.patch(freezing=True):
        compiled = torch.compile(layers)
        compiled(x)
    return compiled


def find_compiler() -> str | None:
    """The C++ compiler torch.compile would use on a CPU, or None."""
    names = [os.environ.get("CXX"), "cl" if os.name == "nt" else "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)
