"""Any classification network of torchvision's through `build_model`, against torchvision's own."""

import re

import pytest
import torch
import torchvision.transforms.functional as TF
from safetensors import safe_open
from torch import nn
from torchvision.models import VGG16_Weights, get_model, get_model_weights

from fmnist_utils import models
from fmnist_utils.checkpoints import load_model, save_model
from fmnist_utils.models import WeightsUnavailable, build_model, set_trainable, summary
from fmnist_utils.sources import weights
from fmnist_utils.sources.weights import Pretrained

pytestmark = pytest.mark.filterwarnings("error")

# What the last three layers are, by their names in the backbone; additions and activations have no parameters.
LAST_3 = {
    "resnet18": {"layer4.1.bn2.weight", "layer4.1.bn2.bias"},
    "efficientnet_b0": {"features8.0.weight", "features8.1.weight", "features8.1.bias"},
    "mobilenet_v3_small": {"features12.0.weight", "features12.1.weight", "features12.1.bias"},
    "mobilenet_v3_large": {"features16.0.weight", "features16.1.weight", "features16.1.bias"},
    "convnext_tiny": {"features7.2.block.5.weight", "features7.2.block.5.bias", "features7.2.layer_scale"},
    "vit_b_16": {"vit_b_16.encoder.ln.weight", "vit_b_16.encoder.ln.bias"},
}
CLASSIFIER = {"resnet18": "fc", "vit_b_16": "heads"}


def size_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def invented(name: str) -> nn.Module:
    """torchvision's network, none of whose layers is without effect, in eval mode."""
    torch.manual_seed(0)
    net = get_model(name, weights=None)
    with torch.no_grad():
        if norms := [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]:
            for norm in norms:
                norm.momentum = 1.0
            net(torch.randn(8, 3, 64, 64))  # or the images would fade from layer to layer
        for key, p in net.named_parameters():
            if key.endswith(("layer_scale", "class_token")):  # 1e-6 and 0 to begin with
                p.normal_(0, 0.5)
    return net.eval()


@pytest.fixture(scope="module", params=LAST_3)
def pair(request):
    """(name, torchvision's network, ours with its weights as if they were the pretrained ones)."""
    name = request.param
    reference = invented(name)
    state = reference.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "find_weights", lambda *_, **__: Pretrained(state, "imagenet:test"))
        model = build_model(name, image_size=None if name == "vit_b_16" else 64)
    return name, reference, model


def features(model: models.Classifier, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model.backbone(model.preprocess(images))
    return found if found.ndim == 2 else found.mean((2, 3))


def test_backbone_is_torchvisions_network_without_its_classifier(pair, tiny):
    name, reference, model = pair
    images, side = tiny.images[:2], model.preprocess.image_size
    preset = get_model_weights(name).DEFAULT.transforms()
    classifier = getattr(reference, CLASSIFIER.get(name, "classifier"))
    assert size_of(model.backbone) == size_of(reference) - size_of(classifier)

    resized = TF.resize(images[:, None] / 255, [side, side], antialias=True).expand(-1, 3, -1, -1)
    kept = []
    hook = classifier.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].flatten(1)))
    with torch.no_grad():
        reference(TF.normalize(resized, preset.mean, preset.std))
        logits = model(images)
    hook.remove()
    found = features(model, images)
    torch.testing.assert_close(found, kept[0], rtol=1e-3, atol=1e-4 * float(kept[0].abs().max()))
    assert found.std() > 0 and not torch.allclose(found[0], found[1])
    assert logits.shape == (2, 10) and logits.dtype == torch.float32 and logits.isfinite().all()


def test_only_the_chosen_layers_learn(pair):
    name, _, model = pair
    assert model.config["trainable"] == "head"
    everything = {key for key, _ in model.backbone.named_parameters()}
    for trainable, names in [(None, set()), (3, LAST_3[name]), ("all", everything), ("head", set())]:
        if trainable:
            set_trainable(model, trainable)
        assert {key for key, p in model.backbone.named_parameters() if p.requires_grad} == names
        assert all(p.requires_grad for p in model.head.parameters())


