"""A saved model is the model you had, whatever was trained, frozen or wrapped; what cannot come back is said."""

import json
from hashlib import sha256

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fmnist_utils.checkpoints import load_model, save_model
from fmnist_utils.data import load
from fmnist_utils.models import build_model, set_trainable


def small_vgg(**arguments):
    return build_model("vgg16", cut_after="block1", image_size=28, **{"head": (0, 2, (8,), True)} | arguments)


def change(parameters) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            parameter += 0.01 * (number + 1)


def logits(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(load("test").images[:20]).numpy()


def backbone_only(model):
    change(model.backbone.parameters())


def refrozen(model):
    set_trainable(model, "all")
    change(model.parameters())
    set_trainable(model, "head")


def frozen_for_inference(model):
    change(model.head.parameters())
    model.requires_grad_(False)


def unfrozen_by_hand(model):
    model.backbone[0][2].requires_grad_(True)
    change(p for p in model.parameters() if p.requires_grad)


def partly_frozen_head(model):
    change(model.head.parameters())
    model.head[-1].requires_grad_(False)


@pytest.mark.parametrize(
    "happened", [backbone_only, refrozen, frozen_for_inference, unfrozen_by_hand, partly_frozen_head]
)
def test_saved_model_comes_back_whatever_happened_to_it(happened, tmp_path):
    model = small_vgg()
    before = logits(model)
    happened(model)
    expected = logits(model)
    assert np.abs(expected - before).max() > 1e-3
    save_model(model, tmp_path / "model")
    np.testing.assert_array_equal(logits(load_model(tmp_path / "model")), expected)


def test_frozen_weights_that_are_as_they_came_are_not_stored(tmp_path):
    model = small_vgg()
    change(model.head.parameters())
    stored = load_file(save_model(model, tmp_path / "model"))
    assert stored.keys() == {key for key in model.state_dict() if key.startswith("head.")}


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "DataParallel"])
def test_wrapped_model_is_saved_as_the_model_within(wrap, tmp_path):
    model = build_model("small_cnn", weights=None, image_size=12)
    change(model.parameters())
    save_model(wrap(model), tmp_path / "model")
    np.testing.assert_array_equal(logits(load_model(tmp_path / "model")), logits(model))


@pytest.mark.parametrize("ending", ["", ".safetensors", ".json"])
def test_model_is_found_by_its_name_with_any_ending(ending, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_model(build_model("small_cnn", weights=None, image_size=12), "~/my.model")
    assert (tmp_path / "my.model.safetensors").is_file()
    load_model(f"{tmp_path}/my.model{ending}")
    load_model(f"~/my.model{ending}")


def exchange_activation(model):
    model.backbone[0][1] = nn.GELU()


def exchange_pooling(model):
    model.head[0] = nn.AdaptiveMaxPool2d(2)


def exchange_head(model):
    model.head = nn.Sequential(nn.Flatten(), nn.Linear(64 * 14 * 14, 10))


def exchange_size(model):
    model.preprocess.image_size = 32


def exchange_statistics(model):
    model.preprocess.offset += 0.5


@pytest.mark.parametrize(
    ("exchange", "words"),
    [
        (exchange_activation, r"layers .*GELU.* for .*ReLU"),
        (exchange_pooling, "layers .*AdaptiveMaxPool2d"),
        (exchange_head, "layers"),
        (exchange_size, "image size .*32 for 28"),
        (exchange_statistics, "normalisation"),
    ],
)
def test_what_would_not_come_back_is_refused(exchange, words, tmp_path):
    model = small_vgg()
    exchange(model)
    with pytest.raises(ValueError, match=words):
        save_model(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("not JSON", "model.json is damaged"),
        ("[1]", "model.json is not the card of a saved model"),
        ('{"recipe": "mine"}', "lacks model, weights or sha256"),
        ({"sha256": "0" * 64}, "does not belong to model.json"),
        ({"model": {"name": "small_cnn", "weights": None, "wings": 2}}, "another version .*wings"),
        ({"weights": "imagenet:000000000000"}, "was trained on imagenet:000000000000"),
    ],
)
def test_card_that_does_not_fit_is_named(card, words, tmp_path):
    file = save_model(build_model("small_cnn", weights=None, image_size=12), tmp_path / "model")
    save_file(load_file(file), file)  # without the metadata that tell a damaged card, as version 0.1.0 did
    text = tmp_path / "model.json"
    fitting = json.loads(text.read_text()) | {"sha256": sha256(file.read_bytes()).hexdigest()}
    text.write_text(card if isinstance(card, str) else json.dumps(fitting | card))
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path / "model")


def test_tensors_of_another_model_are_named(tmp_path):
    file = save_model(build_model("small_cnn", weights=None, image_size=12), tmp_path / "model")
    state = load_file(file)
    save_file(state | {"head.wings": torch.zeros(1), "head.2.bias": torch.zeros(3)}, file)
    text = tmp_path / "model.json"
    text.write_text(json.dumps(json.loads(text.read_text()) | {"sha256": sha256(file.read_bytes()).hexdigest()}))
    with pytest.raises(ValueError, match=r"head.wings belongs to another model, head.2.bias is \[3\], not \[128\]"):
        load_model(tmp_path / "model")
