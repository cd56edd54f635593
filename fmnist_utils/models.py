"""Build a model: pretrained or new backbone, head, what of it learns, where it can be cut in two.

Every model takes what the dataset holds (``uint8 [B, 28, 28]``), because its first module is
:class:`~fmnist_utils.preprocess.Preprocess`. Explained in ``notebooks/03_vgg16_transfer_learning.ipynb`` and
``notebooks/04_resnet50_fine_tuning.ipynb``.
"""

from dataclasses import asdict
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fmnist_utils import check_name
from fmnist_utils.networks.freezing import Layers, PartlyFrozen, changes_in_training
from fmnist_utils.networks.heads import HEADS, head_for, make_head
from fmnist_utils.networks.layers import cut, layers_in_order, leaves, on_paper, summary
from fmnist_utils.networks.pretrained import torchvision_backbone
from fmnist_utils.networks.scratch import small_cnn_backbone, wide_resnet_backbone
from fmnist_utils.preprocess import FASHION_MNIST_STATS, IMAGENET_STATS, VGG_ORIGINAL_STATS, Augment, Preprocess
from fmnist_utils.sources.files import shown
from fmnist_utils.sources.weights import Pretrained, WeightsUnavailable, default_weights, find_weights, is_file_name

__all__ = [
    "BACKBONES", "HEADS", "Classifier", "WeightsUnavailable", "build_model", "find_weights", "layers_in_order",
    "leaves", "make_head", "set_trainable", "summary",
]  # fmt: skip


class Classifier(PartlyFrozen):
    """``preprocess -> backbone -> head``: ``uint8 [B, 28, 28]`` in, logits ``float32 [B, 10]`` out.

    ``config`` holds the arguments of :func:`build_model`, ``weights`` the identity of the pretrained weights or
    ``"none"``, ``weights_origin`` what they are in words ("ImageNet", "random").
    """

    def __init__(
        self,
        preprocess: Preprocess,
        backbone: nn.Sequential,
        head: nn.Sequential,
        config: dict,
        weights: str,
        weights_origin: str,
    ):
        super().__init__()
        self.preprocess, self.backbone, self.head = preprocess, backbone, head
        self.config, self.weights, self.weights_origin = config, weights, weights_origin

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(self.preprocess(images)))

    @cached_property
    def layers(self) -> list[tuple[str, nn.Module | nn.Parameter | None]]:
        """:func:`layers_in_order` of the backbone, traced once; a copy of the model has its own."""
        return layers_in_order(self.backbone)

    def split(self, border: int | None = None) -> tuple[Layers, Layers]:
        """(frozen prefix, trainable rest); applied one after the other they equal the model and share its layers.

        The prefix starts with the preprocessing and never holds a trainable parameter or a random layer. Among the
        allowed borders it takes the one with the smallest activation, because that is what a cache has to store;
        ``border`` asks for an earlier one, such as that of a later phase which trains more (number of layers in the
        prefix; a residual block is one layer, and so is a whole network that is no chain of blocks). Raises
        ``ValueError`` for a border behind a layer that can change.
        """
        layers = [self.preprocess, *leaves(self.backbone), *self.head]
        fixed = next((i for i, layer in enumerate(layers) if i and changes_in_training(layer)), len(layers))
        if border is None:
            last_frozen = max((i for i in range(1, fixed) if any(True for _ in layers[i].parameters())), default=0)
            side, channels = self.preprocess.image_size, self.preprocess.offset.shape[1]
            outputs = [torch.empty(1, channels, side, side, device="meta")]
            for layer in layers[1:fixed]:
                outputs.append(on_paper(layer, outputs[-1]))
            border = min(range(last_frozen, fixed), key=lambda i: (outputs[i].numel(), -i)) + 1
        elif not 1 <= border <= fixed:
            raise ValueError(f"border={border}: only the first {fixed} layers neither learn nor are random.")
        return Layers(*layers[:border]), Layers(*layers[border:])


