"""`fmnist_utils.plots`: what a figure shows, asked of matplotlib's own objects."""

import base64

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import colors as mcolors
from matplotlib import pyplot as plt

from fmnist_utils import plots
from fmnist_utils.models import build_model
from fmnist_utils.plots import curves
from fmnist_utils.plots.fine_tuning import STATES
from fmnist_utils.plots.style import percent, percent_ticks


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


def test_long_names_of_rows_do_not_run_into_each_other():
    names = ["noise, sd 48 grey levels", "4 pixels to the right", "white background"]
    figure = plots.picture_rows({name: np.zeros((2, 28, 28)) for name in names}, size=1.0)
    figure.draw_without_rendering()
    boxes = [axis.yaxis.label.get_window_extent() for axis in figure.axes[::2]]
    assert all(upper.y0 > lower.y1 for upper, lower in zip(boxes, boxes[1:], strict=False))
    assert all(box.x1 <= axis.get_window_extent().x0 for box, axis in zip(boxes, figure.axes[::2], strict=True))


def test_ticks_in_percent_have_the_digits_that_they_need():
    figure, axis = plt.subplots()
    axis.set_ylim(0.8, 0.9)
    percent_ticks(axis.yaxis)
    assert [label.get_text() for label in axis.get_yticklabels()][:3] == ["80%", "82%", "84%"]
    axis.set_ylim(0.93, 0.94)
    assert "93.2%" in [label.get_text() for label in axis.get_yticklabels()]


@pytest.mark.parametrize(("share", "text"), [(0.825, "82.5%"), (0.3, "30%"), (-1e-17, "0%"), (1.1, "110%")])
def test_a_tick_is_not_rounded(share, text):
    assert percent(share) == text


def test_shares_draws_each_interval_from_low_to_high():
    found = pd.DataFrame({"share": [0.9, 0.2], "low": [0.8, 0.1], "high": [0.95, 0.4]}, index=["right", "wrong"])
    axis = plots.shares(found, "title", "accuracy", marked=["right"]).axes[0]
    ends = [segment[:, 0].tolist() for segment in axis.collections[0].get_segments()]
    assert np.allclose(ends, [[0.8, 0.95], [0.1, 0.4]])
    assert [text.get_text() for text in axis.texts] == ["90%", "20%"]
    assert len({bar.get_facecolor() for bar in axis.patches}) == 2


def test_operators_draws_a_box_for_each_and_names_the_parts():
    parts = {"preprocessing": ["Cast", "Mul"], "convolutions": ["Conv", "Relu", "MaxPool"], "head": ["Gemm"]}
    axis = plots.operators(parts, ("images", "probabilities")).axes[0]
    said = [text.get_text() for text in axis.texts]
    assert len(axis.patches) == 6 and set(said) >= {*parts, "Cast", "Gemm", "in: images", "out: probabilities"}


def test_differences_counts_what_is_identical():
    figure = plots.differences(np.array([0, 0, 1e-7, 2e-8]), 1e-4)
    assert "4 probabilities, 2 of them identical" in figure._suptitle.get_text()
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 2


def test_rounding_shows_the_quietest_filter_and_the_loss_of_all():
    weights = np.array([[1.0, -2.0], [0.1, 0.2], [4.0, 3.0]], np.float32).reshape(3, 2, 1, 1)
    error = np.full_like(weights, 0.1)
    left, right = plots.rounding(weights, {"all": error, "each": error / 10}).axes
    assert "no. 1" in left.get_title() + left.get_title(loc="left") and np.allclose(
        left.lines[0].get_xdata(), [0.1, 0.2]
    )
    lost = 0.1 * np.sqrt(2) / np.linalg.norm(weights.reshape(3, 2), axis=1)
    assert np.allclose(right.lines[0].get_ydata(), lost) and np.allclose(right.lines[1].get_ydata(), lost / 10)


