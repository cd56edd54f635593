"""Accelerate for one training: device, precision, compilation, several processes; and data that move to a GPU once."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.data import Dataset

from fmnist_utils.scale.engines import half_precision
from fmnist_utils.scale.processes import on_cpu, rank_and_count


@contextmanager
def accelerator(part: nn.Module, mixed_precision: str, compile: bool) -> Iterator:
    """Accelerate's for one run; at its end every layer has its own ``forward`` and Accelerate no state of this run.

    Or the precision of a process's first training would bind all later ones, and notebook_launcher refuse to start.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, TorchDynamoPlugin

    alone = rank_and_count()[1] == 1
    AcceleratorState._reset_state(reset_partial_state=alone)
    try:
        yield Accelerator(
            mixed_precision=choose_precision(mixed_precision),
            cpu=on_cpu(),
            dynamo_plugin=TorchDynamoPlugin(backend="inductor", dynamic=False) if compile else None,
            # Buffers agree without it, and processes may have different numbers of validation batches.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    finally:
        AcceleratorState._reset_state(reset_partial_state=alone)
        for layer in part.modules():
            vars(layer).pop("forward", None)
            vars(layer).pop("_original_forward", None)


def choose_precision(wanted: str) -> str:
    """Accelerate's name of the precision that ``wanted`` means here; ``"auto"`` is the fast one of the device."""
    if wanted != "auto":
        return wanted
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if half_precision("cuda") == torch.bfloat16 else "fp16"


def on_device(data: Dataset, device: torch.device) -> Dataset:
    """``data`` with its tensors on a GPU that has room for them, so that no batch has to travel."""
    names = [name for name in ("features", "images", "labels") if hasattr(data, name)]
    size = sum(getattr(data, name).nbytes for name in names)
    if device.type != "cuda" or size > torch.cuda.mem_get_info(device)[0] / 2:
        return data
    data = copy.copy(data)
    for name in names:
        setattr(data, name, getattr(data, name).to(device))
    return data
