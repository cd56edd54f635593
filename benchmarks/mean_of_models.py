"""What does the mean of several recorded models' predictions gain over the best of them?"""

import numpy as np
from common import options, record

from fmnist_utils import ROOT
from fmnist_utils.data import load, train_val_split
from fmnist_utils.evaluate import accuracy_interval, mcnemar, score
from fmnist_utils.results import load_predictions


def recorded(split: str) -> dict[str, np.ndarray]:
    """Probabilities of every recorded run that has predictions for ``split``, by its name."""
    files = sorted((ROOT / "results" / "predictions").glob("*.npz"))
    names = [file.stem for file in files if split in np.load(file)]
    return {name: load_predictions(name, split) for name in names}


def selected(predictions: dict[str, np.ndarray], labels) -> list[str]:
    """Forward selection (Caruana et al., 2004): the best model, then whichever raises the mean's accuracy most.

    It may be one that is in already, which then weighs more; equal accuracies are told apart by the cross-entropy. It
    ends where none raises the accuracy.
    """

    def value(names: list[str]) -> tuple[float, float]:
        found = score(np.mean([predictions[name] for name in names], 0), labels)
        return found["accuracy"], -found["loss"]

    chosen, best = [], 0.0
    while True:
        accuracy, _, name = max((*value([*chosen, name]), name) for name in predictions)
        if accuracy <= best:
            return chosen
        chosen, best = [*chosen, name], accuracy


def main() -> None:
    options(__doc__)
    val, test = train_val_split(load("train"))[1].labels, load("test").labels
    on_val = recorded("val")
    chosen = selected(on_val, val)
    models = [{"model": name, "val_accuracy": score(on_val[name], val)["accuracy"]} for name in on_val]
    mean_val = score(np.mean([on_val[name] for name in chosen], 0), val)["accuracy"]
    mean = np.mean([load_predictions(name, "test") for name in chosen], 0)
    correct, first = (found.argmax(1) == test.numpy() for found in (mean, load_predictions(chosen[0], "test")))
    fields = {"chosen": chosen, "val_accuracy": mean_val, "val_images": len(val), "test_images": len(test)}
    fields["test"] = score(mean, test) | {"interval": accuracy_interval(correct.sum(), len(test))}
    fields |= {f"mcnemar_{key}": found for key, found in mcnemar(correct, first).items()} | {"models": models}
    setting = f"mean of the recorded predictions of {', '.join(chosen)} (chosen on {len(val):,} validation images) "
    setting += f"against {chosen[0]}, {len(test):,} test images"
    record("mean_of_models", setting, 100 * correct.mean(), 100 * first.mean(), "% correct", **fields)


if __name__ == "__main__":
    main()
