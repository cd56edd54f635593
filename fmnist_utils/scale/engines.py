"""Engines that run frozen layers: torch, eager or compiled, and OpenVINO; and which device and precision are fast.

Used by :func:`fmnist_utils.cache.cache_features`; ``benchmarks/prefix_engine.py`` measures them.
"""

import io
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a missing GPU

#: Compiling takes up to a minute and saves little where channels-last convolutions are near the machine's limit
#: already (benchmarks/prefix_engine.py measures both), so eager passes shorter than this stay eager.
COMPILE_ABOVE_SECONDS = 300.0

# What the engines made of a model's frozen layers, with what it was made for: the next pass need not make it again, and
# all splits go through the same quantised layers. Beside the models, not on them: they stay what pickle can store.
_COMPILED: WeakKeyDictionary[nn.Module, tuple] = WeakKeyDictionary()
_OPENVINO: WeakKeyDictionary[nn.Module, tuple] = WeakKeyDictionary()


def default_device() -> str:
    """``cuda``, ``mps`` (Apple's GPUs) or ``cpu``: the fastest there is."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def half_precision(device_type: str) -> torch.dtype | None:
    """The 16-bit type that is fast: bfloat16 from NVIDIA's Ampere GPUs on, float16 on earlier ones, else None."""
    if device_type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16


class TorchEngine:
    """Calls the frozen layers: eagerly at first, compiled once the pass is known to be long enough."""

    def __init__(
        self, model: nn.Module, prefix: nn.Sequential, frozen: str, device: torch.device, batch_size: int, images: int
    ) -> None:
        self.preprocess, self.device = prefix[0], device
        self.layers: Callable = prefix[1:].to(memory_format=torch.channels_last)
        self.images, self.name, self.model, self.calls = images, "eager", model, 0
        self.half = half_precision(device.type)
        # Compiled code holds the weights it was made with, and is made anew for another batch size.
        self.compiled_for = (frozen, batch_size)
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


class OpenVINOEngine:
    """Calls the frozen layers through OpenVINO, in float32, or in int8 where there are images to calibrate with."""

    def __init__(
        self, model: nn.Module, prefix: nn.Sequential, made_for: tuple, calibration: Dataset | None, *_
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


def openvino_frozen(
    layers: nn.Module, image_size: int, calibration: list[Tensor] = (), **quantising
) -> Callable[[Tensor], Tensor]:
    """``layers`` run by OpenVINO on the CPU for float32 [B, 3, S, S]; in int8 with ``calibration`` batches of such.

    ``quantising`` holds arguments of ``nncf.quantize``, which benchmarks/int8_accuracy.py compares. Raises
    ``ImportError`` with what to install where OpenVINO or, for int8, NNCF is missing.
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
            network = nncf.quantize(network, data, subset_size=len(calibration), **quantising)
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
