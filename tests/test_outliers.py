"""The distance against scikit-learn's, the share against counting, the shipped files against garments and noise."""

import shutil

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from sklearn.covariance import EmpiricalCovariance
from torch import nn

from fmnist_utils import ROOT
from fmnist_utils.checkpoints import load_model, read_card
from fmnist_utils.data import load, train_val_split
from fmnist_utils.evaluate import predict
from fmnist_utils.explain import outliers
from fmnist_utils.results import load_predictions

FOLDER = ROOT / "data" / "models"


@pytest.fixture(scope="module")
def small_cnn():
    return load_model(FOLDER / "small-cnn")


@pytest.fixture(scope="module")
def garments():
    train, val = train_val_split(load("train").subset(900), 300)
    return train, val, load("test").subset(400, seed=5).images


def noise(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_features_are_the_average_of_the_map_and_the_models_logits(small_cnn):
    images = load("test").subset(20).images
    x, logits = outliers.features(small_cnn.train(), images)
    assert small_cnn.training
    small_cnn.eval()
    with torch.no_grad():
        maps = small_cnn.backbone(small_cnn.preprocess(images))
        np.testing.assert_allclose(x, nn.AdaptiveAvgPool2d(1)(maps).flatten(1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(logits, small_cnn(images), rtol=1e-4, atol=1e-4)
    assert x.dtype == logits.dtype == torch.float64


def test_distance_is_that_of_scikit_learn(small_cnn, garments):
    train, val, _ = garments
    detector = outliers.Outliers.fit(small_cnn, train, val)
    x, other = (outliers.features(small_cnn, images)[0].numpy() for images in (train.images, val.images[:30]))
    means = np.stack([x[train.labels == label].mean(0) for label in range(10)])
    covariance = EmpiricalCovariance(assume_centered=True).fit(x - means[train.labels]).covariance_
    covariance += 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    oracle = EmpiricalCovariance()
    oracle.precision_ = np.linalg.inv(covariance)
    expected = []
    for mean in means:
        oracle.location_ = mean
        expected.append(oracle.mahalanobis(other))
    np.testing.assert_allclose(detector.distance(torch.from_numpy(other)), np.min(expected, axis=0), rtol=1e-3)


def test_share_counts_validation_images(small_cnn, garments):
    train, val, _ = garments
    detector = outliers.Outliers.fit(small_cnn, train, val)
    distances = detector.distance(outliers.features(small_cnn, val.images)[0]).numpy()
    found = detector.share_further(small_cnn, val.images)
    assert found.dtype == np.float64 and found.shape == (len(val),)
    np.testing.assert_allclose(found, (distances >= distances[:, None]).mean(1), atol=0.005)
    assert found.min() == pytest.approx(1 / len(val)) and found.max() == 1


def test_certainty_counts_validation_images_as_the_model_answers(small_cnn, garments):
    train, val, test = garments
    for mirror in (False, True):
        detector = outliers.Outliers.fit(small_cnn, train, val, mirror)
        known, asked = (predict(small_cnn, images, mirror=mirror) for images in (val.images, test[:40]))
        below = (known.max(1)[None] <= asked.max(1)[:, None]).mean(1)
        np.testing.assert_allclose(detector.share_less_certain(asked), below, atol=0.005)
        assert detector.share_less_certain(np.full((1, 10), 0.1, np.float32))[0] == 0


@pytest.mark.parametrize("name", ["small-cnn", "wide-resnet-16-4", "vgg16-block3-two-views"])
def test_shipped_file_leaves_the_share_of_test_images_unsure_that_it_promises(name, garments):
    card = read_card(FOLDER / name)
    certain = outliers.load_outliers(FOLDER / name).share_less_certain(load_predictions(f"{card['recipe']}-full"))
    assert (certain < outliers.UNSURE).mean() == pytest.approx(outliers.UNSURE, abs=0.006)


def test_saved_and_loaded_it_says_the_same(small_cnn, garments, tmp_path):
    train, val, test = garments
    for ending in (".json", ".safetensors"):
        shutil.copy(FOLDER / f"small-cnn{ending}", tmp_path)
    path = tmp_path / "small-cnn"
    with pytest.raises(FileNotFoundError, match="fmnist_utils.explain.outliers"):
        outliers.load_outliers(path)
    detector = outliers.Outliers.fit(small_cnn, train, val)
    detector.save(path)
    expected = detector.share_further(small_cnn, test[:50])
    np.testing.assert_array_equal(outliers.load_outliers(path).share_further(small_cnn, test[:50]), expected)
    with (tmp_path / "small-cnn.safetensors").open("ab") as file:
        file.write(b"retrained")
    with pytest.raises(ValueError, match="another"):
        outliers.load_outliers(path)


@pytest.mark.parametrize(
    ("name", "count"), [("small-cnn", 400), ("wide-resnet-16-4", 100), ("vgg16-block3-two-views", 60)]
)
def test_shipped_file_takes_test_images_as_usual_and_noise_as_not(name, count, garments):
    path = FOLDER / name
    assert path.with_name(f"{name}.outliers.safetensors").stat().st_size < 1_000_000
    detector, model = outliers.load_outliers(path), load_model(path)
    usual = detector.share_further(model, garments[2][:count])
    # Uniform from 0 to 1 if the test images come from where the validation images do.
    assert kstest(usual, "uniform").pvalue > 1e-3
    assert (usual < 0.01).mean() < 0.06
    strange = torch.cat([noise(20), 255 - garments[2][:20]])
    assert (detector.share_further(model, strange) < 0.01).mean() > 0.9


@pytest.mark.parametrize(("name", "count"), [("small-cnn", 200), ("vgg16-block3-two-views", 30)])
def test_turned_garments_are_found_and_turned_back(name, count, garments):
    detector, model = outliers.load_outliers(FOLDER / name), load_model(FOLDER / name)
    images = garments[2][:count]
    share, upright, turns = detector.judge(model, images)
    np.testing.assert_array_equal(share, detector.share_further(model, images))
    assert (upright < outliers.TURNED).mean() < 0.06 and ((turns > 0) <= (upright < outliers.TURNED)).all()
    for made in (1, 2, 3):
        _, upright, turns = detector.judge(model, torch.rot90(images, made, (1, 2)).contiguous())
        assert (upright < outliers.TURNED).mean() > 0.8
        assert (turns == 4 - made).mean() > 0.6


def test_margin_is_that_of_discriminant_analysis(small_cnn, garments):
    train, val, _ = garments
    detector = outliers.Outliers.fit(small_cnn, train, val)
    turned = [outliers.features(small_cnn, torch.rot90(train.images, k, (1, 2)))[0].numpy() for k in range(4)]
    labels = train.labels.numpy()
    means = np.stack([[x[labels == label].mean(0) for label in range(10)] for x in turned])
    spread = np.concatenate([x - mean[labels] for x, mean in zip(turned, means, strict=True)])
    covariance = spread.T @ spread / len(spread)
    covariance += 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    x = outliers.features(small_cnn, val.images[:20])[0]
    apart = np.array(
        [[min((v - m) @ np.linalg.solve(covariance, v - m) for m in ten) for ten in means] for v in x.numpy()]
    )
    turn, margin = detector.margin(x)
    np.testing.assert_array_equal(turn, apart[:, 1:].argmin(1) + 1)
    np.testing.assert_allclose(margin, apart[:, 0] - apart[:, 1:].min(1), rtol=1e-2, atol=0.1)


def test_a_file_that_is_none_is_named(tmp_path):
    for ending in (".json", ".safetensors"):
        shutil.copy(FOLDER / f"small-cnn{ending}", tmp_path)
    (tmp_path / "small-cnn.outliers.safetensors").write_bytes(b"junk" * 100)
    with pytest.raises(ValueError, match=r"small-cnn.outliers.safetensors is damaged"):
        outliers.load_outliers(tmp_path / "small-cnn")
