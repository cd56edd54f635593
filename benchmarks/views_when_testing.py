"""What do mirror images and shifts by one pixel add when testing?"""

import functools
import itertools

import numpy as np
import torch.nn.functional as F
from common import options, record, splits
from torch import Tensor

from fmnist_utils import ROOT, pick
from fmnist_utils.checkpoints import load_model
from fmnist_utils.evaluate import accuracy_interval, mcnemar, predict

BOTH = ("wide-resnet-16-4", "small-cnn")
MODELS = pick(smoke=("small-cnn",), cpu=BOTH, full=BOTH)
VAL, TEST = pick(smoke=(100, 100), cpu=(5_000, 10_000), full=(5_000, 10_000))
#: Rows down and columns to the right.
SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
#: Views whose predictions are averaged: (mirrored, shift). Fewer come first, and win where the accuracy is the same.
WAYS = {
    "as it is": [(False, (0, 0))],
    "mirror": [*itertools.product((False, True), SHIFTS[:1])],
    "shifts": [*itertools.product((False,), SHIFTS)],
    "mirror and shifts": [*itertools.product((False, True), SHIFTS)],
}


def moved(images: Tensor, mirrored: bool, shift: tuple[int, int]) -> Tensor:
    """uint8 [N, H, W], mirrored or not, then moved by ``shift``; what comes in is black."""
    (down, right), (height, width) = shift, images.shape[1:]
    padded = F.pad(images.flip(-1) if mirrored else images, (1, 1, 1, 1))
    return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def compared(correct: np.ndarray, reference: np.ndarray) -> dict:
    """Accuracy with its 95% interval, and McNemar's test against ``reference``."""
    found = {"accuracy": correct.mean(), "interval": accuracy_interval(correct.sum(), len(correct))}
    return found | {f"mcnemar_{key}": value for key, value in mcnemar(correct, reference).items()}


def measure(name: str, images: dict) -> dict:
    """Every way on the validation images; on the test images the best of them beside the usual one, ``mirror``."""
    model = load_model(ROOT / "data" / "models" / name)

    def correct(split: str, ways: list[str]) -> dict[str, np.ndarray]:
        @functools.cache
        def view(mirrored: bool, shift: tuple[int, int]) -> np.ndarray:
            return predict(model, moved(images[split].images, mirrored, shift))

        means = {way: np.mean([view(*one) for one in WAYS[way]], 0) for way in ways}
        return {way: mean.argmax(1) == images[split].labels.numpy() for way, mean in means.items()}

    val = correct("val", [*WAYS])
    rows = [{"way": way, "views": len(WAYS[way])} | compared(val[way], val["as it is"]) for way in WAYS]
    chosen = max(WAYS, key=lambda way: val[way].sum())
    test = correct("test", [*{"mirror": 0, chosen: 0}])
    found = {"model": name, "validation": rows, "chosen": chosen, "views": len(WAYS[chosen])}
    found["test"] = compared(test[chosen], test["mirror"])
    found["test_mirror"] = {
        "accuracy": test["mirror"].mean(),
        "interval": accuracy_interval(test["mirror"].sum(), TEST),
    }
    print(found, flush=True)
    return found


def main() -> None:
    options(__doc__)
    images = splits(val=VAL, test=TEST)
    rows = [measure(name, images) for name in MODELS]
    first = rows[0]
    setting = f"{first['model']}, {TEST:,} test images: {first['chosen']} ({first['views']} views, chosen on {VAL:,} "
    setting += "validation images) against the mirror image alone"
    accuracies = (100 * first[key]["accuracy"] for key in ("test", "test_mirror"))
    record("views_when_testing", setting, *accuracies, "% correct", val_images=VAL, test_images=TEST, models=rows)


if __name__ == "__main__":
    main()
