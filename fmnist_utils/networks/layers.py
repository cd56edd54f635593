"""What layers a network has, in which order they run, and what shapes they give."""

import operator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call


def leaves(module: nn.Module) -> list[nn.Module]:
    """Layers of nested ``nn.Sequential`` containers, in the order in which they run."""
    if isinstance(module, nn.Sequential):
        return [leaf for child in module for leaf in leaves(child)]
    return [module]


def on_paper(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` on torch's meta device: the shape of the output without computing it; the module stays as it is."""
    tensors = chain(module.named_parameters(), module.named_buffers())
    with torch.no_grad():
        return functional_call(module, {name: t.to("meta") for name, t in tensors}, x)


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
