"""Does an image look like the training data? A distance in feature space, calibrated on validation images.

``python -m fmnist_utils.explain.outliers`` fits it for the models in ``data/models`` and writes
``NAME.outliers.safetensors`` beside them. ``benchmarks/out_of_distribution.py`` compares it with other scores.
Explained in ``notebooks/07_deployment.ipynb``.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fmnist_utils.checkpoints import load_model, read_card, saved_models
from fmnist_utils.data import FashionMNIST, load, replacing, train_val_split
from fmnist_utils.explain.grad_cam import at_last_activation
from fmnist_utils.models import Classifier
from fmnist_utils.networks.freezing import in_eval_mode
from fmnist_utils.sources.files import file_sha256

__all__ = [
    "Outliers",
    "TRAIN",
    "TURNED",
    "UNSURE",
    "UNUSUAL",
    "VAL",
    "features",
    "load_outliers",
    "probabilities",
    "run",
]

#: Images to estimate means and covariance on, and to calibrate on: few enough for VGG16 on a CPU.
TRAIN, VAL = 2_000, 2_000
#: Below this share of validation images that are as unusual, the page warns.
UNUSUAL = 0.01
#: Below this share of validation images that look turned at least as much, it says that the picture may be turned.
TURNED = 0.01
#: What it then turns must look at least this usual.
TURNED_BACK = 0.05
#: Below this share of validation images of which the model is no more certain, the page warns.
UNSURE = 0.015


@dataclass
class Outliers:
    """What :meth:`fit` estimated: class means, float32 [10, C], precision matrix, float32 [C, C], and the sorted
    distances of validation images, float32 [V]. The same for images by a quarter turn, none to three: ``turned_means``,
    float32 [4, 10, C], ``turned_precision``, float32 [C, C], and the sorted ``margins`` of validation images. And their
    ``certainties``: the highest probability that each got, sorted, float32 [V].
    """

    means: Tensor
    precision: Tensor
    distances: Tensor
    turned_means: Tensor
    turned_precision: Tensor
    margins: Tensor
    certainties: Tensor

    @classmethod
    def fit(cls, model: Classifier, train: FashionMNIST, val: FashionMNIST, mirror: bool = False) -> "Outliers":
        """From labelled training images, and validation images that neither training nor means have seen; ``mirror`` as
        in ``evaluate.predict``."""
        turned = [features(model, _turn(train.images, turns))[0] for turns in range(4)]
        all_means, centred = zip(*(_centred(x, train.labels) for x in turned), strict=True)
        empty = torch.empty(0)
        precisions = _precision(centred[0]), _precision(torch.cat(centred))
        turned_means = torch.stack(all_means).float()
        fitted = cls(all_means[0].float(), precisions[0], empty, turned_means, precisions[1], empty, empty)
        x, logits = features(model, val.images)
        fitted.distances = fitted.distance(x).sort().values.float()
        fitted.margins = fitted.margin(x)[1].sort().values.float()
        fitted.certainties = probabilities(model, val.images, logits, mirror).amax(1).sort().values.float()
        return fitted

    def distance(self, x: Tensor) -> Tensor:
        """Squared Mahalanobis distance, float64 [B], of features to the nearest class (Lee et al., 2018,
        arXiv:1807.03888): distance to a class mean in units of the spread that the classes share.
        """
        return _distances(x, self.means, self.precision).amin(1)

    def margin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For features, float64 [B, C]: the quarter turn to the left, 1 to 3, by which images of the data set look most
        like these, int64 [B], and how much nearer that is than upright, float64 [B], in squared Mahalanobis distance
        (linear discriminant analysis of 40 classes: ten garments, four ways up).
        """
        apart = _distances(x, self.turned_means.flatten(0, 1), self.turned_precision).view(len(x), 4, -1).amin(2)
        nearest, turn = apart[:, 1:].min(1)
        return turn + 1, apart[:, 0] - nearest

    def share_further(self, model: Classifier, images: Tensor) -> np.ndarray:
        """The share of validation images that are at least as far out as each of ``images``, uint8 [B, 28, 28]:
        float64 [B] from 0 to 1, small for what does not look like the training data.
        """
        return _share(self.distances, self.distance(features(model, images)[0]))

    def share_less_certain(self, probabilities: np.ndarray) -> np.ndarray:
        """The share of validation images whose highest probability is no higher than that of each row of
        ``probabilities``, float32 [B, 10]: float64 [B] (the baseline of Hendrycks and Gimpel, 2017, arXiv:1610.02136).
        """
        return _share(-self.certainties.flip(0), -torch.from_numpy(probabilities.max(1)))

    def judge(self, model: Classifier, images: Tensor, x: Tensor | None = None) -> tuple[np.ndarray, ...]:
        """For uint8 [B, 28, 28], each [B]: :meth:`share_further`; the share of validation images, all upright, that
        look turned at least as much, float64; and how many quarter turns to the left would bring upright what looks
        turned, int64, 0 for what does not, or would still not look usual (share below ``TURNED_BACK``). ``x``: their
        :func:`features`, float64 [B, C], where they are known.
        """
        x = features(model, images)[0] if x is None else x
        turn, margin = self.margin(x)
        upright, turns = _share(self.margins, margin), np.zeros(len(images), np.int64)
        seen = np.flatnonzero(upright < TURNED)
        if len(seen):
            backs = 4 - turn.numpy()[seen]
            turned = torch.stack([torch.rot90(images[i], int(back)) for i, back in zip(seen, backs, strict=True)])
            turns[seen] = np.where(self.share_further(model, turned) >= TURNED_BACK, backs, 0)
        return _share(self.distances, self.distance(x)), upright, turns

    def save(self, path: str | Path) -> Path:
        """Write ``<path>.outliers.safetensors`` beside the model saved as ``path``, and bound to it by hash."""
        file = _file(path, "outliers.")
        with replacing(file) as temporary:
            save_file(vars(self), temporary, {"model": file_sha256(_file(path))})
        return file


