"""`fmnist_utils.evaluate` against scikit-learn; profiles."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss

import fmnist_utils
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


def test_images_need_no_labels(small_vgg, tiny):
    model = small_vgg()
    np.testing.assert_array_equal(predict(model, tiny.images), predict(model, tiny))


def test_mirrored_predictions_are_the_mean_over_each_image_and_its_mirror_image(small_vgg, tiny):
    model = small_vgg(augment=Augment(rotation=30))
    mirrored = type(tiny)(torch.from_numpy(np.flip(tiny.images.numpy(), axis=2).copy()), tiny.labels)
    expected = (predict(model, tiny) + predict(model, mirrored)) / 2
    found = predict(model, tiny, mirror=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - predict(model, tiny)).max() > 0.01
    with pytest.raises(ValueError, match="cannot be mirrored"):
        predict(model, cache_features(model, tiny, device="cpu", verbose=False), mirror=True)


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
