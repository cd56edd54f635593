"""What do other backbones cost, and what do they give? Accuracy, parameters, FLOPs, images/s and size of each.

``python benchmarks/backbones.py`` writes ``results/benchmarks/backbones-<profile>.json`` and the figure of the same
name. Every network gets the same images: it is frozen, and a linear classifier learns on the mean of its last feature
map (ViT: on its class token). ImageNet weights are taken where they can be had; elsewhere the network keeps random ones
and its row says ``weights: none``: such a row says what the network costs, and nothing about transfer. VGG16 is listed
with both, whole and cut after block3, and the small CNN learns from scratch on the same images. The speed is that of
the whole model, batch 32, float32.
"""

import time

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import PercentFormatter
from usual_loop import weights_of

from fmnist_utils import ROOT, pick
from fmnist_utils.cache import cache_features
from fmnist_utils.data import load, train_val_split
from fmnist_utils.evaluate import predict, score
from fmnist_utils.models import Classifier, build_model, summary
from fmnist_utils.plots import COLORS, use_style
from fmnist_utils.recipes import RECIPES
from fmnist_utils.results import save_benchmark
from fmnist_utils.train import fit

TRAIN, VAL, TEST = pick(smoke=(40, 20, 20), cpu=(3_000, 1_000, 4_000), full=(55_000, 5_000, 10_000))
EPOCHS = pick(smoke=1, cpu=15, full=10)
SECONDS = pick(smoke=0.1, cpu=5.0, full=5.0)
#: ``None``: the size that the weights were made for.
PIXELS = pick(smoke=32, cpu=64, full=None)
NETWORKS = ["resnet18", "resnet50", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny", "vit_b_16", "vgg16"]
NAMES = {
    "small_cnn": "small CNN",
    "resnet18": "ResNet18",
    "resnet50": "ResNet50",
    "mobilenet_v3_large": "MobileNetV3",
    "efficientnet_b0": "EfficientNet-B0",
    "convnext_tiny": "ConvNeXt-Tiny",
    "vit_b_16": "ViT-B/16",
    "vgg16": "VGG16",
}


def candidates() -> list[dict]:
    """Arguments of ``build_model`` for every row."""
    rows = [RECIPES["small-cnn"]["model"] | {"trainable": "all"}]
    for name in pick(smoke=["mobilenet_v3_large", "vgg16"], cpu=NETWORKS, full=NETWORKS):
        found = weights_of(name) | {"name": name, "head": "linear"}
        # A pretrained ViT takes no other size than its own.
        rows.append(found if name.startswith("vit_") and "weights" not in found else found | {"image_size": PIXELS})
    whole = rows[-1]
    return [
        *rows,
        whole | {"cut_after": "block3"},
        whole | {"weights": None, "trainable": "head"},
        whole | {"cut_after": "block3", "weights": None, "trainable": "head"},
    ]


@torch.no_grad()
def images_per_second(model: Classifier, images: torch.Tensor) -> float:
    """Images per second through the whole model on its device, after two batches that do not count."""
    device = next(model.parameters()).device
    model.eval().to(memory_format=torch.channels_last)

    def work() -> None:
        model(images.to(device))
        if device.type == "cuda":
            torch.cuda.synchronize()

    work(), work()
    began, calls = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < SECONDS:
        work()
        calls += 1
    return calls * len(images) / passed


def measured(settings: dict, splits: dict) -> dict:
    """One row: the network's cost, and its accuracy after training what is not frozen."""
    model = build_model(**settings)
    frozen, table = settings["name"] != "small_cnn", summary(model)
    began = time.perf_counter()
    inputs = {k: cache_features(model, v, verbose=False) for k, v in splits.items()} if frozen else splits
    phase = {} if frozen else {k: v for k, v in RECIPES["small-cnn"]["phases"][0].items() if k != "trainable"}
    history = fit(model, inputs["train"], inputs["val"], progress=False, **phase | {"epochs": EPOCHS})
    seconds = time.perf_counter() - began
    cut = f" to {model.config['cut_after']}" if settings.get("cut_after") else ""
    row = {
        "network": NAMES[settings["name"]] + cut,
        "weights": model.weights,
        "image_size": model.preprocess.image_size,
        "million_parameters": round(table.parameters["total"] / 1e6, 2),
        "gflop_per_image": round(table.MFLOPs["total"] / 1e3, 3),
        "megabytes": round(sum(t.nbytes for t in model.state_dict().values()) / 1e6, 1),
        "images_per_second": round(images_per_second(model, splits["test"].images[:32]), 1),
        "val_accuracy": round(history.val_accuracy.max(), 4),
        "test_accuracy": round(score(predict(model, inputs["test"]), splits["test"].labels)["accuracy"], 4),
        "training_seconds": round(seconds, 1),
    }
    print(row, flush=True)
    return row


def on_front(rows: list[dict]) -> list[dict]:
    """The rows that no other one beats in both accuracy and milliseconds per image, fastest first."""
    front = []
    for row in sorted(rows, key=lambda row: (-row["images_per_second"], -row["test_accuracy"])):
        if not front or row["test_accuracy"] > front[-1]["test_accuracy"]:
            front.append(row)
    return front


def draw(rows: list[dict]) -> plt.Figure:
    """Accuracy against milliseconds per image. What has random weights stands below, at its cost; a line joins the rows
    that no other one beats in both.
    """
    use_style()
    figure, axis = plt.subplots(figsize=(9, 5.2))
    scratch = [row for row in rows if row["network"] == NAMES["small_cnn"]]
    pretrained = [row for row in rows if row["weights"] != "none"]
    known = {row["network"] for row in scratch + pretrained}
    untrained = [row for row in rows if row["network"] not in known]
    front = on_front(scratch + pretrained)
    kinds = (("ImageNet weights, frozen", "accent", "o", pretrained), ("trained from scratch", "train", "^", scratch))
    for label, color, marker, own in kinds:
        xs, ys = [1e3 / r["images_per_second"] for r in own], [r["test_accuracy"] for r in own]
        axis.scatter(xs, ys, s=70, color=COLORS[color], marker=marker, label=label, zorder=3)
        for x, y, row in zip(xs, ys, own, strict=True):
            axis.annotate(row["network"], (x, y), (0, -17), textcoords="offset points", fontsize=10, ha="center")
    low, high = axis.get_ylim()
    low -= 0.9 * (high - low)
    cost = [1e3 / row["images_per_second"] for row in untrained]
    axis.scatter(cost, [low] * len(cost), s=60, color=COLORS["muted"], marker="s", clip_on=False, zorder=3,
                 label="random weights: cost only")  # fmt: skip
    for x, row in zip(cost, untrained, strict=True):
        axis.annotate(
            row["network"], (x, low), (0, 9), textcoords="offset points", fontsize=10, rotation=90, ha="center"
        )
    axis.set(xscale="log", xlabel="milliseconds per image (log scale)", ylabel="test accuracy", ylim=(low, high))
    axis.margins(x=0.12)
    # The front goes on to the right: what lies below it is dominated.
    xs, ys = [1e3 / row["images_per_second"] for row in front], [row["test_accuracy"] for row in front]
    axis.step([*xs, axis.get_xlim()[1]], [*ys, ys[-1]], where="post", color=COLORS["test"], label="Pareto front")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_title(f"Accuracy after {TRAIN:,} training images, and what a prediction costs")
    axis.legend(frameon=False, loc="center left")
    return figure


def main() -> None:
    train, val = train_val_split(load("train"))
    splits = {"train": train.subset(TRAIN), "val": val.subset(VAL), "test": load("test").subset(TEST)}
    rows = [measured(settings, splits) for settings in candidates()]
    front = [f"{row['network']} ({row['weights']})" for row in on_front(rows)]
    best = max(rows, key=lambda row: row["val_accuracy"])
    path = save_benchmark(
        "backbones",
        setting=f"{best['network']} ({best['weights']}) against the small CNN from scratch: {TRAIN:,} training and "
        f"{TEST:,} test images",
        ours=100 * best["test_accuracy"],
        reference=100 * rows[0]["test_accuracy"],
        unit="% correct",
        figure=draw(rows),
        networks=rows,
        pareto_front=front,
        train_images=TRAIN,
        test_images=TEST,
        epochs=EPOCHS,
        seed=0,
    )
    print("wrote", path.relative_to(ROOT))


if __name__ == "__main__":
    main()
