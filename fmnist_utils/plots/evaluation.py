"""The figures of ``notebooks/05_evaluation_and_visualization.ipynb``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from fmnist_utils.plots.pictures import picture
from fmnist_utils.plots.style import COLORS, heading, percent_ticks

#: Colour and marker of the first, second and third model of a figure.
MODEL_LOOKS = ((COLORS["train"], "o"), (COLORS["accent"], "s"), (COLORS["test"], "D"))


def gaps(accuracies: pd.DataFrame) -> Figure:
    """For each run (row) its accuracy on ``train`` and on ``test`` images, and the distance of the two in points."""
    figure, axis = plt.subplots(figsize=(9.5, 0.9 + 0.33 * len(accuracies)))
    place = np.arange(len(accuracies))
    axis.hlines(place, accuracies["test"], accuracies["train"], color="#C9CDD3", lw=3, zorder=1)
    axis.plot(accuracies["test"], place, "o", color=COLORS["test"], ms=7, label="test images")
    axis.plot(accuracies["train"], place, "D", color=COLORS["train"], ms=6, label="training images")
    beyond = axis.get_yaxis_transform()
    for y, (train, test) in enumerate(zip(accuracies["train"], accuracies["test"], strict=True)):
        axis.text(1.06, y, f"{100 * (train - test):.1f}", ha="right", va="center", fontsize=10, transform=beyond)
    axis.text(1.06, -1, "gap", ha="right", va="center", fontsize=10, weight="bold", transform=beyond)
    axis.set_yticks(place, accuracies.index)
    axis.set(ylim=(len(place) - 0.4, -0.7), xlabel="accuracy (the axis does not begin at 0; gap in points)")
    percent_ticks(axis.xaxis, every=0.05)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def calibration(bins: Mapping[str, Mapping[str, pd.DataFrame]], smallest: int = 30) -> Figure:
    """How far each confidence bin's accuracy lies from its confidence, in points: a panel for each model.

    ``bins`` has for each model two tables by name, such as ``before`` and ``after``, with ``confidence``, ``accuracy``,
    ``low`` and ``high`` (of the accuracy) and ``count``; bins with fewer images than ``smallest`` are left out.
    """
    figure, axes = plt.subplots(1, len(bins), figsize=(4 * len(bins), 3.9), sharex=True, sharey=True, squeeze=False)
    looks = ((COLORS["accent"], "o", -0.004), (COLORS["train"], "s", 0.004))
    for axis, (model, tables) in zip(axes[0], bins.items(), strict=True):
        axis.axhline(0, color="#444", lw=1.2)
        for (when, table), (color, marker, aside) in zip(tables.items(), looks, strict=True):
            found = table[table["count"] >= smallest]
            middle = 100 * (found.accuracy - found.confidence)
            ends = [100 * (found.accuracy - found.low), 100 * (found.high - found.accuracy)]
            place = found.confidence + aside
            axis.errorbar(place, middle, ends, fmt=marker, color=color, capsize=3, ms=6, label=when)
        axis.set(title=model, xlabel="mean confidence of the bin")
        percent_ticks(axis.xaxis, every=0.2)
    axes[0, 0].set_ylabel("accuracy − confidence (points)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    heading(figure, "Above the line: too modest. Below: too sure. Bars: 95% intervals")
    return figure


def paired_differences(rows: pd.DataFrame, title: str = "") -> Figure:
    """Differences in points, each with two intervals: half widths in the columns ``unpaired`` and ``paired``."""
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.6 * len(rows)))
    place = np.arange(len(rows))
    for shift, column, color, marker in (
        (-0.13, "unpaired", COLORS["muted"], "s"),
        (0.13, "paired", COLORS["train"], "o"),
    ):
        axis.errorbar(
            rows["difference"], place + shift, xerr=rows[column], fmt=marker, color=color, capsize=4, lw=2, label=column
        )
    axis.axvline(0, color="#444", lw=1.2)
    axis.set_yticks(place, rows.index)
    axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel="difference in accuracy (points), with its 95% interval", title=title)
    axis.grid(axis="y", visible=False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def heat_rows(
    images: torch.Tensor, heats: Mapping[str, torch.Tensor], columns: Sequence[str] = (), title: str = ""
) -> Figure:
    """Pictures, uint8 [N, 28, 28], and below them a row for each entry of ``heats``: maps [N, 28, 28] from 0 to 1.

    The maps lie over the dimmed pictures; a bar says what their colours mean.
    """
    count = len(images)
    lines = max((text.count("\n") + 1 for text in columns), default=0)
    figsize = (1.05 * count + 1.1, 1.08 * (len(heats) + 1) + 0.18 * lines + 0.4)
    figure, axes = plt.subplots(len(heats) + 1, count, figsize=figsize, squeeze=False)
    for number, (axis, image) in enumerate(zip(axes[0], images, strict=True)):
        picture(axis, image, title=columns[number] if number < len(columns) else "")
    axes[0, 0].set_ylabel("picture", fontsize=11)
    for line, (name, maps) in zip(axes[1:], heats.items(), strict=True):
        for axis, image, heat in zip(line, images, maps, strict=True):
            picture(axis, image)
            shown = axis.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.75, interpolation="nearest")
        line[0].set_ylabel("\n".join(name.rsplit(" ", 1)), fontsize=11)
    bar = figure.colorbar(shown, ax=list(axes[1:].flat), pad=0.01, fraction=0.02, aspect=16, ticks=[0, 0.5, 1])
    bar.set_label("evidence (1: the map's largest)", fontsize=10)
    heading(figure, title)
    return figure


def robustness(scores: pd.DataFrame) -> Figure:
    """Accuracy by ``kind`` of picture and ``model``, with ``low`` and ``high``; one line for each kind."""
    kinds, models = list(dict.fromkeys(scores["kind"])), list(dict.fromkeys(scores["model"]))
    figure, axis = plt.subplots(figsize=(9.5, 1.2 + 0.55 * len(kinds)))
    for number, (name, (color, marker)) in enumerate(zip(models, MODEL_LOOKS, strict=False)):
        part = scores[scores["model"] == name].set_index("kind").loc[kinds]
        ends = [part["accuracy"] - part["low"], part["high"] - part["accuracy"]]
        place = np.arange(len(kinds)) + 0.2 * (number - (len(models) - 1) / 2)
        axis.errorbar(part["accuracy"], place, xerr=ends, fmt=marker, color=color, capsize=3, ms=6, lw=1.6, label=name)
    axis.axvline(0.1, color=COLORS["muted"], ls=":", lw=1.5, label="guessing")
    axis.set_yticks(range(len(kinds)), kinds)
    axis.set(ylim=(len(kinds) - 0.5, -0.5), xlim=(0, 1.01), xlabel="accuracy (bar: 95% interval)")
    percent_ticks(axis.xaxis, every=0.2)
    axis.grid(axis="y", visible=False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
