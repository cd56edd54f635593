"""`fmnist_utils.plots`: what a figure shows, asked of matplotlib's own objects."""

import base64

import numpy as np
import pandas as pd
import pytest
from matplotlib import colors as mcolors
from matplotlib import pyplot as plt

from fmnist_utils import plots
from fmnist_utils.models import build_model
from fmnist_utils.plots import curves
from fmnist_utils.plots.fine_tuning import STATES


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


def test_a_shown_figure_carries_its_text_where_nbconvert_and_code_hosts_look():
    figure, _ = plt.subplots(figsize=(4, 2))
    data, about = plots.show(figure, "A pair of empty axes,\n  for a test.")._repr_mimebundle_()
    assert about["image/png"]["alt"] == "A pair of empty axes, for a test."
    assert data["text/plain"] == "Figure: A pair of empty axes, for a test."
    png = base64.b64decode(data["image/png"])
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") / about["image/png"]["width"] == pytest.approx(150 / 90, rel=0.01)
    assert not plt.get_fignums(), "an open figure would be drawn a second time"


def test_a_figure_needs_a_text_that_describes_it():
    with pytest.raises(ValueError, match="describe"):
        plots.show(plt.figure(), "figure 1")


def test_nbconvert_writes_the_text_into_the_page():
    nbformat, nbconvert = pytest.importorskip("nbformat"), pytest.importorskip("nbconvert")
    data, about = plots.show(plt.figure(), "Nothing at all, but <described>.")._repr_mimebundle_()
    output = nbformat.v4.new_output("execute_result", data, metadata=about, execution_count=1)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", execution_count=1, outputs=[output])])
    # The template "lab" has no place for it.
    page, _ = nbconvert.HTMLExporter(template_name="classic").from_notebook_node(notebook)
    assert 'alt="Nothing at all, but &lt;described&gt;."' in page


def test_tables_have_thousands_separators_and_no_needless_digits():
    frame = pd.DataFrame({"images": [60_000, 5], "share": [0.5, 1.0], "loss": [1024.0, 0.1], "name": ["a", "b"]})
    text = plots.table(frame, {"share": "{:.0%}"})
    assert text.to_numpy().tolist() == [["60,000", "50%", "1,024.00", "a"], ["5", "100%", "0.10", "b"]]
    assert plots.table(frame[["loss"]], "{:.0f}")["loss"].tolist() == ["1024", "0"]
    assert frame["images"].dtype == "int64"


def test_the_confusion_scale_ends_at_the_largest_error():
    matrix = 0.95 * np.eye(10)
    matrix[2, 6] = 0.05
    figure = plots.confusion(matrix)
    mesh = figure.axes[0].collections[0]
    assert mesh.get_clim() == pytest.approx((0, 5))
    assert np.ma.getmaskarray(mesh.get_array()).reshape(10, 10).diagonal().all()


def test_intervals_are_drawn_where_they_are():
    scores = pd.DataFrame({"accuracy": [0.7, 0.8], "low": [0.65, 0.78], "high": [0.72, 0.83]}, index=["a", "b"])
    axis = plots.intervals(scores, others={"people": 0.9}).axes[0]
    ((bars,),) = [container.lines[2] for container in axis.containers]
    assert [segment[:, 0].tolist() for segment in bars.get_segments()] == [[0.65, 0.72], [0.78, 0.83]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "people"]


def test_names_on_a_map_do_not_cover_each_other():
    points, labels = np.random.default_rng(0).normal(size=(400, 2)), np.arange(400) % 10  # all classes in one place
    axis = plots.maps({"map": points}, labels).axes[0]
    places = np.array([text.get_position() for text in axis.texts]) / np.ptp(points, axis=0)
    gaps = np.abs(places[:, None] - places[None]) + 9 * np.eye(10)[..., None]
    assert ((gaps[..., 0] >= 0.19) | (gaps[..., 1] >= 0.04)).all()


def test_pictures_keep_their_values_and_names():
    images = np.arange(6 * 4).reshape(6, 2, 2)
    figure = plots.picture_rows({"a": images[:3], "b": images[3:]}, ["x", "y", "z"])
    assert [axis.get_title("center") for axis in figure.axes] == ["x", "y", "z", "", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes][::3] == ["a", "b"]
    assert all((axis.images[0].get_array() == image).all() for axis, image in zip(figure.axes, images, strict=True))


def test_boxes_show_what_learns_what_is_frozen_and_what_runs_once():
    model = build_model("vgg16", cut_after="block2", head="linear", image_size=32)
    rows = {"head": "head", "a block": 5, "a convolution": 3, "all": "all"}
    kept, frozen, learns = (mcolors.to_rgba(color) for color in STATES.values())
    # Four convolutions and the head; the last three layers are a convolution, its activation and the pooling.
    expected = [4 * [kept] + [learns], 2 * [kept] + 3 * [learns], 3 * [kept] + 2 * [learns], 5 * [learns]]
    boxes = plots.what_learns(model, rows).axes[0].patches
    assert [box.get_facecolor() for box in boxes] == sum(expected, [])
    assert model.config["trainable"] == "head" and not any(p.requires_grad for p in model.backbone.parameters())
    # With the features of "a block" (the preprocessing and five layers), the head's epochs run two convolutions.
    shared = plots.what_learns(model, {"head": "head"}, border=6).axes[0].patches
    assert [box.get_facecolor() for box in shared] == [kept, kept, frozen, frozen, learns]


def test_a_ladder_is_drawn_and_tabulated_as_it_was_measured():
    rungs = [
        {"rung": "head", "trainable": 10, "train_accuracy": 0.95, "val_accuracy": 0.8} | same(0, 0, 1.0),
        {"rung": 7, "trainable": 2_000, "train_accuracy": 0.99, "val_accuracy": 0.86} | same(80, 20, 1.2e-9),
    ]
    axis = plots.ladders({"one": rungs, "two": rungs[:1]}, 1_000, training=True).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["head\nonly", "last\n7 layers"]
    ((bars,),) = [container.lines[2] for container in axis.containers]
    # Wilson's interval by its formula.
    z, n = 1.959964, 1_000
    for rung, segment in zip(rungs, bars.get_segments(), strict=True):
        p = rung["val_accuracy"]
        half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
        ends = [(p + z**2 / (2 * n) + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
        assert segment[:, 1].tolist() == pytest.approx(ends, abs=1e-6)
    table = plots.rung_table(rungs)
    assert table.loc["last 7 layers"].tolist() == [2_000, "99.0%", "86.0%", "13.0", "+6.0", 80, 20, "1e-09"]
    assert table.loc["head only", ["gain", "p-value"]].tolist() == ["control", ""]
    assert len(plots.rung_table([*rungs, rungs[1]])) == 3, "two rungs of one name are two rows"


def same(only_this: int, only_control: int, p_value: float) -> dict:
    return {"only_this": only_this, "only_control": only_control, "p_value": p_value}
