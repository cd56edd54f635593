"""Checks for the exercises of ``notebooks/01_exploration.ipynb``."""

from typing import Any

from fmnist_utils.course.checking import Number, Verdict
from fmnist_utils.data import load, train_val_split

_luck = Number(
    stored="9e7269529f3eeda7",
    step=0.1,
    tolerance=9,
    right="that much luck lies in choosing the best of 200. (Another seed gives another number, near yours.)",
    wrong="compare the largest of the 200 measured accuracies with the true one.",
    slips=(
        (lambda value: 100 * value, "the size is right. Give it in percentage points: 1% of all images is 1."),
        (lambda value: value - 85, "that is the best score itself. How far above the truth is it?"),
        (lambda value: 100 * value - 85, "that is the best score itself. How far above the truth is it, in points?"),
    ),
)


def _components(pipeline: Any) -> Verdict:
    if not hasattr(pipeline, "predict") or not hasattr(pipeline, "steps"):
        return Verdict("wrong", f"pass the fitted pipeline itself, not a {type(pipeline).__name__}.")
    parts = [part for _, part in pipeline.steps]
    if not hasattr(parts[0], "n_components_"):
        return Verdict("wrong", "its first part should be a PCA that has been fitted.")
    if len(parts[0].components_) != 50 or getattr(parts[-1], "n_neighbors", None) != 5:
        return Verdict("nearly", "the parts are right. Look at the number of components and of neighbours.")
    if parts[0].n_samples_ != parts[-1].n_samples_fit_:
        return Verdict("nearly", "the PCA has seen other images than the neighbours. Which ones may it see?")
    held_out = train_val_split(load("train"), val=5_000, seed=0)[1].subset(300, seed=0)
    accuracy = pipeline.score(held_out.images.flatten(1).float().numpy(), held_out.labels.numpy())
    if accuracy < 0.65:
        return Verdict("wrong", f"it gets {accuracy:.0%} of 300 validation images right. Do the labels fit?")
    if accuracy > 0.99:
        return Verdict("nearly", "it knows the validation images by heart. On which images was it fitted?")
    return Verdict("right", f"fitted on training images only, it gets {accuracy:.0%} of 300 validation images right.")


_suspects = Number(
    stored="1bb73871a6bf5aec",
    step=1,
    tolerance=2,
    right="these are the images whose five neighbours agree with each other, and not with the label.",
    wrong="for each image: are the five labels equal, and do they differ from its own? Count where both hold.",
    slips=((lambda value: 2_000 * value, "that is their share. How many are they?"),),
    others={
        "cc1b870fc0748dae": "none of these neighbours has the image's label. But do the five agree with each other?",
        "c552b40c1f7002c3": "here the majority contradicts. Ask for all five.",
        "6d38867b9e203d90": "is each image among its own neighbours? Then it always has one on its side.",
    },
)

EXERCISES = {"01.1": _luck, "01.2": _components, "01.3": _suspects}
