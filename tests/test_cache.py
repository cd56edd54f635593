"""`fmnist_utils.cache` against torchvision's own forward pass on the same images."""

import gc
import pickle
import sys
import weakref

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from safetensors.torch import load_file
from torchvision.models import vgg16

from fmnist_utils import ROOT
from fmnist_utils.cache import CachedFeatures, PrefixPass, cache_features
from fmnist_utils.data import FashionMNIST
from fmnist_utils.models import build_model, set_trainable
from fmnist_utils.preprocess import VGG_ORIGINAL_STATS, Augment
from fmnist_utils.scale import engines, passes, storage
from fmnist_utils.scale.engines import find_compiler

POOL = 2  # the side to which small_vgg's head, and so the frozen part in front of it, pools


@pytest.fixture(scope="module")
def torchvision_block1() -> torch.nn.Sequential:
    features = vgg16(weights=None, init_weights=False).features
    path = ROOT / "data" / "weights" / "vgg16_imagenet_features.safetensors"
    features.load_state_dict({k.removeprefix("features."): v.float() for k, v in load_file(path).items()})
    return features[:5].eval()


@pytest.fixture(scope="module")
def expected_features(torchvision_block1):
    """Maps images uint8 [N, 28, 28] to what small_vgg's frozen layers should make of them, by torchvision alone."""

    @torch.no_grad()
    def compute(images: torch.Tensor, mirrored: bool = False) -> torch.Tensor:
        rgb = TF.resize(images[:, None] / 255, [32, 32], antialias=True).expand(-1, 3, -1, -1)
        inputs = TF.normalize(TF.hflip(rgb) if mirrored else rgb, *VGG_ORIGINAL_STATS)
        return F.adaptive_avg_pool2d(torchvision_block1(inputs), POOL).flatten(1)

    return compute


def cached(model, dataset, **settings) -> CachedFeatures:
    return cache_features(model, dataset, **{"device": "cpu", "verbose": False} | settings)


def assert_close_in_float16(found: torch.Tensor, expected: torch.Tensor) -> None:
    # float16 has 11 significant bits: rounding is off by at most 2**-11 of the value.
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=2e-5 * float(expected.max()))


# --------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("batch_size", [64, 130, 1000], ids=["ragged last batch", "one batch", "more than there is"])
def test_features_are_torchvisions(small_vgg, tiny, expected_features, batch_size):
    found = cached(small_vgg(), tiny, batch_size=batch_size)
    assert_close_in_float16(found.features[0], expected_features(tiny.images))
    assert len(found) == len(tiny) and torch.equal(found.labels, tiny.labels)
    assert (found.report.images, found.report.engine, found.report.reused) == (130, "eager", False)
    assert found.report.bytes == found.features.numel() * 2


def test_batches_pair_features_with_their_labels(small_vgg, tiny):
    found = cached(small_vgg(), tiny)
    features, labels = found.__getitems__([5, 3, 5])
    assert torch.equal(features, found.features[0, [5, 3, 5]]) and torch.equal(labels, tiny.labels[[5, 3, 5]])
    feature, label = found[3]
    assert torch.equal(feature, features[1]) and label == int(labels[1])


def test_second_view_of_certain_flips_is_the_mirror_image(small_vgg, tiny, expected_features):
    found = cached(small_vgg(augment=Augment(flip=1.0)), tiny, views=2, batch_size=50)
    assert found.features.shape[:2] == (2, 130)
    assert_close_in_float16(found.features[0], expected_features(tiny.images))
    assert_close_in_float16(found.features[1], expected_features(tiny.images, mirrored=True))


def test_batches_mix_the_views_and_evaluation_sees_the_plain_one(small_vgg, tiny):
    found = cached(small_vgg(augment=Augment(flip=1.0)), tiny, views=2)
    rows = list(range(len(tiny)))
    torch.manual_seed(0)
    batch, _ = found.__getitems__(rows)
    from_first, from_second = ((batch == view).all(1) for view in found.features)
    assert (from_first | from_second).all()
    assert 30 < from_first.sum() < 100  # of 130, one view being as likely as the other
    assert torch.equal(found.view(0).__getitems__(rows)[0], found.features[0])


