"""The figures and tables of ``notebooks/04_resnet50_fine_tuning.ipynb``, and that of ``benchmarks/unfreezing.py``.

A *rung* is a row of that benchmark's file: ``rung`` (what learns: ``"head"``, ``"all"``, or a number of layers),
``trainable``, ``train_accuracy``, ``val_accuracy``, ``only_this``, ``only_control`` and ``p_value``.
"""

from collections.abc import Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from fmnist_utils.evaluate import accuracy_interval
from fmnist_utils.models import Classifier, leaves, set_trainable, summary
from fmnist_utils.plots.style import COLORS, heading, percent_ticks

#: What happens to a layer while the model is trained, and its colour.
STATES = {
    "runs once, its output is kept": "#D5D9DE",
    "frozen, runs in every epoch": "#9CC3DF",
    "learns": COLORS["accent"],
}


def what_learns(model: Classifier, rows: Mapping[str, str | int], border: int | None = None) -> Figure:
    """A box for each convolution or residual block of ``model``, in the colour of what happens to it; one row for
    each value of ``trainable``.

    ``border`` is that of the cached features if all rows share it, else each row has its own. A block that learns only
    in part is hatched. The model is left as it was.
    """
    before, boxes, seen = model.config["trainable"], list(_boxes(model)), set()
    figure, axis = plt.subplots(figsize=(11, 1.5 + 0.62 * len(rows)))
    for row, (name, trainable) in enumerate(rows.items()):
        set_trainable(model, trainable)
        cached = border or _own_border(model)
        for x, (_, number, layer) in enumerate(boxes):
            learns = [p.requires_grad for p in layer.parameters()]
            state = 2 if any(learns) else int(number >= cached)
            hatch = "////" if any(learns) and not all(learns) else None
            color = list(STATES.values())[state]
            seen.add(color)
            axis.add_patch(Rectangle((x + 0.06, row + 0.14), 0.88, 0.72, fc=color, ec="white", hatch=hatch, lw=0))
        learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
        axis.text(len(boxes) + 0.25, row + 0.5, f"{learning / 1e6:.1f} million learn", va="center", fontsize=10)
        axis.text(-0.25, row + 0.5, name, va="center", ha="right", fontsize=10)
    set_trainable(model, before)
    _name_groups(axis, model, [group for group, _, _ in boxes], len(rows))
    axis.set(xlim=(-0.1, len(boxes) + 0.1), ylim=(len(rows) + 0.95, -0.05))
    axis.axis("off")
    patches = [Patch(fc=color, label=state) for state, color in STATES.items() if color in seen]
    figure.legend(handles=patches, frameon=False, ncols=3, loc="outside lower center", fontsize=10)
    return figure


def _boxes(model: Classifier) -> Iterator[tuple[str, int, torch.nn.Module]]:
    """(block, place in the chain that :meth:`Classifier.split` cuts, layer) of what has parameters; the head is one."""
    number = 1
    for name, block in model.backbone.named_children():
        for layer in leaves(block):
            if any(True for _ in layer.parameters()) and not isinstance(layer, torch.nn.BatchNorm2d):
                yield name, number, layer
            number += 1
    yield "head", number, model.head


def _own_border(model: Classifier) -> int:
    prefix, _ = model.split()
    return len(prefix) if any(True for _ in prefix.parameters()) else 0


def _name_groups(axis, model: Classifier, groups: Sequence[str], y: int) -> None:
    shapes = summary(model).output
    for name in dict.fromkeys(groups):
        first, count = groups.index(name), groups.count(name)
        axis.plot([first + 0.08, first + count - 0.08], [y + 0.12] * 2, color="#444", lw=1.2)
        text = f"{name}\n{shapes[name]}" if count > 1 else f"{name}\n"
        axis.text(first + count / 2, y + 0.2, text, ha="center", va="top", fontsize=9, linespacing=1.3)


def residual_blocks(blocks: Mapping[str, torch.nn.Module]) -> Figure:
    """Residual blocks of a ResNet50, one below the other: three convolutions, the shortcut over them, the addition."""
    figure, axis = plt.subplots(figsize=(11, 0.3 + 1.75 * len(blocks)))
    for row, (name, block) in enumerate(blocks.items()):
        y = 2 * row
        axis.text(-0.1, y, name, ha="right", va="center", fontsize=11)
        for x, layer in enumerate((block.conv1, block.conv2, block.conv3)):
            _box(
                axis, 1.5 + 2.4 * x, y, _convolution(layer, "\n") + "\nBatchNorm" + ", ReLU" * (x < 2), STATES["learns"]
            )
        _box(axis, 8.7, y, "+", COLORS["muted"], width=0.5)
        _box(axis, 10, y, "ReLU", COLORS["muted"], width=0.9)
        for start, end in ((0.05, 0.55), (2.45, 2.95), (4.85, 5.35), (7.25, 8.45), (8.95, 9.55), (10.45, 10.95)):
            axis.annotate("", (end, y), (start, y), arrowprops={"arrowstyle": "-|>", "color": "#444", "lw": 1.3})
        axis.plot([0.25, 0.25, 8.7], [y, y - 0.91, y - 0.91], color=COLORS["train"], lw=2)
        arrow = {"arrowstyle": "-|>", "color": COLORS["train"], "lw": 2}
        axis.annotate("", (8.7, y - 0.4), (8.7, y - 0.93), arrowprops=arrow)
        shortcut = f"{_convolution(block.downsample[0], ', ')}, BatchNorm" if block.downsample else "as it came in"
        axis.text(4.4, y - 0.92, f" shortcut: {shortcut} ", ha="center", va="center", fontsize=10,
                  color=COLORS["train"], bbox={"fc": "white", "ec": "none", "pad": 1})  # fmt: skip
    axis.set(xlim=(-1.3, 11), ylim=(2 * len(blocks) - 1.4, -1.1))
    axis.axis("off")
    return figure