@pytest.mark.parametrize("name", ["swin_t", "googlenet", "resnet18"])
def test_last_layers_without_parameters_are_no_choice(name):
    with torch.device("meta"):
        model = build_model(name, weights=None, head="linear", trainable=3)
    before = [p.requires_grad for p in model.parameters()]
    assert any(p.requires_grad for p in model.backbone.parameters())
    for trainable in (1, 2):  # pooling, flattening and dropout; ReLU and addition
        with pytest.raises(ValueError, match=f"trainable={trainable}: the last layers .* have nothing to learn"):
            set_trainable(model, trainable)
    assert [p.requires_grad for p in model.parameters()] == before and model.config["trainable"] == 3


@pytest.mark.parametrize("trainable", ["head", 3])
def test_split_parts_make_the_model_and_the_frozen_one_is_the_same_every_epoch(pair, tiny, trainable):
    (name, _, model), images = pair, tiny.images[:2]
    set_trainable(model.eval(), trainable)
    prefix, rest = model.split()
    with torch.no_grad():
        expected, stored = model(images), prefix(images)
        torch.testing.assert_close(rest(stored), expected, rtol=1e-4, atol=1e-4)
        # Nothing is drawn and no statistics move, even in blocks that are skipped at random while they learn.
        model.train()
        for _ in range(2):
            torch.testing.assert_close(prefix(images), stored, rtol=1e-4, atol=1e-5)
    model.eval()
    assert any(p.requires_grad for p in rest.parameters()) and not any(p.requires_grad for p in prefix.parameters())
    # A network that is no chain is one layer, and not in the prefix once a part of it learns.
    frozen = size_of(prefix) / size_of(model.backbone)
    assert frozen == 1 if trainable == "head" else frozen == 0 if name == "vit_b_16" else 0.5 < frozen < 1
    set_trainable(model, "head")


def test_saved_model_returns_with_its_settings_and_logits(pair, tiny, tmp_path, monkeypatch):
    _, reference, model = pair
    monkeypatch.setattr(models, "find_weights", lambda *_, **__: Pretrained(reference.state_dict(), "imagenet:test"))
    file = save_model(model, tmp_path / "model")
    with safe_open(file, "pt") as content:
        assert all(key.startswith("head.") for key in content.keys())  # noqa: SIM118
    loaded = load_model(tmp_path / "model")
    assert loaded.config == model.config
    with torch.no_grad():
        assert torch.equal(loaded(tiny.images[:2]), model(tiny.images[:2]))


