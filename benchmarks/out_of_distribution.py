"""Which score tells garments from other pictures? Five scores, two shipped models, seven kinds of other pictures."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from common import options, record, splits
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_sample_images
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from fmnist_utils import ROOT, pick
from fmnist_utils.checkpoints import load_model
from fmnist_utils.data import FashionMNIST, train_val_split
from fmnist_utils.explain.outliers import TRAIN, VAL, Outliers, features
from fmnist_utils.models import Classifier
from fmnist_utils.plots import use_style

MODELS = ("small-cnn", "vgg16-block3-two-views")[: pick(smoke=1, cpu=2, full=2)]
TRAIN, VAL = pick(smoke=(300, 200), cpu=(TRAIN, VAL), full=(TRAIN, VAL))
TEST, OTHERS = pick(smoke=(100, 50), cpu=(500, 200), full=(500, 200))
#: These kinds chose the score; the others were not looked at for that.
CHOOSING = ("handwritten digits", "shuffled garments", "garments upside down")
BASELINE = "maximum softmax"


def others(garments: Tensor) -> dict[str, Tensor]:
    """``OTHERS`` pictures of each kind, uint8 [N, 28, 28], some made from ``garments``."""
    random, count = np.random.default_rng(0), len(garments)
    digits = load_digits().images[random.permutation(1797)[:count]]
    photographs = [np.asarray(Image.fromarray(photo).convert("L")) for photo in load_sample_images().images]
    letters = []
    fonts = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVu*.ttf"))
    for _ in range(count):
        picture = Image.new("L", (28, 28))
        font = ImageFont.truetype(fonts[random.integers(len(fonts))], int(random.integers(18, 27)))
        letter = chr(random.choice([*range(65, 91), *range(97, 123)]))
        ImageDraw.Draw(picture).text((14, 14), letter, fill=255, font=font, anchor="mm")
        letters.append(np.asarray(picture))

    def patch(photo: np.ndarray) -> np.ndarray:
        side = int(random.integers(28, 200))
        top, left = (int(random.integers(length - side)) for length in photo.shape)
        return _to_28(photo[top : top + side, left : left + side])

    made = {
        "handwritten digits": [_to_28((digit * 255 / 16).astype(np.uint8)) for digit in digits],
        "shuffled garments": [random.permutation(image.ravel()).reshape(28, 28) for image in garments.numpy()],
        "garments upside down": garments.flip(1).numpy(),
        "patches of photographs": [patch(photographs[i % 2]) for i in range(count)],
        "printed letters": letters,
        "uniform noise": random.integers(0, 256, (count, 28, 28), dtype=np.uint8),
        "negatives of garments": 255 - garments.numpy(),
    }
    return {kind: torch.from_numpy(np.array(images)) for kind, images in made.items()}


def _to_28(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((28, 28), Image.Resampling.BICUBIC))


def scores(model: Classifier, train: FashionMNIST, val: FashionMNIST, sets: dict[str, Tensor]) -> pd.DataFrame:
    """One row per image: the set it is from, and each score (higher: more unusual)."""
    detector = Outliers.fit(model, train, val)
    known, _ = features(model, train.images)
    neighbours = NearestNeighbors(n_neighbors=10).fit(_unit(known))
    pca = PCA(64, random_state=0).fit(train.images.flatten(1).float() / 255)
    rows = []
    for name, images in sets.items():
        x, logits = features(model, images)
        pixels = images.flatten(1).float().numpy() / 255
        found = {
            BASELINE: 1 - logits.softmax(1).amax(1),
            "energy": -logits.logsumexp(1),
            "Mahalanobis distance": detector.distance(x),
            "10th neighbour": neighbours.kneighbors(_unit(x))[0][:, -1],
            "PCA of pixels": np.square(pixels - pca.inverse_transform(pca.transform(pixels))).sum(1),
        }
        rows.append(pd.DataFrame({score: np.asarray(values) for score, values in found.items()}).assign(set=name))
    return pd.concat(rows, ignore_index=True)


def _unit(x: Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(x, dim=1).numpy()


def auroc(table: pd.DataFrame, inside: str, kinds: list[str] | tuple[str, ...]) -> pd.DataFrame:
    """AUROC of each score (columns) against ``inside``, one row per kind."""
    own, names = table[table.set == inside], table.columns.drop("set")
    found = {}
    for kind in kinds:
        other = table[table.set == kind]
        truth = np.r_[np.zeros(len(own)), np.ones(len(other))]
        found[kind] = {score: roc_auc_score(truth, np.r_[own[score], other[score]]) for score in names}
    return pd.DataFrame(found).T


def draw(reports: dict[str, pd.DataFrame]) -> plt.Figure:
    use_style()
    figure, axes = plt.subplots(1, len(reports), figsize=(1.5 + 5.5 * len(reports), 4.6), sharey=True, squeeze=False)
    for axis, (name, report) in zip(axes[0], reports.items(), strict=True):
        shown = pd.concat([report, report.mean().rename("mean").to_frame().T])
        sns.heatmap(shown, ax=axis, annot=True, fmt=".2f", vmin=0.5, vmax=1, cmap="cividis", cbar=False)
        axis.axhline(len(CHOOSING), color="white", linewidth=3)
        axis.axhline(len(report), color="white", linewidth=3)
        axis.set_title(name)
        plt.setp(axis.get_xticklabels(), rotation=30, ha="right")
    figure.suptitle("Telling other pictures from garments: AUROC (above the first line: kinds that chose the score)")
    return figure


def main() -> None:
    options(__doc__)
    images = splits(train=TRAIN, val=5_000, test=TEST)
    # Garments that are turned, shuffled or inverted are none that a detector is fitted or calibrated on.
    spare, val = train_val_split(images["val"], VAL)
    sets = {"test": images["test"].images, "validation": val.images} | others(spare.subset(OTHERS).images)
    kinds = list(sets)[2:]
    reports, chosen = {}, {}
    for name in MODELS:
        table = scores(load_model(ROOT / "data" / "models" / name), images["train"], val, sets)
        reports[name] = auroc(table, "test", kinds)
        chosen[name] = auroc(table, "validation", CHOOSING).mean()
        print(name, chosen[name].round(3).to_dict(), reports[name].round(3).to_string(), sep="\n")
    best = str(pd.DataFrame(chosen).mean(axis=1).idxmax())
    ours, reference = (np.mean([report[name].mean() for report in reports.values()]) for name in (best, BASELINE))
    setting = f"{best} against {BASELINE}, mean over {len(MODELS)} models and {len(kinds)} kinds of other pictures"
    fields = {"chosen_on": CHOOSING, "held_out": [kind for kind in kinds if kind not in CHOOSING]}
    fields["choice"] = {name: means.to_dict() for name, means in chosen.items()}
    fields["auroc"] = {name: report.to_dict("index") for name, report in reports.items()}
    record("out_of_distribution", setting, ours, reference, "AUROC", figure=draw(reports), **fields)


if __name__ == "__main__":
    main()
