"""`fmnist_utils.evaluate` against scikit-learn, and README against the files under results/."""

import json
import math
import re

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss

import fmnist_utils
from fmnist_utils import ROOT
from fmnist_utils.cache import cache_features
from fmnist_utils.evaluate import (
    accuracy_interval,
    fit_temperature,
    mcnemar,
    predict,
    reliability,
    score,
    with_temperature,
)
from fmnist_utils.preprocess import Augment
from fmnist_utils.results import (
    load_predictions,
    load_results,
    peak_memory_mb,
    results_table,
    save_benchmark,
    save_result,
    with_tables,
    write_text,
)

# The schema of results/*.json: what every recorded run has, and what each nested part of it has.
RESULT_KEYS = {
    *("recipe", "profile", "backbone", "weights", "cut_after", "image_size", "train_images", "epochs", "seeds"),
    *("metrics", "seconds", "peak_memory_mb", "parameters", "history", "hardware", "versions", "date"),
}
BENCHMARK_KEYS = {
    *("name", "profile", "setting", "ours", "reference", "ratio", "unit", "hardware", "versions", "date"),
}
METRICS = {"test_accuracy": 0.912345678, "val_accuracy": 0.92, "train_accuracy": 0.95, "macro_f1": 0.91}
SECONDS = {"prefix_pass": 12.345, "training": 3.0, "evaluation": 0.5, "total": 15.9}


@pytest.fixture
def project(tmp_path):
    """A project folder with a README that has the two markers, and without results."""
    readme = "# Title\n\n<!-- results:start (made by x) -->\nold\n<!-- results:end -->\n\nThe end: 100%.\n"
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    return tmp_path


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def record(project, model, recipe="vgg16-frozen", **changes):
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [1.5, 0.5], "val_accuracy": [0.8, 0.9]}).set_index("epoch")
    settings = {"train_images": 1000, "history": history, "metrics": METRICS, "seconds": SECONDS}
    return save_result(recipe, model, folder=project / "results", **settings | changes)


# ---------------------------------------------------------------------------------------------- predictions, metrics


def test_score_of_a_case_worked_out_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], dtype=np.float32)
    found = score(probabilities, torch.tensor([0, 1, 1, 2]))
    assert found["accuracy"] == 3 / 4
    # F1: class 0 has one hit and one false alarm, class 1 one hit and one miss, class 2 only its hit.
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found["loss"] == pytest.approx(-np.log([0.7, 0.8, 0.3, 0.6]).mean(), rel=1e-6)


def test_predictions_are_the_softmax_of_the_logits_whatever_the_batches(small_vgg, tiny):
    model = small_vgg()
    with torch.no_grad():
        logits = model(tiny.images).double().numpy()
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    model.train()  # predict must switch dropout off itself
    found = predict(model, tiny, batch_size=64)
    assert found.dtype == np.float32 and found.shape == (130, 10)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    scored = score(found, tiny.labels)
    assert scored["accuracy"] == accuracy_score(tiny.labels, expected.argmax(1))
    assert scored["macro_f1"] == pytest.approx(f1_score(tiny.labels, expected.argmax(1), average="macro"))
    assert scored["loss"] == pytest.approx(log_loss(tiny.labels, expected, labels=range(10)), rel=1e-5)


def test_predictions_on_features_are_those_on_images(small_vgg, tiny):
    model = small_vgg()
    features = cache_features(model, tiny, device="cpu", verbose=False)
    # float16 rounds the features to 2**-11 of their value.
    np.testing.assert_allclose(predict(model, features), predict(model, tiny), atol=5e-3)


def test_predictions_on_several_views_are_their_mean(small_vgg, tiny):
    model = small_vgg(augment=Augment(flip=1.0))
    features = cache_features(model, tiny, views=2, device="cpu", verbose=False)
    mirrored = type(tiny)(tiny.images.flip(-1), tiny.labels)
    expected = (predict(model, tiny) + predict(model, mirrored)) / 2
    np.testing.assert_allclose(predict(model, features), expected, atol=5e-3)


def test_predictions_with_flip_are_the_mean_over_each_image_and_its_mirror_image(small_vgg, tiny):
    model = small_vgg(augment=Augment(rotation=30))
    mirrored = type(tiny)(torch.from_numpy(np.flip(tiny.images.numpy(), axis=2).copy()), tiny.labels)
    expected = (predict(model, tiny) + predict(model, mirrored)) / 2
    found = predict(model, tiny, flip=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - predict(model, tiny)).max() > 0.01
    with pytest.raises(ValueError, match="cannot be mirrored"):
        predict(model, cache_features(model, tiny, device="cpu", verbose=False), flip=True)


