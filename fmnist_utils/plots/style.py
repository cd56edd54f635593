"""What all figures and tables share: colours, sizes, and how they get into a notebook."""

import base64
import io
import struct
from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator

#: Colour-blind-safe colours for the course's recurring roles (Okabe & Ito, 2008).
COLORS = {"train": "#0072B2", "val": "#E69F00", "test": "#009E73", "accent": "#D55E00", "muted": "#8A8F98"}
#: One dark colour for each of the ten classes, in the order of ``data.CLASSES``; readable as text on white.
CLASS_COLORS = (
    "#332288", "#117733", "#CC3311", "#882255", "#C05A00", "#0077BB", "#4D4D4D", "#00857A", "#AA3399", "#6B4A1B",
)  # fmt: skip
#: Pixels to an inch: as a picture is stored, and as a notebook shows it.
STORED_DPI, SHOWN_DPI = 150, 90


def use_style() -> None:
    """The course's look for matplotlib and seaborn: white, light grid, readable sizes. Called in each set-up cell."""
    sns.set_theme(style="whitegrid", context="notebook", palette=list(COLORS.values()))
    plt.rcParams.update(
        {
            "figure.dpi": SHOWN_DPI,
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


class Shown:
    """A finished figure as a notebook's output: the picture, its width on the page, its text. Made by :func:`show`."""

    def __init__(self, png: bytes, alt: str):
        self.png, self.alt = png, alt

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        (pixels,) = struct.unpack(">I", self.png[16:20])
        about = {"alt": self.alt, "width": round(pixels * SHOWN_DPI / STORED_DPI)}
        data = {"image/png": base64.b64encode(self.png).decode(), "text/plain": f"Figure: {self.alt}"}
        return data, {"image/png": about}


def show(figure: Figure, alt: str) -> Shown:
    """Put ``figure`` into the notebook, at 150 pixels an inch, with ``alt`` for those who cannot see it.

    ``alt`` says what there is to see, in a sentence or two: kind of figure, axes, the main thing. It is stored where
    nbconvert and code hosts look for a picture's alternative text (the output's metadata), and as the output's plain
    text. Use it as the last line of a cell. Raises ``ValueError`` for a text of less than 20 characters.
    """
    if len(alt.strip()) < 20:
        raise ValueError(f"The text {alt!r} does not describe a figure: say in a sentence what there is to see.")
    file = io.BytesIO()
    figure.savefig(file, dpi=STORED_DPI, bbox_inches="tight", format="png")
    plt.close(figure)  # else Jupyter would draw it a second time
    return Shown(file.getvalue(), " ".join(alt.split()))


def percent_ticks(axis: Axis, every: float | None = None) -> None:
    """Ticks of an x or y axis that are what they say, in percent, with no more digits than they need."""
    axis.set_major_locator(MultipleLocator(every) if every else MaxNLocator(7, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(percent)


def percent(share: float, place: int | None = None) -> str:
    """The label of a tick, with no more digits than it needs, and no fewer."""
    return f"{round(100 * share, 6) + 0:.4g}%"  # a tick at zero may come as -1e-17


def heading(figure: Figure, title: str) -> None:
    """A bold title over the whole figure, on the left."""
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")


def table(frame: pd.DataFrame, formats: Mapping[str, str] | str | None = None) -> pd.DataFrame:
    """The table as a reader wants it: every number a text, 60,000 with its comma, fractions as ``formats`` say.

    ``formats`` has a format such as ``"{:.1%}"`` by column, or one for all; without one, fractions get two digits.
    """
    text = {}
    for name in frame.columns:
        default = "{:,.2f}" if pd.api.types.is_float_dtype(frame[name]) else "{:,}"
        given = formats if isinstance(formats, str) else (formats or {}).get(name, default)
        numeric = pd.api.types.is_numeric_dtype(frame[name])
        text[name] = [given.format(value) if numeric else str(value) for value in frame[name]]
    return pd.DataFrame(text, index=frame.index, dtype=object)
