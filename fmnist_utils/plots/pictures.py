"""Pictures side by side."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from fmnist_utils.plots.style import heading


def picture(axis, image, limits: tuple[float, float] | None = (0, 255), title: str = "", color_map: str = "gray"):
    """Draw a grey image [H, W] with every pixel as a sharp square; ``limits`` None: from its smallest to its largest.

    Returns matplotlib's image.
    """
    low, high = limits or (None, None)
    drawn = axis.imshow(np.asarray(image), cmap=color_map, vmin=low, vmax=high, interpolation="nearest")
    axis.set_title(title, fontsize=10, fontweight="normal", loc="center")
    axis.set(xticks=[], yticks=[], frame_on=False)
    axis.grid(visible=False)
    return drawn


def image_grid(
    images: torch.Tensor | np.ndarray,
    titles: Sequence[str] | None = None,
    columns: int = 10,
    size: float = 1.1,
    title: str = "",
) -> Figure:
    """Grey images [N, H, W] (or RGB [N, H, W, 3]) side by side, ``columns`` to a row, ``size`` inches each.

    ``title`` stands over the whole.
    """
    rows = -(-len(images) // columns)
    lines = max((text.count("\n") + 1 for text in titles), default=0) if titles is not None else 0
    height = size + 0.16 * lines + (0.12 if lines else 0)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * height), squeeze=False)
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < len(images):
            image = np.asarray(images[i])
            axis.imshow(image, cmap="gray" if image.ndim == 2 else None, vmin=0, vmax=255 if image.max() > 1 else 1)
            if titles is not None:
                axis.set_title(titles[i], fontsize=9, fontweight="normal", loc="center")
    heading(figure, title)
    return figure


def picture_rows(
    rows: Mapping[str, Sequence],
    columns: Sequence[str] = (),
    title: str = "",
    size: float = 1.3,
    limits: tuple[float, float] | None = (0, 255),
) -> Figure:
    """A row of grey images for each entry, its name on the left, the names in ``columns`` over the first row.

    A name that is too long to stand upright beside its row lies.

    Brightness runs over ``limits`` everywhere; None gives each image its own, from its smallest value to its largest.
    """
    count = max(len(images) for images in rows.values())
    lines = max((text.count("\n") + 1 for text in columns), default=0)
    letters = max(len(line) for name in rows for line in name.split("\n"))
    lying = {"rotation": "horizontal", "ha": "right", "va": "center"} if letters > 13 * size else {}
    figsize = (count * size + (0.08 * letters if lying else 0.5), len(rows) * size + 0.18 * lines + 0.3)
    figure, axes = plt.subplots(len(rows), count, figsize=figsize, squeeze=False)
    for row, (line, (name, images)) in enumerate(zip(axes, rows.items(), strict=True)):
        for number, axis in enumerate(line):
            above = columns[number] if row == 0 and number < len(columns) else ""
            picture(axis, images[number], limits, above)
        line[0].set_ylabel(name, fontsize=10, **lying)
    heading(figure, title)
    return figure