def test_latencies_draws_the_range_of_the_rounds():
    row = {"model": "m", "runtime": "R", "precision": "int8", "latency_ms": 2.0, "latency_ms_range": [1.5, 4.0]}
    row["accuracy"] = 0.9324
    axis = plots.latencies(
        pd.DataFrame([row, row | {"runtime": "slow", "latency_ms": 9, "latency_ms_range": [8, 9.5]}])
    )
    axis = axis.axes[0]
    assert [line.get_xdata().tolist() for line in axis.lines if len(line.get_xdata()) == 2] == [[8, 9.5], [1.5, 4.0]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["slow, int8", "R, int8"]
    assert axis.texts[1].get_text().strip() == "2.00 ms, 93.24% right"


def test_auroc_marks_the_mean_of_the_models_and_what_chose():
    kinds, names = ["digits", "noise"], ["a", "b", "c", "d", "e"]
    reports = {m: pd.DataFrame(value, index=kinds, columns=names) for m, value in (("x", 0.8), ("y", 1.0))}
    axis = plots.auroc(reports, ["digits"]).axes[0]
    marks = [line.get_xdata() for line in axis.lines if line.get_label() in names]
    assert len(marks) == 5 and np.allclose(marks, 0.9)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["digits *", "noise"]


def test_stages_has_a_row_for_each_photograph_and_leaves_gaps_empty():
    picture = np.zeros((4, 4), np.uint8)
    figure = plots.stages({"long": [("as it came", picture), ("cut", picture)], "short": [("as it came", picture)]})
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 1, 0]
    assert figure.axes[1].get_title() == "cut" and figure.axes[2].get_ylabel() == "short"


def test_outcomes_of_a_kind_fill_its_bar():
    kinds = pd.DataFrame({"a": [0.5, 0], "b": [0.1, 0.2], "c": [0.3, 0.3], "d": [0.1, 0.5]}, index=["wood", "none"])
    axis = plots.outcomes(kinds, "title").axes[0]
    ends = [bar.get_x() + bar.get_width() for bar in axis.patches[-2:]]
    assert np.allclose(ends, 1) and [label.get_text() for label in axis.get_yticklabels()] == ["wood", "none"]


def test_outcomes_of_many_kinds_stand_in_two_columns():
    names = [f"kind {number}" for number in range(41)]
    figure = plots.outcomes(pd.DataFrame([[0.4, 0.3, 0.2, 0.1]] * 41, names, list("abcd")), "title")
    found = [[label.get_text() for label in axis.get_yticklabels()] for axis in figure.axes]
    assert found == [names[:21], names[21:]]
    assert [text.get_text() for text in figure.legends[0].texts] == list("abcd")


def test_gaps_name_the_distance_of_training_and_test_in_points():
    accuracies = pd.DataFrame({"train": [0.99, 0.9], "test": [0.95, 0.895]}, index=["a", "b"])
    axis = plots.gaps(accuracies).axes[0]
    assert [text.get_text() for text in axis.texts] == ["4.0", "0.5", "gap"]
    assert [line.get_xdata().tolist() for line in axis.lines] == [[0.95, 0.895], [0.99, 0.9]]


def test_calibration_draws_the_distance_from_confidence_and_leaves_small_bins_out():
    table = pd.DataFrame(
        {"confidence": [0.5, 0.9], "accuracy": [0.6, 0.8], "low": [0.3, 0.7], "high": [0.9, 0.85], "count": [29, 30]}
    )
    axis = plots.calibration({"model": {"before": table, "after": table.assign(confidence=0.8)}}).axes[0]
    before, after = axis.containers
    assert before.lines[0].get_ydata() == pytest.approx([-10]) and after.lines[0].get_ydata() == pytest.approx([0])
    ((low, high),) = [segment[:, 1] for segment in before.lines[2][0].get_segments()]
    assert (low, high) == pytest.approx((-20, -5))


def test_differences_have_both_intervals():
    rows = pd.DataFrame({"difference": [0.5], "unpaired": [0.6], "paired": [0.3]}, index=["a − b"])
    unpaired, paired = plots.paired_differences(rows).axes[0].containers
    for container, half in ((unpaired, 0.6), (paired, 0.3)):
        (segment,) = container.lines[2][0].get_segments()
        assert segment[:, 0] == pytest.approx([0.5 - half, 0.5 + half])