# ----------------------------------------------------------------------------------- intervals, comparison, calibration


@pytest.mark.parametrize(("correct", "count"), [(0, 50), (50, 50), (37, 50), (9412, 10_000)])
def test_interval_is_wilsons(correct, count):
    z, p = 1.959963984540054, correct / count  # the 97.5% point of the normal distribution
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    np.testing.assert_allclose(accuracy_interval(correct, count), (centre - half, centre + half), atol=1e-9)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (5, 5), (1, 8), (12, 3), (60, 95)])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    correct_a = np.array([True] * 20 + [False] * 7 + [True] * only_a + [False] * only_b)
    correct_b = np.array([True] * 20 + [False] * 7 + [False] * only_a + [True] * only_b)
    # Twice the smaller tail of tossing a fair coin once per image that only one model gets right.
    n, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    found = mcnemar(correct_a, correct_b)
    assert (found["only_a"], found["only_b"]) == (only_a, only_b)
    assert found["p_value"] == pytest.approx(min(1, 2 * tail), rel=1e-9)


def overconfident(count: int, factor: float) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """(probabilities whose logits are `factor` times too large, the true ones, labels drawn from the true ones)."""
    generator = np.random.default_rng(0)
    logits = 1.5 * generator.normal(size=(count, 10))

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(1, keepdims=True)

    true = softmax(logits)
    labels = (generator.random((count, 1)) > true.cumsum(1)).sum(1)
    return softmax(factor * logits), true, torch.from_numpy(labels)


@pytest.mark.parametrize("bins", [15, 4])
def test_calibration_error_is_that_of_a_plain_loop(bins):
    probabilities, _, labels = overconfident(500, 2.0)
    # Confidences of exactly 1, and exactly on a border between bins, too.
    probabilities[0], probabilities[1] = np.eye(10)[3], [0.5, 0.5, *[0] * 8]
    expected, rows = 0.0, []
    for i in range(bins):
        chosen = [k for k in range(500) if i / bins < probabilities[k].max() <= (i + 1) / bins]
        if chosen:
            confidence = sum(probabilities[k].max() for k in chosen) / len(chosen)
            accuracy = sum(probabilities[k].argmax() == int(labels[k]) for k in chosen) / len(chosen)
            expected += len(chosen) / 500 * abs(confidence - accuracy)
            rows.append([confidence, accuracy, len(chosen)])
    table, error = reliability(probabilities, labels, bins)
    assert error == pytest.approx(expected, rel=1e-9) and error > 0.05
    np.testing.assert_allclose(table[["confidence", "accuracy", "count"]], rows)


@pytest.mark.parametrize("factor", [2.5, 0.6])
def test_temperature_is_found_again_and_is_the_best_of_a_fine_grid(factor):
    probabilities, true, labels = overconfident(3000, factor)
    found = fit_temperature(probabilities, labels)
    assert found == pytest.approx(factor, rel=0.06)

    def loss(temperature: float) -> float:
        powers = probabilities ** (1 / temperature)
        return -np.log(powers[np.arange(3000), labels] / powers.sum(1)).mean()

    grid = factor * np.linspace(0.9, 1.1, 401)
    assert found == pytest.approx(grid[np.argmin([loss(t) for t in grid])], abs=2 * (grid[1] - grid[0]))
    np.testing.assert_allclose(with_temperature(probabilities, factor), true, atol=1e-6)


def test_temperature_is_scikit_learns():
    frozen = pytest.importorskip("sklearn.frozen")
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV

    class Logits(ClassifierMixin, BaseEstimator):
        classes_ = np.arange(10)

        def fit(self, X, y):
            return self

        def __sklearn_is_fitted__(self):
            return True

        def decision_function(self, X):
            return X

        def predict(self, X):
            return X.argmax(1)

    probabilities, _, labels = overconfident(1000, 2.0)
    logits = np.log(probabilities)
    calibrated = CalibratedClassifierCV(frozen.FrozenEstimator(Logits()), method="temperature", ensemble=False)
    if "temperature" not in calibrated._parameter_constraints["method"][0].options:
        pytest.skip("scikit-learn has it from version 1.8 on")
    expected = calibrated.fit(logits, labels.numpy()).predict_proba(logits)
    found = with_temperature(probabilities, fit_temperature(probabilities, labels))
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_changes_confidences_and_no_prediction(temperature):
    probabilities, _, _ = overconfident(300, 3.0)
    found = with_temperature(probabilities.astype(np.float32), temperature)
    np.testing.assert_array_equal(found.argmax(1), probabilities.argmax(1))
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-9)
    change = (found.max(1) - probabilities.max(1))[probabilities.max(1) < 0.99]
    assert {0.3: (change > 0).all(), 1.0: np.abs(change).max() < 1e-6, 4.0: (change < 0).all()}[temperature]


