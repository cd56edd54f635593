"""From raw grey images to logits: backbone, head, freezing, summary, checkpoints.

Every model takes what the dataset holds (``uint8 [B, 28, 28]``), because its first module is
:class:`~fmnist_utils.preprocess.Preprocess`. Explained in ``notebooks/03_vgg16_transfer_learning.ipynb`` and
``notebooks/04_resnet50_fine_tuning.ipynb``.
"""

import difflib
import operator
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fmnist_utils.preprocess import FASHION_MNIST_STATS, IMAGENET_STATS, VGG_ORIGINAL_STATS, Augment, Preprocess
from fmnist_utils.sources.files import shown
from fmnist_utils.sources.weights import (
    Pretrained,
    WeightsUnavailable,  # noqa: F401 (for those who import it from here)
    _default_weights,
    find_weights,
    is_file_name,
    load_pretrained,
)

#: Head presets: (filters of a 3×3 convolution or 0, side of the pooled map, hidden widths, normalise the features).
HEADS = {
    "classic": (0, 7, (1024, 512), False),
    "pooled": (0, 4, (256,), True),
    "linear": (0, 1, (), True),
    "conv": (192, 3, (256,), True),
    "gap-256": (0, 1, (256,), True),
    "gap-256-128": (0, 1, (256, 128), True),
}


# ------------------------------------------------------------------------------------------------------- models


class _FrozenMixin(nn.Module):
    """Training mode, except that BatchNorm keeps its statistics (stays in eval mode) where frozen or asked to.

    A frozen block of several layers is in eval mode as a whole, so that nothing in it is random (EfficientNet and
    ConvNeXt skip blocks at random while they learn) and it may be computed once.
    """

    def train(self, mode: bool = True):
        super().train(mode)
        for module in self.modules():
            learns = [p.requires_grad for p in module.parameters()]
            if isinstance(module, _BatchNorm):
                frozen = getattr(module, "keeps_statistics", False) or not all(learns)
            else:
                frozen = learns and not any(learns) and module is not self and not isinstance(module, nn.Sequential)
            if frozen:
                module.eval()
        return self


class Layers(_FrozenMixin, nn.Sequential):
    """A part of a :class:`Classifier`, as :meth:`Classifier.split` returns it."""


