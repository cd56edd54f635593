"""Which score tells garments from other pictures? Five scores, three shipped models, seven kinds."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
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
from fmnist_utils.plots import auroc as auroc_figure
from fmnist_utils.plots import use_style

MODELS = ("small-cnn", "wide-resnet-16-4", "vgg16-block3-two-views")[: pick(smoke=1, cpu=3, full=3)]
TRAIN, VAL = pick(smoke=(300, 200), cpu=(TRAIN, VAL), full=(TRAIN, VAL))
TEST, OTHERS = pick(smoke=(100, 50), cpu=(500, 200), full=(500, 200))
RESAMPLES = pick(smoke=20, cpu=500, full=500)
#: These kinds chose the score; the others were not looked at for that.
CHOOSING = ("handwritten digits", "shuffled garments", "garments upside down")
BASELINE = "maximum softmax"


def others(garments: Tensor) -> dict[str, Tensor]:
    """``OTHERS`` pictures of each kind, uint8 [N, 28, 28], some made from ``garments``."""
    random, count = np.random.default_rng(0), len(garments)
    digits = load_digits().images[random.permutation(1797)[:count]]
    photographs = [np.asarray(Image.fromarray(photo).convert("L")) for photo in load_sample_images().images]
    fonts = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVu*.ttf"))

    def letter() -> np.ndarray:
        picture = Image.new("L", (28, 28))
        font = ImageFont.truetype(fonts[random.integers(len(fonts))], int(random.integers(18, 27)))
        text = chr(random.choice([*range(65, 91), *range(97, 123)]))
        ImageDraw.Draw(picture).text((14, 14), text, fill=255, font=font, anchor="mm")
        return np.asarray(picture)

    letters = [letter() for _ in range(count)]  # before the others, which go on with the same random numbers

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
        columns = {
            BASELINE: 1 - logits.softmax(1).amax(1),
            "energy": -logits.logsumexp(1),
            "Mahalanobis distance": detector.distance(x),
            "10th neighbour": neighbours.kneighbors(_unit(x))[0][:, -1],
            "PCA of pixels": np.square(pixels - pca.inverse_transform(pca.transform(pixels))).sum(1),
        }
        rows.append(pd.DataFrame({score: np.asarray(values) for score, values in columns.items()}).assign(set=name))
    return pd.concat(rows, ignore_index=True)


def _unit(x: Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(x, dim=1).numpy()


def auroc(table: pd.DataFrame, inside: str, kinds: list[str] | tuple[str, ...]) -> pd.DataFrame:
    """AUROC of each score (columns) against ``inside``, one row per kind."""
    rows = {}
    for kind in kinds:
        both = table[table.set.isin((inside, kind))]
        rows[kind] = {score: roc_auc_score(both.set == kind, both[score]) for score in table.columns.drop("set")}
    return pd.DataFrame(rows).T


def missed(table: pd.DataFrame, kinds: list[str]) -> pd.DataFrame:
    """The share of each kind that passes where the limit lets 95% of the test images pass: false positives at 95%."""
    names = table.columns.drop("set")
    limits = table.loc[table.set == "test", names].quantile(0.95)
    return pd.DataFrame({kind: (table.loc[table.set == kind, names] <= limits).mean() for kind in kinds}).T


def gain_interval(tables: list[pd.DataFrame], kinds: list[str], score: str) -> list[float]:
    """95% interval of the mean AUROC of ``score`` minus that of ``BASELINE``: other images of the same kinds, drawn
    again from ours (bootstrap), the same ones for both scores and all models."""
    random, rows = np.random.default_rng(0), tables[0].reset_index(drop=True)
    of_kind, gains = {name: np.flatnonzero(rows.set == name) for name in ("test", *kinds)}, []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([random.choice(places, len(places)) for places in of_kind.values()])
        means = [auroc(table.iloc[drawn], "test", kinds)[[score, BASELINE]].mean() for table in tables]
        gains.append(np.mean([mean[score] - mean[BASELINE] for mean in means]))
    return np.quantile(gains, [0.025, 0.975]).tolist()


def main() -> None:
    options(__doc__)
    use_style()
    images = splits(train=TRAIN, val=5_000, test=TEST)
    # Garments that are turned, shuffled or inverted are none that a detector is fitted or calibrated on.
    spare, val = train_val_split(images["val"], VAL)
    sets = {"test": images["test"].images, "validation": val.images} | others(spare.subset(OTHERS).images)
    kinds = list(sets)[2:]
    held_out = [kind for kind in kinds if kind not in CHOOSING]
    tables = {}
    for name in MODELS:
        tables[name] = scores(load_model(ROOT / "data" / "models" / name), images["train"], val, sets)
        print(name, auroc(tables[name], "test", kinds).round(3).to_string(), sep="\n", flush=True)
    reports = {name: auroc(table, "test", kinds) for name, table in tables.items()}
    chosen = {name: auroc(table, "validation", CHOOSING).mean() for name, table in tables.items()}
    best = str(pd.DataFrame(chosen).mean(axis=1).idxmax())
    means = pd.DataFrame({name: report.loc[held_out].mean() for name, report in reports.items()}).mean(axis=1)
    setting = f"{best} against {BASELINE}, mean over {len(MODELS)} models and {len(held_out)} kinds that chose nothing"
    fields = {"test_images": TEST, "pictures_of_each_kind": OTHERS, "chosen_on": CHOOSING, "held_out": held_out}
    fields["choice"] = {name: choice.to_dict() for name, choice in chosen.items()}
    fields["auroc"] = {name: report.to_dict("index") for name, report in reports.items()}
    fields["missed_at_95"] = {name: missed(table, kinds).to_dict("index") for name, table in tables.items()}
    fields["gain_interval"] = gain_interval(list(tables.values()), held_out, best)
    figure = auroc_figure(reports, CHOOSING)
    record("out_of_distribution", setting, 100 * means[best], 100 * means[BASELINE], "% AUROC", figure=figure, **fields)


if __name__ == "__main__":
    main()
