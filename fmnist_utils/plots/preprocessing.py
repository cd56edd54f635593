"""The figures of ``notebooks/02_preprocessing.ipynb``."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fmnist_utils.plots.pictures import picture
from fmnist_utils.plots.style import COLORS, heading

#: Red, green and blue, as three colours that colour-blind readers can tell apart.
CHANNEL_COLORS = {"red": COLORS["accent"], "green": COLORS["test"], "blue": COLORS["train"]}


def enlargements(images: Mapping[str, torch.Tensor], row: int = 14) -> Figure:
    """A part of each enlarged grey image [S, S], and the values along one row of it, both from the same 28 pixels.

    ``row`` counts in pixels of the original.
    """
    figure, axes = plt.subplots(1, len(images) + 1, figsize=(11, 3.3), width_ratios=[1] * len(images) + [1.5])
    colors = (COLORS["accent"], COLORS["train"])
    for axis, (name, image), color in zip(axes, images.items(), colors, strict=False):
        factor = len(image) // 28
        part = slice((row - 7) * factor, (row + 7) * factor)
        picture(axis, image[part, part], title=name)
        line = len(image[part]) // 2
        axis.add_patch(Rectangle((-0.5, line - 0.5), len(image[part]), 1, fill=False, ec=color, lw=2))
        position = np.arange(part.start, part.stop) / factor
        axes[-1].plot(position, image[row * factor, part], color=color, label=name, lw=2)
    axes[-1].set(xlabel="position in the original (pixels)", ylabel="grey level", title="Values along the marked line")
    axes[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.22), ncols=2)
    return figure


def steps(stages: Mapping[str, torch.Tensor]) -> Figure:
    """The way of one image: each stage's tensor [C, H, W] with its name, shape, type and range, arrows between.

    Three channels are drawn as three pictures, one behind the other; each stage from its smallest value to its largest.
    """
    figure, axes = plt.subplots(1, len(stages), figsize=(2.9 * len(stages), 3.5))
    for number, (axis, (name, values)) in enumerate(zip(axes, stages.items(), strict=True)):
        limits = (values.min().item(), values.max().item())
        axis.axis("off")
        for channel, image in enumerate(values.flip(0)):
            shift = 0.09 * (len(values) - 1 - channel)
            inner = axis.inset_axes((shift, shift, 0.8, 0.8))
            picture(inner, image, limits)
            inner.set_frame_on(True)
            inner.spines[:].set(visible=True, color="white", lw=1.5)
        kind = str(values.dtype).removeprefix("torch.")
        text = f"{name}\n{kind} {list(values.shape)}\n{limits[0]:.3g} to {limits[1]:.3g}"
        axis.text(0.4, -0.06, text, ha="center", va="top", fontsize=10, transform=axis.transAxes, linespacing=1.5)
        if number:
            arrow = {"arrowstyle": "-|>", "lw": 2, "color": COLORS["muted"]}
            ends = {"xy": (-0.03, 0.04), "xytext": (-0.2, 0.04), "xycoords": "axes fraction"}
            axis.annotate("", **ends, textcoords="axes fraction", arrowprops=arrow)
    return figure


def channel_values(values: torch.Tensor) -> Figure:
    """Histogram of each channel of normalised images [B, 3, S, S], each with its mean, and ImageNet's, 0."""
    figure, axis = plt.subplots(figsize=(8.5, 3.2))
    for channel, (name, color) in enumerate(CHANNEL_COLORS.items()):
        part = values[:, channel].flatten()
        axis.hist(part, 50, color=color, histtype="step", lw=2, density=True, label=f"{name}: mean {part.mean():.2f}")
    axis.axvline(0, color="#444", ls="--", lw=1.5, label="0, ImageNet's mean")
    axis.set(yscale="log", xlabel="value after normalising (no unit)", ylabel="density (log scale)")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    heading(figure, "Our pixels on ImageNet's scale")
    return figure


def speeds(rates: pd.DataFrame) -> Figure:
    """Bars of images/s: a panel for each image size (columns), a bar for each way (rows); the first row counts 1."""
    figure, axes = plt.subplots(
        1, len(rates.columns), figsize=(11, 0.9 + 0.55 * len(rates)), sharey=True, squeeze=False
    )
    for axis, side in zip(axes[0], rates.columns, strict=True):
        colors = [COLORS["muted"]] * (len(rates) - 1) + [COLORS["train"]]
        bars = axis.barh(list(rates.index), rates[side], color=colors, height=0.6)
        times = rates[side] / rates[side].iloc[0]
        texts = [f"{rate:,.0f}  ({factor:.1f}×)" for rate, factor in zip(rates[side], times, strict=True)]
        axis.bar_label(bars, texts, padding=4, fontsize=10)
        axis.set(title=f"{side} px", xlabel="images/s", xlim=(0, 1.35 * rates[side].max()))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.xaxis.get_major_locator().set_params(nbins=5)
        axis.grid(visible=False)  # it would run through the labels
    axes[0, 0].invert_yaxis()
    return figure
