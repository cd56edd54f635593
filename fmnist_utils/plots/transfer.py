"""The figures of ``notebooks/03_vgg16_transfer_learning.ipynb``."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from fmnist_utils.data import CLASSES
from fmnist_utils.models import Classifier, summary
from fmnist_utils.plots.pictures import picture
from fmnist_utils.plots.style import COLORS, heading, percent_ticks

#: What happens to a part of a network: its colour in a diagram.
FROZEN, LEARNS, UNUSED, DATA = "#9CC3DF", COLORS["val"], "#F3F4F6", "#E5E7EB"


def cut_network(whole: Classifier, model: Classifier) -> Figure:
    """A network and the ``model`` that is cut out of it: what is frozen, kept in the cache, learns, or is not used.

    Shapes and numbers of parameters are read from the two models. A box is as tall as its map is wide and as wide as it
    has channels, both on a logarithmic scale.
    """
    table, rest = summary(model), summary(whole).drop(["preprocess", "head", "total"])
    blocks = [name for name in table.index if name in rest.index]
    x = torch.zeros(1, 28, 28, dtype=torch.uint8)
    with torch.no_grad():
        kept = model.split()[0].eval()(x).numel()
    figure, axis = plt.subplots(figsize=(11.5, 4.4))
    right = _box(axis, 0, 0, "images", "1×28×28", DATA, "uint8")
    right = _box(axis, right, 0, "preprocess", table.output["preprocess"], DATA, "no parameters")
    for name in blocks:
        right = _box(axis, right, 0, name, table.output[name], FROZEN, _count(table.parameters[name]))
    axis.plot([right - 0.2] * 2, [-3.5, 3.5], ls="--", lw=2, color=COLORS["accent"])
    axis.text(
        right - 0.2, 3.6, f"cut after {blocks[-1]}", ha="center", va="bottom", color=COLORS["accent"], weight="bold"
    )
    upper = lower = right + 0.3
    for name in rest.index[len(blocks) :]:
        upper = _box(axis, upper, 1.75, name, rest.output[name], UNUSED, _count(rest.parameters[name]), ls="--")
    lower = _box(axis, lower, -1.75, "pooled", str(kept), "white", "once an image", hatch="///")
    lower = _box(axis, lower, -1.75, "head", table.output["head"], LEARNS, _count(table.trainable["head"]))
    kinds = {"frozen": FROZEN, "learns": LEARNS, "not used": UNUSED}
    keys = [Rectangle((0, 0), 1, 1, fc=color, ec="#555", label=name) for name, color in kinds.items()]
    keys.append(Rectangle((0, 0), 1, 1, fc="white", ec="#555", hatch="///", label="kept in the cache"))
    axis.legend(handles=keys, frameon=False, loc="upper left", ncols=2, bbox_to_anchor=(0, 1.08))
    axis.set(xlim=(-0.3, max(upper, lower)), ylim=(-3.9, 4.2))
    axis.axis("off")
    return figure


def _box(axis, left: float, middle: float, name: str, output: str, color: str, below: str, **look) -> float:
    """One part; returns where the next one begins."""
    channels, *sides = map(int, output.split("×"))
    height = 0.5 + 0.33 * math.log2(sides[0] if sides else 1)
    width = 0.15 + 0.09 * math.log2(channels)
    center = left + 0.65
    axis.add_patch(Rectangle((center - width / 2, middle - height / 2), width, height, fc=color, ec="#555", **look))
    axis.text(center, middle + height / 2 + 0.08, name, ha="center", va="bottom", fontsize=11, weight="bold")
    text = f"{output if sides else f'{channels:,} numbers'}\n{below}"
    axis.text(center, middle - height / 2 - 0.1, text, ha="center", va="top", fontsize=9.5, linespacing=1.35)
    if left > 0 and "ls" not in look:
        arrow = {"arrowstyle": "-|>", "color": "#555"}
        start = left - 0.1 if middle == 0 else left - 0.25
        axis.annotate("", (center - width / 2 - 0.03, middle), (start, middle), arrowprops=arrow)
    return left + 1.45


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} million" if parameters >= 1e6 else f"{parameters:,}"


def layers(points: pd.DataFrame) -> Figure:
    """Which layer transfers: mean validation accuracy by layer, a panel for each network, bars of ±1 sd over the seeds.

    ``points`` are the rows of ``results/benchmarks/which_layer-*.json``. The dashed line is the same head on pixels.
    """
    pixels = points[points.network == "pixels"].iloc[0]
    networks = [name for name in points.network.unique() if name != "pixels"]
    figure, axes = plt.subplots(1, len(networks), figsize=(5.4 * len(networks), 5), sharey=True, squeeze=False)
    small = points.image_size[points.network != "pixels"].min()
    for axis, network in zip(axes[0], networks, strict=True):
        names, ends = [], []
        axis.errorbar("pixels", pixels.val_accuracy, pixels.sd, fmt="D", color="#111", ms=8, capsize=4)
        own = points[points.network == network]
        for (size, weights), rows in own.groupby(["image_size", "weights"], sort=False):
            color, look = (COLORS["train"], "o-") if size == small else (COLORS["accent"], "^--")
            color, look = ("#5B6068", "s:") if weights == "none" else (color, look)
            axis.errorbar(rows.layer, rows.val_accuracy, rows.sd, fmt=look, color=color, lw=2.4, ms=8, capsize=4)
            kind = rows.weights_origin.iloc[0].partition(" to ")[0].replace(", ", ",\n")  # "ImageNet,\npruned"
            ends.append([rows.val_accuracy.iloc[-1], f"{kind},\n{size} px", color])
            names = list(rows.layer)
        axis.hlines(pixels.val_accuracy, -0.4, len(names) + 0.15, ls="--", color="#111", lw=1)
        _end_labels(axis, len(names) + 0.25, ends)
        axis.set(title=network, xlim=(-0.4, len(names) + 1.55))
        axis.set_xlabel("a small head on", loc="left")
        axis.tick_params(axis="x", rotation=30)
        axis.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel("validation accuracy")
    percent_ticks(axes[0, 0].yaxis, every=0.02)
    return figure


def _end_labels(axis, x: float, ends: list[list]) -> None:
    """Name and colour of each line where it ends, [height, text, color], moved up where two would overlap."""
    ends = sorted(ends)
    for lower, upper in zip(ends, ends[1:], strict=False):
        upper[0] = max(upper[0], lower[0] + 0.014)
    for height, text, color in ends:
        name = axis.text(x, height, text, color=color, va="center", weight="bold", linespacing=1.05)
        name.set_path_effects([withStroke(linewidth=4, foreground="white")])


def answers(images: torch.Tensor, probabilities: np.ndarray, labels: torch.Tensor, title: str = "") -> Figure:
    """Grey images [N, 28, 28], each with its three largest probabilities; the true class is drawn in colour."""
    columns = 4
    rows = -(-len(images) // columns)
    shape = {"figsize": (3 * columns, 1.55 * rows), "width_ratios": [1, 1.5] * columns}
    figure, axes = plt.subplots(rows, 2 * columns, squeeze=False, **shape)
    for axis in axes.flat:
        axis.axis("off")
    for number, (image, shares, label) in enumerate(zip(images, probabilities, labels.tolist(), strict=True)):
        left, right = axes[number // columns, 2 * (number % columns) :][:2]
        picture(left, image, title=CLASSES[label])
        left.axis("on")
        left.set_frame_on(False)
        top = shares.argsort()[::-1][:3]
        colors = [COLORS["test"] if k == label else COLORS["muted"] for k in top]
        right.barh(range(3), shares[top], color=colors, height=0.35)
        for place, k in enumerate(top):
            right.text(0, place - 0.26, f"{CLASSES[k]} {shares[k]:.0%}", fontsize=9.5, va="bottom")
        right.set(ylim=(2.5, -0.9), xlim=(0, 1.15))
    heading(figure, title)
    return figure
