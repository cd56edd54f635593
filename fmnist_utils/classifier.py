"""A classifier from raw grey images to logits: its parts, what is frozen, where it can be cut in two.

Explained in ``notebooks/03_vgg16_transfer_learning.ipynb`` and ``notebooks/04_resnet50_fine_tuning.ipynb``.
"""

from functools import cached_property
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fmnist_utils import check_name
from fmnist_utils.networks.layers import layers_in_order, leaves, on_paper
from fmnist_utils.preprocess import Preprocess

__all__ = ["Classifier", "Layers", "set_trainable"]


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
            x = on_paper(layers[i], x)
            sizes[i] = x.numel()
        border = min(range(last_frozen, fixed), key=lambda i: (sizes[i], -i)) + 1
        return Layers(*layers[:border]), Layers(*layers[border:])


def _changes_in_training(layer: nn.Module) -> bool:
    if learns := [p.requires_grad for p in layer.parameters()]:
        return any(learns)  # where nothing learns, nothing in it is random either: see _FrozenMixin
    return any(isinstance(module, _DropoutNd | _BatchNorm) for module in layer.modules())


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
