"""How close do the frozen layers come to what this CPU can do? Memory layouts, compiler and OpenVINO at the limit."""

from functools import partial

import torch
from common import options, per_second, record, splits, timed, weights_of
from torch import Tensor, nn

from fmnist_utils import pick
from fmnist_utils.cache import cache_features
from fmnist_utils.evaluate import mcnemar, predict
from fmnist_utils.models import Classifier, build_model, summary
from fmnist_utils.scale.engines import compile_frozen, openvino_frozen
from fmnist_utils.train import fit

SECONDS = pick(smoke=0.05, cpu=6.0, full=6.0)
#: Backbone, where it is cut, side in pixels, batch size. The first is the one whose accuracy is compared.
NETWORKS = pick(
    smoke=[("vgg16", "block2", 28, 4)],
    **dict.fromkeys(("cpu", "full"), [("vgg16", "block3", 56, 32), ("resnet50", "layer4", 224, 8)]),
)
TRAIN, VAL, TEST = pick(smoke=(100, 50, 50), cpu=(3_000, 500, 5_000), full=(55_000, 5_000, 10_000))
CALIBRATION = pick(smoke=4, cpu=320, full=320)
#: Side of the square matrices, and numbers that are copied: more than any cache holds.
SQUARE, COPIED = pick(smoke=(512, 4_000_000), cpu=(2048, 64_000_000), full=(2048, 64_000_000))


def machine() -> dict[str, float]:
    """FLOP/s of a float32 matrix product and bytes/s of a copy that no cache holds (read and written bytes)."""
    square, source = torch.randn(SQUARE, SQUARE), torch.randn(COPIED)
    target = torch.empty_like(source)
    return {
        "flops_per_second": 2 * SQUARE**3 * per_second(lambda: square @ square, SECONDS),
        "bytes_per_second": 2 * source.nbytes * per_second(lambda: target.copy_(source), SECONDS),
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
    images = splits(train=max(batch, CALIBRATION))["train"].images
    x = model.preprocess(images[:batch])
    flops = summary(model).MFLOPs.drop(["head", "total"]).sum() * 1e6
    moved = bytes_moved(layers, x)
    limit = max(flops / rates["flops_per_second"], moved / rates["bytes_per_second"])
    batches = [model.preprocess(part) for part in images.split(32)]
    # Measured before the layers change their layout.
    measured = {"eager, contiguous": (per_second(lambda: layers(x), SECONDS), 0.0)}
    layers, x_last = (it.to(memory_format=torch.channels_last) for it in (layers, x))
    works = {
        "eager, channels-last": lambda: partial(layers, x_last),
        "compiled, channels-last": lambda: partial(compile_frozen(layers, x_last), x_last),
        "OpenVINO, float32": lambda: partial(openvino_frozen(layers, size), x),
        "OpenVINO, int8": lambda: partial(openvino_frozen(layers, size, batches), x),
    }
    for engine, prepare in works.items():
        work, seconds = timed(prepare)
        measured[engine] = (per_second(work, SECONDS), seconds)
    same = {"network": f"{name} to {cut_after}, {size} px", "weights": model.weights, "batch": batch}
    same |= {"gflop_per_image": flops / 1e9, "megabytes_per_image": moved / 1e6, "limit_images_per_second": 1 / limit}
    rows = []
    for engine, (calls, seconds) in measured.items():
        rate = calls * batch
        row = same | {"engine": engine, "images_per_second": rate, "preparation_seconds": seconds}
        row |= {"share_of_limit": rate * limit, "share_of_matrix_rate": rate * flops / rates["flops_per_second"]}
        rows.append(row)
    return rows


def accuracy() -> dict[str, float]:
    """Test accuracy of a head on VGG16's features in float32 and in int8, same images, seed and epochs."""
    (network, cut_after, size, _), images = NETWORKS[0], splits(train=TRAIN, val=VAL, test=TEST)
    variants = {"float32": {}, "int8": {"engine": "openvino", "calibration": images["train"].subset(CALIBRATION)}}
    fields, correct = {"train_images": TRAIN, "test_images": TEST}, {}

    def tested(name: str, model: Classifier, data) -> None:
        correct[name] = predict(model, data).argmax(1) == images["test"].labels.numpy()
        fields[f"{name}_accuracy"] = correct[name].mean()

    for name, settings in variants.items():
        model = build_model(network, cut_after=cut_after, head="pooled", image_size=size)
        features = {k: cache_features(model, v, **settings, verbose=False) for k, v in images.items()}
        fit(model, features["train"], features["val"], epochs=10, progress=False)
        tested(name, model, features["test"])
        reports = [part.report for part in features.values()]
        passed = sum(report.images for report in reports), sum(report.seconds for report in reports)
        fields[f"{name}_pass_images_per_second"] = passed[0] / passed[1]
        fields[f"{name}_engine"] = reports[0].engine
    tested("int8_head_on_float32", model, images["test"])  # as it would be used elsewhere: the unquantised network
    return fields | {f"mcnemar_{k}": v for k, v in mcnemar(correct["float32"], correct["int8"]).items()}


def main() -> None:
    options(__doc__)
    rates = machine()
    rows = [row for network in NETWORKS for row in engines(*network, rates)]
    float32 = [r for r in rows if r["network"] == rows[0]["network"] and "int8" not in r["engine"]]
    best = max(float32, key=lambda row: row["images_per_second"])
    fields = {"engines": rows, "accuracy": accuracy(), "share_of_matrix_rate": best["share_of_matrix_rate"]}
    fields["matrix_product_gflops"] = rates["flops_per_second"] / 1e9
    fields["copy_gigabytes_per_second"] = rates["bytes_per_second"] / 1e9
    setting = f"{best['network']}, batch {best['batch']}, float32: {best['engine']} against {rows[0]['engine']}"
    record("prefix_engine", setting, *(row["images_per_second"] for row in (best, rows[0])), "images/s", **fields)


if __name__ == "__main__":
    main()