def test_grad_cam_needs_a_feature_map(pair, tiny):
    pytest.importorskip("captum")
    from fmnist_utils.explain.grad_cam import grad_cam

    name, _, model = pair
    if name == "vit_b_16":
        with pytest.raises(ValueError, match="Grad-CAM needs a feature map, but vit_b_16"):
            grad_cam(model, tiny.images[:2])
        return
    maps = grad_cam(model, tiny.images[:2])
    assert maps.shape == (2, 28, 28) and maps.min() >= 0 and maps.max() <= 1 and maps.any()


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
def test_cost_is_what_torchvision_publishes(name):
    with torch.device("meta"):
        model = build_model(name, weights=None, head="linear")
        table = summary(model)
    # Published are billions of multiplications with an addition each, of ViT without the products between tokens.
    expected = 2e3 * get_model_weights(name).DEFAULT.meta["_ops"]
    assert table.MFLOPs["total"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b2", "vit_b_16"])
def test_size_and_normalisation_are_those_of_the_weights(name):
    preset = get_model_weights(name).DEFAULT.transforms()
    with torch.device("meta"):
        assert build_model(name, weights=None).config["image_size"] == preset.crop_size[0]
    stats = models._backbone_row(name)[-1]
    assert stats == (tuple(preset.mean), tuple(preset.std))


def test_original_vgg16_is_normalised_as_its_weights_say():
    preset = VGG16_Weights.IMAGENET1K_FEATURES.transforms()
    assert models.BACKBONES["vgg16"][-1] == (tuple(preset.mean), tuple(preset.std))


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "vgg11_bn": ["block1", "block2", "block3", "block4", "block5"],
        "resnet34": ["stem", "layer1", "layer2", "layer3", "layer4"],
        "shufflenet_v2_x0_5": ["conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"],
        "mnasnet0_5": ["stem", *(f"layers{i}" for i in range(8, 15))],
        "mobilenet_v2": [f"features{i}" for i in range(19)],
    }.items(),
)
def test_a_chain_is_cut_between_its_blocks(name, expected):
    with torch.device("meta"):
        model = build_model(name, weights=None)
        shorter = build_model(name, weights=None, cut_after=expected[1])
    assert [block for block, _ in model.backbone.named_children()] == expected
    assert [block for block, _ in shorter.backbone.named_children()] == expected[:2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "efficientnetb0"}, "Did you mean 'efficientnet_b0'"),
        ({"name": "ViT-B-16"}, "Did you mean 'vit_b_16'"),
        ({"name": "mobilenet_v3"}, "'mobilenet_v3_small'"),
        ({"name": "fasterrcnn_resnet50_fpn"}, "is not known"),
        ({"name": "vit_b_16", "cut_after": "block3"}, "vit_b_16 is no chain of blocks"),
        ({"name": "vit_b_16", "head": "conv"}, "needs a feature map"),
        ({"name": "vit_b_16", "weights": "imagenet", "image_size": 64}, "are for 224×224 pixels"),
        ({"name": "vit_b_16", "image_size": 40}, "cannot take images of 40×40 pixels"),
        ({"name": "alexnet", "image_size": 16}, "cannot take images of 16×16 pixels"),
    ],
    ids=str,
)
def test_what_a_network_does_not_allow_is_said(arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_model(**{"weights": None} | arguments)


def test_weights_are_looked_for_under_the_name_torchvision_publishes_them(tmp_path, monkeypatch):
    (tmp_path / "data" / "weights").mkdir(parents=True)
    monkeypatch.setattr(weights, "ROOT", tmp_path)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.delenv("FMNIST_WEIGHTS", raising=False)
    url = get_model_weights("mnasnet0_5").DEFAULT.url
    published = url.rpartition("/")[2]
    with pytest.raises(WeightsUnavailable) as caught:
        models.find_weights("mnasnet0_5", download=False)
    assert url in str(caught.value) and str(tmp_path / "hub" / "checkpoints" / published) in str(caught.value)

    net = invented("mnasnet0_5")  # the one network whose loading asks for the version of the file's format
    torch.save(net.state_dict(), tmp_path / "data" / "weights" / published)
    with pytest.raises(WeightsUnavailable, match="is damaged"):
        models.find_weights("mnasnet0_5", download=False)
    digits = published.rpartition("-")[2].removesuffix(".pth")
    monkeypatch.setattr(weights, "file_sha256", lambda path: digits + "c" * (64 - len(digits)))
    model = build_model("mnasnet0_5", image_size=32)
    assert model.weights == f"imagenet:{digits}cc"
    assert torch.equal(model.backbone.layers14[0].weight, net.layers[14].weight)


# Published with names that torch no longer allows, and with classifiers in the middle.
@pytest.mark.parametrize("name", ["densenet121", "googlenet"])
def test_weights_are_taken_over_in_the_form_in_which_they_are_published(monkeypatch, tiny, name):
    torch.manual_seed(0)
    arguments = {"transform_input": True, "init_weights": True} if name == "googlenet" else {}
    reference = get_model(name, weights=None, **arguments).eval()
    state = reference.state_dict()
    if name == "densenet121":
        state = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", key): value for key, value in state.items()}
    monkeypatch.setattr(models, "find_weights", lambda *_, **__: Pretrained(state, "imagenet:test"))
    model = build_model(name, image_size=32)
    setattr(reference, "fc" if name == "googlenet" else "classifier", nn.Identity())
    with torch.no_grad():
        expected = reference(model.preprocess(tiny.images[:2]))
    torch.testing.assert_close(features(model, tiny.images[:2]), expected, rtol=1e-3, atol=1e-5)

    first = next(iter(state))
    del state[first]
    with pytest.raises(ValueError, match=f"The weights of {name} lack {first}"):
        build_model(name, image_size=32)
