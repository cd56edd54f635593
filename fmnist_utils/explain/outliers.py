"""Does an image look like the training data? A distance in feature space, calibrated on validation images.

``python -m fmnist_utils.explain.outliers`` fits it for the models in ``data/models`` and writes
``NAME.outliers.safetensors`` beside them. ``benchmarks/out_of_distribution.py`` compares it with other scores.
Explained in ``notebooks/07_deployment.ipynb``.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fmnist_utils.checkpoints import load_model, saved_models
from fmnist_utils.data import FashionMNIST, replacing, train_val_split
from fmnist_utils.data import load as load_data
from fmnist_utils.models import Classifier
from fmnist_utils.sources.files import file_sha256

__all__ = ["Outliers", "TRAIN", "UNUSUAL", "VAL", "features", "load"]

#: Images to estimate means and covariance on, and to calibrate on: few enough for VGG16 on a CPU.
TRAIN, VAL = 2_000, 2_000
#: Below this share of validation images that are as unusual, the page warns.
UNUSUAL = 0.01


@dataclass
class Outliers:
    """What :meth:`fit` estimated: class means, float32 [10, C], precision matrix, float32 [C, C], and the sorted
    distances of validation images, float32 [V].
    """

    means: Tensor
    precision: Tensor
    distances: Tensor

    @classmethod
    def fit(cls, model: Classifier, train: FashionMNIST, val: FashionMNIST) -> "Outliers":
        """From labelled training images, and validation images that neither training nor means have seen."""
        x, _ = features(model, train.images)
        means = torch.stack([x[train.labels == label].mean(0) for label in range(10)])
        centred = x - means[train.labels]
        covariance = centred.T @ centred / len(x)
        # A filter that is nearly always 0 would make any small deviation count without bound.
        covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance))
        found = cls(means.float(), torch.linalg.inv(covariance).float().contiguous(), torch.empty(0))
        found.distances = found.distance(features(model, val.images)[0]).sort().values.float()
        return found

    def distance(self, x: Tensor) -> Tensor:
        """Squared Mahalanobis distance, float64 [B], of features to the nearest class (Lee et al., 2018,
        arXiv:1807.03888): distance to a class mean in units of the spread that the classes share.
        """
        apart = x[:, None] - self.means.double()
        return torch.einsum("bkc,cd,bkd->bk", apart, self.precision.double(), apart).amin(1)

    def share_further(self, model: Classifier, images: Tensor) -> np.ndarray:
        """The share of validation images that are at least as far out as each of ``images``, uint8 [B, 28, 28]:
        float64 [B] from 0 to 1, small for what does not look like the training data.
        """
        distances = self.distance(features(model, images)[0]).float()
        return 1 - torch.searchsorted(self.distances, distances).double().numpy() / len(self.distances)

    def save(self, path: str | Path) -> Path:
        """Write ``<path>.outliers.safetensors`` beside the model saved as ``path``, and bound to it by hash."""
        file = _file(path, "outliers.")
        tensors = {"means": self.means, "precision": self.precision, "distances": self.distances}
        with replacing(file) as temporary:
            save_file(tensors, temporary, {"model": file_sha256(_file(path))})
        return file


@torch.no_grad()
def features(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """For uint8 [B, 28, 28]: the backbone's output, averaged over the picture, float64 [B, C], and the logits, float64
    [B, 10], both on the CPU. The model is left as it was.
    """
    mode, device, found = model.training, next(model.parameters()).device, []
    model.eval()
    for part in images.split(100):
        maps = model.backbone(model.preprocess(part.to(device)))
        pooled = maps.flatten(2).mean(2) if maps.ndim > 2 else maps
        found.append((pooled.double().cpu(), model.head(maps).double().cpu()))
    model.train(mode)
    pooled, logits = zip(*found, strict=True)
    return torch.cat(pooled), torch.cat(logits)


def load(path: str | Path) -> Outliers:
    """What is saved beside a model, ``path`` without its ending.

    Raises ``FileNotFoundError`` with the command that makes the file, ``ValueError`` where the model is another one.
    """
    file, model_file = _file(path, "outliers."), _file(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: python -m fmnist_utils.explain.outliers makes it.")
    with safe_open(file, "pt") as opened:
        made_for = (opened.metadata() or {}).get("model")
    if made_for != file_sha256(model_file):
        raise ValueError(
            f"{file} belongs to another {model_file.name}: run python -m fmnist_utils.explain.outliers again."
        )
    return Outliers(**load_file(file))


def _file(path: str | Path, kind: str = "") -> Path:
    return Path(path).with_name(f"{Path(path).name}.{kind}safetensors")


def main() -> None:
    train, val = train_val_split(load_data("train"))
    for path in saved_models().values():
        found = Outliers.fit(load_model(path), train.subset(TRAIN), val.subset(VAL))
        print(f"wrote {found.save(path)}")


if __name__ == "__main__":
    main()