def test_peak_memory_is_at_least_what_the_process_has_now():
    now = psutil.Process().memory_info().rss / 1e6
    assert 0.9 * now < peak_memory_mb() < 100_000
    block = np.ones(60_000_000, dtype=np.uint8)
    assert peak_memory_mb() >= 0.9 * (now + 60)
    del block


# ----------------------------------------------------------------------------------------------------- result files


def test_result_has_exactly_the_keys_of_the_schema(small_vgg, project):
    model = small_vgg()
    path = record(project, model, seeds=(0, 1))
    assert path == project / "results" / "vgg16-frozen-smoke.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    assert set(result) == RESULT_KEYS | {"mflops_per_image", "weights_origin"}  # which older runs do not have
    assert set(result["parameters"]) == {"total", "trainable"} and {"device", "cpu", "cores"} <= set(result["hardware"])
    assert {"python", "torch", "numpy"} <= set(result["versions"])
    assert result["metrics"] == METRICS | {"test_accuracy": 0.91235}
    assert result["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert result["parameters"]["trainable"] == sum(p.numel() for p in model.head.parameters())
    assert result["weights"] == model.weights and re.fullmatch(r"imagenet:[0-9a-f]{12}", model.weights)
    assert (result["profile"], result["backbone"], result["cut_after"]) == ("smoke", "vgg16", "block1")
    assert (result["image_size"], result["train_images"], result["epochs"], result["seeds"]) == (32, 1000, 2, [0, 1])
    assert result["history"] == [
        {"epoch": 1, "train_loss": 1.5, "val_accuracy": 0.8},
        {"epoch": 2, "train_loss": 0.5, "val_accuracy": 0.9},
    ]


def test_second_run_replaces_the_first_and_a_failed_one_does_not(small_vgg, project):
    model = small_vgg()
    path = record(project, model)
    assert record(project, model, train_images=2000) == path
    assert json.loads(path.read_text())["train_images"] == 2000
    with pytest.raises(TypeError):
        record(project, model, note=object())
    assert json.loads(path.read_text())["train_images"] == 2000
    assert names_in(path.parent) == [path.name]


def test_smoke_runs_leave_the_readme_alone(small_vgg, project):
    before = (project / "README.md").read_bytes()
    record(project, small_vgg())
    assert (project / "README.md").read_bytes() == before
    assert load_results(project / "results").empty


def test_recorded_runs_appear_in_the_readme_between_the_markers_best_first(small_vgg, project, monkeypatch):
    monkeypatch.setenv("FMNIST_PROFILE", "cpu")
    model = small_vgg()
    record(project, model, "worse", metrics=METRICS | {"test_accuracy": 0.85})
    record(project, model, "better")
    readme = (project / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("# Title\n\n<!-- results:start (made by x) -->\n| run |")
    assert readme.endswith("|\n<!-- results:end -->\n\nThe end: 100%.\n")
    assert readme.index("`better-cpu`") < readme.index("`worse-cpu`")
    assert "91.23%" in readme and "85.00%" in readme and "old" not in readme
    assert names_in(project) == ["README.md", "results"]
    assert list(load_results(project / "results")["metrics.test_accuracy"]) == [0.91235, 0.85]
    assert with_tables(readme, project / "results") == readme


def test_runs_of_several_seeds_show_their_deviation(small_vgg, project, monkeypatch):
    monkeypatch.setenv("FMNIST_PROFILE", "cpu")
    record(project, small_vgg(), seeds=(0, 1, 2), metrics=METRICS | {"test_accuracy_sd": 0.00123})
    assert "| 91.23% ± 0.12 (3 seeds) |" in results_table(project / "results")


def test_predictions_of_a_run_return_within_the_precision_of_float16(small_vgg, project):
    probabilities, true, _ = overconfident(200, 4.0)
    path = record(project, small_vgg(), predictions={"val": true[:50], "test": probabilities.astype(np.float32)})
    for split, expected in (("val", true[:50]), ("test", probabilities)):
        found = load_predictions(path.stem, split, folder=project / "results")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
        # A logarithm is off by 2**-11 of itself at most, and -p log p is never above 0.37; so is what scales the sum.
        np.testing.assert_allclose(found, expected, atol=1e-3)
        np.testing.assert_allclose(found, expected, rtol=0.02, atol=1.1e-12)  # 2**-11 of 27; nothing below 1e-12
    assert names_in(project / "results" / "predictions") == ["vgg16-frozen-smoke.npz"]
    assert names_in(path.parent) == ["predictions", path.name]


def test_missing_predictions_are_an_error_that_names_those_there_are(small_vgg, project):
    folder = project / "results"
    with pytest.raises(FileNotFoundError, match="'small-cnn-full'.*there are: none"):
        load_predictions("small-cnn-full", folder=folder)
    for recipe in ("b", "a"):
        record(project, small_vgg(), recipe, predictions={"test": np.full((2, 10), 0.1)})
    with pytest.raises(FileNotFoundError, match="there are: a-smoke, b-smoke"):
        load_predictions("small-cnn-full", folder=folder)
    with pytest.raises(ValueError, match="split='tset' is not known. Did you mean 'test'"):
        load_predictions("a-smoke", "tset", folder=folder)


def test_benchmarks_appear_in_the_readme_and_smoke_ones_do_not(project, monkeypatch):
    (project / "README.md").write_text("<!-- benchmarks:start -->\nold\n<!-- benchmarks:end -->\n", encoding="utf-8")
    settings = {"reference": 3.0, "unit": "images/s", "folder": project / "results"}
    save_benchmark("skipped", setting="few", ours=1.0, **settings)
    monkeypatch.setenv("FMNIST_PROFILE", "cpu")
    save_benchmark("engine", setting="VGG16", ours=12345.678, **settings)
    assert (project / "README.md").read_text(encoding="utf-8").splitlines()[1:-1] == [
        "| benchmark | ours | against | | what was measured |",
        "|---|---:|---:|---|---|",
        "| [`engine-cpu`](results/benchmarks/engine-cpu.json) | 12,346 | 3 | images/s | VGG16 |",
    ]


def test_readme_without_markers_stays_as_it_is(project):
    assert with_tables("# Title\n", project / "results") == "# Title\n"


def test_no_results_make_an_empty_table(project):
    assert load_results(project / "results").empty
    assert len(results_table(project / "results").splitlines()) == 2


def test_benchmark_has_exactly_the_keys_of_the_schema(project):
    path = save_benchmark(
        "pipeline", setting="64 px", ours=300.0, reference=40.0, unit="images/s", folder=project / "results"
    )
    assert path == project / "results" / "benchmarks" / "pipeline-smoke.json"
    benchmark = json.loads(path.read_text(encoding="utf-8"))
    assert set(benchmark) == BENCHMARK_KEYS
    assert (benchmark["ours"], benchmark["reference"], benchmark["ratio"]) == (300.0, 40.0, 7.5)
    assert load_results(project / "results", profiles=["smoke"]).empty  # benchmarks are no runs


# ------------------------------------------------------------------------------------------------------- profiles


@pytest.mark.parametrize(("name", "expected"), [("smoke", 1), ("cpu", 2), ("full", 3)])
def test_profile_picks_the_value(monkeypatch, name, expected):
    monkeypatch.setenv("FMNIST_PROFILE", name)
    assert fmnist_utils.profile() == name
    assert fmnist_utils.pick(smoke=1, cpu=2, full=3) == expected


@pytest.mark.parametrize(("gpu", "expected"), [(True, "full"), (False, "cpu")])
def test_profile_without_the_variable_depends_on_the_hardware(monkeypatch, gpu, expected):
    monkeypatch.delenv("FMNIST_PROFILE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert fmnist_utils.profile() == expected


def test_unknown_profile_is_refused(monkeypatch):
    monkeypatch.setenv("FMNIST_PROFILE", "quick")
    with pytest.raises(ValueError, match="'quick' is not a profile: set it to one of smoke, cpu, full"):
        fmnist_utils.profile()
    with pytest.raises(ValueError, match="quick"):
        fmnist_utils.pick(smoke=1, cpu=2, full=3)


def test_every_profile_has_to_be_given_a_value():
    with pytest.raises(TypeError):
        fmnist_utils.pick(smoke=1, cpu=2)


# --------------------------------------------------------------------------------------------- README and results/

# Accuracies that others measured, and where they say so.
CITED = {
    "83.5": "people, according to the data set's README (github.com/zalandoresearch/fashion-mnist)",
    "93.5": "VGG16, same source",
    "94.9": "ResNet18, same source",
    "96.35": "WRN-28-10 with random erasing: Zhong et al. (2017), arXiv:1708.04896",
    "96.91": "fine-tuned DARTS: Tanveer et al. (2020), arXiv:2006.09042",
}


def recorded_accuracies(folder) -> list[float]:
    """Everything under results/ that is named an accuracy or F1, in metrics or anywhere but the epochs' history."""
    found = []

    def collect(value, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key != "history":
                    collect(inner, name if "accurac" in name else key)
        elif isinstance(value, list):
            for inner in value:
                collect(inner, name)
        elif isinstance(value, float) and ("accurac" in name or "f1" in name or name == "mean"):
            found.append(value)

    for path in sorted(folder.rglob("*.json")):
        if not path.stem.endswith("-smoke"):
            collect(json.loads(path.read_text(encoding="utf-8")), "")
    return found


def unsupported_accuracies(readme: str, recorded: list[float]) -> list[str]:
    """The percentages from 70 up to but without 100 in prose that no recorded number gives when rounded alike."""
    prose = re.sub(r"<!-- results:start.*?<!-- results:end -->", "", readme, flags=re.DOTALL)
    prose = re.sub(r"<[^>]*>", "", prose)  # widths of images
    unsupported = []
    # Both ends of a range such as 93-94% are accuracies.
    for match in re.finditer(r"(?<![\d.])((?:\d+(?:\.\d+)?\s*(?:-|–|to|and|or)\s*)?\d+(?:\.\d+)?)\s*%", prose):
        for text in re.findall(r"\d+(?:\.\d+)?", match[1]):
            decimals = len(text.partition(".")[2])
            supported = any(f"{100 * value:.{decimals}f}" == text for value in recorded)
            if 70 <= float(text) < 100 and not supported and text not in CITED:
                unsupported.append(text)
    return unsupported


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("We reach 94.4% with two views.", []),
        ("We reach 94.5% with two views.", ["94.5"]),
        ("It is 94.41 % or 94%, people have 83.5%.", []),
        ("94.42% and 93-94 %", ["94.42", "93"]),
        ('57% of the time, 100% offline <img width="80%">', []),
        ("<!-- results:start -->\n| 77.77% |\n<!-- results:end -->", []),
    ],
)
def test_invented_accuracies_would_be_noticed(readme, expected):
    assert unsupported_accuracies(readme, [0.94412, 0.5]) == expected


def test_accuracies_are_collected_from_metrics_and_not_from_histories(tmp_path):
    run = {
        "metrics": {"test_accuracy": 0.9, "macro_f1": 0.8},
        "seconds": {"total": 0.7},
        "history": [{"accuracy": 0.6}],
    }
    run["class_accuracies"] = {"Shirt": 0.75, "Bag": [0.99]}
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "a-cpu.json").write_text(json.dumps(run))
    (tmp_path / "b-smoke.json").write_text(json.dumps({"metrics": {"test_accuracy": 0.1}}))
    assert recorded_accuracies(tmp_path) == [0.9, 0.8, 0.75, 0.99]


def test_readme_shows_the_recorded_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.findall("<!-- results:start", readme)) == len(re.findall("<!-- results:end -->", readme)) == 1
    assert with_tables(readme) == readme, "run python -m fmnist_utils.results"


