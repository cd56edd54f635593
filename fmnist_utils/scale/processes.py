"""Several processes, on one machine or many: who am I, what is my share, how do results come together.

``torchrun``, ``accelerate launch`` and ``notebook_launcher`` start the same program several times; the functions here
make those programs one run. Started alone, a program is the first of one and nothing is sent anywhere. README shows the
commands, ``benchmarks/SCALING.md`` the arithmetic.
"""

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


def rank_and_count() -> tuple[int, int]:
    """(number of this process, from 0; how many there are). The first call connects them, by Accelerate."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu())
    return state.process_index, state.num_processes


def on_cpu() -> bool:
    """Whether several processes must be told to use the CPU: without it each would train on its own, unconnected."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.cuda.is_available()


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


class _Total(torch.autograd.Function):
    """:func:`total`, whose gradient is the total of the gradients."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return total(value.clone())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return total(gradient.clone())


def joint_batch_norm(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    """``norm(x)`` with the statistics of the whole batch, of which each process has a part (any part, even unequal).

    torch's ``SyncBatchNorm`` does it on GPUs only. Used in training mode in place of ``norm.forward``.
    """
    if not norm.training:
        return type(norm).forward(norm, x)
    dims, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
    x_float = x.float()
    count = total(torch.tensor(x.numel() / x.shape[1], device=x.device))
    mean = _Total.apply(x_float.sum(dims)) / count
    centred = x_float - mean.view(shape)
    variance = _Total.apply(centred.square().sum(dims)) / count
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
    normalised = centred * (variance.view(shape) + norm.eps).rsqrt()
    if norm.affine:
        normalised = normalised * norm.weight.view(shape) + norm.bias.view(shape)
    return normalised.to(x.dtype)
