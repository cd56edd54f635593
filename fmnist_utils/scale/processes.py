"""Several processes, on one machine or many: who am I, what is my share, how do results come together.

``torchrun``, ``accelerate launch`` and ``notebook_launcher`` start the same program several times; the functions here
make those programs one run. Started alone, a program is the first of one and nothing is sent anywhere.
``docs/guide.md`` shows the commands, ``benchmarks/SCALING.md`` the arithmetic.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.data import BatchSampler, DataLoader, Sampler

T = TypeVar("T")


def rank_and_count() -> tuple[int, int]:
    """(number of this process, from 0; how many there are). The first call connects them, by Accelerate."""
    if _started() == 1:
        return 0, 1
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu())
    return state.process_index, state.num_processes


def on_cpu() -> bool:
    """Whether several processes must be told to use the CPU: without it each would train on its own, unconnected."""
    return _started() > 1 and not torch.cuda.is_available()


def _started() -> int:
    """How many processes a launcher has started; 1 where WORLD_SIZE alone is left over from something else."""
    text = os.environ.get("WORLD_SIZE", "1").strip()
    if text == "1":
        return 1
    if text.isdecimal() and {"RANK", "MASTER_ADDR"} <= os.environ.keys():
        return int(text)
    del os.environ["WORLD_SIZE"]  # which Accelerate would believe
    warnings.warn(
        f"WORLD_SIZE={text} is ignored, because RANK and MASTER_ADDR, which torchrun sets with it, are missing. "
        "Several processes are started by torchrun or accelerate launch.",
        stacklevel=2,
    )
    return 1


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank_and_count()[0] == 0


def shares(count: int) -> list[int]:
    """Edges of contiguous parts of ``count`` items, one per process, that differ by one item at most."""
    _, processes = rank_and_count()
    return [count * i // processes for i in range(processes + 1)]


def own_share(count: int) -> range:
    """This process's part of :func:`shares`."""
    return range(*shares(count)[rank_and_count()[0] :][:2])


def exchange(values: Tensor, edges: list[int]) -> None:
    """Complete ``values`` [N, …] in every process; process ``i`` has filled rows ``edges[i]`` to ``edges[i + 1]``."""
    for source, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        if len(edges) > 2 and stop > start:
            torch.distributed.broadcast(values[start:stop], source)


def total(value: Tensor) -> Tensor:
    """The sum of ``value`` over all processes."""
    if rank_and_count()[1] > 1:
        torch.distributed.all_reduce(value)
    return value


def wait() -> None:
    """Until all processes have come to this line."""
    if rank_and_count()[1] > 1:
        torch.distributed.barrier()


def from_first(work: Callable[[], T]) -> T:
    """What ``work()`` gives in the first process, for all of them; an exception is raised in all of them."""
    rank, processes = rank_and_count()
    if processes == 1:
        return work()
    result: list = [None, None]
    if rank == 0:
        try:
            result[0] = work()
        except Exception as error:
            result[1] = error
    torch.distributed.broadcast_object_list(result)
    if result[1] is not None:
        raise result[1]
    return result[0]


def batch_weights(loader: DataLoader) -> list[float]:
    """What each batch's mean loss counts in the mean over processes: 1, unless they cannot share the batch evenly."""
    if not isinstance(share := getattr(loader, "batch_sampler", None), BatchShare):
        return [1.0] * len(loader)
    count, size = len(loader.dataset), share.batches.batch_size
    sizes = [min(size, count - start) for start in range(0, count, size)][: len(share)]
    return [len(range(share.process, size, share.processes)) * share.processes / size for size in sizes]


class BatchShare(Sampler):
    """A batch sampler of one process's part of each batch: every ``processes``-th image of it."""

    def __init__(self, batches: BatchSampler, process: int, processes: int):
        self.batches, self.process, self.processes = batches, process, processes

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch[self.process :: self.processes] for batch in self.batches)


class _Total(torch.autograd.Function):
    """:func:`total`, whose gradient is the total of the gradients."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return total(value.clone())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return total(gradient.clone())


class JointBatchNorm(TorchFunctionMode):
    """Within it, BatchNorm in training mode takes the statistics of the whole batch over all processes.

    Each process has a part of the batch (any part, even unequal). torch's ``SyncBatchNorm`` does it on GPUs only.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.batch_norm:
            return function(*args, **(kwargs or {}))
        return _joint_batch_norm(*args, **(kwargs or {}))


def _joint_batch_norm(
    x: Tensor, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
) -> Tensor:
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    dims, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
    x_float = x.float()
    count = total(torch.tensor(x.numel() / x.shape[1], device=x.device))
    mean = _Total.apply(x_float.sum(dims)) / count
    centred = x_float - mean.view(shape)
    variance = _Total.apply(centred.square().sum(dims)) / count
    if running_mean is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * count / (count - 1), momentum)
    normalised = centred * (variance.view(shape) + eps).rsqrt()
    if weight is not None:
        normalised = normalised * weight.view(shape) + bias.view(shape)
    return normalised.to(x.dtype)
