"""Checks for the exercises of ``notebooks/02_preprocessing.ipynb``."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fmnist_utils.course.checking import NOTHING_YET, Number, Verdict, of_a_function
from fmnist_utils.models import build_model


def _one_filter(answer: Any) -> Verdict:
    if not isinstance(answer, torch.Tensor) or answer.shape != (64, 1, 3, 3):
        shape = list(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
        return Verdict("wrong", f"64 filters for one channel have the shape [64, 1, 3, 3]; this is {shape}.")
    layer = build_model("vgg16", cut_after="block1", head="linear").backbone.block1[0]
    grey = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = F.conv2d(grey.expand(-1, 3, -1, -1), layer.weight)
        got = F.conv2d(grey, answer.float())
        if torch.allclose(got, wanted, atol=1e-4):
            return Verdict("right", "on grey pictures your filters give what the three channels give.")
        if torch.allclose(3 * got, wanted, atol=1e-4):
            return Verdict("nearly", "your maps are three times too small. What does a convolution do with channels?")
        if any(torch.allclose(got, F.conv2d(grey, layer.weight[:, [c]]), atol=1e-4) for c in range(3)):
            return Verdict("nearly", "that is what one of the three channels contributes. What about the others?")
    return Verdict("wrong", "its maps of a grey picture differ. Write down one output pixel as a sum over channels.")


_darker = Number(
    stored="8b5b48f6e80129f5",
    step=0.005,
    tolerance=1,
    right="the new pixels are all black, so the mean falls by the ratio of the areas.",
    wrong="divide the mean of the padded pictures by the mean of the pictures before.",
    slips=(
        (lambda value: 1 / value, "the two the other way round: by which factor do the old pictures get darker?"),
        (lambda value: value**2, "that is the ratio of the sides. What counts for a mean over pixels?"),
        (lambda value: 1 - value, "that is how much is lost. Which factor remains?"),
        (lambda value: value / 100, "right, in percent. Give it as a factor."),
    ),
)


@of_a_function
def _shift(function: Callable) -> Verdict:
    # Dots say where each pixel goes: dot number n is white at place n only.
    dots = (255 * torch.eye(28 * 28)).to(torch.uint8).reshape(-1, 28, 28)
    given = dots.clone()
    moved = function(given, 3)
    if moved is None:
        return NOTHING_YET
    if not isinstance(moved, torch.Tensor) or moved.shape != dots.shape:
        return Verdict("wrong", "images [N, 28, 28] should come back as a tensor of the same shape.")
    if not torch.equal(given, dots):
        return Verdict("nearly", "it also changes the images that it was given. Work on a copy.")
    places = moved.flatten(1).float().argmax(1) - torch.arange(28 * 28)
    column, lit = torch.arange(28 * 28) % 28, (moved.flatten(1) != 0).any(1)
    if (places[lit] == 3).all() and torch.equal(lit, column < 25):
        return Verdict("right", "each pixel moves three columns to the right, and what leaves the picture is gone.")
    if (places[column < 25] == 3).all() and lit[column >= 25].any():
        return Verdict("nearly", "inside it is right. Where are the pixels that left the picture?")
    if not lit.any():
        return Verdict("wrong", "all pictures come back black.")
    if (places[lit & (column >= 3) & (column < 25)] == -3).all():
        return Verdict("nearly", "the distance is right. Which way do the pictures move?")
    if (places[lit & (column < 25)].abs() == 3 * 28).any():
        return Verdict("nearly", "the pictures move up or down. Which dimension of [N, 28, 28] is the horizontal one?")
    return Verdict("wrong", "follow one bright pixel: in which row and column is it afterwards?")


EXERCISES = {"02.1": _one_filter, "02.2": _darker, "02.3": _shift}