class Classifier(_FrozenMixin):
    """``preprocess -> backbone -> head``: ``uint8 [B, 28, 28]`` in, logits ``float32 [B, 10]`` out.

    ``config`` holds the arguments of :func:`build_model`, ``weights`` the identity of the pretrained weights or
    ``"none"``, ``weights_origin`` what they are in words ("ImageNet", "random"). Explained in
    notebooks/03_vgg16_transfer_learning.ipynb.
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
        fixed = 1
        while fixed < len(layers) and not _changes_in_training(layers[fixed]):
            fixed += 1
        if border is not None:
            if not 1 <= border <= fixed:
                raise ValueError(f"border={border}: only the first {fixed} layers neither learn nor are random.")
            return Layers(*layers[:border]), Layers(*layers[border:])
        last_frozen = max((i for i in range(1, fixed) if any(True for _ in layers[i].parameters())), default=0)
        side, channels = self.preprocess.image_size, self.preprocess.offset.shape[1]
        x = torch.empty(1, channels, side, side, device="meta")
        sizes = {0: x.numel()}
        for i in range(1, fixed):
            x = _on_paper(layers[i], x)
            sizes[i] = x.numel()
        border = min(range(last_frozen, fixed), key=lambda i: (sizes[i], -i)) + 1
        return Layers(*layers[:border]), Layers(*layers[border:])


def leaves(module: nn.Module) -> list[nn.Module]:
    """Layers of nested ``nn.Sequential`` containers, in the order in which they run."""
    if isinstance(module, nn.Sequential):
        return [leaf for child in module for leaf in leaves(child)]
    return [module]


def _changes_in_training(layer: nn.Module) -> bool:
    if learns := [p.requires_grad for p in layer.parameters()]:
        return any(learns)  # where nothing learns, nothing in it is random either: see _FrozenMixin
    return any(isinstance(module, _DropoutNd | _BatchNorm) for module in layer.modules())


class Pool(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling, on the CPU for Apple GPUs, whose backend lacks sizes that do not divide evenly."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.cpu()).to(x.device) if x.device.type == "mps" else super().forward(x)


def make_head(
    channels: int, conv: int, pool: int, hidden: tuple[int, ...], normalise: bool, dropout: float
) -> nn.Sequential:
    """From a feature map [B, channels, H, W] to logits [B, 10]; the arguments are those of a row in ``HEADS``.

    An optional convolution with max pooling, average pooling to ``pool``×``pool`` (0: none, for features
    [B, channels]), and fully connected layers with ReLU and dropout. ``normalise`` puts a batch normalisation in front:
    activations of the original VGG16 reach thousands, and unscaled the first loss would be far above ln 10.
    """
    layers: list[nn.Module] = []
    if conv:
        layers += [nn.BatchNorm2d(channels)] if normalise else []
        layers += [
            nn.Conv2d(channels, conv, 3, padding=1, bias=False),
            nn.BatchNorm2d(conv),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    width = (conv or channels) * max(pool, 1) ** 2
    layers += [Pool(pool)] if pool else []
    layers += [nn.Flatten()]
    if conv:
        layers.append(nn.Dropout(dropout))
    elif normalise:
        layers.append(nn.BatchNorm1d(width))
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(dropout)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 10))


def _outline(net: nn.Module) -> tuple[OrderedDict[str, nn.Module] | None, str]:
    """(layers up to the pooling, name of the classifier) of a network of torchvision's.

    None in place of the layers where the network is no chain of them: where it does more than to pass a feature map
    [B, C, H, W] from one to the next, pool the last one and classify.
    """
    from torch.fx import Tracer
    from torchvision.ops import Permute

    tracer = Tracer()
    tracer.is_leaf_module = lambda module, name: name not in ("features", "layers", "trunk_output")
    nodes = list(tracer.trace(net).nodes)[1:-1]  # without input and output
    classifier = [node.target for node in nodes if node.op == "call_module"][-1]
    layers, ended = OrderedDict(), False
    for node in nodes:
        if node.target == classifier:
            return layers, classifier
        ended = ended or getattr(node.target, "__name__", node.target) in ("avgpool", "adaptive_avg_pool2d", "mean")
        if ended:
            continue
        # Networks with a Permute (Swin) have maps [B, H, W, C].
        if node.op != "call_module" or node.args != (node.prev,):
            return None, classifier
        layers[node.target] = net.get_submodule(node.target)
        if isinstance(layers[node.target], Permute):
            return None, classifier


def _blocks(layers: OrderedDict[str, nn.Module]) -> OrderedDict[str, nn.Module]:
    """Group a chain of layers by name: each block of several layers is one, single layers up to a max pooling another.

    The names are torchvision's ("layer3", "features5" for ``features[5]``) but for "stem", the single layers that other
    blocks follow, and "block1", "block2", … in networks that have only single layers, like VGG.
    """
    composed = {name: any(True for _ in layer.children()) for name, layer in layers.items()}
    groups, ended = [], True
    for name, layer in layers.items():
        if ended or composed[name]:
            groups.append([])
        groups[-1].append((name, layer))
        ended = composed[name] or isinstance(layer, nn.MaxPool2d)
    blocks = OrderedDict()
    for number, group in enumerate(groups, 1):
        (first, layer), *others = group
        parent, _, child = first.rpartition(".")
        name = parent + child if child.isdigit() else child
        if not any(composed.values()):
            name = f"block{number}"
        elif others and number == 1:
            name = "stem"
        single = composed[first] or not others and any(composed.values())
        blocks[name] = layer if single else nn.Sequential(OrderedDict((k.rpartition(".")[2], v) for k, v in group))
    return blocks


def _torchvision_backbone(name: str, found: Pretrained, image_size: int) -> nn.Sequential:
    """A network of torchvision's without pooling and classifier, in blocks; as a single one where it is no chain."""
    from torchvision.models import get_model

    arguments = {}
    if name.startswith("vit_"):
        arguments = {"image_size": image_size}
    elif name.startswith("maxvit_"):
        arguments = {"input_size": (image_size, image_size)}
    elif name in ("googlenet", "inception_v3"):  # as torchvision makes them where it loads weights
        arguments = {"aux_logits": False, "transform_input": True, "init_weights": True}
    # No random values are drawn for what the state dict brings, and VGG's 124 million parameters of a classifier are
    # never allocated. RegNet computes its widths with tensors, which need values.
    empty = (found.state is not None or name.startswith("vgg")) and not name.startswith("regnet_")
    with torch.device("meta") if empty else nullcontext():
        net = get_model(name, weights=None, **arguments)
    layers, classifier = _outline(net)
    setattr(net, classifier, nn.Identity())
    if found.state is not None:
        load_pretrained(net, name, found, classifier)
    elif empty:
        net.to_empty(device="cpu")
        for layer in net.features:
            if isinstance(layer, _BatchNorm):
                layer.reset_parameters()
            elif isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    return nn.Sequential(OrderedDict({name: net}) if layers is None else _blocks(layers))