def test_readme_claims_no_accuracy_that_is_not_recorded():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert unsupported_accuracies(readme, recorded_accuracies(ROOT / "results")) == []


def test_files_and_figures_that_the_readme_shows_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"", readme)
    local = [target for pair in targets for target in pair if target and "://" not in target]
    assert local and [target for target in local if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.name)
def test_every_recorded_run_follows_the_schema(path):
    run = json.loads(path.read_text(encoding="utf-8"))
    assert set(run) >= RESULT_KEYS
    assert path.name == f"{run['recipe']}-{run['profile']}.json"
    assert run["weights"] == "none" or re.fullmatch(r"imagenet:[0-9a-f]{12}", run["weights"])
    assert 0 < run["metrics"]["test_accuracy"] < 1 and len(run["history"]) == run["epochs"]


def test_result_files_are_written_beside_and_moved(project, monkeypatch, small_vgg):
    """Somebody who reads while a run is being recorded must never see half a file."""
    path = record(project, small_vgg())
    before = path.read_bytes()

    def disk_full(self, *arguments, **settings):
        self.write_bytes(b'{"recipe": "vgg')
        raise OSError("No space left on device")

    monkeypatch.setattr(type(path), "write_text", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "{}")
    assert path.read_bytes() == before and names_in(path.parent) == [path.name]
