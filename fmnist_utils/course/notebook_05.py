"""Checks for the exercises of ``notebooks/05_evaluation_and_visualization.ipynb``."""

from collections.abc import Callable

import numpy as np

from fmnist_utils.course.checking import NOTHING_YET, Number, Verdict, of_a_function

_disagreements = Number(
    stored="9fef4f84612611d6",
    step=1,
    tolerance=3,
    right="with more disagreements than that, the same lead may well be the toss of a coin.",
    wrong="try totals n with (n + 40) / 2 and (n − 40) / 2 images, and watch the p-value as n grows.",
    slips=(
        (lambda value: 2 * value - 40, "that is how many only the better one gets right. How many are there in all?"),
        (lambda value: 2 * value + 40, "that is how many only the other one gets right. How many are there in all?"),
        (lambda value: 10_000 * value, "as a share that is right. How many images are they?"),
    ),
    others={"8d816f8d13ef6462": "that is the answer of an approximation (chi-squared). What does the exact test say?"},
)


@of_a_function
def _threshold(function: Callable) -> Verdict:
    draw, promise = np.random.default_rng(0), 0.9
    seen = []
    for _ in range(5):
        confidence = draw.permutation(np.linspace(0.2, 1, 400))
        right = draw.random(400) < np.clip(confidence + 0.05, 0, 1)
        right[confidence.argsort()[-3]] = False  # one sure error: the accuracy dips early and recovers
        found = function(confidence.copy(), right.copy(), promise)
        if found is None:
            return NOTHING_YET
        wanted = min(c for c in confidence if right[confidence >= c].mean() >= promise)
        seen.append((float(found), wanted, confidence, right))
    if all(abs(found - wanted) < 1e-9 for found, wanted, *_ in seen):
        return Verdict("right", "it keeps as many images as the promise allows.")
    shares = [right[confidence >= found].mean() if found <= 1 else 0 for found, _, confidence, right in seen]
    if all(share < promise for share in shares):
        return Verdict("wrong", "what is kept at that confidence breaks the promise. Which images does it keep?")
    if all(share >= promise for share in shares):
        return Verdict("nearly", "the promise is kept, but more images could be. A sure error must not end the search.")
    return Verdict("wrong", "sort by confidence, from the surest down: the cumulative mean of right is what you need.")


@of_a_function
def _family_split(function: Callable) -> Verdict:
    draw = np.random.default_rng(0)
    families = draw.permutation(np.repeat(np.arange(300) * 7 + 3, 8))  # neither sorted nor numbered from 0
    test = function(families.copy(), 0.2)
    if test is None:
        return NOTHING_YET
    test = np.asarray(test)
    if test.shape != families.shape or test.dtype != bool:
        return Verdict("wrong", f"one True or False for each image is asked for; this is {test.dtype} {test.shape}.")
    if not 0 < test.sum() < len(test):
        return Verdict("wrong", "one of the two sides is empty.")
    torn = np.intersect1d(families[test], families[~test])
    if len(torn) > 30:
        return Verdict("wrong", f"{len(torn)} of 300 families have images on both sides. Draw families, not images.")
    if len(torn):
        return Verdict("nearly", f"{len(torn)} of 300 families are on both sides, at the border. Keep each whole.")
    if abs(test.mean() - 0.8) < 0.03:
        return Verdict("nearly", "no family is torn. But which side is the test set: is it a fifth, or four fifths?")
    if abs(test.mean() - 0.2) > 0.03:
        return Verdict("nearly", f"no family is torn, but {test.mean():.0%} of the images are test images, not 20%.")
    return Verdict("right", "no family has images on both sides, and a fifth of the images are test images.")


EXERCISES = {"05.1": _disagreements, "05.2": _threshold, "05.3": _family_split}
