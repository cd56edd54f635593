"""The figures of ``notebooks/07_deployment.ipynb``."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from fmnist_utils.plots.pictures import picture
from fmnist_utils.plots.style import COLORS, heading, percent


def shares(found: pd.DataFrame, title: str, xlabel: str, marked: Sequence[str] = ()) -> Figure:
    """A bar for each row, its ``share``, with the interval from ``low`` to ``high``; ``marked`` rows stand out."""
    figure, axis = plt.subplots(figsize=(9, 1 + 0.42 * len(found)))
    colors = [COLORS["train" if name in marked else "muted"] for name in found.index]
    spread = np.abs(found[["low", "high"]].to_numpy().T - found.share.to_numpy())
    axis.barh(found.index, found.share, xerr=spread, color=colors, height=0.62, error_kw={"ecolor": "#333", "lw": 1.2})
    for place, (share, high) in enumerate(zip(found.share, found.high, strict=True)):
        axis.text(high + 0.012, place, f"{share:.0%}", va="center", fontsize=10)
    axis.set(xlim=(0, 1.1), xlabel=xlabel)
    axis.xaxis.set_major_formatter(percent)
    axis.set_xticks(np.arange(0, 1.01, 0.25))
    axis.grid(visible=False, axis="y")
    axis.invert_yaxis()
    heading(figure, title)
    return figure


#: Long names of operators, in two lines.
BROKEN = {"BatchNormalization": "Batch-\nNorm", "ReduceMean": "Reduce-\nMean", "Unsqueeze": "Un-\nsqueeze"}


def operators(parts: Mapping[str, Sequence[str]], ends: tuple[str, str]) -> Figure:
    """An exported network as boxes, one for each operator, in lines named after its ``parts``; ``ends`` are what goes
    in and what comes out."""
    colors = dict(zip(parts, (COLORS["val"], COLORS["train"], COLORS["accent"]), strict=False))
    widest = max(map(len, parts.values()))
    figure, axis = plt.subplots(figsize=(11, 0.6 * (len(parts) + 1.6)))
    lines = [(name, color, parts[name]) for name, color in colors.items()]
    for row, (name, color, words) in enumerate(lines):
        axis.text(-0.2, -row, name, ha="right", va="center", fontsize=10, fontweight="bold", color="#333")
        for column, word in enumerate(words):
            box = FancyBboxPatch(
                (column + 0.06, -row - 0.3), 0.88, 0.6, "round,pad=0,rounding_size=0.08", fc=color, lw=0
            )
            axis.add_patch(box)
            dark = "white" if color != COLORS["val"] else "black"
            axis.text(column + 0.5, -row, BROKEN.get(word, word), ha="center", va="center", fontsize=8.5, color=dark)
    axis.text(0.06, 0.62, f"in: {ends[0]}", fontsize=10, color="#333")
    axis.text(0.06, -len(lines) + 0.1, f"out: {ends[1]}", fontsize=10, va="center", color="#333")
    axis.set(xlim=(-2.2, widest), ylim=(-len(lines) - 0.2, 1))
    axis.axis("off")
    return figure


def differences(apart: np.ndarray, limit: float) -> Figure:
    """Histogram of the differences between two programs' probabilities, those that are not 0, with the ``limit``."""
    figure, axis = plt.subplots(figsize=(9, 3.2))
    axis.hist(apart[apart > 0], bins=np.logspace(-13, -2.6, 53), color=COLORS["train"])
    for place, text in ((limit, "the limit"), (np.finfo(np.float32).eps, "the step of float32 at 1")):
        axis.axvline(place, color=COLORS["accent"], lw=1.6, ls="--")
        at = {"xycoords": axis.get_xaxis_transform(), "textcoords": "offset points", "va": "top", "fontsize": 10}
        axis.annotate(text, (place, 0.98), (5, 0), **at)
    axis.set(xscale="log", xlabel="difference of a probability (log scale)", ylabel="probabilities")
    axis.set_ylim(0, 1.25 * axis.get_ylim()[1])
    same = f"{apart.size:,} probabilities, {(apart == 0).sum():,} of them identical"
    heading(figure, f"File against model: {same}")
    return figure


def rounding(weights: np.ndarray, errors: Mapping[str, np.ndarray]) -> Figure:
    """What 8 bits do to weights, float32 [channels, …]: the ``errors`` of the quietest channel, and of all channels."""
    channels = weights.reshape(len(weights), -1)
    ranges = np.abs(channels).max(1)
    quiet = int(ranges.argmin())
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
    for (name, error), color, mark in zip(errors.items(), (COLORS["accent"], COLORS["train"]), "so", strict=True):
        flat = error.reshape(len(error), -1)
        lost = np.sqrt((flat**2).mean(1) / (channels**2).mean(1))
        axes[0].plot(channels[quiet], flat[quiet], mark, ms=2.5, color=color)
        axes[1].plot(ranges, lost, mark, ms=4, color=color, label=name)
    axes[0].set(title=f"The quietest filter (no. {quiet})", xlabel="weight", ylabel="error after rounding")
    axes[1].set(title=f"All {len(channels)} filters", xlabel="largest weight of the filter", ylim=(0, None))
    axes[1].set_ylabel("error relative to the weights")
    axes[1].yaxis.set_major_formatter(percent)
    axes[1].legend(frameon=False)
    return figure