def _convolution(layer: torch.nn.Conv2d, between: str) -> str:
    side, stride = layer.kernel_size[0], f", stride {layer.stride[0]}" if layer.stride[0] > 1 else ""
    return f"{side}×{side}{stride}{between}{layer.in_channels:,} → {layer.out_channels:,}"


def _box(axis, x: float, y: float, text: str, color: str, width: float = 1.9) -> None:
    axis.add_patch(Rectangle((x - width / 2, y - 0.4), width, 0.8, fc=color, alpha=0.25, ec=color, lw=1.2))
    axis.text(x, y, text, ha="center", va="center", fontsize=9, linespacing=1.4)


def rung_name(rung: str | int) -> str:
    """``"head"``, ``"all"`` or a number of layers, in words."""
    return {"head": "head only", "all": "everything"}.get(rung, f"last {rung} layers")


def rung_table(rungs: Sequence[dict]) -> pd.DataFrame:
    """The rungs of a ladder as a table for :func:`~fmnist_utils.plots.table`; the first rung is the control."""
    control = rungs[0]["val_accuracy"]
    rows = [
        {
            "parameters that learn": row["trainable"],
            "training": f"{row['train_accuracy']:.1%}",
            "validation": f"{row['val_accuracy']:.1%}",
            "gap": f"{100 * (row['train_accuracy'] - row['val_accuracy']):.1f}",
            "gain": f"{100 * (row['val_accuracy'] - control):+.1f}" if row is not rungs[0] else "control",
            "right: only here": row["only_this"],
            "only control": row["only_control"],
            "p-value": f"{row['p_value']:.1g}" if row is not rungs[0] else "",
        }
        for row in rungs
    ]
    return pd.DataFrame(rows, index=[rung_name(row["rung"]) for row in rungs])


def ladders(groups: Mapping[str, Sequence[dict]], images: int, training: bool = False) -> Figure:
    """Validation accuracy of each rung with its 95% interval, a panel for each ladder; dashed: the control.

    ``images`` is the number of validation images; ``training`` adds the accuracy on training images as hollow dots.
    """
    sizes = [len(rungs) + 0.6 for rungs in groups.values()]
    figure, axes = plt.subplots(
        1, len(groups), figsize=(0.9 + 1.12 * sum(sizes), 3.9), sharey=True, squeeze=False, width_ratios=sizes
    )
    for axis, (title, rungs) in zip(axes[0], groups.items(), strict=True):
        values = np.array([row["val_accuracy"] for row in rungs])
        ends = np.array([accuracy_interval(round(value * images), images) for value in values]).T
        names = [rung_name(row["rung"]).replace(" ", "\n", 1) for row in rungs]
        place = np.arange(len(rungs))
        axis.errorbar(place, values, np.abs(ends - values), fmt="o", capsize=4, ms=8, color=COLORS["train"],
                      label="validation, with 95% interval")  # fmt: skip
        if training:
            known = [row["train_accuracy"] for row in rungs]
            axis.plot(place, known, "o", ms=8, mfc="white", mew=2, color=COLORS["muted"], label="training images")
        axis.axhline(values[0], ls="--", color=COLORS["muted"], zorder=0)
        for x, value in enumerate(values):
            axis.annotate(f"{value:.1%}", (x, value), (8, 4), textcoords="offset points", fontsize=10)
        axis.set_xticks(place, names, fontsize=10)
        axis.set(xlim=(-0.4, len(rungs) - 0.2), title=title)
        axis.grid(axis="x", visible=False)
        percent_ticks(axis.yaxis)
    axes[0, 0].set_ylabel(f"accuracy ({images:,} validation images)" if training else
                          f"validation accuracy, {images:,} images")  # fmt: skip
    if training:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, ncols=2, loc="outside lower center")
    return figure


def ladder_title(ladder: dict) -> str:
    """What a recorded ladder was climbed with, in three lines."""
    name = {"resnet50": "ResNet50", "vgg16": "VGG16"}[ladder["name"]]
    cut = "" if ladder["cut_after"] in ("layer4", "block5") else f" to {ladder['cut_after']}"
    mode = f"\nBatchNorm {ladder['batchnorm']}" if ladder["name"] == "resnet50" else "\nno BatchNorm"
    return f"{name}{cut}, {ladder['image_size']} px{mode}\n{ladder['train_images']:,} training images"


def drift(accuracies: Mapping[int, float], title: str = "") -> Figure:
    """Validation accuracy against the number of batches that have only been looked at; the first one is marked."""
    figure, axis = plt.subplots(figsize=(7.5, 3.2))
    batches, values = list(accuracies), list(accuracies.values())
    axis.plot(batches, values, "o-", color=COLORS["val"], lw=2)
    axis.axhline(values[0], ls="--", color=COLORS["muted"], zorder=0)
    for x, value in zip(batches, values, strict=True):
        place = (5, 7) if x != 1 else (-12, -17)  # two points so near would have their numbers over each other
        axis.annotate(f"{value:.1%}", (x, value), place, textcoords="offset points", fontsize=10)
    axis.set_xticks(batches)
    axis.set(xlabel="batches that went through in training mode, no step taken", ylabel="validation accuracy")
    axis.margins(x=0.08, y=0.2)
    percent_ticks(axis.yaxis)
    heading(figure, title)
    return figure
