"""Accelerate for one training: device, precision, compilation, several processes; and data that move to a GPU once."""

import copy
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from fmnist_utils.scale.engines import default_device, find_compiler, half_precision
from fmnist_utils.scale.processes import on_cpu, rank_and_count


@contextmanager
def accelerator(part: nn.Module, mixed_precision: str, compile: bool | str) -> Iterator:
    """Accelerate's for one run; at its end every layer has its own ``forward`` and Accelerate no state of this run.

    Or the precision of a process's first training would bind all later ones, and notebook_launcher refuse to start.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, TorchDynamoPlugin

    alone, mode = rank_and_count()[1] == 1, compile if isinstance(compile, str) else None
    AcceleratorState._reset_state(reset_partial_state=alone)
    try:
        yield Accelerator(
            mixed_precision=choose_precision(mixed_precision),
            cpu=on_cpu(),
            dynamo_plugin=TorchDynamoPlugin("inductor", mode, dynamic=False) if compile else None,
            # Buffers agree without it, and processes may have different numbers of validation batches.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    finally:
        AcceleratorState._reset_state(reset_partial_state=alone)
        for layer in part.modules():
            vars(layer).pop("forward", None)
            vars(layer).pop("_original_forward", None)


def can_compile() -> bool:
    """Whether torch.compile works here, tried on one small function; warns with the reason where it does not."""
    device = "cpu" if on_cpu() else default_device()
    if device == "cpu" and not find_compiler():
        problem = "no C++ compiler is found"
    else:
        addend = random.SystemRandom().random()  # code that nobody has compiled yet
        try:
            torch.compile(lambda x: x.sin() + addend)(torch.zeros(2, device=device))
            return True
        except Exception as error:  # whatever a compiler that is present but does not work may raise
            problem = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    warnings.warn(f"compile=True is left out, because compiling does not work here ({problem}).", stacklevel=3)
    return False


def choose_precision(wanted: str) -> str:
    """Accelerate's name of the precision that ``wanted`` means here; ``"auto"`` is the fast one of the device."""
    if wanted != "auto":
        return wanted
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if half_precision("cuda") == torch.bfloat16 else "fp16"


def on_device(data: Any, device: torch.device) -> Any:
    """``data`` with its tensors on a GPU that has room for them, so that no batch has to travel."""
    names = [name for name in ("features", "images", "labels") if hasattr(data, name)]
    size = sum(getattr(data, name).nbytes for name in names)
    if device.type != "cuda" or size > torch.cuda.mem_get_info(device)[0] / 2:
        return data
    data = copy.copy(data)
    for name in names:
        setattr(data, name, getattr(data, name).to(device))
    return data


def warm_up(
    plain: nn.Module, part: nn.Module, loader: DataLoader, val_loader: DataLoader, loss_of: Callable, accelerate
) -> float:
    """Compile ``part`` for every batch size of both loaders; returns the seconds.

    ``loss_of`` takes inputs and labels. Weights and statistics of ``plain``, the module within, stay as they were.
    """
    began = time.perf_counter()
    kept = copy.deepcopy(plain.state_dict())
    for training, batches in ((True, loader), (False, val_loader)):
        part.train(training)
        for size in sorted({len(batch) for batch in batches.batch_sampler}, reverse=True):
            inputs, labels = (x.to(accelerate.device) for x in batches.dataset.__getitems__(list(range(size))))
            with torch.set_grad_enabled(training):
                loss = loss_of(inputs, labels)
            if training:
                accelerate.backward(loss)
    plain.zero_grad()
    plain.load_state_dict(kept)
    return time.perf_counter() - began
