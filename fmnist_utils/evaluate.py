"""Predictions, and what they are worth: metrics, intervals, comparison, calibration.

Explained in ``notebooks/03_vgg16_transfer_learning.ipynb`` and ``notebooks/05_evaluation_and_visualization.ipynb``.
"""

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Subset

from fmnist_utils.cache import CachedFeatures, Inputs, as_input, layers_for
from fmnist_utils.data import CLASSES, FashionMNIST, as_images, make_loader
from fmnist_utils.models import Classifier
from fmnist_utils.scale.processes import exchange, own_share, shares

__all__ = [
    "accuracy_interval", "fit_temperature", "mcnemar", "measure", "predict", "reliability", "score", "with_temperature",
]  # fmt: skip


@torch.no_grad()
def predict(model: Classifier, data: Inputs | torch.Tensor, batch_size: int = 250, mirror: bool = False) -> np.ndarray:
    """Class probabilities, float32 [N, 10], of images or of :class:`~fmnist_utils.cache.CachedFeatures`.

    Images may be a data set, a ``Subset`` of one, or uint8 [N, 28, 28] without labels.
    ``mirror`` gives the mean over each image and its mirror image, and features with several views the mean over the
    views (test-time augmentation; Simonyan & Zisserman, 2015, section 3.2). Several processes share the images, and all
    get the whole.
    """
    data = as_images(data, labels=False)
    device = next(model.eval().head.parameters()).device
    part = layers_for(model, data).eval().to(device).to(memory_format=torch.channels_last)
    if isinstance(data, CachedFeatures):
        if mirror:
            raise ValueError("Cached features cannot be mirrored: pass the images, or features with a mirrored view.")
        views = [data.view(i) for i in range(len(data.features))]
    else:
        views = [data, FashionMNIST(data.images.flip(-1), data.labels, data.source)] if mirror else [data]
    means, share = torch.zeros(len(data), len(CLASSES)), own_share(len(data))
    for view in views:
        start = share.start
        for inputs, _ in make_loader(Subset(view, share), batch_size):
            probabilities = part(as_input(inputs.to(device))).float().softmax(1).cpu()
            means[start : start + len(inputs)] += probabilities / len(views)
            start += len(inputs)
    exchange(means, shares(len(data)))
    return means.numpy()


def score(probabilities: np.ndarray, labels: torch.Tensor) -> dict[str, float]:
    """``accuracy``, ``macro_f1`` and ``loss`` (mean cross-entropy, natural logarithm), by scikit-learn."""
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    known, predicted = np.asarray(labels), probabilities.argmax(1)
    probabilities = probabilities.astype(np.float64) / probabilities.sum(1, keepdims=True, dtype=np.float64)
    return {
        "accuracy": float(accuracy_score(known, predicted)),
        "macro_f1": float(f1_score(known, predicted, average="macro")),
        "loss": float(log_loss(known, probabilities, labels=range(probabilities.shape[1]))),
    }


def measure(
    model: Classifier, inputs: dict[str, Inputs], labels: dict[str, torch.Tensor], mirror: bool = False
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """A run's metrics in the schema of ``results/``, and its predictions, float32 [N, 10], by split.

    ``inputs`` are images or features of any of ``test``, ``val`` and ``train``, ``labels`` int64 [N]. The metrics are
    the accuracy on each, and ``macro_f1`` of the test images.
    """
    predictions = {split: predict(model, data, mirror=mirror) for split, data in inputs.items()}
    scores = {split: score(predictions[split], labels[split]) for split in predictions}
    metrics = {f"{split}_accuracy": scores[split]["accuracy"] for split in scores}
    return metrics | ({"macro_f1": scores["test"]["macro_f1"]} if "test" in scores else {}), predictions


def accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """95% interval of an accuracy from ``correct`` of ``count`` test images (Wilson, 1927; by SciPy).

    It covers the choice of the test images, not the luck of a training run. Explained in
    notebooks/05_evaluation_and_visualization.ipynb.
    """
    from scipy.stats import binomtest

    interval = binomtest(int(correct), int(count)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> dict[str, float]:
    """Do two models differ on the same images? Exact test on the images that only one of them gets right.

    ``only_a`` and ``only_b`` count these images, ``p_value`` is two-sided (McNemar, 1947). Explained in
    notebooks/05_evaluation_and_visualization.ipynb.
    """
    from scipy.stats import binomtest

    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p_value": p_value}


def reliability(probabilities: np.ndarray, labels: torch.Tensor, bins: int = 15) -> tuple[pd.DataFrame, float]:
    """(one row per non-empty confidence bin, expected calibration error).

    Bins have equal width; ``confidence`` and ``accuracy`` are means in the bin, ``count`` its images. The error is the
    mean distance of the two, weighted by ``count`` (Guo et al., 2017, arXiv:1706.04599). Explained in
    notebooks/05_evaluation_and_visualization.ipynb.
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == np.asarray(labels)
    bin_of_image = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    images = pd.DataFrame({"bin": bin_of_image, "confidence": confidence, "accuracy": correct})
    columns = {"confidence": ("confidence", "mean"), "accuracy": ("accuracy", "mean"), "count": ("accuracy", "size")}
    table = images.groupby("bin").agg(**columns)
    error = (table["count"] * (table.confidence - table.accuracy).abs()).sum() / table["count"].sum()
    return table, float(error)


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities after dividing the logits by ``temperature``: above 1 less sure, the same predicted classes."""
    logits = torch.from_numpy(np.log(np.maximum(probabilities, 1e-12), dtype=np.float64))
    return (logits / temperature).softmax(1).numpy()


def fit_temperature(probabilities: np.ndarray, labels: torch.Tensor) -> float:
    """The temperature with the smallest cross-entropy (Guo et al., 2017); fit it on *validation* predictions.

    Explained in notebooks/05_evaluation_and_visualization.ipynb.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return score(with_temperature(probabilities, np.exp(log_temperature)), labels)["loss"]

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))
