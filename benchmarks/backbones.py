"""What do other backbones cost, and what do they give? Accuracy, parameters, FLOPs, images/s and size of each."""

import matplotlib.pyplot as plt
import torch
from common import clock, options, per_second, record, splits, weights_of
from matplotlib.ticker import PercentFormatter

from fmnist_utils import pick
from fmnist_utils.cache import cache_features
from fmnist_utils.evaluate import predict, score
from fmnist_utils.models import Classifier, build_model, summary
from fmnist_utils.plots import COLORS, use_style
from fmnist_utils.recipes import RECIPES
from fmnist_utils.train import fit

TRAIN, VAL, TEST = pick(smoke=(40, 20, 20), cpu=(3_000, 1_000, 4_000), full=(55_000, 5_000, 10_000))
EPOCHS = pick(smoke=1, cpu=15, full=10)
SECONDS = pick(smoke=0.1, cpu=5.0, full=5.0)
#: ``None``: the size that the weights were made for.
PIXELS = pick(smoke=32, cpu=64, full=None)
NAMES = {"small_cnn": "small CNN", "resnet18": "ResNet18", "resnet50": "ResNet50", "mobilenet_v3_large": "MobileNetV3"}
NAMES |= {"efficientnet_b0": "EfficientNet-B0", "convnext_tiny": "ConvNeXt-Tiny", "vit_b_16": "ViT-B/16"}
NAMES["vgg16"] = "VGG16"
ALL = [*NAMES][1:]


def candidates() -> list[dict]:
    """Arguments of ``build_model`` for every row; VGG16 whole and cut, with its weights and with random ones."""
    rows = [RECIPES["small-cnn"]["model"] | {"trainable": "all"}]
    for name in pick(smoke=["mobilenet_v3_large", "vgg16"], cpu=ALL, full=ALL):
        settings = weights_of(name) | {"name": name, "head": "linear"}
        # A pretrained ViT takes no other size than its own.
        own_size = name.startswith("vit_") and "weights" not in settings
        rows.append(settings if own_size else settings | {"image_size": PIXELS})
    cut, untrained = {"cut_after": "block3"}, {"weights": None, "trainable": "head"}
    return rows + [rows[-1] | change for change in (cut, untrained, cut | untrained)]


@torch.no_grad()
def images_per_second(model: Classifier, images: torch.Tensor) -> float:
    """Images per second through the whole model on its device."""
    device = next(model.parameters()).device
    model.eval().to(memory_format=torch.channels_last)
    return len(images) * per_second(lambda: model(images.to(device)), SECONDS)


def measured(settings: dict, images: dict) -> dict:
    """One row: the network's cost, and its accuracy after training what is not frozen."""
    model = build_model(**settings)
    frozen, table = settings["name"] != "small_cnn", summary(model)
    began = clock()
    inputs = {k: cache_features(model, v, verbose=False) for k, v in images.items()} if frozen else images
    phase = {} if frozen else {k: v for k, v in RECIPES["small-cnn"]["phases"][0].items() if k != "trainable"}
    history = fit(model, inputs["train"], inputs["val"], progress=False, **phase | {"epochs": EPOCHS})
    seconds = clock() - began
    cut = f" to {model.config['cut_after']}" if settings.get("cut_after") else ""
    accuracy = score(predict(model, inputs["test"]), images["test"].labels)["accuracy"]
    megabytes, parameters = sum(t.nbytes for t in model.state_dict().values()) / 1e6, table.parameters["total"] / 1e6
    row = {"network": NAMES[settings["name"]] + cut, "weights": model.weights, "megabytes": megabytes}
    row |= {"image_size": model.preprocess.image_size, "million_parameters": parameters, "training_seconds": seconds}
    row |= {"gflop_per_image": table.MFLOPs["total"] / 1e3, "val_accuracy": history.val_accuracy.max()}
    row |= {"test_accuracy": accuracy, "images_per_second": images_per_second(model, images["test"].images[:32])}
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

    def points(rows: list[dict]) -> tuple[list[float], list[float]]:
        return [1e3 / row["images_per_second"] for row in rows], [row["test_accuracy"] for row in rows]

    def names(rows: list[dict], height: float | None, **look) -> None:
        for x, y, row in zip(*points(rows), rows, strict=True):
            place = {"xytext": (0, -17 if height is None else 9), "textcoords": "offset points", "ha": "center"}
            axis.annotate(row["network"], (x, y if height is None else height), fontsize=10, **place, **look)

    kinds = (("ImageNet weights, frozen", "accent", "o", pretrained), ("trained from scratch", "train", "^", scratch))
    for label, color, marker, own in kinds:
        axis.scatter(*points(own), s=70, color=COLORS[color], marker=marker, label=label, zorder=3)
        names(own, None)
    low, high = axis.get_ylim()
    low -= 0.9 * (high - low)
    look = {"color": COLORS["muted"], "marker": "s", "clip_on": False, "label": "random weights: cost only"}
    axis.scatter(points(untrained)[0], [low] * len(untrained), s=60, zorder=3, **look)
    names(untrained, low, rotation=90)
    axis.set(xscale="log", xlabel="milliseconds per image (log scale)", ylabel="test accuracy", ylim=(low, high))
    axis.margins(x=0.12)
    # The front goes on to the right: what lies below it is dominated.
    xs, ys = points(on_front(scratch + pretrained))
    axis.step([*xs, axis.get_xlim()[1]], [*ys, ys[-1]], where="post", color=COLORS["test"], label="Pareto front")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_title(f"Accuracy after {TRAIN:,} training images, and what a prediction costs")
    axis.legend(frameon=False, loc="center left")
    return figure


def main() -> None:
    options(__doc__)
    images = splits(train=TRAIN, val=VAL, test=TEST)
    rows = [measured(settings, images) for settings in candidates()]
    best = max(rows, key=lambda row: row["val_accuracy"])
    setting = f"{best['network']} ({best['weights']}) against the small CNN from scratch: {TRAIN:,} training and "
    fields = {"networks": rows, "train_images": TRAIN, "test_images": TEST, "epochs": EPOCHS, "seed": 0}
    fields["pareto_front"] = [f"{row['network']} ({row['weights']})" for row in on_front(rows)]
    accuracies = (100 * row["test_accuracy"] for row in (best, rows[0]))
    record("backbones", f"{setting}{TEST:,} test images", *accuracies, "% correct", figure=draw(rows), **fields)


if __name__ == "__main__":
    main()
