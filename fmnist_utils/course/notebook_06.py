"""Checks for the exercises of ``notebooks/06_tuning_and_backbones.ipynb``."""

from collections.abc import Callable, Sequence

import numpy as np

from fmnist_utils.course.checking import NOTHING_YET, Number, Verdict, of_a_function

_truth = Number(
    stored="b68a7ffd0884cdda",
    step=0.0001,
    tolerance=4,
    right="200 settings that are all that good would look like the report, and the rest is luck.",
    wrong="for a guess p, compute the expected best of 200. Then move p until it is the reported score.",
    slips=(
        (lambda value: value / 100, "right, in percent. Give it as a share, from 0 to 1."),
        (lambda value: 0.946 - value, "that is the luck. Which true accuracy remains?"),
        (lambda value: 0.946 - value / 100, "that is the luck, in points. Which true accuracy remains?"),
        (lambda value: 2 * 0.946 - value, "the right distance, on the wrong side: is luck a gain or a loss?"),
    ),
)


def _expected_front(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    rows = range(len(costs))
    beaten = [
        any(
            costs[j] <= costs[i]
            and accuracies[j] >= accuracies[i]
            and (costs[j] < costs[i] or accuracies[j] > accuracies[i])
            for j in rows
        )
        for i in rows
    ]
    return [i for i in rows if not beaten[i]]


@of_a_function
def _front(function: Callable) -> Verdict:
    draw, unordered, turned = np.random.default_rng(0), [], []
    for count in (1, 2, 5, 9, 30):
        costs, accuracies = draw.permutation(count) + 1.0, draw.permutation(count) / 100
        found = function(costs.tolist(), accuracies.tolist())
        if found is None:
            return NOTHING_YET
        found, wanted = [int(row) for row in found], _expected_front(costs, accuracies)
        if found != sorted(wanted, key=lambda row: costs[row]):
            others = _expected_front(-costs, accuracies), _expected_front(costs, -accuracies)
            unordered.append(sorted(found) == wanted)
            turned.append(sorted(found) in (wanted, *others))
    if not unordered:
        return Verdict("right", "whatever the networks, these are the ones that no other beats in both.")
    if all(unordered):
        return Verdict("nearly", "the right networks. In which order were they asked for?")
    if all(turned):
        return Verdict(
            "nearly", "it keeps the expensive or the bad ones. Which way is better, in cost and in accuracy?"
        )
    return Verdict("wrong", "take the networks from cheap to expensive: when is the next one worth its cost?")


_enough = Number(
    stored="e83941b3b0fc2cba",
    step=1,
    tolerance=1,
    right="from there on the search gained less than a tenth of a point more, on average.",
    wrong="average the best-so-far curves of many shuffles, and ask where the mean is within 0.1 points of the best.",
    slips=((lambda value: value + 1, "count trials from 1, not from 0."),),
    others={
        "d306d45262ea1929": "that is where the search itself had its best trial. How many would do, on average?",
    },
)

EXERCISES = {"06.1": _truth, "06.2": _front, "06.3": _enough}