#: Name: (what builds it or None for torchvision, default head, default image size, statistics of its input), where they
#: are not those that torchvision says.
BACKBONES = {
    "vgg16": (None, "classic", 56, VGG_ORIGINAL_STATS),
    "resnet50": (None, "gap-256", 64, IMAGENET_STATS),
    "small_cnn": (small_cnn_backbone, "linear", 28, FASHION_MNIST_STATS),
    "wide_resnet": (partial(wide_resnet_backbone, blocks=4, width=10), "linear", 28, FASHION_MNIST_STATS),
    "wide_resnet_16_4": (partial(wide_resnet_backbone, blocks=2, width=4), "linear", 28, FASHION_MNIST_STATS),
    "wide_resnet_16_8": (partial(wide_resnet_backbone, blocks=2, width=8), "linear", 28, FASHION_MNIST_STATS),
}


def _backbone_row(name: str) -> tuple:
    """The row of ``BACKBONES``; for other networks of torchvision's with the size and statistics of their weights."""
    if name in BACKBONES:
        return BACKBONES[name]
    from torchvision import models

    check_name("model", name, (*BACKBONES, *(n for n in models.list_models(module=models) if n not in BACKBONES)))
    preset = default_weights(name).transforms()
    return None, "gap-256", preset.crop_size[0], (tuple(preset.mean), tuple(preset.std))