def latencies(rows: pd.DataFrame) -> Figure:
    """Milliseconds for one image by way, a panel for each model: the median and, as a line, the range of the rounds.

    ``rows`` have ``model``, ``runtime``, ``precision``, ``latency_ms``, ``latency_ms_range`` and ``accuracy``.
    """
    models = list(rows.model.unique())
    figure, axes = plt.subplots(len(models), 1, figsize=(8.5, 1.9 * len(models) + 0.5), squeeze=False)
    for axis, name in zip(axes[:, 0], models, strict=True):
        own = rows[rows.model == name].sort_values("latency_ms", ascending=False)
        names = own.runtime + ", " + own.precision
        low, high = np.array(own.latency_ms_range.tolist()).T
        for place, (one, a, b) in enumerate(zip(own.itertuples(), low, high, strict=True)):
            color = COLORS["accent" if one.precision == "int8" else "train"]
            axis.plot([a, b], [place, place], color=color, lw=3, alpha=0.5, solid_capstyle="round")
            axis.plot(one.latency_ms, place, "o", ms=7, color=color)
            text = f"   {one.latency_ms:#.3g} ms, {one.accuracy:.2%} right"
            axis.text(b, place, text, va="center", fontsize=9.5)
        axis.set_yticks(range(len(own)), names)
        axis.set(xlim=(0, 1.35 * high.max()), ylim=(-0.6, len(own) - 0.4), title=name)
        axis.grid(visible=False, axis="y")
    axes[-1, 0].set_xlabel("milliseconds for one image (blue: float32, orange: int8)")
    return figure


def auroc(reports: Mapping[str, pd.DataFrame], chosen: Sequence[str]) -> Figure:
    """AUROC of scores (columns) by kind of picture (rows): a mark at the mean of the models, and a line from the lowest
    to the highest. The kinds in ``chosen`` chose the score and stand first."""
    every = np.stack([report.to_numpy() for report in reports.values()])  # models, kinds, scores
    report = next(iter(reports.values()))
    figure, axis = plt.subplots(figsize=(8.5, 0.6 * len(report) + 1.4))
    colors = ("#222222", COLORS["val"], COLORS["train"], COLORS["test"], COLORS["accent"])
    for place, (score, color, mark) in enumerate(zip(report.columns, colors, "osD^v", strict=True)):
        y = np.arange(len(report)) + 0.15 * (place - 2)
        axis.hlines(y, every[:, :, place].min(0), every[:, :, place].max(0), color=color, lw=1.5)
        axis.plot(every[:, :, place].mean(0), y, mark, color=color, ms=6, label=score)
    axis.axhline(len(chosen) - 0.5, color="#555", lw=1.2)
    axis.axvline(0.5, color="#999", ls=":", lw=1.2)
    axis.set_yticks(range(len(report)), [kind + " *" * (kind in chosen) for kind in report.index])
    axis.set(ylim=(len(report) - 0.5, -0.5), xlabel="AUROC (0.5: chance, 1: told apart without a mistake)")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.grid(visible=False, axis="y")
    heading(figure, "Telling other pictures from garments (* kinds that chose the score)")
    return figure


def stages(rows: Mapping[str, Sequence]) -> Figure:
    """For each named photograph a row of its (what was done, picture) on the way to 28×28."""
    most = max(map(len, rows.values()))
    figure, axes = plt.subplots(len(rows), most, figsize=(1.8 * most + 0.6, 2.15 * len(rows)), squeeze=False)
    for line, (name, steps) in zip(axes, rows.items(), strict=True):
        for axis, (done, image) in zip(line, steps, strict=False):
            picture(axis, image)
            text = textwrap.fill(done, 22, break_long_words=False, break_on_hyphens=False)
            axis.set_title(text, fontsize=8.5, fontweight="normal", loc="center")
        for axis in line[len(steps) :]:
            axis.axis("off")
        line[0].set_ylabel(name, fontsize=10)
    return figure


def outcomes(kinds: pd.DataFrame, title: str) -> Figure:
    """What became of photographs: stacked shares, a bar for each kind (rows), in two columns where there are many. The
    columns of the table add up to 1; they are right, right and warned of, wrong and warned of, wrong without a warning.
    """
    height = len(kinds) if len(kinds) <= 30 else -(-len(kinds) // 2)
    parts = [kinds[start : start + height] for start in range(0, len(kinds), height)]
    figure, axes = plt.subplots(1, len(parts), figsize=(10.5, 1.1 + 0.22 * height), squeeze=False)
    looks = ((COLORS["train"], 1), (COLORS["train"], 0.45), (COLORS["muted"], 0.45), (COLORS["accent"], 1))
    for axis, part in zip(axes[0], parts, strict=True):
        left = np.zeros(len(part))
        for (name, width), (color, alpha) in zip(part.items(), looks, strict=True):
            axis.barh(part.index, width, left=left, color=color, alpha=alpha, label=name, height=0.75)
            left += width.to_numpy()
        axis.set(xlim=(0, 1), ylim=(height - 0.4, -0.6))
        axis.xaxis.set_major_formatter(percent)
        axis.tick_params(labelsize=9.5)
        axis.grid(visible=False, axis="y")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center", fontsize=9.5
    )
    heading(figure, title)
    return figure
