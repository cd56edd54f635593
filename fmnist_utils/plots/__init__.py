"""The figures and tables of the notebooks, so that a cell there says what is shown and not how it is drawn.

A figure's function takes data and returns a matplotlib ``Figure``; :func:`show` puts it into the notebook, sharp and
with a text for readers who cannot see it. One file for each part of the course; all names are here.
"""

from fmnist_utils.plots.exploration import (
    class_counts,
    class_means,
    confusion,
    intervals,
    maps,
    pixel_values,
    sample_rows,
    variance,
)
from fmnist_utils.plots.fine_tuning import (
    drift,
    ladder_title,
    ladders,
    residual_blocks,
    rung_table,
    what_learns,
)
from fmnist_utils.plots.pictures import image_grid, picture_rows
from fmnist_utils.plots.preprocessing import channel_values, enlargements, speeds, steps
from fmnist_utils.plots.style import CLASS_COLORS, COLORS, Shown, show, table, use_style
from fmnist_utils.plots.training import accuracy_bars, curves

__all__ = [
    "CLASS_COLORS",
    "COLORS",
    "Shown",
    "accuracy_bars",
    "channel_values",
    "class_counts",
    "class_means",
    "confusion",
    "curves",
    "drift",
    "enlargements",
    "image_grid",
    "intervals",
    "ladder_title",
    "ladders",
    "maps",
    "picture_rows",
    "pixel_values",
    "residual_blocks",
    "rung_table",
    "sample_rows",
    "show",
    "speeds",
    "steps",
    "table",
    "use_style",
    "variance",
    "what_learns",
]
