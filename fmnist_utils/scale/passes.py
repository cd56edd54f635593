"""One pass through the frozen layers: shared out between processes, run by an engine, kept in memory or in a file."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fmnist_utils.scale.processes import exchange, from_first, rank_and_count, shares, wait
from fmnist_utils.scale.storage import PrefixPass, allocate, new_file, open_file, write_report
from fmnist_utils.sources.files import replacing


def run_prefix(
    model: nn.Module,
    prefix: nn.Sequential,
    make_engine: Callable,
    images: Tensor,
    store: Path | None,
    *,
    views: int,
    batch_size: int | None,
    seed: int,
    verbose: bool,
) -> tuple[Tensor, PrefixPass]:
    """(features, float16 [views, N, …], of ``images``, uint8 [N, 28, 28]; what the pass did).

    ``prefix`` is the frozen part of ``model``, whose ``preprocess`` draws all views but the first. ``make_engine``
    takes the size of a batch and the number of images to come. With ``store`` the features are in that file. Raises
    ``FloatingPointError`` where activations do not fit float16 and ``OSError`` where the disk is too small.
    """
    device, count, rank = model.preprocess.scale.device, len(images), rank_and_count()[0]
    # Small batches keep activations in the CPU's reused memory; a GPU needs large ones to be busy.
    usual = max(8, min(32, 32 * 64**2 // model.preprocess.image_size**2)) if device.type == "cpu" else 256
    batch_size = min(batch_size or usual, count)
    if store:
        store.parent.mkdir(parents=True, exist_ok=True)
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
            engine = make_engine(batch_size, views * (edges[rank + 1] - edges[rank]))
            shape = (views, count, *prefix(images[:1].to(device)).shape[1:])
            features = allocate(from_first(lambda: part and new_file(part, shape)), shape)
            for view in range(views):
                model.preprocess.train(view > 0)
                for start in range(edges[rank], edges[rank + 1], batch_size):
                    torch.manual_seed((seed + view) * 1_000_003 + start)
                    # The last batch reaches back, so that a compiled pass sees one shape only.
                    stop = min(start + batch_size, count)
                    output = engine(images[stop - batch_size : stop])[start - stop :].half()
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
