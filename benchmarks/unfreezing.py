"""What does unfreezing buy? A ladder: more and more layers learn, from the same start and for the same epochs.

``python benchmarks/unfreezing.py`` trains the head alone (8 epochs, AdamW, one-cycle to 1e-3, batch 128). Each rung
goes on from a copy of that start for 5 epochs of batch 64 with weight decay 0.05: the control trains the head alone
once more, at 1e-3; the others train the head at 5e-4 and the backbone's last layers, as many as the rung says, at 1e-4.
What stays frozen is computed once. Every rung is compared with the control on the same validation images (McNemar's
test). ``fit`` keeps the weights of the best of the epochs, which flatters all rungs alike. The test set is not used.

``results/benchmarks/unfreezing-<profile>.json`` holds a row per ladder, with its rungs; ``seconds`` are those of the
pass through the frozen layers and of the training. ``batchnorm`` is that of ``build_model``: whether BatchNorm keeps
ImageNet's statistics while its layers learn (``"eval"``). A network whose ImageNet weights cannot be had is left out.
Explained in notebooks/04_resnet50_fine_tuning.ipynb.
"""

import copy
import time

import matplotlib.pyplot as plt
import numpy as np
from common import options, record, splits
from matplotlib.ticker import PercentFormatter

from fmnist_utils import pick
from fmnist_utils.cache import cache_features
from fmnist_utils.evaluate import accuracy_interval, mcnemar, predict
from fmnist_utils.models import Classifier, WeightsUnavailable, build_model, set_trainable
from fmnist_utils.plots import COLORS, use_style
from fmnist_utils.train import fit

RESNET = {"name": "resnet50", "head": "gap-256", "image_size": pick(smoke=32, cpu=64, full=112)}
VGG = {"name": "vgg16", "cut_after": "block3", "head": "conv", "image_size": 56}
WHOLE = {"name": "vgg16", "head": "gap-256", "image_size": pick(smoke=32, cpu=64, full=112)}
#: (the model, training images, rungs: the first is the control).
LADDERS = pick(
    smoke=[(WHOLE, 64, ("head", 7, "all"))],
    cpu=[
        (RESNET | {"batchnorm": "train"}, 3_000, ("head", 32, "all")),
        (RESNET | {"batchnorm": "eval"}, 3_000, ("head", "all")),
        (WHOLE, 3_000, ("head", 7, 14)),
    ],
    full=[
        (RESNET | {"batchnorm": "train"}, 20_000, ("head", 16, 32, "all")),
        (RESNET | {"batchnorm": "eval"}, 20_000, ("head", "all")),
        (VGG, 10_000, ("head", 7, "all")),
    ],
)
VAL, HEAD_EPOCHS, EPOCHS = pick(smoke=(50, 1, 1), cpu=(2_000, 8, 5), full=(5_000, 8, 5))


def learn(model: Classifier, data: dict, trainable: str | int, **settings) -> tuple[dict, float]:
    """Train ``model``; (what it was trained on: features where layers are frozen, else images; seconds)."""
    began = time.perf_counter()
    set_trainable(model, trainable)
    frozen = any(True for _ in model.split()[0].parameters())
    inputs = {k: cache_features(model, v, verbose=False) for k, v in data.items()} if frozen else data
    fit(model, inputs["train"], inputs["val"], progress=False, **settings)
    return inputs, time.perf_counter() - began