def test_heat_rows_keep_pictures_and_maps_in_their_columns():
    images, heats = np.arange(8).reshape(2, 2, 2), np.linspace(0, 1, 8).reshape(2, 2, 2)
    axes = plots.heat_rows(images, {"a": heats, "b": heats[::-1]}, ["x", "y"]).axes
    assert [axis.get_title("center") for axis in axes[:2]] == ["x", "y"]
    assert [axis.get_ylabel() for axis in axes[:6:2]] == ["picture", "a", "b"]
    for axis, image, heat in zip(axes[2:6], [*images, *images], [*heats, *heats[::-1]], strict=True):
        below, above = axis.images
        assert (below.get_array() == image).all() and (above.get_array() == heat).all()
        assert above.get_clim() == (0, 1)


def test_robustness_has_a_line_for_each_kind_and_its_intervals():
    rows = [
        {"kind": kind, "model": model, "accuracy": 0.5, "low": 0.4, "high": 0.7}
        for kind in ("as it is", "blur")
        for model in ("b", "a")
    ]
    axis = plots.robustness(pd.DataFrame(rows)).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["as it is", "blur"]
    assert [container.get_label() for container in axis.containers] == ["b", "a"]
    for container in axis.containers:
        segments = container.lines[2][0].get_segments()
        assert [segment[:, 0].tolist() for segment in segments] == [pytest.approx([0.4, 0.7])] * 2


def test_which_layer_shows_each_mean_with_its_spread_and_names_that_keep_apart():
    rows = [
        {"network": "pixels", "weights": "none", "image_size": 28, "layer": "pixels", "val_accuracy": 0.8, "sd": 0.01}
    ]
    for weights, size, end in (("a", 64, 0.82), ("none", 64, 0.819), ("a", 96, 0.821)):
        for layer, accuracy in (("block1", 0.85), ("block2", end)):
            rows.append({"network": "VGG16", "weights": weights, "image_size": size, "layer": layer, "sd": 0.02})
            rows[-1]["val_accuracy"] = accuracy
    rows.append(
        {"network": "ResNet50", "weights": "b", "image_size": 64, "layer": "stem", "val_accuracy": 0.9, "sd": 0.1}
    )
    origins = {"a": "ImageNet", "b": "ImageNet, pruned to 9% of its weights", "none": "random"}
    vgg, resnet = plots.layers(pd.DataFrame(rows).assign(weights_origin=lambda table: table.weights.map(origins))).axes
    (bars,) = resnet.containers[1].lines[2]
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [0.8, 1.0])
    assert [label.get_text() for label in vgg.get_xticklabels()] == ["pixels", "block1", "block2"]
    heights = sorted(text.get_position()[1] for text in vgg.texts)
    assert len(heights) == 3 and min(np.diff(heights)) >= 0.0139
    assert {text.get_text() for text in vgg.texts} == {"ImageNet,\n64 px", "random,\n64 px", "ImageNet,\n96 px"}


def test_a_cut_network_is_drawn_with_the_numbers_of_its_models():
    settings = {"image_size": 32, "weights": None, "trainable": "head"}
    whole = build_model("vgg16", head="linear", **settings)
    model = build_model("vgg16", cut_after="block1", head="pooled", **settings)
    said = [text.get_text() for text in plots.cut_network(whole, model).axes[0].texts]
    # block1: 3·64·9 + 64 and 64·64·9 + 64 parameters; pooled to 4×4: 64·16 numbers.
    for expected in ("cut after block1", "64×16×16\n38,720", "1,024 numbers\nonce an image", "512×1×1\n7.1 million"):
        assert expected in said
    assert not any(text.startswith("64×16") and "million" in text for text in said)


def test_answers_name_the_three_likeliest_classes():
    probabilities = np.full((2, 10), 0.01, np.float32)
    probabilities[:, 6], probabilities[:, 0], probabilities[:, 2] = 0.6, 0.2, 0.1
    figure = plots.answers(torch.zeros(2, 28, 28, dtype=torch.uint8), probabilities, torch.tensor([6, 4]))
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes if axis.texts]
    assert texts == 2 * [["Shirt 60%", "T-shirt/top 20%", "Pullover 10%"]]
    assert [axis.get_title("center") for axis in figure.axes if axis.images] == ["Shirt", "Coat"]


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
