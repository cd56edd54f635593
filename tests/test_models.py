"""`fmnist_utils.preprocess` and `.models` against torchvision, PIL and formulas worked out by hand."""

import copy
import hashlib
import json
import math
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms
from torchvision.models import resnet50, vgg16

from fmnist_utils import ROOT, data, models
from fmnist_utils.checkpoints import load_model, save_model
from fmnist_utils.data import load
from fmnist_utils.evaluate import predict
from fmnist_utils.models import WeightsUnavailable, build_model, set_trainable, summary
from fmnist_utils.networks import scratch
from fmnist_utils.preprocess import FASHION_MNIST_STATS, IMAGENET_STATS, VGG_ORIGINAL_STATS, Augment, Preprocess
from fmnist_utils.results import load_predictions
from fmnist_utils.sources import weights
from fmnist_utils.sources.weights import Pretrained

pytestmark = pytest.mark.filterwarnings("error")

UNIT_STATS = ((0.0,), (1.0,))  # leaves pixels on a 0-1 scale
SHIPPED = ROOT / "data" / "weights" / "vgg16_imagenet_features.safetensors"

# VGG16 as Simonyan & Zisserman (2015) print it, table 1, column D: (input, output) channels of each convolution.
VGG16_CONVOLUTIONS = {
    "block1": [(3, 64), (64, 64)],
    "block2": [(64, 128), (128, 128)],
    "block3": [(128, 256), (256, 256), (256, 256)],
    "block4": [(256, 512), (512, 512), (512, 512)],
    "block5": [(512, 512), (512, 512), (512, 512)],
}
# Where torchvision's `vgg16().features` has its pooling layers.
POOLING = {"block1": 4, "block2": 9, "block3": 16, "block4": 23, "block5": 30}


# What the two downloads are called; torch checks the first digits of their SHA-256 against the name.
PUBLISHED = {"vgg16": "vgg16-88682ab5.pth", "resnet50": "resnet50-0676ba61.pth"}

# The last 16 layers of ResNet50 as Keras publishes their names (keras.applications.ResNet50), and what torchvision
# calls them; its one ReLU per block is called three times, and its addition has no name.
KERAS_LAST_16 = {
    "conv5_block2_2_bn": "layer4.1.bn2",
    "conv5_block2_2_relu": "layer4.1.relu",
    "conv5_block2_3_conv": "layer4.1.conv3",
    "conv5_block2_3_bn": "layer4.1.bn3",
    "conv5_block2_add": None,
    "conv5_block2_out": "layer4.1.relu",
    "conv5_block3_1_conv": "layer4.2.conv1",
    "conv5_block3_1_bn": "layer4.2.bn1",
    "conv5_block3_1_relu": "layer4.2.relu",
    "conv5_block3_2_conv": "layer4.2.conv2",
    "conv5_block3_2_bn": "layer4.2.bn2",
    "conv5_block3_2_relu": "layer4.2.relu",
    "conv5_block3_3_conv": "layer4.2.conv3",
    "conv5_block3_3_bn": "layer4.2.bn3",
    "conv5_block3_add": None,
    "conv5_block3_out": "layer4.2.relu",
}


@pytest.fixture(scope="module")
def images(tiny) -> torch.Tensor:
    return tiny.images[:16]


