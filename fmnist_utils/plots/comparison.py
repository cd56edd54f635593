"""Figures of notebook 06: networks compared, searches, luck, and how accuracy grows with images."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from fmnist_utils.plots.style import COLORS, use_style

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
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_title("What a network gives, and what it costs (grey line: Pareto front)")
    axis.margins(x=0.12)
    return figure
