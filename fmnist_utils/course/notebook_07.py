"""Checks for the exercises of ``notebooks/07_deployment.ipynb``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_utils import ROOT
from fmnist_utils.checkpoints import load_model
from fmnist_utils.course.checking import NOTHING_YET, Number, Verdict, of_a_function
from fmnist_utils.data import load, train_val_split
from fmnist_utils.evaluate import predict


@of_a_function
def _same_answers(function: Callable) -> Verdict:
    flat = np.full((3, 10), 0.05)
    expected = flat + np.eye(10)[[2, 5, 9]] / 2
    if function(expected, expected.copy(), 0.1) is None:
        return NOTHING_YET
    above, below, one, near = (expected.copy() for _ in range(4))
    above[0, 2] += 0.2
    below[1, 5] -= 0.2
    one[2, 0], near[0, 3] = np.nan, near[0, 3] + 0.04
    close = expected.copy()
    close[0, [2, 3]] = 0.31, 0.29
    swapped = close.copy()
    swapped[0, [2, 3]] = 0.29, 0.31
    if not function(expected, expected.copy(), 0.1) or not function(expected, near, 0.1):
        return Verdict("wrong", "it refuses probabilities that are within the limit.")
    if function(expected, above, 0.1) and function(expected, below, 0.1):
        return Verdict(
            "wrong", "it accepts probabilities that are far apart. Which difference counts: any, or the mean?"
        )
    if function(expected, above, 0.1) or function(expected, below, 0.1):
        return Verdict("nearly", "it misses differences of one sign. A probability may be too large or too small.")
    if function(close, swapped, 0.1):
        return Verdict("nearly", "the differences are checked. But two answers within the limit can name two classes.")
    if function(expected, one, 0.1) or function(one, expected, 0.1):
        return Verdict("nearly", "a probability that is not a number passes. Which comparison is false for nan?")
    return Verdict("right", "it notices a difference of either sign, another class, and what is not a number.")


_points = Number(
    stored="9d93a21cc713d3a7",
    step=0.1,
    tolerance=4,
    right="so many more are noticed. Now look at what it costs: how many upright garments are flagged?",
    wrong="subtract the share that is flagged at 1% from the share that is flagged at 5%.",
    slips=(
        (lambda value: 100 * value, "that is the difference as a fraction. Give it in percentage points."),
        (lambda value: -value, "the other way round: the share at 5% minus the share at 1%."),
    ),
    others={
        "6ca2630c005436af": "that is the share at 5% itself. How much is it above the one at 1%?",
        "1db77d35c315e87a": "that is the share at 1%. How much more does 5% find?",
        "d08b8b50edcd4b42": "that is the cost, in upright garments. And for those upside down?",
    },
)


def _mirrored(path: Any) -> Verdict:
    from fmnist_utils.export.onnx import load_onnx

    if not isinstance(path, str | Path) or not Path(path).is_file():
        return Verdict("wrong", "give the path of your ONNX file.")
    model = load_model(ROOT / "data" / "models" / "small-cnn")
    images = train_val_split(load("train"))[1].subset(64)
    plain, flipped = predict(model, images), predict(model, images.images.flip(-1))
    run = load_onnx(path)
    try:
        found = run(images.images.numpy())
    except Exception as error:  # ONNX Runtime has many kinds, one of which names the mistake
        if "imension" in str(error):
            return Verdict("nearly", "it takes batches of one size only. Name the dimension with dynamic_shapes.")
        raise
    if found.shape != plain.shape:
        return Verdict("wrong", f"64 images should give [64, 10] probabilities; this is {list(found.shape)}.")
    if np.abs(found - (plain + flipped) / 2).max() < 1e-3:
        return Verdict("right", "it gives the mean over each image and its mirror image, to three digits and more.")
    geometric = np.sqrt(plain * flipped)
    if np.abs(found - geometric / geometric.sum(1, keepdims=True)).max() < 1e-3:
        return Verdict("nearly", "it averages the logits, not the probabilities: that is another model.")
    if np.abs(found - plain).max() < 1e-3 or np.abs(found - flipped).max() < 1e-3:
        return Verdict("nearly", "it looks at each image once. Where does the mirror image come in?")
    if np.abs(found - (plain + flipped)).max() < 1e-3:
        return Verdict("nearly", "its probabilities add up to 2.")
    upside = predict(model, images.images.flip(1))
    if np.abs(found - (plain + upside) / 2).max() < 1e-3:
        return Verdict("nearly", "it turns the images upside down. Which dimension is from left to right?")
    if np.abs(found.sum(1) - 1).max() > 1e-3:
        return Verdict("wrong", "what comes out does not add up to 1. Are these probabilities?")
    return Verdict("wrong", "its probabilities are those of another function. Compare with predict(…, mirror=True).")


EXERCISES = {"07.1": _same_answers, "07.2": _points, "07.3": _mirrored}
