"""The figures of ``notebooks/01_exploration.ipynb``."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MultipleLocator

from fmnist_utils.data import CLASSES, FashionMNIST
from fmnist_utils.plots.pictures import picture
from fmnist_utils.plots.style import CLASS_COLORS, COLORS, heading, percent, percent_ticks


def class_counts(counts: pd.DataFrame) -> Figure:
    """Bars of the number of images of each class (rows), one colour for each split (the columns train and test)."""
    figure, axis = plt.subplots(figsize=(10, 3))
    colors = [COLORS[name] for name in counts.columns]
    counts.plot.bar(color=colors, width=0.75, rot=25, ax=axis)
    axis.set(title="Images per class", ylabel="images")
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.grid(axis="x", visible=False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def sample_rows(dataset: FashionMNIST, per_class: int, seed: int = 0) -> Figure:
    """Random images, one row for each class, ``per_class`` to a row."""
    chosen = dataset.subset(10 * per_class, seed)
    tiles = chosen.images[chosen.labels.argsort(stable=True)]
    tiles = torch.nn.functional.pad(tiles, (1, 1, 1, 1), value=255).reshape(10, per_class, 30, 30)
    figure, axis = plt.subplots(figsize=(10, 7.2))
    picture(axis, tiles.transpose(1, 2).reshape(10 * 30, -1))
    axis.set_yticks(15 + 30 * np.arange(10), CLASSES)
    axis.tick_params(length=0)
    axis.grid(visible=False)
    heading(figure, "Random training images, one row for each class")
    return figure


def class_means(means: torch.Tensor, spreads: torch.Tensor) -> Figure:
    """Mean image and pixel-wise standard deviation of the ten classes, both [10, 28, 28], in grey levels."""
    figure, axes = plt.subplots(2, 10, figsize=(11, 2.9))
    kinds = (("mean", means, "gray"), ("spread", spreads, "magma"))
    for row, (kind, images, color_map) in zip(axes, kinds, strict=True):
        limits = (0, float(images.max()))
        for name, image, axis in zip(CLASSES, images, row, strict=True):
            drawn = picture(axis, image, limits, name if kind == "mean" else "", color_map)
        row[0].set_ylabel(kind, fontsize=11)
        figure.colorbar(drawn, ax=list(row), pad=0.01, aspect=9)
    heading(figure, "Mean image and spread (standard deviation) of each class, in grey levels")
    return figure


def pixel_values(share: np.ndarray, brightness: np.ndarray, labels: np.ndarray) -> Figure:
    """How often each grey level 1-255 occurs (``share``, float [256]), and each image's mean by class."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    left.bar(np.arange(1, 256), 100 * share[1:], width=1, color=COLORS["train"], linewidth=0)
    left.set(title=f"Grey levels 1 to 255 (level 0: {share[0]:.0%} of all)")
    left.set(xlabel="grey level", ylabel="share of all pixels (%)")
    names = np.array(CLASSES)[labels]
    sns.boxplot(x=brightness, y=names, order=CLASSES, color="#9CC3DF", showfliers=False, whis=(5, 95), ax=right)
    right.set(title="Mean grey level of an image", xlim=(0, None))
    right.set(xlabel="grey level (whiskers: 5th to 95th percentile)", ylabel="")
    return figure


def variance(explained: np.ndarray, needed: int) -> Figure:
    """Share of the variance that the first 1, 2, … principal components explain; a mark at 90%."""
    figure, axis = plt.subplots(figsize=(7, 3.2))
    axis.plot(np.arange(1, len(explained) + 1), explained, color=COLORS["train"], lw=2)
    axis.plot([needed, needed, 0], [0, 0.9, 0.9], color=COLORS["accent"], linestyle="--")
    axis.text(needed + 4, 0.06, f"{needed} components for 90%", color=COLORS["accent"])
    axis.set(xlabel="number of components", ylabel="explained variance", title="How far do the first components get?")
    axis.set(xlim=(0, len(explained)), ylim=(0, 1.02))
    axis.yaxis.set_major_formatter(percent)
    return figure


