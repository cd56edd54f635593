"""Learning curves."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from fmnist_utils.plots.style import COLORS, percent


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
    axes[1].yaxis.set_major_formatter(percent)
    axes[0].legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _new_phases(history: pd.DataFrame) -> list[int]:
    if "phase" not in history:
        return []
    return list(history.index[1:][history.phase.diff().iloc[1:] > 0])
