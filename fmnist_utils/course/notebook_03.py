"""Checks for the exercises of ``notebooks/03_vgg16_transfer_learning.ipynb``."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fmnist_utils.course.checking import NOTHING_YET, Verdict, digest, of_a_function
from fmnist_utils.data import load, train_val_split
from fmnist_utils.evaluate import predict
from fmnist_utils.models import Classifier, build_model

#: For each letter from a to f, the digest of whether it belongs to the answer.
_KEPT = (
    "edc4048091b6e34c", "18a7f77c0f037249", "0553e365d41f3d96",
    "3fc6600ca83cabe0", "de93063b4f1155ad", "37e2ddab6f7cc648",
)  # fmt: skip


def _may_be_kept(answer: Any) -> Verdict:
    letters = {letter for letter in "".join(map(str, answer)).lower() if letter.isalpha()}
    if not letters or not letters <= set("abcdef"):
        return Verdict("wrong", 'answer with some of the letters from a to f, such as "ab".')
    given = zip("abcdef", _KEPT, strict=True)
    wrong = [letter for letter, kept in given if digest(f"{letter}{letter in letters}") != kept]
    if not wrong:
        return Verdict("right", "in these, each layer in front of the border gives the same output in every epoch.")
    if len(wrong) == 1:
        hint = (
            "where does the first layer that changes stand?" if wrong[0] in "cd" else "what does its first layer get?"
        )
        return Verdict("nearly", f"five of six. Think again about {wrong[0]}: {hint}")
    return Verdict("wrong", "for each: does a layer in front of the border get other inputs later, or change itself?")


def _linear(model: Any) -> Verdict:
    if not isinstance(model, Classifier):
        return Verdict("wrong", f"pass the trained model itself, not a {type(model).__name__}.")
    if model.config["head"] != "linear":
        return Verdict("nearly", f"its head is {model.config['head']!r}. Which preset was asked for?")
    if model.config["name"] != "vgg16" or model.config["cut_after"] != "block3":
        return Verdict("nearly", "the head is right. Put it on block 3 of VGG16.")
    original = build_model("vgg16", cut_after="block3", head="linear").backbone.state_dict()
    if any(not torch.equal(tensor.cpu(), original[name]) for name, tensor in model.backbone.state_dict().items()):
        return Verdict("nearly", "its convolutions have changed. Only the head should learn.")
    few = train_val_split(load("train"))[1].subset(200)
    accuracy = (predict(model, few).argmax(1) == few.labels.numpy()).mean()
    if accuracy < 0.3:
        return Verdict("wrong", f"it gets {accuracy:.0%} of 200 validation images right. Has its head been trained?")
    return Verdict("right", f"frozen below, trained above: {accuracy:.0%} of 200 validation images.")


@of_a_function
def _two_blocks(function: Callable) -> Verdict:
    images = train_val_split(load("train"))[1].images[:2]
    given = function(images)
    if given is None:
        return NOTHING_YET
    if not isinstance(given, torch.Tensor) or len(given) != len(images):
        return Verdict("wrong", "for N images a tensor with N rows should come back.")
    if given.ndim != 2:
        return Verdict("nearly", f"this is {list(given.shape)}. Make one row of numbers of each image: flatten(1).")
    if given.shape[1] in (2_048, 4_096):
        return Verdict("nearly", f"{given.shape[1]:,} numbers are those of one block. Where is the other?")
    if given.shape[1] != 2_048 + 4_096:
        return Verdict("wrong", f"it gives {given.shape[1]:,} numbers for each image. Are both maps averaged to 4×4?")
    given = given.detach().float().cpu()
    for size in (64, 56, 32, 96):
        model, wanted = build_model("vgg16", cut_after="block3", head="linear", image_size=size), []
        with torch.no_grad():
            x = model.preprocess(images)
            for name, block in model.backbone.named_children():
                x = block(x)
                wanted += [F.adaptive_avg_pool2d(x, 4).flatten(1)] * (name != "block1")
        if any(torch.allclose(given, torch.cat(pair, 1), rtol=1e-3, atol=0.5) for pair in (wanted, wanted[::-1])):
            return Verdict("right", "the features of both blocks, side by side.")
    return Verdict("wrong", "the shape is right, but the numbers differ. Did the images go through `preprocess`?")


EXERCISES = {"03.1": _may_be_kept, "03.2": _linear, "03.3": _two_blocks}
