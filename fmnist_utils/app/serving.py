"""What the app says about pictures, without its page: models, a picture's way to 28×28, prediction, pictures as text.

Nothing is kept between calls but the loaded models and the test images, and nothing is written to disk. Explained in
``notebooks/07_deployment.ipynb``.
"""

import base64
import binascii
import functools
import io
import json
import threading
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fmnist_utils import ROOT, check_name
from fmnist_utils.app import photos
from fmnist_utils.checkpoints import load_model
from fmnist_utils.data import FashionMNIST, load
from fmnist_utils.evaluate import load_predictions, predict
from fmnist_utils.explain import outliers
from fmnist_utils.explain.grad_cam import grad_cam

MODELS = ROOT / "data" / "models"
# torch uses every core for one batch anyway, and Grad-CAM changes the model while it works.
_lock = threading.Lock()


@dataclass
class Picture:
    """A picture on its way: ``pixels`` uint8 [28, 28], ``stages`` (what was done, picture), ``label`` where known."""

    pixels: Tensor
    stages: list[tuple[str, Image.Image]]
    label: int | None = None


@dataclass
class Answer:
    """For one picture: ``probabilities`` float32 [10], the Grad-CAM ``overlay`` (None where the network has no feature
    map), and ``share``, the part of the validation images that look at least as unusual to the network."""

    probabilities: np.ndarray
    overlay: Image.Image | None
    share: float


@functools.cache
def cards() -> dict[str, dict]:
    """The card of every model in ``data/models``, by name, with the size of its file in ``bytes``."""
    files = {path.stem: path.with_suffix(".safetensors") for path in sorted(MODELS.glob("*.json"))}
    return {
        name: json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) | {"bytes": path.stat().st_size}
        for name, path in files.items()
        if path.is_file()
    }


@functools.cache
def gallery() -> FashionMNIST:
    """The 10,000 test images, to choose from and to look at."""
    return load("test")


@functools.cache
def recorded(name: str) -> np.ndarray:
    """Recorded probabilities of a model on the test images, float32 [10000, 10], or else those of your own run.

    Errors of ``load_predictions``.
    """
    check_name("model", name, tuple(cards()))
    run = f"{cards()[name].get('recipe', name)}-{cards()[name].get('profile', '')}"
    try:
        return load_predictions(run)
    except FileNotFoundError:
        return load_predictions(run, folder=ROOT / "runs")


@functools.cache
def _loaded(name: str):
    model = load_model(MODELS / name)
    try:
        return model, outliers.load(MODELS / name)
    except FileNotFoundError as error:
        raise photos.BadImage(
            f"“{name}” is not complete. Run python -m fmnist_utils.explain.outliers first."
        ) from error


def answers(name: str, images: Tensor) -> list[Answer]:
    """What the model called ``name`` says about ``uint8 [B, 28, 28]`` images; one caller at a time, others wait.

    The first call loads the model. It predicts as its card's accuracy was measured, on both mirror images where that
    says so. Raises ``ValueError`` for an unknown name.
    """
    check_name("model", name, tuple(cards()))
    with _lock:
        model, detector = _loaded(name)
        unlabelled = FashionMNIST(images, torch.zeros(len(images), dtype=torch.int64))
        probabilities = predict(model, unlabelled, mirror=cards()[name].get("mirror", False))
        shares = detector.share_further(model, images)
        try:
            maps = grad_cam(model, images, torch.from_numpy(probabilities.argmax(1)))
        except ValueError:  # a network without a feature map, such as ViT
            maps = [None] * len(images)
    overlays = [None if seen is None else overlay(pixels, seen) for pixels, seen in zip(images, maps, strict=True)]
    return [Answer(p, o, float(s)) for p, o, s in zip(probabilities, overlays, shares, strict=True)]


def overlay(pixels: Tensor, seen: Tensor, scale: int = 8) -> Image.Image:
    """An image, uint8 [28, 28], under its Grad-CAM map, float32 [28, 28]: bright colours where it counted most."""
    from matplotlib import colormaps

    size = (scale * 28, scale * 28)
    grey = np.asarray(Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.NEAREST), np.float32)[..., None]
    weight = np.asarray(Image.fromarray(seen.numpy()).resize(size, Image.Resampling.BILINEAR))[..., None].clip(0, 1)
    colors = 255 * colormaps["plasma"](weight[..., 0])[..., :3]
    return Image.fromarray((grey * (1 - 0.75 * weight) + colors * 0.75 * weight).astype(np.uint8))


def read(sent: dict, steps: Collection[str], max_bytes: int) -> Picture:
    """The picture that a page sent: ``{"index": …}``, a test image, or ``{"name": …, "data": …}``, a file as data URL.

    Test images are taken as they are. Raises :class:`~fmnist_utils.app.photos.BadImage` with a sentence for people.
    """
    if (index := sent.get("index")) is not None:
        if not isinstance(index, int) or not 0 <= index < len(gallery()):
            raise photos.BadImage(f"There is no test image {index!r}: the numbers go from 0 to {len(gallery()) - 1}.")
        pixels, label = gallery()[index]
        return Picture(pixels, [("A test image: taken as it is", Image.fromarray(pixels.numpy()))], label)
    name = str(sent.get("name"))
    try:
        data = base64.b64decode(str(sent.get("data")).partition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise photos.BadImage(f"“{name}” arrived damaged: its base64 text has a mistake. Send it again.") from error
    return Picture(*photos.prepare(photos.read_image(data, name, max_bytes), steps))


def data_url(image: Image.Image | Tensor, side: int = 240) -> str:
    """A picture as text for a page, at most ``side`` pixels wide and high: PNG where small, else WebP."""
    image = image.copy() if isinstance(image, Image.Image) else Image.fromarray(image.numpy())
    image.thumbnail((side, side))
    kind, buffer = ("png" if max(image.size) <= 32 else "webp"), io.BytesIO()
    image.save(buffer, kind, quality=85, method=0)  # the fastest: encoding took longer than predicting
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
