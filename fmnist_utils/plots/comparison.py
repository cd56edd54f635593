"""Figures of notebook 06: networks compared, searches, luck, and how accuracy grows with images."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from fmnist_utils.plots.style import COLORS, percent_ticks, use_style

#: How the networks of one family look, by the beginning of their names.
FAMILIES = {
    "VGG16": (COLORS["accent"], "o"),
    "ResNet50": (COLORS["train"], "s"),
    "MobileNetV2": (COLORS["test"], "D"),
    "SqueezeNet": (COLORS["val"], "v"),
    "small CNN": ("#444444", "^"),
}


def backbones(rows: Sequence[dict], front: Sequence[str]) -> Figure:
    """Accuracy (mean ± standard deviation over seeds) against milliseconds, of the ``networks`` of the recorded file.

    A line joins ``front``, the names of those that no other one beats in both. Notebook 06.
    """
    use_style()
    figure, axis = plt.subplots(figsize=(10, 5.6))
    for family, (color, marker) in FAMILIES.items():
        own = [row for row in rows if row["network"].startswith(family)]
        if not own:
            continue
        x, y = ([row[key] for row in own] for key in ("core_ms_per_image", "val_accuracy"))
        spread = [row["val_accuracy_sd"] for row in own]
        axis.errorbar(x, y, spread, fmt=marker, ms=9, color=color, capsize=4, lw=1.5, label=family, zorder=3)
    for row in rows:
        name = row["network"].replace(" from scratch", "").replace(", whole", " whole")
        place = (row["core_ms_per_image"], row["val_accuracy"])
        axis.annotate(name, place, (9, -13), textcoords="offset points", fontsize=10.5)
    best = [next(row for row in rows if row["network"] == name) for name in front]
    places = [(row["core_ms_per_image"], row["val_accuracy"]) for row in best]
    last = 1.6 * max(row["core_ms_per_image"] for row in rows)
    axis.step(*zip(*places, (last, places[-1][1]), strict=True), where="post", color=COLORS["muted"], lw=2, zorder=1)
    ticks = [value for value in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if value < last]
    axis.set(xscale="log", xlabel="milliseconds of one CPU core per image (log scale)", ylabel="validation accuracy")
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    percent_ticks(axis.yaxis)
    axis.set_title("What a network gives, and what it costs (grey line: Pareto front)")
    axis.margins(x=0.12)
    return figure


def block_shapes(networks: Mapping[str, pd.DataFrame]) -> Figure:
    """Each network as a row of its blocks, from :func:`~fmnist_utils.models.summary`: a bar as tall as the map's side.

    Heights are logarithmic. Above a bar stands the map, channels×side×side (in long networks where the side changes
    and at the end), below it the name of the block. Notebook 06.
    """
    figure, axes = plt.subplots(len(networks), 1, figsize=(10, 1.9 * len(networks)))
    for axis, (name, table), color in zip(axes, networks.items(), ("accent", "train", "test"), strict=False):
        maps = table.output.iloc[1:-2]
        sides = [int(output.split("×")[-1]) for output in maps]
        axis.bar(range(len(maps)), np.log2(sides) + 0.5, width=0.72, color=COLORS[color])
        for x, (side, output) in enumerate(zip(sides, maps, strict=True)):
            if len(maps) < 10 or x in (0, len(maps) - 1) or side != sides[x - 1]:
                end = x == len(maps) - 1
                align, shift = ("center", 0) if len(maps) < 10 else ("right", 0.36) if end else ("left", -0.36)
                axis.text(x + shift, np.log2(side) + 0.75, output, ha=align, fontsize=9.5)
        size = 10.5 if len(maps) < 10 else 8.5
        axis.set_xticks(range(len(maps)), [block.replace("features", "f") for block in maps.index], fontsize=size)
        axis.set(yticks=[], ylim=(0, 7.6), title=name)
        axis.spines[["left", "bottom"]].set_visible(False)
        axis.grid(visible=False)
    return figure


def grid_and_random(points: Mapping[str, np.ndarray]) -> Figure:
    """Plans of trials, each [N, 2] of learning rate and weight decay; strokes on the edge show the learning rates."""
    figure, axes = plt.subplots(1, len(points), figsize=(9.5, 3.8), sharey=True)
    for axis, (name, plan) in zip(axes, points.items(), strict=True):
        axis.scatter(plan[:, 0], plan[:, 1], s=48, color=COLORS["train"], zorder=3)
        for rate in plan[:, 0]:
            axis.axvline(rate, 0, 0.06, color=COLORS["accent"], lw=2)
        count = len(set(plan[:, 0].round(9)))
        axis.set(title=f"{name}: {count} learning rates in {len(plan)} trials", xscale="log", yscale="log")
        axis.set(xlabel="learning rate", xlim=(8e-5, 1.25e-2), ylim=(4e-5, 0.2))
    axes[0].set_ylabel("weight decay")
    return figure


def luck(table: pd.DataFrame) -> Figure:
    """Points that the best of equal models gains: a row per number of models, a column per number of images."""
    figure, axis = plt.subplots(figsize=(8.5, 4))
    for count, color, marker in zip(table.columns, ("accent", "val", "train"), "osD", strict=False):
        axis.plot(table.index, table[count], f"{marker}-", ms=7, lw=2, color=COLORS[color])
        axis.text(table.index[-1] * 1.12, table[count].iloc[-1], f"{count:,} images", va="center", fontsize=11)
    axis.set(xscale="log", xlabel="equal models of which the best is taken (log scale)")
    axis.set(ylabel="best score − truth (points)", title="What luck alone gives the best of equal models")
    axis.set_xticks(table.index, [str(count) for count in table.index])
    axis.set_xlim(0.85, table.index[-1] * 2.6)
    axis.minorticks_off()
    return figure


def rescored(table: pd.DataFrame, chosen: str, fresh: str) -> Figure:
    """Two scores of each trial: on the images by which it was chosen, and on fresh ones; the winner on top.

    ``chosen`` and ``fresh`` name the columns, shares from 0 to 1. Dashed lines are their means. Notebook 06.
    """
    ordered = table.sort_values(chosen, kind="stable")
    figure, axis = plt.subplots(figsize=(8.5, 1.6 + 0.3 * len(ordered)))
    rows = np.arange(len(ordered))
    axis.hlines(rows, ordered[chosen], ordered[fresh], color=COLORS["muted"], lw=2)
    for column, color, marker in ((chosen, "val", "o"), (fresh, "train", "D")):
        axis.scatter(ordered[column], rows, s=62, color=COLORS[color], marker=marker, label=column, zorder=3)
        axis.axvline(ordered[column].mean(), color=COLORS[color], ls="--", lw=1.5, zorder=1)
    axis.set_yticks(rows, [f"trial {number}" for number in ordered.index], fontsize=10)
    axis.set(xlabel="accuracy", title="The same trials on the images that chose and on fresh ones (dashed: means)")
    percent_ticks(axis.xaxis)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


#: How the ways of ``benchmarks/training_images.py`` look.
WAYS = {
    "VGG16, ImageNet features": ("accent", "o"),
    "ResNet50, ImageNet features": ("test", "D"),
    "VGG16, random features": ("muted", "s"),
    "small CNN from scratch": ("train", "^"),
}


def data_curve(points: pd.DataFrame, live: pd.DataFrame | None = None, level: float | None = None) -> Figure:
    """Test accuracy against the number of training images, by way: ``way``, ``images``, ``mean``, ``sd`` of seeds.

    ``live`` (``way``, ``images``, ``accuracy``) adds rings; ``level`` a dotted line. Notebook 06.
    """
    use_style()
    figure, axis = plt.subplots(figsize=(9.5, 5))
    for way, (color, marker) in WAYS.items():
        rows, look = points[points.way == way], {"color": COLORS[color], "marker": marker, "lw": 2, "ms": 7}
        if not len(rows):
            continue
        axis.errorbar(rows.images, rows["mean"], rows.sd, capsize=4, **look)
        axis.plot([], [], label=way, **look)
        if live is not None:
            here = live[live.way == way]
            axis.plot(here.images, here.accuracy, "o", ms=13, mfc="none", mew=2, color=COLORS[color])
    if live is not None:
        axis.plot([], [], "o", ms=13, mfc="none", mew=2, color="#555", label="measured here, one seed")
    if level is not None:
        axis.axhline(level, color="#555", ls=":", lw=1.8, zorder=1)
    counts = sorted(points.images.unique())
    axis.set(xscale="log", xlabel="training images (log scale)", ylabel="test accuracy (mean ± sd over seeds)")
    axis.set_title("Accuracy against training images")
    axis.set_xticks(counts, [f"{n:,}" for n in counts])
    axis.minorticks_off()
    percent_ticks(axis.yaxis)
    axis.legend(loc="lower right", frameon=False)
    return figure


def best_so_far(curves: pd.DataFrame) -> Figure:
    """Best accuracy after so many trials (rows), a step line for each column. Solutions of notebook 06."""
    figure, axis = plt.subplots(figsize=(8.5, 3.8))
    for name, color, style in zip(curves.columns, ("train", "accent"), ("-", "--"), strict=False):
        axis.step(curves.index, curves[name], style, where="post", lw=2, color=COLORS[color], label=name)
    axis.set(xlabel="finished trials", ylabel="validation accuracy", title="Best score so far")
    axis.xaxis.get_major_locator().set_params(integer=True)
    percent_ticks(axis.yaxis)
    axis.legend(frameon=False, loc="lower right")
    return figure