def climb(settings: dict, images: int, rungs: tuple) -> dict:
    """One ladder; raises ``WeightsUnavailable`` where the network's ImageNet weights cannot be had."""
    data, start = splits(train=images, val=VAL), build_model(**settings)
    learn(start, data, "head", epochs=HEAD_EPOCHS, lr=1e-3, batch_size=128)
    rows, control = [], None
    for rung in rungs:
        model = copy.deepcopy(start)
        rates = {"lr": 1e-3} if rung == "head" else {"lr": 5e-4, "backbone_lr": 1e-4}
        inputs, seconds = learn(model, data, rung, epochs=EPOCHS, batch_size=64, weight_decay=0.05, **rates)
        correct = {k: predict(model, inputs[k]).argmax(1) == data[k].labels.numpy() for k in data}
        control = correct["val"] if control is None else control
        against = mcnemar(correct["val"], control)
        rows.append(
            {
                "rung": rung,
                "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
                "train_accuracy": float(correct["train"].mean()),
                "val_accuracy": float(correct["val"].mean()),
                "seconds": round(seconds, 1),
                "only_this": against["only_a"],
                "only_control": against["only_b"],
                "p_value": against["p_value"],
            }
        )
        print(settings["name"], rows[-1], flush=True)
    described = {key: start.config[key] for key in ("name", "cut_after", "head", "image_size", "batchnorm")}
    counts = {
        "weights": start.weights,
        "weights_origin": start.weights_origin,
        "train_images": images,
        "val_images": VAL,
    }
    return described | counts | {"head_epochs": HEAD_EPOCHS, "epochs": EPOCHS, "seed": 0, "rungs": rows}


def title(ladder: dict) -> str:
    """What the ladder was climbed with, in words."""
    name = {"resnet50": "ResNet50", "vgg16": "VGG16"}[ladder["name"]]
    cut = "" if ladder["cut_after"] in ("layer4", "block5") else f" to {ladder['cut_after']}"
    return f"{name}{cut}, {ladder['image_size']} px" + ", BatchNorm eval" * (ladder["batchnorm"] == "eval")


def draw(ladders: list[dict]) -> plt.Figure:
    """Validation accuracy of each rung with its 95% interval; the dashed line is the control."""
    use_style()
    figure, axes = plt.subplots(
        1, len(ladders), figsize=(1.2 + 3.9 * len(ladders), 3.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, ladder in zip(axes[0], ladders, strict=True):
        values, count = np.array([row["val_accuracy"] for row in ladder["rungs"]]), ladder["val_images"]
        ends = np.array([accuracy_interval(round(value * count), count) for value in values]).T
        names = {"head": "head\nonly", "all": "every-\nthing"}
        names = [names.get(row["rung"], f"last {row['rung']}\nlayers") for row in ladder["rungs"]]
        axis.errorbar(names, values, np.abs(ends - values), fmt="o", capsize=4, ms=8, color=COLORS["train"])
        axis.axhline(values[0], ls="--", color=COLORS["muted"])
        for x, value in enumerate(values):
            axis.annotate(f"{value:.1%}", (x, value), (8, 5), textcoords="offset points")
        axis.set_title(f"{title(ladder)}\n{ladder['train_images']:,} training images")
        axis.margins(x=0.25)
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0, 0].set_ylabel(f"validation accuracy, {ladders[0]['val_images']:,} images")
    return figure


def headline(ladders: list[dict]) -> dict:
    """The ladder that gained most, as :func:`~fmnist_utils.results.save_benchmark` takes it."""

    def best(ladder: dict) -> dict:
        return max(ladder["rungs"], key=lambda row: row["val_accuracy"])

    top = max(ladders, key=lambda ladder: best(ladder)["val_accuracy"] - ladder["rungs"][0]["val_accuracy"])
    rung = {"head": "the head", "all": "everything"}.get(best(top)["rung"], f"the last {best(top)['rung']} layers")
    images = f"{top['train_images']:,} training and {top['val_images']:,} validation images"
    return {
        "setting": f"{title(top)}, {images}: {rung} "
        f"learning against the head alone, from the same start (epochs: {top['epochs']})",
        "ours": 100 * best(top)["val_accuracy"],
        "reference": 100 * top["rungs"][0]["val_accuracy"],
        "unit": "% correct",
    }


def main() -> None:
    options("What does unfreezing buy?")
    ladders, left_out = [], []
    for ladder in LADDERS:
        try:
            ladders.append(climb(*ladder))
        except WeightsUnavailable as error:
            left_out.append(f"{ladder[0]['name']}: no ImageNet weights")
            print(error)
    record("unfreezing", **headline(ladders), figure=draw(ladders), ladders=ladders, left_out=left_out)


if __name__ == "__main__":
    main()