def _on_paper(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` on torch's meta device: the shape of the output without computing it; the module stays as it is."""
    tensors = chain(module.named_parameters(), module.named_buffers())
    with torch.no_grad():
        return functional_call(module, {name: t.to("meta") for name, t in tensors}, x)


def _small_cnn_backbone() -> nn.Sequential:
    def convolutions(*widths: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        return layers

    # One thin convolution at full size: there the work is, and most of the time of a CPU.
    return nn.Sequential(
        OrderedDict(
            block1=nn.Sequential(*convolutions(1, 16), nn.MaxPool2d(2)),
            block2=nn.Sequential(*convolutions(16, 64, 64), nn.MaxPool2d(2)),
            block3=nn.Sequential(*convolutions(64, 128, 128)),
        )
    )


class WideBlock(nn.Module):
    """Pre-activation residual block of two 3×3 convolutions; a 1×1 convolution adapts the shortcut where sizes change.

    As in the authors' code, that shortcut starts behind the first normalisation and ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.norm1(x))
        change = self.conv2(self.relu2(self.norm2(self.conv1(active))))
        return change + (x if self.shortcut is None else self.shortcut(active))


def _wide_resnet_backbone(blocks: int, width: int) -> nn.Sequential:
    groups, inputs = OrderedDict(stem=nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False))), 16
    for number, outputs in enumerate((16 * width, 32 * width, 64 * width), 1):
        first = WideBlock(inputs, outputs, stride=1 if number == 1 else 2)
        groups[f"group{number}"] = nn.Sequential(first, *(WideBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
        inputs = outputs
    groups["group3"].extend([nn.BatchNorm2d(inputs), nn.ReLU()])
    for layer in nn.Sequential(groups).modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(groups)


#: Name: (what builds it or None for torchvision, default head, default image size, statistics of its input), where they
#: are not those that torchvision says.
BACKBONES = {
    "vgg16": (None, "classic", 56, VGG_ORIGINAL_STATS),
    "resnet50": (None, "gap-256", 64, IMAGENET_STATS),
    "small_cnn": (_small_cnn_backbone, "linear", 28, FASHION_MNIST_STATS),
    "wide_resnet": (partial(_wide_resnet_backbone, blocks=4, width=10), "linear", 28, FASHION_MNIST_STATS),
    "wide_resnet_16_4": (partial(_wide_resnet_backbone, blocks=2, width=4), "linear", 28, FASHION_MNIST_STATS),
    "wide_resnet_16_8": (partial(_wide_resnet_backbone, blocks=2, width=8), "linear", 28, FASHION_MNIST_STATS),
}


def _backbone_row(name: str) -> tuple:
    """The row of ``BACKBONES``; for other networks of torchvision's with the size and statistics of their weights."""
    if name in BACKBONES:
        return BACKBONES[name]
    from torchvision import models

    check_name("model", name, (*BACKBONES, *(n for n in models.list_models(module=models) if n not in BACKBONES)))
    preset = _default_weights(name).transforms()
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
    ``"wide_resnet_16_4"``; and any other classification network of torchvision's, such as ``"resnet18"``,
    ``"efficientnet_b0"``, ``"convnext_tiny"`` or ``"vit_b_16"``
    (``torchvision.models.list_models(module=torchvision.models)``).
    ``weights``: ``"imagenet"``; the path of a file of your own, safetensors or ``.pth``, in torchvision's names and
    with its statistics of the input; or ``None`` for random ones (a choice, never a fallback). Where they are looked
    for: :func:`~fmnist_utils.sources.weights.find_weights`. ``weights_sha256``: first digits of the only file that
    will do.
    ``head``: a key of ``HEADS`` or such a row of your own; default ``classic`` for VGG16 (with pool 7:
    25088 -> 1024 -> 512 -> 10), ``linear`` for those from scratch and ``gap-256`` for the others.
    ``cut_after``: last block that is kept: ``"block1"`` … ``"block5"`` of VGG16, ``"stem"``, ``"layer1"`` …
    ``"layer4"`` of ResNets, ``"stem"``, ``"group1"`` … ``"group3"`` of the wide ones, ``"features0"``,
    ``"features1"``, … of EfficientNet, MobileNet and ConvNeXt (all blocks of any: ``summary``); default all. Networks
    that are no chain of blocks (ViT, Swin, DenseNet, Inception, GoogLeNet) are one, and give the vector [B, C] that
    their own classifier gets.
    ``trainable``: what learns, see :func:`set_trainable`; default ``"head"`` for pretrained and ``"all"`` for random
    weights.
    ``image_size``: side in pixels the network sees (default 56 for VGG16, 64 for ResNet50, 28 for those from scratch,
    and what the weights were made for, mostly 224, for the others; a pretrained ViT or MaxViT takes no other).
    ``batchnorm``: ``"eval"`` keeps the backbone's BatchNorm statistics even where its layers learn. ``seed``: for every
    random initial value, whatever was drawn before.

    Raises ``ValueError`` for unknown names, for sizes, cuts and heads that a network does not allow and for a file of
    weights that is not for this network, and :class:`WeightsUnavailable` for weights that cannot be had.
    """
    augment = Augment(**augment) if isinstance(augment, dict) else augment
    own, default_head, default_size, stats = _backbone_row(name)
    if not (weights and is_file_name(weights)):
        check_name("weights", weights, ("imagenet", None, "path/to/file.safetensors"))
    check_name("batchnorm", batchnorm, ("train", "eval"))
    head, image_size = head or default_head, image_size or default_size
    if isinstance(head, str):
        check_name("head", head, tuple(HEADS))
    if weights and own:
        raise ValueError(f"{name} has no pretrained weights: pass weights=None to train it from scratch.")
    if weights == "imagenet" and name.startswith(("vit_", "maxvit_")) and image_size != default_size:
        raise ValueError(f"{name}'s weights are for {default_size}×{default_size} pixels: leave image_size out.")
    found = find_weights(name, weights, sha256=weights_sha256) if weights else Pretrained(None, "none", "random")
    if name == "vgg16" and (found.state is None or not found.official):
        stats = IMAGENET_STATS  # the original's 0-255 scale suits only its own weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            backbone = own() if own else _torchvision_backbone(name, found, image_size)
            blocks = [block for block, _ in backbone.named_children()]
            if blocks == [name] and cut_after not in (None, name):
                raise ValueError(f"{name} is no chain of blocks and cannot be cut: leave cut_after out.")
            cut_after = cut_after or blocks[-1]
            check_name("cut_after", cut_after, tuple(blocks))
            backbone = backbone[: blocks.index(cut_after) + 1]
            image = torch.empty(1, len(stats[0]), image_size, image_size, device="meta")
            channels, *sides = _on_paper(backbone.eval(), image).shape[1:]
        except (AssertionError, RuntimeError) as error:  # torchvision's own checks, and maps smaller than a filter
            raise ValueError(
                f"{name} cannot take images of {image_size}×{image_size} pixels ({error}): try {default_size}."
            ) from error
        conv, pool, hidden, normalise = HEADS[head] if isinstance(head, str) else head
        if conv and not sides:
            raise ValueError(
                f"head={head!r} needs a feature map, but {name} gives a vector: choose 'linear' or 'gap-256'."
            )
        if conv and min(sides) < 2:
            raise ValueError(
                f"head={head!r} halves its feature map, but {name} cut after {cut_after} leaves {sides[0]}×{sides[1]} "
                f"of {image_size}×{image_size} pixels: take a larger image_size, an earlier cut_after, or another head."
            )
        top = make_head(channels, conv, pool if sides else 0, tuple(hidden), normalise, dropout)
    for module in backbone.modules():
        if isinstance(module, _BatchNorm):
            module.keeps_statistics = batchnorm == "eval"
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
    model = Classifier(Preprocess(image_size, stats, augment), backbone, top, config, found.identity, found.origin)
    set_trainable(model, trainable if trainable is not None else "head" if weights else "all")
    return model.eval()


def check_name(what: str, name: str | None, known: tuple) -> None:
    """Raise ``ValueError`` with the nearest of the ``known`` names unless ``name`` is one of them."""
    if name not in known:
        alike = {k: difflib.SequenceMatcher(None, str(k), str(name)).ratio() for k in known}
        nearest = sorted(known, key=alike.get, reverse=True)  # among equally near ones, the first stays first
        hint = f" Did you mean {nearest[0]!r}?" if alike[nearest[0]] >= 0.3 else ""
        choice = known if len(known) <= 20 else (*nearest[:8], f"{len(known) - 8} others")
        raise ValueError(f"{what}={name!r} is not known.{hint} Choose one of {', '.join(map(repr, choice))}.")


def layers_in_order(backbone: nn.Module) -> list[tuple[str, nn.Module | nn.Parameter | None]]:
    """Every layer as (name, module) in the order in which it runs, as Keras lists a network.

    Convolutions, normalisations, activations and poolings count one each, and so does the addition of a residual block
    (its module is ``None``). An activation that torchvision uses several times is listed several times. Attention is
    one layer; a parameter that belongs to none, such as ViT's class token, stands in place of a module; torchvision's
    own helpers without parameters (stochastic depth, changes of the order of axes) do not count. Against Keras:
    padding is part of a convolution here, no layer of its own (ResNet50: 172 here, 175 there with two paddings and the
    input), and the convolution on the shortcut comes just before the addition, not in the middle of the block.
    Explained in notebooks/04_resnet50_fine_tuning.ipynb.
    """
    from torch.fx import Tracer

    tracer, layers, parameters = Tracer(), [], dict(backbone.named_parameters())
    usual = tracer.is_leaf_module  # torch's own layers; torchvision's ConvNeXt has a normalisation of its own
    tracer.is_leaf_module = lambda module, name: usual(module, name) or not any(True for _ in module.children())
    for node in tracer.trace(backbone).nodes:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source.target in parameters:
                layers.append((source.target, parameters.pop(source.target)))
        if node.op == "call_module":
            layer = backbone.get_submodule(node.target)
            helper = (
                isinstance(layer, nn.Identity) or not usual(layer, "") and not any(True for _ in layer.parameters())
            )
            layers += [] if helper else [(node.target, layer)]
        elif node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add):
            layers.append((node.name, None))
    return layers


def set_trainable(model: Classifier, trainable: str | int) -> Classifier:
    """Freeze the backbone but for its last ``trainable`` layers; the head always learns. Returns ``model``.

    ``"head"`` is 0 layers, ``"all"`` is every layer; a number counts from the output side as :func:`layers_in_order`
    lists them. Raises ``ValueError`` for a number that the backbone does not have, or with which nothing in it would
    learn (activations and poolings count as layers). Explained in notebooks/04_resnet50_fine_tuning.ipynb.
    """
    layers, count = model.layers, trainable
    if isinstance(trainable, str):
        check_name("trainable", trainable, ("head", "all"))
        count = len(layers) if trainable == "all" else 0
    if not 0 <= count <= len(layers):
        raise ValueError(f"trainable={trainable}: the backbone has {len(layers)} layers.")
    chosen = dict(layers[len(layers) - count :])
    found = [[v] if isinstance(v, nn.Parameter) else v.parameters() for v in chosen.values() if v is not None]
    free = list(chain.from_iterable(found))
    if count and not free:
        names = ", ".join(chosen)
        raise ValueError(f"trainable={trainable}: the last layers ({names}) have nothing to learn: take more of them.")
    model.backbone.requires_grad_(False)
    for parameter in free:
        parameter.requires_grad_(True)
    model.config["trainable"] = trainable
    return model.train(model.training)  # BatchNorm's mode follows


def summary(model: Classifier) -> pd.DataFrame:
    """One row per block: output shape for one image, parameters, trainable parameters, MFLOPs per image.

    A multiplication and an addition count as two FLOPs; convolutions and matrix products are counted (by torch's own
    counter, which does not see into torch's fused attention: that is off meanwhile), the rest is negligible.
    """
    from torch.utils.flop_counter import FlopCounterMode

    rows, x = {}, torch.zeros(1, 28, 28, dtype=torch.uint8, device=model.preprocess.scale.device)
    stages = {"preprocess": model.preprocess, **dict(model.backbone.named_children()), "head": model.head}
    mode, fused = model.training, torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    for name, stage in stages.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            x = stage(x)
        parameters = list(stage.parameters())
        rows[name] = {
            "output": "×".join(map(str, x.shape[1:])),
            "parameters": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "MFLOPs": counter.get_total_flops() / 1e6,
        }
    torch.backends.mha.set_fastpath_enabled(fused)
    model.train(mode)
    table = pd.DataFrame(rows).T.astype({"parameters": int, "trainable": int, "MFLOPs": float})
    table.loc["total"] = ["", table.parameters.sum(), table.trainable.sum(), table.MFLOPs.sum()]
    return table
