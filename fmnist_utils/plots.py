"""The figures that more than one notebook draws; everything drawn once stays in its notebook."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

__all__ = ["COLORS", "accuracy_bars", "curves", "image_grid", "use_style"]

#: Colour-blind-safe colours for the course's recurring roles (Okabe & Ito, 2008).
COLORS = {"train": "#0072B2", "val": "#E69F00", "test": "#009E73", "accent": "#D55E00", "muted": "#8A8F98"}


def use_style() -> None:
    """The course's look for matplotlib and seaborn: white, light grid, readable sizes. Called in each set-up cell."""
    sns.set_theme(style="whitegrid", context="notebook", palette=list(COLORS.values()))
    plt.rcParams.update(
        {
            "figure.dpi": 90,
            "savefig.bbox": "tight",
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": "#E5E7EB",
            "figure.constrained_layout.use": True,
        }
    )


def image_grid(
    images: torch.Tensor | np.ndarray, titles: Sequence[str] | None = None, columns: int = 10, size: float = 1.1
) -> Figure:
    """Grey images [N, H, W] (or RGB [N, H, W, 3]) side by side, ``columns`` to a row, ``size`` inches each."""
    rows = -(-len(images) // columns)
    height = size + (0.28 if titles is not None else 0)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * height), squeeze=False)
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < len(images):
            image = np.asarray(images[i])
            axis.imshow(image, cmap="gray" if image.ndim == 2 else None, vmin=0, vmax=255 if image.max() > 1 else 1)
            if titles is not None:
                axis.set_title(titles[i], fontsize=8, fontweight="normal", loc="center")
    return figure


def curves(history: pd.DataFrame, title: str = "") -> Figure:
    """Loss and accuracy by epoch, for training and validation, from the table that ``fit`` or ``fit_phases`` returns.

    A dashed line marks where a new phase begins.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for axis, what in zip(axes, ("loss", "accuracy"), strict=True):
        for split, label in (("train", "training (while learning)"), ("val", "validation")):
            axis.plot(history.index, history[f"{split}_{what}"], "o-", ms=4, color=COLORS[split], label=label)
        for epoch in _new_phases(history):
            axis.axvline(epoch - 0.5, color=COLORS["muted"], ls="--", lw=1.2)
            axis.annotate(f"phase {history.phase[epoch]}", (epoch - 0.5, 0), (4, 5), fontsize=9,
                          xycoords=axis.get_xaxis_transform(), textcoords="offset points", color="#5B6068")  # fmt: skip
        axis.set(xlabel="epoch", title=what.capitalize())
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("cross-entropy (nats)")
    axes[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].legend(frameon=False)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _new_phases(history: pd.DataFrame) -> list[int]:
    if "phase" not in history:
        return []
    return list(history.index[1:][history.phase.diff().iloc[1:] > 0])


def accuracy_bars(accuracies: dict[str, float], title: str = "") -> Figure:
    """One labelled bar per entry, such as training, validation and test accuracy. The axis starts at 0."""
    figure, axis = plt.subplots(figsize=(1.6 + 1.3 * len(accuracies), 3.4))
    colors = [COLORS.get(name.split()[0].replace("training", "train").replace("validation", "val"), COLORS["muted"])
              for name in accuracies]  # fmt: skip
    bars = axis.bar(list(accuracies), list(accuracies.values()), color=colors, width=0.6)
    axis.bar_label(bars, [f"{value:.1%}" for value in accuracies.values()], padding=3)
    axis.set(ylim=(0, 1.08), ylabel="accuracy", title=title)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.grid(axis="x", visible=False)
    return figure
