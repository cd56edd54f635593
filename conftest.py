"""What every test shares: the smoke profile (for notebook kernels too), a figure backend, a few real images."""

import os

os.environ["FMNIST_PROFILE"] = "smoke"
os.environ.pop("FMNIST_RECORD", None)  # no test records anything
# Before torch is imported; the notebooks' kernels and the benchmarks' processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib
import pytest

from fmnist_utils import data, models

#: tests/test_notebooks.py runs it twice, with ResNet50's weights and without; nbmake need not do it a third time.
collect_ignore = ["notebooks/04_resnet50_fine_tuning.ipynb"]

# For this process only: an environment variable would also reach the notebooks' kernels, which draw inline.
matplotlib.use("Agg")


@pytest.fixture(scope="session")
def tiny_split() -> tuple[data.FashionMNIST, data.FashionMNIST]:
    """130 and 70 real images, disjoint: with batches of 64 both end in a ragged one."""
    return data.train_val_split(data.load("test").subset(200), 70)


@pytest.fixture(scope="session")
def tiny(tiny_split) -> data.FashionMNIST:
    return tiny_split[0]


@pytest.fixture(scope="session")
def tiny_val(tiny_split) -> data.FashionMNIST:
    return tiny_split[1]


@pytest.fixture(scope="session")
def small_vgg():
    """Builds VGG16 with ImageNet weights up to block1 at 32 px, frozen, under a small head; any argument can differ."""

    def build(**changes) -> models.Classifier:
        settings = {"cut_after": "block1", "image_size": 32, "head": (0, 2, (16,), True), "dropout": 0.5}
        return models.build_model("vgg16", **settings | changes)

    return build