def _turn(images: Tensor, turns: int) -> Tensor:
    return torch.rot90(images, turns, (1, 2)).contiguous()


def _centred(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Class means, [10, C], and the features without them."""
    means = torch.stack([x[labels == label].mean(0) for label in range(10)])
    return means, x - means[labels]


def _precision(centred: Tensor) -> Tensor:
    covariance = centred.T @ centred / len(centred)
    # A filter that is nearly always 0 would make any small deviation count without bound.
    covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance))
    return torch.linalg.inv(covariance).float().contiguous()


def _distances(x: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    apart = x[:, None] - means.double()
    return torch.einsum("bkc,cd,bkd->bk", apart, precision.double(), apart)


def _share(usual: Tensor, values: Tensor) -> np.ndarray:
    """The part of the sorted ``usual`` values that are at least as large as each of ``values``."""
    return 1 - torch.searchsorted(usual, values.float()).double().numpy() / len(usual)


@torch.no_grad()
def run(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For uint8 [B, 28, 28]: the backbone's last activation, as ``grad_cam`` takes it, and its :func:`features`."""
    before, after = at_last_activation(model)
    with in_eval_mode(model):
        activation = before(images.to(next(model.parameters()).device))
        maps = after[:-1](activation)
        pooled = maps.flatten(2).mean(2) if maps.ndim > 2 else maps
        return activation, pooled.double().cpu(), model.head(maps).double().cpu()


def features(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """For uint8 [B, 28, 28]: the backbone's output, averaged over the picture, float64 [B, C], and the logits, float64
    [B, 10], both on the CPU. The model is left as it was.
    """
    pooled, logits = zip(*(run(model, part)[1:] for part in images.split(100)), strict=True)
    return torch.cat(pooled), torch.cat(logits)


def probabilities(model: Classifier, images: Tensor, logits: Tensor, mirror: bool) -> Tensor:
    """Of uint8 [B, 28, 28] whose logits are known: float64 [B, 10], with ``mirror`` the mean over each image and
    its mirror image, as in ``evaluate.predict``.
    """
    found = logits.softmax(1)
    return (found + features(model, images.flip(-1))[1].softmax(1)) / 2 if mirror else found


def load_outliers(path: str | Path) -> Outliers:
    """What is saved beside a model, ``path`` without its ending.

    Raises ``FileNotFoundError`` with the command that makes the file, ``ValueError`` where it is damaged or belongs to
    another model.
    """
    file, model_file = _file(path, "outliers."), _file(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: python -m fmnist_utils.explain.outliers makes it.")
    again = "run python -m fmnist_utils.explain.outliers again"
    try:
        with safe_open(file, "pt") as opened:
            made_for = (opened.metadata() or {}).get("model")
        outliers = Outliers(**load_file(file))
    except (SafetensorError, TypeError) as error:
        raise ValueError(f"{file} is damaged or of another version of this project: {again}.") from error
    if made_for != file_sha256(model_file):
        raise ValueError(f"{file} belongs to another {model_file.name}: {again}.")
    return outliers


def _file(path: str | Path, kind: str = "") -> Path:
    return Path(path).with_name(f"{Path(path).name}.{kind}safetensors")


def main() -> None:
    train, val = train_val_split(load("train"))
    for path in saved_models().values():
        mirror = read_card(path).get("mirror", False)
        fitted = Outliers.fit(load_model(path), train.subset(TRAIN), val.subset(VAL), mirror)
        print(f"wrote {fitted.save(path)}")


if __name__ == "__main__":
    main()
