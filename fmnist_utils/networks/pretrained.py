"""torchvision's networks as chains of named blocks. Used by :func:`fmnist_utils.models.build_model`."""

from collections import OrderedDict
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fmnist_utils.sources.weights import Pretrained, load_pretrained

#: Parts of a network up to its pooling, by its class, where each passes a feature map [B, C, H, W] on to the next
#: (``.*``: its children do). Others (DenseNet, Inception, GoogLeNet, ViT, Swin) are no such chains.
CHAINS = {
    **dict.fromkeys(("AlexNet", "ConvNeXt", "EfficientNet", "MobileNetV2", "MobileNetV3"), ("features.*",)),
    **dict.fromkeys(("SqueezeNet", "VGG"), ("features.*",)),
    "MaxVit": ("stem", "blocks.*"),
    "MNASNet": ("layers.*",),
    "RegNet": ("stem", "trunk_output.*"),
    "ResNet": ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),
    "ShuffleNetV2": ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
}


def torchvision_backbone(name: str, pretrained: Pretrained, image_size: int) -> nn.Sequential:
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
    empty = (pretrained.state is not None or name.startswith("vgg")) and not name.startswith("regnet_")
    with torch.device("meta") if empty else nullcontext():
        net = get_model(name, weights=None, **arguments)
    classifier = list(dict(net.named_children()))[-1]
    setattr(net, classifier, nn.Identity())
    if pretrained.state is not None:
        load_pretrained(net, name, pretrained, classifier)
    elif empty:
        net.to_empty(device="cpu")
        for layer in net.features:
            if isinstance(layer, _BatchNorm):
                layer.reset_parameters()
            elif isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    layers = _layers(net)
    return nn.Sequential(_blocks(layers) if layers else OrderedDict({name: net}))


def _layers(net: nn.Module) -> OrderedDict[str, nn.Module]:
    """Layers up to the pooling, by their names in ``net``; none where its class is not in ``CHAINS``."""
    layers = OrderedDict()
    for part in CHAINS.get(type(net).__name__, ()):
        name = part.removesuffix(".*")
        inside = {f"{name}.{key}": layer for key, layer in net.get_submodule(name).named_children()}
        layers |= inside if part != name else {name: net.get_submodule(name)}
    return layers


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
