"""`fmnist_utils.plots`: what a figure shows, asked of matplotlib's own objects."""

import base64

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from fmnist_utils import plots
from fmnist_utils.models import build_model
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
    vgg, resnet = plots.layers(pd.DataFrame(rows)).axes
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
