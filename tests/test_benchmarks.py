"""Every benchmark runs, in seconds and with few images, and its file says what was done; speed itself is not tested."""

import json
import math
import os
import runpy
import shutil
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from fmnist_utils import ROOT, data
from fmnist_utils.results import load_predictions

SCRIPTS = [
    ("start_up", []),
    ("prefix_engine", []),
    ("usual_loop", []),
    ("cost_growth", []),
    pytest.param(
        "cost_growth",
        ["--large"],
        marks=pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory as only Linux can"),
    ),
    ("training_throughput", []),
    ("speed_run", []),
    ("training_images", []),
    ("backbones", []),
    ("backbones", ["--scratch"]),
    ("unfreezing", []),
    ("which_layer", []),
    ("search_rate", []),
    ("exported_models", []),
    ("app_load", []),
    ("out_of_distribution", []),
    ("photographs", []),
    ("ingredients", []),
    ("mean_of_models", []),
    ("int8_accuracy", []),
    ("views_when_testing", []),
]


#: Those whose figure README or a notebook shows.
DRAWN = (
    "usual_loop",
    "unfreezing",
    "photographs",
    "training_images",
    "backbones",
    "exported_models",
    "out_of_distribution",
)


def as_a_script(command: list[str], log: Path) -> None:
    """``python COMMAND > LOG`` in this process, which does nothing else."""
    sys.stdout = sys.stderr = log.open("w", encoding="utf-8", buffering=1)
    for stream in (1, 2):
        os.dup2(sys.stdout.fileno(), stream)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")


