"""What layers a network has, in which order they run, what shapes they give and what they cost."""

import operator
from collections.abc import Callable
from itertools import chain

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fmnist_utils import check_name


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


def cut(name: str, build: Callable[[], nn.Sequential], cut_after: str | None, shape: tuple[int, int], usual: int):
    """(backbone up to the block ``cut_after``, channels of its output, its sides: none where it is a vector).

    ``shape``: channels and side of the images it will see; ``usual``: the side that the network was made for. Raises
    ``ValueError`` for a block that the network of this ``name`` does not have, and for images that it cannot take.
    """
    channels, side = shape
    try:
        backbone = build()
        blocks = [block for block, _ in backbone.named_children()]
        if blocks == [name] and cut_after not in (None, name):
            raise ValueError(f"{name} is no chain of blocks and cannot be cut: leave cut_after out.")
        cut_after = cut_after or blocks[-1]
        check_name("cut_after", cut_after, tuple(blocks))
        backbone = backbone[: blocks.index(cut_after) + 1]
        channels, *sides = on_paper(backbone.eval(), torch.empty(1, channels, side, side, device="meta")).shape[1:]
    except (AssertionError, RuntimeError) as error:  # torchvision's own checks, and maps smaller than a filter
        raise ValueError(f"{name} cannot take images of {side}×{side} pixels ({error}): try {usual}.") from error
    return backbone, channels, sides


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


def summary(model: nn.Module) -> pd.DataFrame:
    """One row per block of a classifier: output shape, parameters, trainable parameters, MFLOPs, for one image.

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
