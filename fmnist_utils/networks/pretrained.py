"""torchvision's networks as chains of named blocks. Used by :func:`fmnist_utils.models.build_model`."""

from collections import OrderedDict
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fmnist_utils.sources.weights import Pretrained, load_pretrained


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
    layers, classifier = _outline(net)
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
    return nn.Sequential(OrderedDict({name: net}) if layers is None else _blocks(layers))


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
