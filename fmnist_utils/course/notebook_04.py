"""Checks for the exercises of ``notebooks/04_resnet50_fine_tuning.ipynb``."""

from collections.abc import Callable

import torch
from torch import nn

from fmnist_utils.course.checking import NOTHING_YET, Number, Verdict, of_a_function
from fmnist_utils.models import build_model, set_trainable

_shared_border = Number(
    stored="d306d45262ea1929",
    step=1,
    tolerance=0,
    right="everything in front of the first layer that learns in any of the three, and the preprocessing.",
    wrong="which is the first layer that learns in any of the three rungs? Count what lies in front of it.",
    slips=((lambda value: value + 1, "nearly all of them. The preprocessing is a layer of the prefix, too."),),
    others={
        "20663be58e8ab8f7": "that border serves the head and the last block. Where does the rung of two blocks begin?",
        "7e03191efcd0ebac": "that border serves the head alone. Which layers change in the other two rungs?",
    },
)


@of_a_function
def _two_rates(function: Callable) -> Verdict:
    model = build_model("vgg16", cut_after="block2", head="linear", image_size=32)
    set_trainable(model, 5)
    optimizer = function(model, 1e-2, 1e-4)
    if optimizer is None:
        return NOTHING_YET
    if not isinstance(optimizer, torch.optim.Optimizer):
        return Verdict("wrong", f"an optimiser should come back, not a {type(optimizer).__name__}.")
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    head = {rates.get(id(p)) for p in model.head.parameters()}
    body = {rates.get(id(p)) for p in model.backbone.parameters() if p.requires_grad}
    frozen = [p for p in model.backbone.parameters() if not p.requires_grad]
    if (head, body) == ({1e-4}, {1e-2}):
        return Verdict("nearly", "the two rates have changed places. Which part is new?")
    if head != {1e-2} or body != {1e-4}:
        hint = "the two parts should have two rates." if head == body else "look at which tensors got which rate."
        return Verdict("nearly" if head == body else "wrong", hint)
    if any(id(p) in rates for p in frozen):
        return Verdict("nearly", "the rates are right. But the optimiser also holds tensors that do not learn.")
    return Verdict("right", "each part has its own rate, and nothing frozen is in the optimiser.")


class _Small(nn.Module):
    """A convolution, a BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.conv(x)))


@of_a_function
def _keep_statistics(function: Callable) -> Verdict:
    model = _Small().eval()
    before = model.norm.running_mean.clone()
    function(model)
    if not isinstance(model.norm, nn.BatchNorm2d):
        return Verdict("wrong", "the BatchNorm layer itself is gone. It should go on normalising.")
    if not model.training and not model.drop.training and not model.norm.training:
        return Verdict("open", "after your function, the network is still in eval mode as a whole.")
    model(torch.ones(8, 1, 6, 6))
    if not torch.equal(model.norm.running_mean, before):
        return Verdict("wrong", "a batch still moves the running statistics.")
    if not model.drop.training:
        return Verdict("nearly", "the statistics stay. But dropout is off: only BatchNorm should be in eval mode.")
    if not all(p.requires_grad for p in model.parameters()):
        return Verdict("nearly", "the statistics stay. But weights no longer learn that should.")
    return Verdict("right", "BatchNorm keeps its statistics, dropout works, and everything may learn.")


EXERCISES = {"04.1": _shared_border, "04.2": _two_rates, "04.3": _keep_statistics}
