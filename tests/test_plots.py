"""`fmnist_utils.plots`: what a figure shows, asked of matplotlib's own objects."""

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from fmnist_utils.plots import curves


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def history(phases: list[int] | None) -> pd.DataFrame:
    count = len(phases or [1] * 5)
    columns = {f"{split}_{what}": [0.5] * count for split in ("train", "val") for what in ("loss", "accuracy")}
    table = pd.DataFrame(columns, index=pd.RangeIndex(1, count + 1, name="epoch"))
    return table if phases is None else table.assign(phase=phases)


@pytest.mark.parametrize(
    ("phases", "borders"),
    [(None, []), ([1, 1, 1], []), ([1, 1, 2, 2, 2], [2.5]), ([1, 2, 3, 3], [1.5, 2.5])],
    ids=str,
)
def test_curves_have_a_dashed_line_where_a_phase_begins(phases, borders):
    figure = curves(history(phases), "title")
    assert len(figure.axes) == 2
    for axis in figure.axes:
        dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
        assert [float(line.get_xdata()[0]) for line in dashed] == borders
        assert len(axis.lines) == 2 + len(borders)
        expected = [f"phase {phase}" for phase in range(2, len(borders) + 2)]
        assert [text.get_text() for text in axis.texts] == expected