@pytest.fixture(scope="module")
def torchvision_features() -> nn.Sequential:
    features = vgg16(weights=None, init_weights=False).features
    state = {name.removeprefix("features."): tensor.float() for name, tensor in load_file(SHIPPED).items()}
    features.load_state_dict(state)
    return features.eval()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A project folder and a torch cache, both empty, and a download address that leads nowhere."""
    monkeypatch.setattr(weights, "ROOT", tmp_path / "project")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.delenv("FMNIST_WEIGHTS", raising=False)
    for name, url in PUBLISHED.items():
        monkeypatch.setitem(weights._URLS, name, (tmp_path / "nowhere" / url).as_uri())
    (tmp_path / "project" / "data" / "weights").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path


def drawn(value: float):
    """Stands in for torch.rand: 1 draws every random change at its upper limit, 0 at its lower one."""
    return lambda *size, device=None: torch.full(size, value, device=device)


# ------------------------------------------------------------------------------------------------ preprocessing


@pytest.mark.parametrize("stats", [IMAGENET_STATS, VGG_ORIGINAL_STATS], ids=["imagenet", "vgg-original"])
@pytest.mark.parametrize("size", [20, 28, 56, 112, 224])
def test_preprocess_is_the_pil_pipeline_within_one_grey_level(images, size, stats):
    pipeline = transforms.Compose(
        [
            transforms.Resize((size, size), transforms.InterpolationMode.BILINEAR),
            transforms.Grayscale(3),
            transforms.ToTensor(),
            transforms.Normalize(*stats),
        ]
    )
    expected = torch.stack([pipeline(Image.fromarray(image.numpy())) for image in images])
    found = Preprocess(size, stats)(images)
    assert found.dtype == torch.float32 and found.shape == (len(images), 3, size, size)
    # PIL rounds to whole grey levels, and one level is 1/255 before the division by the standard deviation.
    level = torch.tensor(stats[1]).view(3, 1, 1) ** -1 / 255
    assert ((found - expected).abs() <= 1.001 * level).all()


def test_fashion_mnist_stats_are_those_of_the_training_pixels():
    parts = load("train").images.split(5_000)
    share = sum(torch.bincount(part.flatten(), minlength=256) for part in parts) / (60_000 * 784)
    levels = torch.arange(256) / 255
    mean = (share * levels).sum()
    std = (share * (levels - mean) ** 2).sum().sqrt()
    assert (mean.item(), std.item()) == pytest.approx((FASHION_MNIST_STATS[0][0], FASHION_MNIST_STATS[1][0]), abs=1e-4)


def test_preprocess_keeps_one_channel_where_the_statistics_have_one(images):
    expected = (images[:, None].double() / 255 - 0.2860) / 0.3530
    found = Preprocess(28, FASHION_MNIST_STATS)(images)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(2, 28, 28), torch.zeros(28, 28, dtype=torch.uint8), torch.zeros(2, 1, 28, 28, dtype=torch.uint8)],
    ids=["float", "a single image", "with a channel axis"],
)
def test_preprocess_refuses_other_types_and_shapes(wrong):
    with pytest.raises(ValueError, match="uint8 images"):
        Preprocess(28)(wrong)


# -------------------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("size", [28, 56])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flip_is_all_or_nothing_at_the_ends_of_its_range(images, size, flip):
    plain = Preprocess(size, UNIT_STATS)(images)
    augmented = Preprocess(size, UNIT_STATS, Augment(flip=flip)).train()(images)
    torch.testing.assert_close(augmented, TF.hflip(plain) if flip else plain, atol=1e-4, rtol=0)


# What torchvision's `affine` needs to do the same; shifts in pixels, at 28 px. Each leaves whole pixels on whole pixels
# or enlarges, so the ways in which the two treat the border do not matter.
@pytest.mark.parametrize(
    ("augment", "draw", "affine"),
    [
        (Augment(rotation=90), 1.0, {"angle": -90}),
        (Augment(rotation=90), 0.0, {"angle": 90}),
        (Augment(rotation=180), 1.0, {"angle": 180}),
        (Augment(shift=0.25), 1.0, {"translate": [-7, -7]}),
        (Augment(shift=0.25), 0.0, {"translate": [7, 7]}),
        (Augment(zoom=1.0), 1.0, {"scale": 2.0}),
        (Augment(zoom=0.3), 1.0, {"scale": 1.3}),
    ],
    ids=str,
)
def test_geometric_changes_are_torchvisions_affine(images, monkeypatch, augment, draw, affine):
    neutral = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0]}
    bilinear = transforms.InterpolationMode.BILINEAR
    expected = TF.affine(images[:, None] / 255, **neutral | affine, interpolation=bilinear)
    monkeypatch.setattr(torch, "rand", drawn(draw))
    found = Preprocess(28, UNIT_STATS, augment).train()(images)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_zooming_out_makes_the_image_smaller_on_black(monkeypatch):
    white = torch.full((1, 28, 28), 255, dtype=torch.uint8)
    monkeypatch.setattr(torch, "rand", drawn(0.0))
    found = Preprocess(28, UNIT_STATS, Augment(zoom=0.5)).train()(white)
    expected = torch.zeros(1, 1, 28, 28)
    expected[..., 7:21, 7:21] = 1.0
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """A grey image moved by whole pixels, by slicing alone."""
    frame = np.zeros((28 + 2 * 28, 28 + 2 * 28), image.dtype)
    frame[28:56, 28:56] = image
    return frame[28 - down : 56 - down, 28 - right : 56 - right]


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_shift_by_whole_pixels_is_exact_and_drawn_evenly(flip):
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(1, 256, (28, 28), dtype=np.uint8)  # nothing in it is black
    copies = torch.from_numpy(image).expand(2_500, 28, 28)
    # The pixels themselves, as statistics that change nothing leave them.
    found = Preprocess(28, ((0.0,), (1 / 255,)), Augment(flip=flip, shift=2)).train()(copies)[:, 0].numpy()
    moves = [(down, right, mirrored) for down in range(-2, 3) for right in range(-2, 3) for mirrored in (False, True)]
    counts = [
        (found == shifted(image[:, ::-1] if mirrored else image, down, right)).all((1, 2)).sum()
        for down, right, mirrored in moves
    ]
    assert sum(counts) == 2_500  # each picture is one of these moves, to the last bit
    for count, (_, _, mirrored) in zip(counts, moves, strict=True):
        expected = 100 * (flip if mirrored else 1 - flip)
        assert abs(count - expected) <= 4.5 * expected**0.5


def test_shift_by_whole_pixels_is_one_of_the_28_pixel_image_at_every_size(images):
    """Moving and then enlarging is moving the enlarged one, away from the border; black fills the rest."""
    torch.manual_seed(0)
    found = Preprocess(112, UNIT_STATS, Augment(shift=3)).train()(images)
    for image, changed in zip(images.numpy(), found, strict=True):
        candidates = np.stack([shifted(image, down, right) for down in range(-3, 4) for right in range(-3, 4)])
        expected = Preprocess(112, UNIT_STATS)(torch.from_numpy(candidates))
        assert (expected - changed).abs().amax((1, 2, 3)).min() == 0


def test_shift_by_whole_pixels_survives_a_card():
    augment = json.loads(json.dumps(asdict(Augment(shift=4))))
    assert type(Augment(**augment).shift) is int
    assert type(Augment(**json.loads(json.dumps(asdict(Augment())))).shift) is float


@pytest.mark.parametrize(
    "augment",
    [
        *(Augment(flip=0.5), Augment(rotation=20), Augment(zoom=0.2), Augment(shift=0.1), Augment(shift=3)),
        *(Augment(erasing=0.5), Augment(rotation=20, shift=3)),
    ],
    ids=str,
)
def test_changes_follow_the_seed_and_differ_within_a_batch(images, augment):
    preprocess = Preprocess(32, UNIT_STATS, augment).train()
    copies = images[:1].expand(8, 28, 28)

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return preprocess(copies)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert len(draw(1).unique(dim=0)) > 1


def test_changes_are_off_in_eval_mode(images):
    everything = Augment(flip=1.0, rotation=30, zoom=0.3, shift=0.2, erasing=1.0)
    assert torch.equal(Preprocess(32, augment=everything).eval()(images), Preprocess(32)(images))


def test_erasing_blackens_one_rectangle_of_2_to_20_percent():
    size = 112
    torch.manual_seed(0)
    white = torch.full((64, 28, 28), 255, dtype=torch.uint8)
    erased = Preprocess(size, UNIT_STATS, Augment(erasing=1.0)).train()(white)[:, 0] == 0
    for mask in erased:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all() and box.sum() == mask.sum()
        # Rounding moves each side by less than a pixel, which at 112 px makes 0.0171 of 0.02 and 0.210 of 0.20.
        assert 0.017 < mask.float().mean() < 0.21
    assert erased.float().mean(dim=(1, 2)).std() > 0.02  # of many sizes


@pytest.mark.parametrize(("probability", "fewest", "most"), [(0.0, 0, 0), (0.5, 70, 130), (1.0, 200, 200)])
def test_erasing_hits_the_stated_part_of_the_images(probability, fewest, most):
    torch.manual_seed(0)
    white = torch.full((200, 28, 28), 255, dtype=torch.uint8)
    found = Preprocess(28, UNIT_STATS, Augment(erasing=probability)).train()(white)
    # 70 to 130 of 200 is four standard deviations on either side of the half.
    assert fewest <= (found == 0).flatten(1).any(1).sum() <= most


# ------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("block", POOLING)
def test_vgg16_computes_torchvisions_features(images, torchvision_features, block):
    size, batch = 32, images[:4]
    resized = TF.resize(batch[:, None] / 255, [size, size], antialias=True).expand(-1, 3, -1, -1)
    inputs = TF.normalize(resized, *VGG_ORIGINAL_STATS)
    model = build_model("vgg16", cut_after=block, image_size=size, head="linear")
    with torch.no_grad():
        expected = torchvision_features[: POOLING[block] + 1](inputs)
        found = model.backbone(model.preprocess(batch))
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


def test_classic_model_maps_raw_images_to_ten_logits_with_the_expected_head(images):
    model = build_model("vgg16", weights=None, image_size=32)
    head = sum(p.numel() for p in model.head.parameters())
    assert head == (25_088 * 1_024 + 1_024) + (1_024 * 512 + 512) + (512 * 10 + 10)
    with torch.no_grad():
        logits = model(images[:2])
    assert logits.shape == (2, 10) and logits.dtype == torch.float32 and logits.isfinite().all()


@pytest.mark.parametrize("head", models.HEADS)
def test_every_head_preset_starts_near_the_loss_of_guessing_on_scaled_features(tiny, head):
    model = build_model("small_cnn", weights=None, head=head)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(tiny.images), tiny.labels)
    assert abs(float(loss) - math.log(10)) < 0.3


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("head", set()),
        ("all", {"block1.0", "block1.2", "block2.5", "block2.7"}),
        (0, set()),
        (3, {"block2.7"}),  # from the output: pooling, ReLU, convolution
        (5, {"block2.5", "block2.7"}),
        (6, {"block2.5", "block2.7"}),
        (8, {"block1.2", "block2.5", "block2.7"}),
    ],
)
def test_freezing_leaves_exactly_the_chosen_layers_trainable(small_vgg, trainable, expected):
    model = small_vgg(cut_after="block2", trainable=trainable)
    found = {name.rpartition(".")[0] for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert found == expected
    assert all(p.requires_grad for p in model.head.parameters())


def test_pretrained_layers_are_frozen_by_default_and_random_ones_trained(small_vgg):
    assert not any(p.requires_grad for p in small_vgg().backbone.parameters())
    assert all(p.requires_grad for p in small_vgg(weights=None).backbone.parameters())


@pytest.mark.parametrize("part", ["whole", "rest"])
def test_frozen_batch_norm_keeps_its_statistics_in_training_mode(images, part):
    model = build_model("small_cnn", weights=None)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    frozen, free = norms[3], [*norms[:3], *norms[4:]]
    frozen.requires_grad_(False)
    before = [norm.running_mean.clone() for norm in norms]
    trained = model if part == "whole" else model.split()[1]
    trained.train()
    trained(images if part == "whole" else model.preprocess(images))
    assert not frozen.training and torch.equal(frozen.running_mean, before[3])
    assert all(
        norm.training and not torch.equal(norm.running_mean, b) for norm, b in zip(free, before[:3], strict=False)
    )
    trained.eval()
    assert not any(module.training for module in trained.modules())


SPLITS = {
    "vgg16, head": {"name": "vgg16", "head": (0, 2, (16,), True), "cut_after": "block2"},
    "vgg16, dropout first": {"name": "vgg16", "head": (0, 1, (), False), "cut_after": "block1"},
    "vgg16, convolution in the head": {"name": "vgg16", "head": (8, 2, (16,), True), "cut_after": "block2"},
    "vgg16, last 3 layers": {"name": "vgg16", "head": (0, 2, (16,), True), "cut_after": "block2", "trainable": 3},
    "vgg16, wide pooling": {"name": "vgg16", "head": (0, 7, (16,), False), "cut_after": "block1"},
    "small CNN, frozen": {"name": "small_cnn", "weights": None, "trainable": "head"},
    "small CNN, last block": {"name": "small_cnn", "weights": None, "trainable": 7},
    "small CNN, all": {"name": "small_cnn", "weights": None},
}


@pytest.mark.parametrize("settings", SPLITS.values(), ids=SPLITS)
def test_split_cuts_after_the_frozen_layers_where_least_has_to_be_stored(images, settings):
    model = build_model(**settings, image_size=32)
    prefix, rest = model.split()
    with torch.no_grad():
        torch.testing.assert_close(rest(prefix(images)), model(images), rtol=1e-5, atol=1e-5)
    assert isinstance(prefix[0], Preprocess)
    assert not any(p.requires_grad for p in prefix.parameters())
    assert not any(isinstance(module, nn.Dropout) for module in prefix.modules())
    assert {id(p) for part in (prefix, rest) for p in part.parameters()} == {id(p) for p in model.parameters()}

    # Every border that leaves the same frozen parameters behind it, and nothing random or trainable before it.
    activation, sizes = prefix(images[:1]), []
    frozen = len(list(prefix.parameters()))
    layers = [*prefix, *rest]
    for index, layer in enumerate(layers):
        if any(p.requires_grad for p in layer.parameters()) or isinstance(layer, nn.Dropout):
            break
        with torch.no_grad():
            stage = nn.Sequential(*layers[: index + 1])
            if len(list(stage.parameters())) >= frozen:
                sizes.append(stage(images[:1]).numel())
    assert activation.numel() == min(sizes)


class NoComputation(TorchDispatchMode):
    """Within it only shapes may be computed: convolutions and products of matrices with values fail."""

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        if any(word in str(function) for word in ("convolution", "addmm", "batch_norm")):
            assert all(x.device.type == "meta" for x in arguments if isinstance(x, torch.Tensor)), function
        return function(*arguments, **settings or {})


@pytest.mark.parametrize(("name", "size"), [("vgg16", 56), ("resnet18", 64), ("efficientnet_b0", 64)])
def test_split_computes_shapes_only_and_disturbs_nothing(name, size, images):
    model = build_model(name, weights=None, trainable="head", image_size=size)
    before = copy.deepcopy(model.state_dict())
    with NoComputation():
        with pytest.raises(AssertionError):
            model(images)
        prefix, rest = model.split()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert {x.device.type for x in model.state_dict().values()} == {"cpu"}
    # Where least has to be stored, of all borders behind the last frozen layer that has parameters.
    sizes, x = [], images
    for layer in prefix:
        x = layer(x)
        sizes.append(x.numel())
    torch.testing.assert_close(rest(x), model(images))
    learned = [i for i, layer in enumerate(prefix) if any(True for _ in layer.parameters())]
    assert sizes[-1] <= min(sizes[learned[-1] :])


def test_a_head_that_would_halve_a_map_of_one_pixel_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"'conv' halves its feature map, but vgg16 cut after block5 leaves 1×1 of 56"):
        build_model("vgg16", weights=None, image_size=56, head="conv")
    build_model("vgg16", weights=None, image_size=64, head="conv")


def test_split_leaves_no_frozen_layer_of_the_backbone_to_be_computed_again(small_vgg):
    prefix, rest = small_vgg(cut_after="block2", trainable=3).split()
    assert sum(isinstance(layer, nn.Conv2d) for layer in prefix) == 3
    assert sum(isinstance(layer, nn.Conv2d) for layer in rest) == 1


def test_the_seed_alone_decides_the_initial_weights(small_vgg):
    def head(seed: int, disturbance: int) -> torch.Tensor:
        torch.manual_seed(disturbance)
        return torch.cat([p.detach().flatten() for p in small_vgg(seed=seed).head.parameters()])

    assert torch.equal(head(3, 1), head(3, 2))
    assert not torch.equal(head(3, 1), head(4, 1))


@pytest.mark.parametrize("name", ["vgg16", "small_cnn"])
def test_building_a_model_leaves_the_global_generator_alone(name):
    before = torch.get_rng_state()
    build_model(name, weights=None, head=(0, 1, (8,), False), cut_after="block1")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        ({"name": "vgg61"}, "vgg16"),
        ({"name": "smallcnn"}, "small_cnn"),
        ({"name": "vgg16", "weights": "imagnet"}, "imagenet"),
        ({"name": "vgg16", "head": "clasic"}, "classic"),
        ({"name": "vgg16", "cut_after": "blok3"}, "block3"),
        ({"name": "vgg16", "trainable": "haed"}, "head"),
    ],
    ids=str,
)
def test_unknown_names_are_refused_with_the_nearest_known_one(arguments, nearest):
    with pytest.raises(ValueError, match=f"Did you mean '{nearest}'"):
        build_model(**arguments)


@pytest.mark.parametrize("trainable", [-1, 11])
def test_more_layers_than_there_are_cannot_be_trained(small_vgg, trainable):
    with pytest.raises(ValueError, match="the backbone has 10 layers"):
        small_vgg(cut_after="block2", trainable=trainable)


# ---------------------------------------------------------------------------------------- ResNet50, freezing by count


@pytest.fixture
def resnet_on_paper() -> models.Classifier:
    """ResNet50 whose parameters have shapes but no values."""
    with torch.device("meta"):
        return build_model("resnet50", weights=None, trainable="head")


def test_layers_of_resnet50_are_those_that_keras_lists(resnet_on_paper):
    layers = models.layers_in_order(resnet_on_paper.backbone)
    assert len(layers) == 172
    for (name, module), expected in zip(layers[-16:], KERAS_LAST_16.values(), strict=True):
        assert module is None if expected is None else name == expected
    # One 7x7 and, in each of 16 blocks, three convolutions, and four on shortcuts (He et al., 2016, table 1).
    kinds = Counter(type(module) for _, module in layers)
    expected = {nn.Conv2d: 53, nn.BatchNorm2d: 53, nn.ReLU: 1 + 3 * 16, type(None): 16, nn.MaxPool2d: 1}
    assert kinds == expected


BLOCK_3 = {f"layer4.2.{layer}{i}" for layer in ("conv", "bn") for i in (1, 2, 3)}
# 1x1, 3x3 and 1x1 filters between 2048 and 512 channels, and two numbers per channel of a normalisation.
BLOCK_3_PARAMETERS = 2048 * 512 + 9 * 512 * 512 + 512 * 2048 + 2 * (512 + 512 + 2048)


@pytest.mark.parametrize(
    ("trainable", "expected", "parameters"),
    [
        ("head", set(), 0),
        (10, BLOCK_3, BLOCK_3_PARAMETERS),
        (
            16,
            BLOCK_3 | {"layer4.1.bn2", "layer4.1.conv3", "layer4.1.bn3"},
            BLOCK_3_PARAMETERS + 512 * 2048 + 2 * (512 + 2048),
        ),
    ],
)
def test_last_layers_of_resnet50_learn_and_no_others(resnet_on_paper, trainable, expected, parameters):
    set_trainable(resnet_on_paper, trainable)
    free = {name: p.numel() for name, p in resnet_on_paper.backbone.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[0] for name in free} == expected
    assert sum(free.values()) == parameters
    assert all(p.requires_grad for p in resnet_on_paper.head.parameters())
    assert resnet_on_paper.config["trainable"] == trainable


def test_all_of_resnet50_is_its_published_size_without_the_classifier(resnet_on_paper):
    set_trainable(resnet_on_paper, "all")
    # 25,557,032 in torchvision's table, with a classifier of 1,000 classes.
    expected = 25_557_032 - (2048 * 1000 + 1000)
    assert sum(p.numel() for p in resnet_on_paper.backbone.parameters() if p.requires_grad) == expected
    with pytest.raises(ValueError, match="the backbone has 172 layers"):
        set_trainable(resnet_on_paper, 173)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("gap-256", "Pool Flatten BatchNorm1d:2048 Linear:2048-256 ReLU Dropout Linear:256-10"),
        (
            "gap-256-128",
            "Pool Flatten BatchNorm1d:2048 Linear:2048-256 ReLU Dropout Linear:256-128 ReLU Dropout Linear:128-10",
        ),
        ("linear", "Pool Flatten BatchNorm1d:2048 Linear:2048-10"),
    ],
)
def test_heads_of_resnet50_have_the_layers_their_names_say(head, expected):
    with torch.device("meta"):
        model = build_model("resnet50", weights=None, head=head)
    found = []
    for layer in model.head:
        widths = [str(v) for k in ("in_features", "out_features", "num_features") if (v := getattr(layer, k, None))]
        found.append(":".join([type(layer).__name__, *(["-".join(widths)] if widths else [])]))
    assert " ".join(found) == expected
    assert model.head[0].output_size == 1


def test_resnet50_from_data_weights_computes_torchvisions_features(elsewhere, monkeypatch, images):
    torch.manual_seed(0)
    reference = resnet50(weights=None)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    file = elsewhere / "project" / "data" / "weights" / PUBLISHED["resnet50"]
    torch.save(reference.state_dict(), file)
    # No other file can have the published digest, so this one is given its first digits.
    monkeypatch.setattr(weights, "file_sha256", lambda path: "0676ba61" + "c" * 56)
    model = build_model("resnet50", image_size=40)
    file.unlink()
    assert model.weights == "imagenet:0676ba61cccc"
    assert not any(p.requires_grad for p in model.backbone.parameters())

    batch = images[:3]
    resized = TF.resize(batch[:, None] / 255, [40, 40], antialias=True).expand(-1, 3, -1, -1)
    reference.fc = nn.Identity()
    with torch.no_grad():
        expected = reference.eval()(TF.normalize(resized, *IMAGENET_STATS))
        found = model.head[:2](model.backbone(model.preprocess(batch)))
    assert found.shape == (3, 2048)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize("counted", [True, False], ids=["with batch counts", "without, as older files are"])
def test_resnet50_takes_over_a_state_dict_and_draws_no_values_of_its_own(monkeypatch, counted):
    with torch.device("meta"):
        shapes = resnet50(weights=None).state_dict()
    state = {
        name: torch.full(v.shape, 7 if v.dtype == torch.int64 else 0.5, dtype=v.dtype) for name, v in shapes.items()
    }
    state = {name: v for name, v in state.items() if counted or not name.endswith("num_batches_tracked")}
    monkeypatch.setattr(models, "find_weights", lambda *_, **__: Pretrained(state, "imagenet:test"))
    drawn = []
    monkeypatch.setattr(nn.init, "kaiming_normal_", lambda filters, **_: drawn.append(filters.device.type))
    model = build_model("resnet50", trainable="all")
    assert set(drawn) <= {"meta"}
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in model.backbone.parameters())
    for name, tensor in model.backbone.state_dict().items():
        expected = (7 if counted else 0) if name.endswith("num_batches_tracked") else 0.5
        assert tensor.device.type == "cpu" and (tensor == expected).all(), name
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32)


def test_the_backbone_is_traced_once_and_a_copy_freezes_its_own_layers(monkeypatch, resnet_on_paper):
    calls, trace = [], models.layers_in_order
    monkeypatch.setattr(models, "layers_in_order", lambda backbone: calls.append(1) or trace(backbone))
    duplicate = copy.deepcopy(resnet_on_paper)
    for trainable in ("head", 10, "all"):
        set_trainable(duplicate, trainable)
        found = sum(p.requires_grad for p in duplicate.backbone.parameters())
        assert found == {"head": 0, 10: 9, "all": 3 * 53}[trainable]
    assert not any(p.requires_grad for p in resnet_on_paper.backbone.parameters())
    assert calls == []  # building the model has traced it


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: b.clone() for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))}


def test_frozen_batch_norm_of_a_partly_unfrozen_resnet50_keeps_its_statistics(images):
    model = build_model("resnet50", weights=None, trainable=16, image_size=32).train()
    before = statistics(model)
    model(images[:4])
    moved = {name.rpartition(".")[0] for name, old in before.items() if not torch.equal(old, statistics(model)[name])}
    free = {f"backbone.{name}" for name in KERAS_LAST_16.values() if name and "bn" in name} | {"head.2"}
    assert moved == free
    norms = {n: m.training for n, m in model.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}
    assert {name for name, training in norms.items() if training} == free and len(norms) == 53 + 1


def test_batch_norm_that_keeps_its_statistics_lets_its_weights_learn(images):
    model = build_model("small_cnn", weights=None, batchnorm="eval", image_size=16).train()
    before, weights = statistics(model), {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(images), torch.arange(16) % 10).backward()
    optimizer.step()
    after = statistics(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("head.")} != set()
    assert [name for name, p in model.named_parameters() if torch.equal(p, weights[name])] == []


def test_modes_follow_what_is_frozen():
    model = build_model("small_cnn", weights=None).train()
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 5 and all(norm.training for norm in norms)
    set_trainable(model, "head")
    assert model.training and model.head.training and not any(norm.training for norm in norms)
    set_trainable(model, 6)  # block3: convolution, normalisation, ReLU, twice
    assert [norm.training for norm in norms] == [False] * 3 + [True] * 2
    set_trainable(model.eval(), "all")
    assert not any(module.training for module in model.modules())


# Which borders are allowed: preprocessing and the layers before the first one that learns or is random.
BORDERS = {
    "vgg16, last 3 layers": ({"cut_after": "block2", "trainable": 3}, False, 8),
    "vgg16, random layer": ({"head": (0, 2, (16,), False)}, True, 10),
}


@pytest.mark.parametrize(("settings", "freeze_head", "last"), BORDERS.values(), ids=BORDERS)
def test_split_at_any_earlier_border_and_at_no_later_one(small_vgg, images, settings, freeze_head, last):
    model = small_vgg(image_size=16, **settings)
    model.head.requires_grad_(not freeze_head)
    with torch.no_grad():
        expected = model(images[:2])
        for border in range(1, last + 1):
            prefix, rest = model.split(border)
            assert len(prefix) == border
            torch.testing.assert_close(rest(prefix(images[:2])), expected, rtol=1e-5, atol=1e-5)
    for border in (-1, 0, last + 1):
        with pytest.raises(ValueError, match=f"only the first {last} layers"):
            model.split(border)


# ------------------------------------------------------------------------------------------------- wide residual net


def wide_resnet_size(blocks: int, width: int, side: int) -> tuple[int, int]:
    """(parameters, FLOPs of an image) of the convolutions and normalisations, counted by hand for one grey channel."""
    parameters, flops, inputs = 9 * 16, 2 * 9 * 16 * side * side, 16
    for outputs in (16 * width, 32 * width, 64 * width):
        side = side if outputs == 16 * width else side // 2
        filters = 9 * inputs * outputs + 9 * outputs * outputs + inputs * outputs + (blocks - 1) * 18 * outputs**2
        parameters += filters + 2 * (inputs + outputs) + (blocks - 1) * 4 * outputs
        flops, inputs = flops + 2 * filters * side * side, outputs
    return parameters + 2 * inputs, flops


def test_wide_resnet_is_the_papers_wrn_28_10():
    # Three input channels and a classifier without normalisation make it the 36.5 million of the paper's table 4.
    parameters, flops = wide_resnet_size(blocks=4, width=10, side=28)
    assert parameters + 2 * 9 * 16 + 10 * 640 + 10 == 36_479_194
    with torch.device("meta"):
        model = build_model("wide_resnet", weights=None)
    assert sum(p.numel() for p in model.backbone.parameters() if p.requires_grad) == parameters
    kinds = Counter(type(module) for _, module in model.layers)
    # 28 layers with weights are the stem, 24 convolutions in blocks and three on shortcuts; the classifier is the head.
    assert kinds == {nn.Conv2d: 1 + 24 + 3, nn.BatchNorm2d: 25, nn.ReLU: 25, type(None): 12}
    assert [name for name, _ in model.layers[-2:]] == ["group3.4", "group3.5"]

    with torch.device("meta"):
        model = build_model("wide_resnet_16_8", weights=None)
    assert sum(p.numel() for p in model.backbone.parameters()) == wide_resnet_size(blocks=2, width=8, side=28)[0]

    table = summary(build_model("wide_resnet_16_4", weights=None))
    assert table.output.to_dict() == {
        "preprocess": "1×28×28",
        "stem": "16×28×28",
        "group1": "64×28×28",
        "group2": "128×14×14",
        "group3": "256×7×7",
        "head": "10",
        "total": "",
    }
    parameters, flops = wide_resnet_size(blocks=2, width=4, side=28)
    assert table.parameters[["stem", "group1", "group2", "group3"]].sum() == parameters
    assert table.MFLOPs[["stem", "group1", "group2", "group3"]].sum() == pytest.approx(flops / 1e6)


@pytest.mark.parametrize(("inputs", "stride"), [(6, 1), (4, 2)], ids=["same size", "wider and smaller"])
def test_wide_block_computes_what_the_paper_draws(inputs, stride):
    torch.manual_seed(0)
    block, x = scratch.WideBlock(inputs, 6, stride).eval(), torch.randn(2, inputs, 8, 8)
    for norm in (block.norm1, block.norm2):
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)

    def active(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
        values = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        mean, variance, scale, shift = (v[:, None, None] for v in values)
        return ((x - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0)

    def convolved(x: torch.Tensor, filters: torch.Tensor, stride: int) -> torch.Tensor:
        side = filters.shape[-1]
        patches = nn.functional.unfold(x, side, padding=side // 2, stride=stride)
        return (filters.flatten(1) @ patches).unflatten(2, (x.shape[2] // stride, x.shape[3] // stride))

    first = active(x, block.norm1)
    expected = convolved(active(convolved(first, block.conv1.weight, stride), block.norm2), block.conv2.weight, 1)
    expected += x if stride == 1 else convolved(first, block.shortcut.weight, stride)
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


def test_wide_resnet_learns_splits_and_returns_from_a_file(images, tmp_path):
    model = build_model("wide_resnet_16_4", weights=None, image_size=8)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    nn.functional.cross_entropy(model.train()(images[:2]), torch.tensor([3, 7])).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    unchanged = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    # The head normalises a batch of two images to ±1 in every channel, whatever lies in front of it.
    assert not any(name.startswith("head.") for name in unchanged) and len(unchanged) < len(before) / 2

    set_trainable(model, 7)  # ReLU, norm; addition, second convolution; ReLU, norm; first convolution
    free = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert free == {f"group3.{name}" for name in ("2.weight", "2.bias", "1.conv1.weight", "1.conv2.weight",
                                                  "1.norm2.weight", "1.norm2.bias")}  # fmt: skip
    prefix, rest = model.eval().split()
    save_model(model, tmp_path / "wide")
    with torch.no_grad():
        torch.testing.assert_close(rest(prefix(images)), model(images))
        assert torch.equal(load_model(tmp_path / "wide")(images), model(images))


# ------------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_weights_are_an_error_that_says_where_to_get_them(elsewhere, name):
    with pytest.raises(WeightsUnavailable) as caught:
        build_model(name)
    message = str(caught.value)
    assert weights._URLS[name] in message
    assert str(elsewhere / "hub" / "checkpoints" / PUBLISHED[name]) in message
    assert "data/weights/" in message and "weights=None" in message


def test_damaged_shipped_weights_are_named_and_never_loaded(elsewhere):
    damaged = elsewhere / "project" / "data" / "weights" / SHIPPED.name
    content = bytearray(SHIPPED.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(WeightsUnavailable) as caught:
        build_model("vgg16")
    assert f"{damaged} is damaged" in str(caught.value)


def test_damaged_weights_in_torchs_cache_are_named_and_never_loaded(elsewhere, torchvision_features):
    cached = elsewhere / "hub" / "checkpoints" / "vgg16-88682ab5.pth"
    torch.save({f"features.{k}": v for k, v in torchvision_features[:5].state_dict().items()}, cached)
    with pytest.raises(WeightsUnavailable) as caught:
        build_model("vgg16")
    assert f"{cached} is damaged" in str(caught.value)


@pytest.mark.parametrize("where", ["data/weights", "torch's cache", "the download"])
def test_weights_come_from_wherever_they_are_where_none_are_shipped(elsewhere, monkeypatch, where):
    source = elsewhere / "weights.pth"
    filters = vgg16(weights=None, init_weights=False).features.state_dict()
    torch.save({f"features.{name}": torch.full_like(tensor, 0.5) for name, tensor in filters.items()}, source)
    digest = weights.file_sha256(source)
    # No other file can have the published digest, so the address names this one's.
    published = f"vgg16-{digest[:8]}.pth"
    folder = {"data/weights": "project/data/weights", "torch's cache": "hub/checkpoints", "the download": "server"}
    target = elsewhere / folder[where] / published
    target.parent.mkdir(exist_ok=True)
    source.rename(target)
    address = target if where == "the download" else elsewhere / "nowhere" / published
    monkeypatch.setitem(weights._URLS, "vgg16", address.as_uri())
    model = build_model("vgg16", cut_after="block1", head="linear")
    assert model.weights == f"imagenet:{digest[:12]}"
    assert all((p == 0.5).all() for p in model.backbone.parameters())


def test_nothing_is_downloaded_where_that_is_not_wanted(elsewhere, monkeypatch):
    def unexpected(*arguments, **settings):
        raise AssertionError("asked the network")

    monkeypatch.setattr(weights, "fetch", unexpected)
    with pytest.raises(WeightsUnavailable):
        models.find_weights("resnet50", download=False)


def test_random_weights_are_a_choice_that_the_model_remembers(elsewhere):
    model = build_model("vgg16", weights=None, cut_after="block1", head="linear")
    assert model.weights == "none"
    assert model.backbone[0][0].weight.std() > 0


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "data" / "models").glob("*.json")))
def test_shipped_models_say_what_was_recorded_of_them(name):
    path = ROOT / "data" / "models" / name
    card = json.loads(path.with_name(f"{name}.json").read_text(encoding="utf-8"))
    model, count = load_model(path), 40
    assert model.preprocess.augment == Augment(**card["model"]["augment"])
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    found = predict(model, data.load("test").select(range(count)), mirror=card["mirror"])
    recorded = load_predictions(f"{card['recipe']}-{card['profile']}")[:count]
    # Recorded in float16, and one model on a GPU in bfloat16.
    np.testing.assert_allclose(found, recorded, atol=0.02)
    assert (found.argmax(1) == recorded.argmax(1)).all()


def test_what_is_stored_in_float16_is_loaded_as_float32(tmp_path):
    file = save_model(build_model("small_cnn", weights=None), tmp_path / "half")
    # Copies, since a tensor may be a part of the file that is overwritten here.
    stored = {key: v.half() if v.ndim > 1 else v.clone() for key, v in load_file(file).items()}
    save_file(stored, file)
    card = json.loads((tmp_path / "half.json").read_text(encoding="utf-8"))
    (tmp_path / "half.json").write_text(json.dumps(card | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}))
    for key, loaded in load_model(tmp_path / "half").state_dict().items():
        assert loaded.dtype in (torch.float32, torch.int64)
        assert torch.equal(loaded, stored[key].to(loaded.dtype))


def test_loaded_weights_are_named_by_the_files_hash(small_vgg):
    import hashlib

    assert small_vgg().weights == "imagenet:" + hashlib.sha256(SHIPPED.read_bytes()).hexdigest()[:12]


def test_small_cnn_has_no_imagenet_weights():
    with pytest.raises(ValueError, match="weights=None"):
        build_model("small_cnn", weights="imagenet")


# ------------------------------------------------------------------------------------------------------ summary


def test_summary_counts_what_the_formula_for_convolutions_says():
    side = 32
    table = summary(build_model("vgg16", weights=None, image_size=side, head=(0, 1, (20,), False)))
    with torch.device("meta"):
        reference = vgg16(weights=None, init_weights=False).features
    expected, start = {}, 0
    for name, convolutions in VGG16_CONVOLUTIONS.items():
        # 3x3 filters; a multiplication and an addition are two operations.
        expected[name] = sum(2 * 3 * 3 * inputs * outputs * side * side for inputs, outputs in convolutions)
        side //= 2
        stop = POOLING[name] + 1
        assert table.parameters[name] == sum(p.numel() for p in reference[start:stop].parameters())
        assert table.output[name] == f"{convolutions[-1][1]}×{side}×{side}"
        start = stop
    expected["head"] = 2 * (512 * 20 + 20 * 10)
    for name, flops in expected.items():
        assert table.MFLOPs[name] == pytest.approx(flops / 1e6)
    assert table.MFLOPs["total"] == pytest.approx(sum(expected.values()) / 1e6)
    assert table.parameters["total"] == 14_714_688 + (512 * 20 + 20) + (20 * 10 + 10)


def test_summary_tells_trainable_parameters_and_keeps_the_mode(small_vgg):
    model = small_vgg(head=(0, 1, (), False)).train()
    table = summary(model)
    assert model.training
    assert table.trainable.to_dict() == {"preprocess": 0, "block1": 0, "head": 650, "total": 650}


# -------------------------------------------------------------------------------------------------- checkpoints


def trained(model: models.Classifier, images: torch.Tensor) -> models.Classifier:
    """Moves whatever training would move: trainable parameters and running statistics."""
    torch.manual_seed(1)
    model.train()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.01 * torch.randn_like(p)
        model(images)
    return model.eval()


CHECKPOINTS = {
    "head only": ({"name": "vgg16", "head": "linear"}, ("head.",)),
    "last layers too": ({"name": "vgg16", "head": (0, 2, (8,), True), "trainable": 3}, ("head.", "backbone.block2.7.")),
    "from scratch": ({"name": "vgg16", "weights": None, "head": "linear"}, ("head.", "backbone.")),
    "from scratch, frozen": (
        {"name": "vgg16", "weights": None, "head": "linear", "trainable": "head"},
        ("head.", "backbone."),
    ),
    "small CNN": ({"name": "small_cnn", "weights": None}, ("head.", "backbone.")),
    "with augmentation": ({"name": "vgg16", "head": "linear", "augment": Augment(flip=0.5)}, ("head.",)),
}


@pytest.mark.parametrize(("settings", "stored"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_saved_model_returns_with_identical_logits(images, tmp_path, settings, stored):
    model = trained(build_model(**settings, cut_after="block2", image_size=32), images)
    file = save_model(model, tmp_path / "deep" / "v1.0")
    loaded = load_model(tmp_path / "deep" / "v1.0")
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    assert not loaded.training
    assert loaded.weights == model.weights and loaded.preprocess.augment == model.preprocess.augment
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert sorted(path.name for path in file.parent.iterdir()) == ["v1.0.json", "v1.0.safetensors"]

    with safe_open(file, "pt") as content:
        keys = set(content.keys())
    assert keys == {key for key in model.state_dict() if key.startswith(stored)}
    if stored == ("head.",):
        assert file.stat().st_size < 20_000


def test_card_keeps_what_the_caller_adds(small_vgg, tmp_path):
    save_model(small_vgg(), tmp_path / "model", accuracy=0.9, classes=["a", "b"])
    card = json.loads((tmp_path / "model.json").read_text())
    assert card["accuracy"] == 0.9 and card["classes"] == ["a", "b"]
    assert card["weights"].startswith("imagenet:")


def damage_tensors(path):
    file = path.with_suffix(".safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def truncate_card(path):
    file = path.with_suffix(".json")
    file.write_text(file.read_text()[:40])


def name_other_weights(path):
    file = path.with_suffix(".json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights": "imagenet:0123456789ab"}))


def change_architecture(path):
    card = json.loads(path.with_suffix(".json").read_text())
    card["model"]["head"] = [0, 2, [16, 16], True]
    path.with_suffix(".json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (damage_tensors, ValueError, "model.safetensors does not belong to model.json"),
        (truncate_card, ValueError, "model.json"),
        (name_other_weights, ValueError, "model.json is damaged: it does not describe model.safetensors"),
        (change_architecture, ValueError, "model.json is damaged: it does not describe model.safetensors"),
        (lambda path: path.with_suffix(".safetensors").unlink(), FileNotFoundError, "model.safetensors"),
        (lambda path: path.with_suffix(".json").unlink(), FileNotFoundError, "model.json"),
    ],
    ids=["damaged", "card damaged", "other weights", "other layers", "missing", "card missing"],
)
def test_checkpoint_that_cannot_be_right_is_refused(small_vgg, tmp_path, spoil, error, message):
    save_model(small_vgg(), tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(error, match=message):
        load_model(tmp_path / "model")


def test_failed_save_leaves_the_earlier_model_whole(small_vgg, tmp_path, images):
    model = small_vgg()
    save_model(model, tmp_path / "model")
    with pytest.raises(TypeError):
        save_model(trained(small_vgg(), images), tmp_path / "model", note=object())
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "model")(images), model(images))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