def build_model(
    name: str,
    *,
    weights: str | Path | None = "imagenet",
    head: str | tuple[int, int, tuple[int, ...], bool] | None = None,
    cut_after: str | None = None,
    trainable: str | int | None = None,
    image_size: int | None = None,
    dropout: float = 0.5,
    augment: Augment | dict | None = None,
    batchnorm: str = "train",
    seed: int = 0,
    weights_sha256: str = "",
) -> Classifier:
    """Build a :class:`Classifier` in eval mode; explained in notebooks/03_vgg16_transfer_learning.ipynb.

    ``name``: ``"vgg16"`` (Simonyan & Zisserman, 2015, arXiv:1409.1556), ``"resnet50"`` (He et al., 2016,
    arXiv:1512.03385; notebook 04), and from scratch ``"small_cnn"`` (five convolutions), ``"wide_resnet"`` (WRN-28-10,
    Zagoruyko & Komodakis, 2016, arXiv:1605.07146, without dropout) or the smaller ``"wide_resnet_16_8"`` and
    ``"wide_resnet_16_4"``; and any other classification network of torchvision's, such as ``"resnet18"`` or
    ``"vit_b_16"`` (``torchvision.models.list_models(module=torchvision.models)``).
    ``weights``: ``"imagenet"``; the path of a file of your own, safetensors or ``.pth``, in torchvision's names and
    with its statistics of the input; or ``None`` for random ones (a choice, never a fallback). Where they are looked
    for: :func:`~fmnist_utils.sources.weights.find_weights`. ``weights_sha256``: first digits of the only file that
    will do.
    ``head``: a key of ``HEADS`` or such a row of your own; default ``classic`` for VGG16 (with pool 7:
    25088 -> 1024 -> 512 -> 10), ``linear`` for those from scratch and ``gap-256`` for the others.
    ``cut_after``: last block that is kept (``summary`` lists all): ``"block1"`` … ``"block5"`` of VGG16, ``"stem"``,
    ``"layer1"`` … ``"layer4"`` of ResNets, ``"stem"``, ``"group1"`` … ``"group3"`` of the wide ones, ``"features0"``, …
    of EfficientNet, MobileNet and ConvNeXt; default all. Networks that are no chain of blocks (ViT, Swin, DenseNet,
    Inception, GoogLeNet) are one, and give the vector [B, C] that their own classifier gets.
    ``trainable``: what learns, see :func:`set_trainable`; default ``"head"``, and ``"all"`` for random weights.
    ``image_size``: side in pixels the network sees (default 56 for VGG16, 64 for ResNet50, 28 for those from scratch,
    and what the weights were made for, mostly 224, for the others; a pretrained ViT or MaxViT takes no other).
    ``batchnorm``: ``"eval"`` keeps the backbone's BatchNorm statistics even where its layers learn. ``seed``: for every
    random initial value, whatever was drawn before.

    Raises ``ValueError`` for unknown names, for sizes, cuts and heads that a network does not allow and for a file of
    weights that is not for this network, and :class:`WeightsUnavailable` for weights that cannot be had.
    """
    scratch, default_head, default_size, stats = _backbone_row(name)
    if not (weights and is_file_name(weights)):
        check_name("weights", weights, ("imagenet", None, "path/to/file.safetensors"))
    check_name("batchnorm", batchnorm, ("train", "eval"))
    head, image_size = head or default_head, image_size or default_size
    if isinstance(head, str):
        check_name("head", head, tuple(HEADS))
    if weights and scratch:
        raise ValueError(f"{name} has no pretrained weights: pass weights=None to train it from scratch.")
    if weights == "imagenet" and name.startswith(("vit_", "maxvit_")) and image_size != default_size:
        raise ValueError(f"{name}'s weights are for {default_size}×{default_size} pixels: leave image_size out.")
    pretrained = find_weights(name, weights, sha256=weights_sha256) if weights else Pretrained(None, "none", "random")
    if name == "vgg16" and (pretrained.state is None or not pretrained.official):
        stats = IMAGENET_STATS  # the original's 0-255 scale suits only its own weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build = scratch or partial(torchvision_backbone, name, pretrained, image_size)
        backbone, channels, sides = cut(name, build, cut_after, (len(stats[0]), image_size), default_size)
        cut_after = list(backbone.named_children())[-1][0]
        top = head_for(head, channels, sides, dropout, name, cut_after, image_size)
    for module in backbone.modules():
        if isinstance(module, _BatchNorm):
            module.keeps_statistics = batchnorm == "eval"
    augment = Augment(**augment) if isinstance(augment, dict) else augment
    config = {
        "name": name,
        "weights": shown(Path(weights)) if weights and is_file_name(weights) else weights,
        "head": head,
        "cut_after": cut_after,
        "trainable": trainable,
        "image_size": image_size,
        "dropout": dropout,
        "augment": asdict(augment) if augment else None,
        "batchnorm": batchnorm,
        "seed": seed,
    }
    preprocess = Preprocess(image_size, stats, augment)
    model = Classifier(preprocess, backbone, top, config, pretrained.identity, pretrained.origin)
    set_trainable(model, trainable if trainable is not None else "head" if weights else "all")
    return model.eval()


def set_trainable(model: Classifier, trainable: str | int) -> Classifier:
    """Freeze the backbone but for its last ``trainable`` layers; the head always learns. Returns ``model``.

    ``"head"`` is 0 layers, ``"all"`` is every layer; a number counts from the output side as :func:`layers_in_order`
    lists them. Raises ``ValueError`` for a number that the backbone does not have, or with which nothing in it would
    learn (activations and poolings count as layers). Explained in notebooks/04_resnet50_fine_tuning.ipynb.
    """
    layers = model.layers
    if isinstance(trainable, str):
        check_name("trainable", trainable, ("head", "all"))
        count = len(layers) if trainable == "all" else 0
    else:
        count = trainable
    if not 0 <= count <= len(layers):
        raise ValueError(f"trainable={trainable}: the backbone has {len(layers)} layers.")
    chosen = dict(layers[len(layers) - count :])
    groups = ([v] if isinstance(v, nn.Parameter) else v.parameters() for v in chosen.values() if v is not None)
    learning = list(chain.from_iterable(groups))
    if count and not learning:
        names = ", ".join(chosen)
        raise ValueError(f"trainable={trainable}: the last layers ({names}) have nothing to learn: take more of them.")
    model.backbone.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    model.config["trainable"] = trainable
    return model.train(model.training)  # BatchNorm's mode follows
