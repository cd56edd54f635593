"""How close do the frozen layers come to what this CPU can do? Memory layouts, compiler and OpenVINO against the limit.

``python benchmarks/prefix_engine.py`` writes ``results/benchmarks/prefix_engine-<profile>.json`` and the figure of the
same name. Two passes are timed, VGG16 up to block3 at 56 px and ResNet50 at 224 px, each eagerly in PyTorch's usual
layout (the reference) and in channels-last, compiled by inductor with frozen weights, and by OpenVINO in float32 and in
int8. The limit of float32 is the roofline (Williams et al., 2009): arithmetic divided by the measured rate of a matrix
product, or bytes of all activations and weights divided by the measured bandwidth of a copy, whichever takes longer.

int8 rounds, so the JSON also says what that costs: ``accuracy`` compares heads trained on the features of VGG16 from
either engine, on the same images.
"""

import time
from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from usual_loop import weights_of

from fmnist_utils import pick
from fmnist_utils.cache import cache_features
from fmnist_utils.data import load, train_val_split
from fmnist_utils.evaluate import mcnemar, predict, score
from fmnist_utils.models import Classifier, build_model, summary
from fmnist_utils.plots import COLORS, use_style
from fmnist_utils.results import save_benchmark
from fmnist_utils.scale.engines import compile_frozen, openvino_frozen
from fmnist_utils.train import fit

SECONDS = pick(smoke=0.2, cpu=6.0, full=6.0)
NETWORKS = [("vgg16", "block3", 56, 32), ("resnet50", "layer4", 224, 8)][: pick(smoke=1, cpu=2, full=2)]
TRAIN, VAL, TEST = pick(smoke=(100, 50, 50), cpu=(3_000, 500, 5_000), full=(55_000, 5_000, 10_000))
CALIBRATION = pick(smoke=32, cpu=320, full=320)


def per_second(work: Callable[[], object]) -> float:
    """Calls of ``work`` per second over ``SECONDS``, after two calls that do not count."""
    work(), work()
    began, calls = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < SECONDS:
        work()
        calls += 1
    return calls / passed


def machine() -> dict[str, float]:
    """FLOP/s of a float32 matrix product and bytes/s of a copy that no cache holds (read and written bytes)."""
    square, source = torch.randn(2048, 2048), torch.randn(64_000_000)
    target = torch.empty_like(source)
    return {
        "flops_per_second": 2 * 2048**3 * per_second(lambda: square @ square),
        "bytes_per_second": 2 * source.nbytes * per_second(lambda: target.copy_(source)),
    }


def bytes_moved(layers: nn.Module, x: Tensor) -> float:
    """Bytes per image that the layers read and write in float32: every input and output, and the weights per batch."""
    moved = sum(p.nbytes for p in layers.parameters())

    def count(_, inputs, output):
        nonlocal moved
        moved += inputs[0].nbytes + output.nbytes

    hooks = [m.register_forward_hook(count) for m in layers.modules() if not list(m.children())]
    layers(x)
    for hook in hooks:
        hook.remove()
    return moved / len(x)


@torch.no_grad()
def engines(name: str, cut_after: str, size: int, batch: int, rates: dict[str, float]) -> list[dict]:
    """One row per engine: images/s and the share of the limit."""
    settings = {"cut_after": cut_after, "head": "gap-256", "image_size": size, "trainable": "head"}
    model = build_model(name, **settings | weights_of(name))
    layers = model.split()[0][1:]
    images = load("train").subset(max(batch, CALIBRATION)).images
    x = model.preprocess(images[:batch])
    flops = summary(model).MFLOPs.drop(["head", "total"]).sum() * 1e6
    moved = bytes_moved(layers, x)
    limit = max(flops / rates["flops_per_second"], moved / rates["bytes_per_second"])
    batches = [model.preprocess(part) for part in images.split(32)]
    contiguous = per_second(lambda: layers(x))  # measured before the layers change their layout
    layers, x_last = (it.to(memory_format=torch.channels_last) for it in (layers, x))
    works = {
        "eager, channels-last": lambda: partial(layers, x_last),
        "compiled, channels-last": lambda: partial(compile_frozen(layers, x_last), x_last),
        "OpenVINO, float32": lambda: partial(openvino_frozen(layers, size), x),
        "OpenVINO, int8": lambda: partial(openvino_frozen(layers, size, batches), x),
    }
    found = {"eager, contiguous": (contiguous, 0.0)}
    for engine, prepare in works.items():
        began = time.perf_counter()
        work = prepare()
        seconds = time.perf_counter() - began
        found[engine] = (per_second(work), seconds)
    return [
        {
            "network": f"{name} to {cut_after}, {size} px",
            "weights": model.weights,
            "engine": engine,
            "batch": batch,
            "images_per_second": round(calls * batch, 2),
            "preparation_seconds": round(seconds, 1),
            "gflop_per_image": round(flops / 1e9, 3),
            "megabytes_per_image": round(moved / 1e6, 2),
            "limit_images_per_second": round(1 / limit, 2),
            "share_of_limit": round(calls * batch * limit, 3),
            "share_of_matrix_rate": round(calls * batch * flops / rates["flops_per_second"], 3),
        }
        for engine, (calls, seconds) in found.items()
    ]