def test_random_views_follow_the_seed_and_leave_the_global_generator_alone(small_vgg, tiny):
    model = small_vgg(augment=Augment(rotation=20)).train()
    before = torch.get_rng_state()
    first, again, other = (cached(model, tiny, views=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.features[0], other.features[0])
    assert not torch.equal(first.features[1], other.features[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


# ----------------------------------------------------------------------------------------------------------- keys


def other_weights(model):
    with torch.no_grad():
        model.backbone[0][0].weight[0, 0, 0, 0] += 1e-3
    return model


def test_key_is_the_same_for_the_same_computation(small_vgg, tiny):
    same_part = {"head": (0, POOL, (64, 32), True), "dropout": 0.1, "seed": 7}
    first, second = cached(small_vgg(), tiny), cached(small_vgg(**same_part), tiny)
    assert (first.key, first.prefix_key) == (second.key, second.prefix_key)


@pytest.mark.parametrize(
    "change",
    [
        lambda build, data: (other_weights(build()), data, {}),
        lambda build, data: (build(weights=None, trainable="head"), data, {}),
        lambda build, data: (build(image_size=28), data, {}),
        lambda build, data: (build(cut_after="block2"), data, {}),
        lambda build, data: (build(trainable=3), data, {}),
        lambda build, data: (build(), data.subset(129), {}),
        lambda build, data: (build(), data.select(range(129, -1, -1)), {}),
        lambda build, data: (build(augment=Augment(flip=0.5)), data, {"views": 2}),
    ],
    ids=["a weight", "random weights", "image size", "last block", "border", "data", "order of data", "views"],
)
def test_key_changes_with_everything_that_decides_the_features(small_vgg, tiny, change):
    model, data, settings = change(small_vgg, tiny)
    assert cached(model, data, **settings).key != cached(small_vgg(), tiny).key


def test_earlier_border_stores_what_the_layers_in_front_of_it_make(small_vgg, tiny, torchvision_block1):
    model = small_vgg()
    found = cached(model, tiny, border=3)
    with torch.no_grad():
        expected = torchvision_block1[:2](model.preprocess(tiny.images))
    assert_close_in_float16(found.features[0], expected)
    assert found.border == found.view(0).border == 3
    assert found.key != cached(model, tiny).key


def test_features_are_refused_once_a_layer_in_front_of_their_border_learns(small_vgg, tiny):
    model = small_vgg()
    late, early = cached(model, tiny), cached(model, tiny, border=3)
    late.check(model)
    set_trainable(model, 3)  # the second convolution, ReLU and pooling
    early.check(model)
    with pytest.raises(ValueError, match="learn now"):
        late.check(model)
    set_trainable(model, "head")
    late.check(model)
    with torch.no_grad():
        model.backbone[0][0].bias += 1
    with pytest.raises(ValueError, match="other frozen layers"):
        early.check(model)


@pytest.mark.parametrize(
    ("flip", "settings"),
    [(0.5, {"views": 3}), (0.5, {"views": 2, "seed": 1}), (0.6, {"views": 2})],
    ids=["number of views", "seed", "augmentation"],
)
def test_key_of_several_views_changes_with_how_they_are_drawn(small_vgg, tiny, flip, settings):
    reference = cached(small_vgg(augment=Augment(flip=0.5)), tiny, views=2)
    assert cached(small_vgg(augment=Augment(flip=flip)), tiny, **settings).key != reference.key


# ----------------------------------------------------------------------------------------------------------- disk


def test_features_on_disk_are_used_again_without_computing(small_vgg, tiny, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "new" / "cache"
    first = cached(small_vgg(), tiny, folder=folder)
    (file,) = folder.glob("*.npy")
    content = file.read_bytes()
    assert file.stem == first.key and not list(folder.glob("*.part"))

    def unexpected(*arguments):
        raise AssertionError("The features were computed a second time.")

    monkeypatch.setattr(engines.TorchEngine, "__call__", unexpected)
    second = cached(small_vgg(seed=5), tiny, folder=folder, verbose=True)
    assert torch.equal(first.features, second.features)
    assert second.report == PrefixPass(**vars(first.report) | {"reused": True})
    assert "read from disk" in capsys.readouterr().out
    assert file.read_bytes() == content
    np.testing.assert_array_equal(np.load(file), first.features.numpy())


def test_features_in_memory_and_on_disk_are_the_same(small_vgg, tiny, tmp_path):
    assert torch.equal(cached(small_vgg(), tiny).features, cached(small_vgg(), tiny, folder=tmp_path).features)


def test_file_larger_than_the_memory_can_be_used(tmp_path):
    gigabytes = 2 * psutil.virtual_memory().total // 10**9 + psutil.swap_memory().total // 10**9
    rows = gigabytes * 10**9 // 2048
    file = np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.float16, (1, rows, 1024))  # sparse: takes no disk
    file[0, rows - 1] = 3
    del file
    features = storage.open_file(tmp_path / "large.npy")
    assert features.shape == (1, rows, 1024) and (features[0, -1] == 3).all() and (features[0, -2] == 0).all()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_pass_leaves_no_file(small_vgg, tiny, tmp_path, error):
    model, seen = small_vgg().train(), []

    def interrupt(layer, inputs, output):
        seen.append(len(output))
        if sum(seen) > 70:
            raise error("in the middle")

    hook = model.backbone[0][0].register_forward_hook(interrupt)
    with pytest.raises(error, match="in the middle"):
        cached(model, tiny, folder=tmp_path, batch_size=20)
    assert 20 in seen and list(tmp_path.iterdir()) == []
    assert model.training
    hook.remove()
    assert torch.equal(cached(model, tiny, folder=tmp_path).features, cached(model, tiny).features)


def test_too_small_a_disk_is_noticed_before_computing(small_vgg, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: storage.shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match="0.0 GB are free"):
        cached(small_vgg(), tiny, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "views", "message"),
    [
        ({"trainable": "all"}, 1, "no frozen layers"),
        ({}, 2, "augment="),
    ],
    ids=["nothing frozen", "views without augmentation"],
)
def test_what_cannot_be_cached_is_refused(small_vgg, tiny, settings, views, message):
    with pytest.raises(ValueError, match=message):
        cached(small_vgg(**settings), tiny, views=views)


def test_activations_beyond_float16_are_an_error(small_vgg, tiny, tmp_path):
    model = small_vgg()
    with torch.no_grad():
        model.backbone[0][2].weight *= 1e4
    with pytest.raises(FloatingPointError, match="65504"):
        cached(model, tiny, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------- engines


def assert_returns_from_pickle(model, data):
    """An engine leaves nothing on the model that could not be stored, nor keeps alive what nobody else needs."""
    restored = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        torch.testing.assert_close(restored(data.images), model.eval()(data.images), rtol=0, atol=0)
    assert vars(model).keys() - {"layers"} == vars(build_model("small_cnn", weights=None)).keys() - {"layers"}


def test_a_model_that_was_compiled_can_be_forgotten(small_vgg, tiny, monkeypatch):
    monkeypatch.setattr(engines, "COMPILE_ABOVE_SECONDS", 0.0)
    monkeypatch.setattr(engines, "find_compiler", lambda: "g++")
    monkeypatch.setattr(engines, "compile_frozen", lambda layers, x: layers)
    model = small_vgg()
    assert cached(model, tiny, batch_size=30).report.engine == "compiled"
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_compiled_pass_gives_the_features_of_the_eager_one(small_vgg, tiny, tiny_val, expected_features, monkeypatch):
    monkeypatch.setattr(engines, "COMPILE_ABOVE_SECONDS", 0.0)
    model = small_vgg()
    found = cached(model, tiny, batch_size=30)
    assert found.report.engine == "compiled"
    assert_close_in_float16(found.features[0], expected_features(tiny.images))
    assert_returns_from_pickle(model, tiny)
    # The same code serves other images, of which the last batch is ragged, too.
    monkeypatch.setattr(torch, "compile", None)
    found = cached(model, tiny_val, batch_size=30)
    assert found.report.engine == "compiled"
    assert_close_in_float16(found.features[0], expected_features(tiny_val.images))
    # But never other weights: doubling the last convolution doubles its output.
    with torch.no_grad():
        model.backbone[0][2].weight *= 2
        model.backbone[0][2].bias *= 2
    found = cached(model, tiny_val, batch_size=30)
    assert_close_in_float16(found.features[0], 2 * expected_features(tiny_val.images))


def test_compiler_that_fails_does_not_stop_the_pass(small_vgg, tiny, expected_features, monkeypatch):
    def broken(layers):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(engines, "COMPILE_ABOVE_SECONDS", 0.0)
    monkeypatch.setattr(engines, "find_compiler", lambda: "g++")
    monkeypatch.setattr(torch, "compile", broken)
    found = cached(small_vgg(), tiny, batch_size=30)
    assert found.report.engine.startswith("eager, because compiling failed") and "RuntimeError" in str(found.report)
    assert_close_in_float16(found.features[0], expected_features(tiny.images))


@pytest.mark.parametrize(("int8", "largest"), [(False, 1e-3), (True, 0.1)])
def test_openvino_gives_the_features_of_torch(small_vgg, tiny, expected_features, int8, largest, monkeypatch):
    settings = {"engine": "openvino", "calibration": tiny if int8 else None, "verbose": False}
    model = small_vgg()
    found = cache_features(model, tiny, **settings)
    assert found.report.engine == f"OpenVINO, {'int8' if int8 else 'float32'}"
    assert found.key != cache_features(small_vgg(), tiny, verbose=False, device="cpu").key
    expected = expected_features(tiny.images)
    error = (found.features[0].float() - expected).norm() / expected.norm()
    assert error < largest
    if int8:
        assert error > 1e-3  # or it would not be int8
    assert_returns_from_pickle(model, tiny)
    # Another split goes through the same network: it is not built (and calibrated) again.
    monkeypatch.setattr(engines, "openvino_frozen", None)
    part = cache_features(model, tiny.select(range(40, 80)), **settings)
    torch.testing.assert_close(part.features[0], found.features[0, 40:80], rtol=1e-3, atol=1e-2)


def test_engines_are_checked(small_vgg, tiny):
    with pytest.raises(ValueError, match="engine='openvin'.*'openvino'"):
        cache_features(small_vgg(), tiny, engine="openvin")
    with pytest.raises(ValueError, match="calibration"):
        cache_features(small_vgg(), tiny, calibration=tiny)


def test_missing_openvino_is_explained(small_vgg, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"openvino is not installed: pip install .fmnist-utils\[fast\]"):
        cache_features(small_vgg(), tiny, engine="openvino", verbose=False)


def test_short_passes_and_machines_without_compiler_stay_eager(small_vgg, tiny, monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    assert cached(small_vgg(), tiny, batch_size=30).report.engine == "eager"
    monkeypatch.setattr(engines, "COMPILE_ABOVE_SECONDS", 0.0)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert find_compiler() is None
    assert cached(small_vgg(), tiny, batch_size=30).report.engine == "eager"


def test_progress_bar_leaves_no_widget_in_saved_notebooks():
    assert passes.tqdm.__module__ == "tqdm.std"


def test_frozen_layers_of_a_model_from_scratch_can_be_cached(tiny):
    model = build_model("small_cnn", weights=None, trainable="head", head=(0, 4, (16,), False))
    found = cached(model, tiny)
    with torch.no_grad():
        # 128 channels of 7x7 are more than what pooling to 4x4 makes of them.
        expected = F.adaptive_avg_pool2d(model.backbone(model.preprocess(tiny.images)), 4).flatten(1)
    assert_close_in_float16(found.features[0], expected)


def test_single_image_can_be_cached(small_vgg, tiny, expected_features):
    one = FashionMNIST(tiny.images[:1], tiny.labels[:1])
    assert_close_in_float16(cached(small_vgg(), one).features[0], expected_features(one.images))