def maps(points: Mapping[str, np.ndarray], labels: np.ndarray, shares: np.ndarray | None = None) -> Figure:
    """Maps [N, 2] side by side, a colour and a marker for each class, its name in its colour near its middle.

    The first map's axes say which part of the variance they hold, if ``shares`` (two fractions) is given.
    """
    figure, axes = plt.subplots(1, len(points), figsize=(6 * len(points), 5.8), squeeze=False)
    for axis, (title, places) in zip(axes[0], points.items(), strict=True):
        for label, marker in enumerate("osv^DPX<>*"):
            mine, color = places[labels == label], CLASS_COLORS[label]
            axis.scatter(*mine.T, s=700 / len(places) ** 0.55, marker=marker, color=color, alpha=0.55, linewidth=0)
        _name_classes(axis, places, labels)
        axis.set(title=title, xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    if shares is not None:
        for which, share, name in zip(("xlabel", "ylabel"), shares, ("first", "second"), strict=True):
            axes[0, 0].set(**{which: f"{name} component: {share:.0%} of the variance"})
    return figure


def _name_classes(axis, places: np.ndarray, labels: np.ndarray) -> None:
    low, high = places.min(0), places.max(0)
    spots = np.array([(np.median(places[labels == k], 0) - low) / (high - low) for k in range(10)])
    for _ in range(200):  # names that overlap move apart, up and down
        for a in range(10):
            for b in range(a):
                gap = spots[a] - spots[b]
                if abs(gap[0]) < 0.2 and abs(gap[1]) < 0.045:
                    push = 0.004 if gap[1] >= 0 else -0.004
                    spots[a, 1] += push
                    spots[b, 1] -= push
    for spot, name, color in zip(spots * (high - low) + low, CLASSES, CLASS_COLORS, strict=True):
        text = axis.text(*spot, name, ha="center", va="center", fontsize=11, weight="bold", color=color)
        text.set_path_effects([withStroke(linewidth=3.5, foreground="white")])


def intervals(scores: pd.DataFrame, title: str = "", others: Mapping[str, float] | None = None) -> Figure:
    """A dot for each row's ``accuracy``, a line from ``low`` to ``high``; ``others``: hollow dots without a line."""
    figure, axis = plt.subplots(figsize=(8.5, 0.9 + 0.5 * (len(scores) + len(others or {}))))
    place = np.arange(len(scores))
    errors = np.abs(scores[["low", "high"]].to_numpy().T - scores["accuracy"].to_numpy())
    axis.errorbar(scores["accuracy"], place, xerr=errors, fmt="o", color=COLORS["train"], ms=7, capsize=5, lw=2)
    for value, y in zip(scores["accuracy"], place, strict=True):
        axis.annotate(f"{value:.1%}", (value, y), (0, 7), textcoords="offset points", ha="center", fontsize=10)
    for y, (name, value) in enumerate((others or {}).items(), len(scores)):
        axis.plot(value, y, "D", mfc="none", mew=2, color=COLORS["accent"], ms=7, label=name)
        axis.annotate(f"{value:.1%}", (value, y), (0, 8), textcoords="offset points", ha="center", fontsize=10)
    axis.set_yticks(np.arange(len(scores) + len(others or {})), [*scores.index, *(others or {})])
    axis.set(ylim=(len(scores) + len(others or {}) - 0.4, -0.7), xlabel="accuracy (line: 95% interval)", title=title)
    percent_ticks(axis.xaxis, every=0.05)
    axis.margins(x=0.12)
    axis.grid(axis="y", visible=False)
    return figure


def confusion(matrix: np.ndarray, title: str = "") -> Figure:
    """Shares (0 to 1) [10, 10] of each true class (row) by predicted class (column).

    The colours are for the errors: their scale ends at the largest one, and the diagonal is plain grey.
    """
    wrong = np.where(np.eye(10, dtype=bool), np.nan, 100 * matrix)
    text = np.array([["" if value < 0.0075 else f"{100 * value:.0f}" for value in row] for row in matrix])
    figure, axis = plt.subplots(figsize=(8, 6.2))
    axis.set_facecolor("#E5E7EB")
    sns.heatmap(
        np.ma.masked_invalid(wrong), cmap="Oranges", vmin=0, annot=text, fmt="", square=True, ax=axis,
        linewidths=1, xticklabels=CLASSES, yticklabels=CLASSES, cbar_kws={"label": "errors: share of the class (%)"},
        mask=np.isnan(wrong),
    )  # fmt: skip
    for i in range(10):
        axis.text(i + 0.5, i + 0.5, f"{100 * matrix[i, i]:.0f}", ha="center", va="center", weight="bold", color="#444")
    axis.collections[0].colorbar.locator = MultipleLocator(5)
    axis.set(xlabel="predicted class", ylabel="true class", title=title)
    axis.tick_params(axis="x", rotation=40)
    plt.setp(axis.get_xticklabels(), ha="right", rotation_mode="anchor")
    return figure