def run(name: str, arguments: list[str], folder: Path) -> tuple[dict, np.ndarray | None]:
    """(what the benchmark wrote, its picture if it draws one); leaves nothing behind but its words in ``folder``.

    Most of a script's seconds would be imports. So where that can be done a server imports once what they all need, and
    each script runs in a copy of it.
    """
    kept = ROOT / "data" / "cache" / f"{name}-smoke"
    shutil.rmtree(kept, ignore_errors=True)  # finished trainings would be read instead of repeated
    context = get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(["torchvision", "fmnist_utils.recipes", "fmnist_utils.plots"])
    command = [str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
    process = context.Process(target=as_a_script, args=(command, folder / "log"))
    process.start()
    process.join(600)
    process.kill()
    process.join()
    said = (folder / "log").read_text(encoding="utf-8")
    assert process.exitcode == 0, said[-3000:]
    said, _, place = said.splitlines()[-1].partition(" ")
    assert said == "wrote"
    file = ROOT / place
    figure = file.parents[1] / "figures" / f"{file.stem}.png"
    try:
        assert file.name == f"{name}{''.join(arguments).replace('--', '_')}-smoke.json"
        assert figure.is_file() == (name in DRAWN and not arguments)
        picture = np.asarray(Image.open(figure).convert("RGB")) if figure.is_file() else None
        return json.loads(file.read_text(encoding="utf-8")), picture
    finally:
        file.unlink()
        figure.unlink(missing_ok=True)
        shutil.rmtree(kept, ignore_errors=True)


def numbers_in(found) -> list[float]:
    if isinstance(found, dict | list):
        inner = found.values() if isinstance(found, dict) else found
        return [number for value in inner for number in numbers_in(value)]
    return [found] if isinstance(found, float) else []


@pytest.mark.parametrize(("name", "arguments"), SCRIPTS)
def test_benchmark_runs_and_its_file_is_complete(name, arguments, tmp_path):
    found, picture = run(name, arguments, tmp_path)
    assert {"setting", "unit", "hardware", "versions", "date"} <= found.keys()
    assert found["ours"] > 0 and found["reference"] > 0
    assert found["hardware"]["device"] == "cpu"
    assert all(math.isfinite(number) for number in numbers_in(found))
    if picture is not None:
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20  # not an empty page
    globals().get(f"check_{name}", lambda _: None)(found)


def check_ingredients(found: dict) -> None:
    rows = pd.DataFrame(found["variants"]).set_index("variant")
    shutil.rmtree(ROOT / "runs" / "benchmarks" / "ingredients-smoke")
    np.testing.assert_allclose(rows.val_accuracy, [np.mean(seeds) for seeds in rows.by_seed], atol=1e-4)
    single = rows.drop(index="together")
    assert single.added.tolist() == [[], *([name] for name in single.index[1:])]
    mixing = single.val_accuracy[["mixup", "cutmix", "mixup-or-cutmix"]]
    others = single.index.drop(["plain", *mixing.index])
    better = {name for name in (mixing.idxmax(), *others) if rows.val_accuracy[name] > rows.val_accuracy["plain"]}
    assert set(rows.added["together"]) == better
    assert found["chosen"] == rows.added[rows.val_accuracy.idxmax()]


def check_int8_accuracy(found: dict) -> None:
    rows = pd.DataFrame(found["ways"]).set_index("way")
    assert len(rows) == 5 and rows.calibration_images["float32"] == 0
    np.testing.assert_allclose(rows.val_accuracy, [np.mean(seeds) for seeds in rows.by_seed], rtol=1e-3)
    gain = 100 * (rows.val_accuracy - rows.val_accuracy["float32"]).drop("float32")
    np.testing.assert_allclose(rows.difference_points.drop("float32"), gain, atol=0.01)
    spent = rows.preparation_seconds + rows.pass_seconds + rows.training_seconds
    np.testing.assert_allclose(rows.total_seconds, spent, rtol=1e-3)
    np.testing.assert_allclose(rows.times_the_usual_loop * spent, found["usual_loop_seconds"], rtol=1e-3)


def check_mean_of_models(found: dict) -> None:
    labels = data.train_val_split(data.load("train"))[1].labels.numpy()
    recorded = {row["model"]: load_predictions(row["model"], "val") for row in found["models"]}

    def accuracy(names) -> float:
        return (np.mean([recorded[name] for name in names], 0).argmax(1) == labels).mean()

    singles = {name: accuracy([name]) for name in recorded}
    assert all(row["val_accuracy"] == pytest.approx(singles[row["model"]], abs=1e-4) for row in found["models"])
    assert singles[found["chosen"][0]] == max(singles.values())
    reached = [accuracy(found["chosen"][:count]) for count in range(1, len(found["chosen"]) + 1)]
    assert reached == sorted(set(reached)) and found["val_accuracy"] == pytest.approx(reached[-1], abs=1e-4)
    assert all(accuracy([*found["chosen"], name]) <= reached[-1] for name in recorded)
    low, high = found["test"]["interval"]
    assert low < found["test"]["accuracy"] < high
    gain = (found["mcnemar_only_a"] - found["mcnemar_only_b"]) / found["test_images"]
    assert 100 * gain == pytest.approx(found["ours"] - found["reference"], abs=0.011)


def check_views_when_testing(found: dict) -> None:
    for model in found["models"]:
        rows = pd.DataFrame(model["validation"]).set_index("way")
        assert rows.views.tolist() == [1, 2, 5, 10]
        assert model["chosen"] == rows.accuracy.idxmax()  # the first of equals has the fewest views
        gain = (rows.mcnemar_only_a - rows.mcnemar_only_b) / found["val_images"]
        np.testing.assert_allclose(rows.accuracy - rows.accuracy["as it is"], gain, atol=1e-4)


def check_prefix_engine(found: dict) -> None:
    engines = pd.DataFrame(found["engines"])
    assert len(engines) == 5 and (engines.images_per_second > 0).all()
    # Four 3×3 convolutions of VGG16 at 28 and 14 px, two operations a product.
    layers = [(28, 3, 64), (28, 64, 64), (14, 64, 128), (14, 128, 128)]
    flops = sum(2 * 9 * side**2 * inputs * outputs for side, inputs, outputs in layers)
    assert engines.gflop_per_image[0] == pytest.approx(flops / 1e9, abs=1e-3)
    assert engines.weights[0].startswith("imagenet:")
    assert 0 <= found["accuracy"]["int8_accuracy"] <= 1


def check_usual_loop(found: dict) -> None:
    cases = pd.DataFrame(found["cases"]).set_index("case")
    assert len(cases) == 5
    assert cases.weights[cases.model == "vgg16"].str.startswith("imagenet:").all()
    # Same images, order, initial values and dropout: what differs is rounding, of losses near 200 for maps that no
    # deeper block has scaled down.
    assert (cases.largest_val_loss_difference / cases.usual_last_val_loss).dropna().max() < 0.02
    ratio = cases.usual_total_seconds / cases.ours_total_seconds
    np.testing.assert_allclose(cases.speedup_total, ratio, rtol=1e-3)


def check_cost_growth(found: dict) -> None:
    points = pd.DataFrame(found.get("points", []))
    if len(points):  # not of --large
        block3 = points[(points.cut_after == "block3") & (points.image_size == 28)]
        np.testing.assert_allclose(block3.cache_mb, block3.images * 256 * 3 * 3 * 2 / 1e6, rtol=0.02, atol=1e-3)


def check_speed_run(found: dict) -> None:
    runs, goals = pd.DataFrame(found["runs"]), pd.DataFrame(found["goals"]).set_index("target")
    for target, group in runs.groupby("target"):
        assert goals.accuracy_mean[target] == pytest.approx(group.accuracy.mean(), abs=1e-3)
        assert goals.above_target[target] == (group.accuracy >= target).sum()


def check_training_images(found: dict) -> None:
    trainings = pd.DataFrame(found["trainings"])
    assert set(trainings.groupby("way").size()) == {4}  # two numbers of images, two seeds
    for point in found["points"]:
        own = trainings[(trainings.way == point["way"]) & (trainings.images == point["images"])].test_accuracy
        assert point["mean"] == pytest.approx(sum(own) / 2, abs=1e-4)
        assert point["sd"] == pytest.approx(abs(own.iloc[0] - own.iloc[1]) / math.sqrt(2), abs=1e-4)
    assert (trainings.weights != "none").equals(trainings.way.str.contains("ImageNet"))
    assert ("ResNet50, ImageNet features" in set(trainings.way)) != bool(found["left_out"])


def check_backbones(found: dict) -> None:
    from torchvision.models import vgg16

    rows = pd.DataFrame(found["networks"]).set_index("network")
    if "WRN-16-4 from scratch" in rows.index:  # --scratch
        # Zagoruyko and Komodakis (2016, table 4) count 2.7 million.
        assert len(rows) == 2 and (rows.weights == "none").all()
        assert rows.million_parameters["WRN-16-4 from scratch"] == pytest.approx(2.7, abs=0.05)
        return
    assert (rows.weights == "none").equals(rows.index.to_series() == "small CNN from scratch")
    assert ("SqueezeNet 1.1" in rows.index) != bool(found["left_out"])
    convolutions = sum(p.numel() for p in vgg16().features[:17].parameters())
    head = 2 * 256 * 4 * 4 + (256 * 4 * 4 + 1) * 256 + (256 + 1) * 10  # normalisation, hidden layer, ten logits
    assert rows.million_parameters["VGG16 to block3"] == pytest.approx((convolutions + head) / 1e6, abs=1e-4)
    best = set()
    for row in found["networks"]:
        faster = [r for r in found["networks"] if r["core_ms_per_image"] < row["core_ms_per_image"]]
        if all(r["val_accuracy"] < row["val_accuracy"] for r in faster):
            best.add(row["network"])
    assert set(found["pareto_front"]) == best
    top = rows.loc[rows.val_accuracy.idxmax()]
    assert (top.only_this, top.only_best, top.p_value) == (0, 0, 1)


def check_which_layer(found: dict) -> None:
    rows = pd.DataFrame(found["points"]).set_index(["network", "image_size", "layer"])
    assert rows.loc["pixels"].features.tolist() == [784]
    # Of 32 px five poolings leave 16, 8, 4, 2 and 1; maps larger than 4×4 are averaged.
    vgg = rows.loc["VGG16", 32]
    assert vgg.features.tolist() == 2 * [16 * 64, 16 * 128, 16 * 256, 4 * 512, 512]
    assert vgg.weights.tolist() == 5 * [vgg.weights.iloc[0]] + 5 * ["none"]
    assert not any(rows.loc["ResNet50"].weights == "none") if "ResNet50" in rows.index else found["left_out"]
    np.testing.assert_allclose(rows.val_accuracy, [np.mean(seeds) for seeds in rows.by_seed], rtol=1e-3)
    np.testing.assert_allclose(rows.sd, [np.std(seeds, ddof=1) for seeds in rows.by_seed], rtol=1e-3, atol=1e-6)


def check_search_rate(found: dict) -> None:
    trials = pd.DataFrame(found["trials"])
    assert found["weights"].startswith("imagenet:") and (trials.epochs >= 1).all()
    rates = 60 * len(trials) / trials.cached_end_seconds.iloc[-1], 60 * len(trials) / trials.uncached_seconds.sum()
    np.testing.assert_allclose((found["ours"], found["reference"]), rates, rtol=0.01)


def check_exported_models(found: dict) -> None:
    rows = pd.DataFrame(found["rows"]).set_index(["runtime", "precision"])
    left_out = " ".join(found["left_out"])
    for row in (("PyTorch compiled", "float32"), ("LiteRT", "float32"), ("LiteRT", "int8")):
        assert (row in rows.index) != (row[0] in left_out)
    assert (rows.file_mb > 0).all() and (rows.latency_ms > 0).all() and rows.threads.nunique() == 1
    assert rows.file_mb["ONNX Runtime", "int8"] < rows.file_mb["ONNX Runtime", "float32"] / 3
    assert (rows.xs("float32", level="precision").max_difference < 1e-4).all()
    assert (rows.same_class >= 0.95).all()  # of 100 images
    assert rows.loc[("PyTorch eager", "float32"), ["max_difference", "same_class"]].tolist() == [0, 1]
    gains = (rows.won - rows.lost) / found["test_images"]
    np.testing.assert_allclose(gains, rows.accuracy - rows.accuracy["PyTorch eager", "float32"], atol=1e-4)
    assert all(
        low <= middle <= high for (low, high), middle in zip(rows.latency_ms_range, rows.latency_ms, strict=True)
    )


def check_app_load(found: dict) -> None:
    assert found["errors"] == 0 and found["share_right"] > 0.5
    assert found["prediction_ms"] < min(found["median_ms"].values()) and all(m > 100 for m in found["memory_mb"])
    assert 200 < found["first_page_kb"] < 600 and 2 < found["quality_kb"] < 20  # as Chromium counts: 336 and 4.5


def check_out_of_distribution(found: dict) -> None:
    assert not set(found["chosen_on"]) & set(found["held_out"])
    for table in found["auroc"].values():
        assert table.keys() == {*found["chosen_on"], *found["held_out"]}
        assert all(0 <= value <= 1 for value in numbers_in(table))
    held = [[own[kind] for kind in found["held_out"]] for own in found["auroc"].values()]
    means = [
        np.mean([[kind[score] for kind in own] for own in held])
        for score in ("Mahalanobis distance", "maximum softmax")
    ]
    np.testing.assert_allclose([found["ours"], found["reference"]], 100 * np.array(means), atol=0.01)
    low, high = found["gain_interval"]
    assert low < means[0] - means[1] < high
    # Pixels in random order are no garment for any model.
    assert found["auroc"]["small-cnn"]["shuffled garments"]["Mahalanobis distance"] > 0.9


def test_a_view_is_the_image_moved_and_black_comes_in(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from views_when_testing import moved

    images = data.load("test").images[:3]
    for down, right in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        for mirrored in (False, True):
            expected = np.stack(
                [ndimage.shift(np.fliplr(i) if mirrored else i, (down, right), order=0) for i in images]
            )
            np.testing.assert_array_equal(moved(images, mirrored, (down, right)).numpy(), expected)


def test_record_is_for_the_files_that_the_project_keeps(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["start_up.py", "--record"])
    monkeypatch.setenv("FMNIST_RECORD", "")  # so that the test's end restores it
    import common

    common.options("What is asked?")
    assert os.environ["FMNIST_RECORD"] == "1"


def test_rates_count_calls_and_numbers_keep_five_digits(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import common

    calls = []
    rate = common.per_second(lambda: calls.append(time.sleep(0.01)), 0.1)
    assert 1 < rate <= 100 and len(calls) >= 5  # sleeping never ends early
    numbers = {"a": [np.float32(0.123456), 2, None], "b": (float("nan"), 123456.7, True)}
    kept = common.rounded(numbers)
    assert kept["a"] == [0.12346, 2, None] and math.isnan(kept["b"][0]) and kept["b"][1:] == [123460.0, True]


def check_photographs(found: dict) -> None:
    kinds = found["models"]["small-cnn"]["kinds"]
    assert set(found["held_out"]) < kinds.keys()
    for told in kinds.values():
        count, accuracy = told["accuracy"]["of"], told["accuracy"]["share"]
        wrong = told["wrong_flagged"] or {"share": 1, "of": 0}
        assert wrong["of"] == round(count * (1 - accuracy))
        unflagged = round(wrong["of"] * (1 - wrong["share"]))
        assert told["wrong_and_unflagged"]["share"] == pytest.approx(unflagged / count, abs=1e-4)
        assert told["accuracy"]["low"] <= accuracy <= told["accuracy"]["high"]
    for kind in ("two garments", "nothing, even ground"):  # no answer is right there
        assert kinds[kind]["accuracy"]["share"] == 0 and kinds[kind]["wrong_flagged"]["share"] > 0.8