def accuracy() -> dict[str, float]:
    """Test accuracy of a head on VGG16's features in float32 and in int8, same images, seed and epochs."""
    train, val = train_val_split(load("train"))
    splits = {"train": train.subset(TRAIN), "val": val.subset(VAL), "test": load("test").subset(TEST)}
    variants = {"float32": {}, "int8": {"engine": "openvino", "calibration": train.subset(CALIBRATION)}}
    found, correct = {"train_images": TRAIN, "test_images": TEST}, {}

    def tested(name: str, model: Classifier, data) -> None:
        probabilities = predict(model, data)
        correct[name] = probabilities.argmax(1) == splits["test"].labels.numpy()
        found[f"{name}_accuracy"] = round(score(probabilities, splits["test"].labels)["accuracy"], 4)

    for name, settings in variants.items():
        model = build_model("vgg16", cut_after="block3", head="pooled", image_size=56)
        features = {k: cache_features(model, v, **settings, verbose=False) for k, v in splits.items()}
        fit(model, features["train"], features["val"], epochs=10, progress=False)
        tested(name, model, features["test"])
        found[f"{name}_pass_images_per_second"] = round(
            sum(f.report.images for f in features.values()) / sum(f.report.seconds for f in features.values()), 1
        )
        found[f"{name}_engine"] = features["train"].report.engine
        if name == "int8":  # the head as it would be used elsewhere, on the unquantised network
            tested("int8_head_on_float32", model, splits["test"])
    return found | {f"mcnemar_{k}": v for k, v in mcnemar(correct["float32"], correct["int8"]).items()}


def draw(rows: list[dict]) -> plt.Figure:
    """Images/s of each engine beside the limit of float32."""
    use_style()
    names = list(dict.fromkeys(row["network"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(11, 3.8), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        own = [row for row in rows if row["network"] == name][::-1]
        color = [COLORS["accent" if "int8" in row["engine"] else "train"] for row in own]
        bars = axis.barh([r["engine"] for r in own], [r["images_per_second"] for r in own], color=color)
        rates = [f"{row['images_per_second']:.3g}" for row in own]
        axis.bar_label(bars, rates, padding=-36, color="white", fontweight="bold")
        axis.axvline(own[0]["limit_images_per_second"], ymax=0.92, color="black", linestyle="--")
        axis.text(own[0]["limit_images_per_second"], 4.7, "matrix product in float32", ha="center", fontsize=10)
        axis.set_ylim(-0.6, 4.9)
        weights = "random weights" if own[0]["weights"] == "none" else "ImageNet weights"
        axis.set_title(f"{name}\n{weights}")
        axis.set_xlim(0, 1.2 * max(own[0]["limit_images_per_second"], *(r["images_per_second"] for r in own)))
        axis.set_xlabel("images per second")
        axis.grid(axis="y", visible=False)
    return figure


def main() -> None:
    rates = machine()
    rows = [row for network in NETWORKS for row in engines(*network, rates)]
    float32 = [r for r in rows if r["network"] == rows[0]["network"] and "int8" not in r["engine"]]
    best = max(float32, key=lambda row: row["images_per_second"])
    path = save_benchmark(
        "prefix_engine",
        setting=f"{best['network']}, batch {best['batch']}, float32: {best['engine']} against {rows[0]['engine']}",
        ours=best["images_per_second"],
        reference=rows[0]["images_per_second"],
        unit="images/s",
        figure=draw(rows),
        matrix_product_gflops=round(rates["flops_per_second"] / 1e9, 1),
        copy_gigabytes_per_second=round(rates["bytes_per_second"] / 1e9, 1),
        share_of_matrix_rate=best["share_of_matrix_rate"],
        engines=rows,
        accuracy=accuracy(),
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
