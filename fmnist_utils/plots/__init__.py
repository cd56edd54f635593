"""The figures and tables of the notebooks, so that a cell there says what is shown and not how it is drawn.

A figure's function takes data and returns a matplotlib ``Figure``; :func:`show` puts it into the notebook, sharp and
with a text for readers who cannot see it. One file for each part of the course; all names are here.
"""

from fmnist_utils.plots.comparison import (
    backbones,
    best_so_far,
    block_shapes,
    data_curve,
    grid_and_random,
    luck,
    rescored,
)
from fmnist_utils.plots.deployment import (
    auroc,
    differences,
    latencies,
    operators,
    outcomes,
    rounding,
    shares,
    stages,
)
from fmnist_utils.plots.evaluation import (
    calibration,
    gaps,
    heat_rows,
    paired_differences,
    robustness,
)
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
from fmnist_utils.plots.training import curves
from fmnist_utils.plots.transfer import answers, cut_network, layers

__all__ = [
    "CLASS_COLORS",
    "COLORS",
    "Shown",
    "answers",
    "auroc",
    "backbones",
    "best_so_far",
    "block_shapes",
    "calibration",
    "channel_values",
    "class_counts",
    "class_means",
    "confusion",
    "curves",
    "cut_network",
    "data_curve",
    "differences",
    "drift",
    "enlargements",
    "gaps",
    "grid_and_random",
    "heat_rows",
    "image_grid",
    "intervals",
    "ladder_title",
    "ladders",
    "latencies",
    "layers",
    "luck",
    "maps",
    "operators",
    "outcomes",
    "paired_differences",
    "picture_rows",
    "pixel_values",
    "rescored",
    "residual_blocks",
    "robustness",
    "rounding",
    "rung_table",
    "sample_rows",
    "shares",
    "show",
    "speeds",
    "stages",
    "steps",
    "table",
    "use_style",
    "variance",
    "what_learns",
]
