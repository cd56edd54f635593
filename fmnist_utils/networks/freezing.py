"""Networks of which a part is frozen: what stays in eval mode while the rest is trained, and what can change at all."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


class PartlyFrozen(nn.Module):
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


class Layers(PartlyFrozen, nn.Sequential):
    """A part of a network, such as ``Classifier.split`` returns it."""


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """``model`` in eval mode, and afterwards as it was."""
    if not model.training:  # changing the mode walks through all layers, which takes longer than one image
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


def changes_in_training(layer: nn.Module) -> bool:
    """Whether training changes its output: something in it learns, or is random, or follows the batch."""
    if learns := [p.requires_grad for p in layer.parameters()]:
        return any(learns)  # where nothing learns, nothing in it is random either: see PartlyFrozen
    return any(isinstance(module, _DropoutNd | _BatchNorm) for module in layer.modules())
