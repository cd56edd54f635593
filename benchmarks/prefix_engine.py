"""How fast can the frozen layers run on this CPU? Memory layout and compiler against the matrix-product rate.

``python benchmarks/prefix_engine.py`` writes ``results/benchmarks/prefix_engine-<profile>.json``: VGG16 up to block3 at
56 px, images per second, eagerly in PyTorch's usual layout (the reference), eagerly in channels-last and compiled by
inductor with frozen weights; and the share of the machine's measured matrix-product rate that the best one reaches.
"""

import time
from collections.abc import Callable

import torch

from fmnist_utils.cache import compile_frozen
from fmnist_utils.data import load
from fmnist_utils.evaluate import save_benchmark
from fmnist_utils.models import build_model, summary

BATCH, SECONDS = 32, 8.0


def per_second(work: Callable[[], object]) -> float:
    """Calls of ``work`` per second over ``SECONDS``, after two calls that do not count."""
    work(), work()
    began, calls = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < SECONDS:
        work()
        calls += 1
    return calls / passed


@torch.no_grad()
def main() -> None:
    model = build_model("vgg16", cut_after="block3", head="conv", image_size=56)
    images = model.preprocess(load("test").subset(BATCH).images)
    flops = summary(model).MFLOPs[["block1", "block2", "block3"]].sum() * 1e6
    layers, rates = model.split()[0][1:], {}
    rates["eager, contiguous"] = BATCH * per_second(lambda: layers(images))
    layers, images = (x.to(memory_format=torch.channels_last) for x in (layers, images))
    rates["eager, channels-last"] = BATCH * per_second(lambda: layers(images))
    began = time.perf_counter()
    compiled = compile_frozen(layers, images)
    compile_seconds = time.perf_counter() - began
    rates["compiled, channels-last"] = BATCH * per_second(lambda: compiled(images))
    square = torch.randn(2048, 2048)
    matrix_rate = 2 * 2048**3 * per_second(lambda: square @ square)
    best = max(rates.values())
    path = save_benchmark(
        "prefix_engine",
        setting=f"VGG16 to block3, 56 px, batch {BATCH}, float32, {flops / 1e9:.2f} GFLOP an image",
        ours=best,
        reference=rates["eager, contiguous"],
        unit="images/s",
        images_per_second={name: round(rate, 1) for name, rate in rates.items()},
        compile_seconds=round(compile_seconds, 1),
        matrix_product_gflops=round(matrix_rate / 1e9, 1),
        share_of_matrix_rate=round(best * flops / matrix_rate, 3),
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
