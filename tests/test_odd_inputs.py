"""What others pass to `fit`, `predict` and `cache_features`, and what their machines have left in the environment."""

import numpy as np
import pytest
import torch
import torchvision
from torch.utils.data import Subset, TensorDataset

import fmnist_utils
from fmnist_utils.cache import cache_features
from fmnist_utils.data import DataError, FashionMNIST, as_images, make_loader
from fmnist_utils.evaluate import predict
from fmnist_utils.models import build_model
from fmnist_utils.scale.processes import rank_and_count
from fmnist_utils.train import fit

FEW = [3, 0, 44, 129, 7]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


def small_cnn():
    return build_model("small_cnn", weights=None, image_size=12)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: Subset(data, FEW),
        lambda data: Subset(Subset(data, FEW + [1]), range(5)),
        lambda data: TensorDataset(data.images[FEW], data.labels[FEW]),
        lambda data: Subset(TensorDataset(data.images, data.labels), FEW),
    ],
    ids=["Subset", "Subset of a Subset", "TensorDataset", "Subset of a TensorDataset"],
)
def test_wrapped_images_are_the_images_within(wrap, tiny, tiny_val, small_vgg):
    expected = FashionMNIST(tiny.images[FEW], tiny.labels[FEW])
    wrapped = wrap(tiny)
    assert torch.equal(as_images(wrapped).images, expected.images)
    histories = [fit(small_cnn(), d, d, epochs=1, progress=False).drop(columns="seconds") for d in (wrapped, expected)]
    assert histories[0].equals(histories[1])
    for flip in (False, True):
        found, wanted = (predict(small_cnn(), data, mirror=flip) for data in (wrapped, expected))
        np.testing.assert_array_equal(found, wanted)
    features = [cache_features(small_vgg(), data, verbose=False).features for data in (wrapped, expected)]
    assert torch.equal(*features)


def test_a_tensor_is_enough_for_predictions_only(tiny, tiny_val, small_vgg):
    np.testing.assert_array_equal(predict(small_cnn(), tiny.images), predict(small_cnn(), tiny))
    with pytest.raises(DataError, match="A Tensor has no images and labels"):
        fit(small_cnn(), tiny.images, tiny_val, epochs=1)
    with pytest.raises(DataError, match="A Tensor has no images and labels"):
        cache_features(small_vgg(), tiny.images)
    with pytest.raises(DataError, match=r"must be uint8 \[N, 28, 28\] with N >= 1, not torch.float32"):
        predict(small_cnn(), tiny.images / 255)


def test_data_sets_of_another_kind_are_refused(tiny_val, small_vgg, tiny):
    features = cache_features(small_vgg(), tiny.select(FEW), verbose=False)
    for data, kind in (
        (Subset(features, [0]), "Subset of CachedFeatures"),
        (torchvision.datasets.FakeData(3), "FakeData"),
        ([1, 2], "list"),
        (None, "NoneType"),
    ):
        with pytest.raises(DataError, match=f"A {kind} has no images and labels"):
            fit(small_cnn(), data, tiny_val, epochs=1)


@pytest.mark.parametrize("size", [0, -1])
def test_batches_without_images_are_refused(size, tiny, tiny_val, small_vgg):
    for start in (
        lambda: fit(small_cnn(), tiny, tiny_val, epochs=1, batch_size=size),
        lambda: predict(small_cnn(), tiny, batch_size=size),
        lambda: cache_features(small_vgg(), tiny, batch_size=size),
        lambda: make_loader(tiny, size),
    ):
        with pytest.raises(ValueError, match=f"batch_size={size}: a batch needs at least 1 image"):
            start()


def test_single_images_are_learnt_unless_batch_normalisation_forbids_it(tiny, tiny_val):
    plain = build_model("small_cnn", weights=None, image_size=12, head=(0, 1, (16,), False))
    few = tiny.select([0, 1, 2])
    assert len(fit(plain, few, few, epochs=1, batch_size=1, progress=False)) == 1
    assert len(fit(plain, tiny.select([0]), tiny.select([1]), epochs=1, progress=False)) == 1
    for data, size in ((few, 1), (tiny.select([0]), 64)):
        with pytest.raises(ValueError, match="batch normalisation, which cannot learn from batches of one image"):
            fit(small_cnn(), data, few, epochs=1, batch_size=size, progress=False)


def test_one_image_or_many_make_the_same_predictions(tiny):
    model = small_cnn()
    alone = np.concatenate([predict(model, tiny.select([i])) for i in FEW])
    np.testing.assert_allclose(alone, predict(model, tiny.select(FEW), batch_size=1), atol=1e-6)
    np.testing.assert_allclose(alone, predict(model, tiny.select(FEW)), atol=1e-5)


@pytest.mark.parametrize("compiler", ["none", "broken"])
def test_training_goes_on_without_a_compiler_that_works(compiler, tiny, tiny_val, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    expected = fit(small_cnn(), tiny, tiny_val, epochs=1, progress=False)
    if compiler == "none":
        monkeypatch.setattr("fmnist_utils.scale.accelerator.find_compiler", lambda: None)
    else:
        monkeypatch.setattr(torch, "compile", lambda function: lambda x: 1 / 0)
    with pytest.warns(UserWarning, match=r"compile=True is left out, because .*(no C\+\+ compiler|ZeroDivisionError)"):
        history = fit(small_cnn(), tiny, tiny_val, epochs=1, progress=False, compile=True)
    assert history.drop(columns="seconds").equals(expected.drop(columns="seconds"))


@pytest.mark.parametrize("left_over", ["2", "two", ""])
def test_a_left_over_world_size_starts_no_processes(left_over, tiny, tiny_val, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", left_over)
    for name in ("RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.warns(UserWarning, match=f"WORLD_SIZE={left_over} is ignored"):
        assert rank_and_count() == (0, 1)
    assert len(fit(small_cnn(), tiny, tiny_val, epochs=1, progress=False)) == 1


def test_a_space_behind_the_profile_does_not_matter(monkeypatch):
    monkeypatch.setenv("FMNIST_PROFILE", "smoke ")
    assert fmnist_utils.profile() == "smoke"
    monkeypatch.setenv("FMNIST_PROFILE", "  ")
    assert fmnist_utils.profile() in ("cpu", "full")
