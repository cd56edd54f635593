"""What the app says about pictures, without its page: models, a picture's way to 28×28, prediction, pictures as text.

Nothing is kept between calls but the loaded models and the test images, and nothing is written to disk. Explained in
``notebooks/07_deployment.ipynb``.
"""

import base64
import binascii
import contextlib
import functools
import io
import logging
import os
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from threadpoolctl import threadpool_limits
from torch import Tensor

from fmnist_utils import ROOT, check_name
from fmnist_utils.app import photos
from fmnist_utils.checkpoints import load_model, read_card
from fmnist_utils.data import FashionMNIST, load
from fmnist_utils.explain import outliers
from fmnist_utils.explain.grad_cam import grad_cam
from fmnist_utils.models import WeightsUnavailable
from fmnist_utils.results import load_predictions
from fmnist_utils.sources.files import file_sha256, shown

MODELS = ROOT / "data" / "models"
_loading = threading.Lock()
# All work on pixels: more threads than cores would only be in each other's way, and each keeps memory that it once had.
_workers = ThreadPoolExecutor(os.cpu_count() or 1, "pixels")


@dataclass
class Picture:
    """A picture on its way: ``pixels`` uint8 [28, 28], ``stages`` (what was done, picture), ``doubt``, why it shows no
    single garment, else empty, and the ``label`` where it is known."""

    pixels: Tensor
    stages: list[tuple[str, Image.Image]]
    doubt: str = ""
    label: int | None = None


@dataclass
class Answer:
    """For one picture: ``probabilities`` float32 [10], the Grad-CAM ``overlay`` (None where the network has no feature
    map), ``share``, the part of the validation images that look at least as unusual to the network; ``turns``, how many
    quarter turns to the left would make a usual picture of it, 0 where none clearly would; and ``certain``, the part of
    the validation images of which the model is no more certain.
    """

    probabilities: np.ndarray
    overlay: Image.Image | None
    share: float
    turns: int
    certain: float


def warning(picture: Picture, answer: Answer) -> tuple[str, str] | None:
    """Why the answer is not to be relied on, in two or three words and in a sentence; None where nothing speaks so."""
    if picture.doubt:
        why = picture.doubt[0].upper() + picture.doubt[1:]
        return "no single garment", f"{why}. The network must name one of ten kinds all the same: don't rely on that."
    if answer.turns:
        way = {1: "a quarter turn to the left", 2: "half a turn", 3: "a quarter turn to the right"}[answer.turns]
        return "turned?", f"After {way} it would look more usual to this model. Is it upright?"
    if answer.share < outliers.UNUSUAL:
        few = f"fewer than 1 in {round(1 / outliers.UNUSUAL)} validation images look as unusual to this model"
        return "unusual", f"This does not look like the images it learned from: {few}. Don't rely on its answer."
    if answer.certain < outliers.UNSURE:
        few = f"fewer than 1 in {round(1 / outliers.UNSURE)} validation images leave this model so unsure"
        return "very unsure", f"No kind has a high probability: {few}. Don't rely on its answer."
    return None


@functools.cache
def cards() -> dict[str, dict]:
    """The card of every model in ``data/models``, by name, with the size of its file in ``bytes``.

    Raises ``ValueError`` with a file's name where a card is none, or its model is missing.
    """
    found = {}
    for text in sorted(MODELS.glob("*.json")):
        file = text.with_suffix(".safetensors")
        try:
            card = read_card(text)
        except ValueError as error:
            raise ValueError(
                f"{shown(text)} is no card of a model: copy it again, or remove it with {file.name}."
            ) from error
        if not file.is_file():
            raise ValueError(f"{shown(file)} is missing: copy it again, or remove {text.name}, its card.")
        found[text.stem] = {"mirror": False} | card | {"bytes": file.stat().st_size}
    return found


def check_models() -> None:
    """Raises ``ValueError`` or ``FileNotFoundError``, with the file's name, unless all files of all models fit."""
    for name, card in cards().items():
        if file_sha256(file := MODELS / f"{name}.safetensors") != card["sha256"]:
            raise ValueError(f"{shown(file)} is damaged or belongs to another {name}.json: copy both files again.")
        outliers.load_outliers(MODELS / name)


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


def one_core_each() -> None:
    """Whatever is computed takes one core from now on, so that as many answers are as there are cores.

    Networks for 28×28 pixels are so small that several cores would wait for each other longer than they work, and much
    longer where other programs want them, too.
    """
    torch.set_num_threads(1)
    threadpool_limits(1, "blas")


def at_work(work: Callable, *arguments):
    """The result of ``work``, which waits for its turn where there are more of them than cores."""
    return _workers.submit(work, *arguments).result()


@functools.cache
def _loaded(name: str):
    try:
        model = load_model(MODELS / name).to(memory_format=torch.channels_last)  # as `predict` does
        return model, outliers.load_outliers(MODELS / name)
    except (ValueError, FileNotFoundError, WeightsUnavailable) as error:
        logging.getLogger(__name__).error("The model %s cannot be loaded: %s", name, error)
        raise photos.BadImage(
            f"The model “{name}” cannot be used: a file of it is missing or damaged, and the server's log says which. "
            "Choose another one meanwhile."
        ) from error


def answers(name: str, images: Tensor, explain: bool = True) -> list[Answer]:
    """What the model called ``name`` says about ``uint8 [B, 28, 28]`` images; several threads may ask at once.

    The first call loads the model. It predicts as its card's accuracy was measured, on both mirror images where that
    says so. The network runs once for the answer and Grad-CAM together, once mirrored, and once more for those that
    look turned; ``explain=False`` leaves Grad-CAM out. Raises ``ValueError`` for an unknown name.
    """
    check_name("model", name, tuple(cards()))
    with _loading:
        model, detector = _loaded(name)
    activation, x, logits = outliers.run(model, images)
    probabilities = outliers.probabilities(model, images, logits, cards()[name]["mirror"]).float().numpy()
    shares, _, turns = detector.judge(model, images, x)
    certain = detector.share_less_certain(probabilities)
    maps = [None] * len(images)
    # A network without a feature map, such as ViT, has nothing to show either.
    with contextlib.suppress(ValueError):
        best = torch.from_numpy(probabilities.argmax(1))
        maps = grad_cam(model, images, best, activation) if explain else maps
    overlays = [None if seen is None else overlay(pixels, seen) for pixels, seen in zip(images, maps, strict=True)]
    numbers = (values.tolist() for values in (shares, turns, certain))
    return [Answer(*each) for each in zip(probabilities, overlays, *numbers, strict=True)]


def overlay(pixels: Tensor, seen: Tensor, scale: int = 8) -> Image.Image:
    """An image, uint8 [28, 28], under its Grad-CAM map, float32 [28, 28]: bright colours where it counted most."""
    from matplotlib import colormaps

    size = (scale * 28, scale * 28)
    grey = np.asarray(Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.NEAREST), np.float32)[..., None]
    weight = np.asarray(Image.fromarray(seen.numpy()).resize(size, Image.Resampling.BILINEAR))[..., None].clip(0, 1)
    colors = 255 * colormaps["plasma"](weight[..., 0])[..., :3]
    return Image.fromarray((grey * (1 - 0.75 * weight) + colors * 0.75 * weight).astype(np.uint8))


def read(sent: dict, steps: Collection[str], max_bytes: int) -> Picture:
    """The picture that a page sent: ``{"index": …}``, a test image, or ``{"name": …, "data": …, "turns": …}``, a file,
    as data URL, and by how many quarter turns to the left it is to be turned.

    Test images are taken as they are. Raises :class:`~fmnist_utils.app.photos.BadImage` with a sentence for people.
    """
    if (index := sent.get("index")) is not None:
        if not isinstance(index, int) or not 0 <= index < len(gallery()):
            raise photos.BadImage(f"There is no test image {index!r}: the numbers go from 0 to {len(gallery()) - 1}.")
        pixels, label = gallery()[index]
        return Picture(pixels, [("A test image: taken as it is", Image.fromarray(pixels.numpy()))], "", label)
    name = str(sent.get("name"))
    try:
        data = base64.b64decode(str(sent.get("data")).partition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise photos.BadImage(f"“{name}” arrived damaged: its base64 text has a mistake. Send it again.") from error
    turns = sent.get("turns", 0)
    if turns not in (0, 1, 2, 3):
        raise photos.BadImage(f"A picture can be turned by 0 to 3 quarters, not by {turns!r}.")
    image = photos.read_image(data, name, max_bytes)  # by a thread of its own, which may take long
    return Picture(*at_work(photos.examine, image, steps, turns))


def data_url(image: Image.Image | Tensor, side: int = photos.SIDE) -> str:
    """A picture as text for a page, at most ``side`` pixels wide and high: PNG where small or transparent, else JPEG,
    which is the fastest to make: encoding took longer than predicting."""
    image = image.copy() if isinstance(image, Image.Image) else Image.fromarray(image.numpy())
    image.thumbnail((side, side))
    kind, buffer = ("png" if max(image.size) <= 32 or image.mode == "RGBA" else "jpeg"), io.BytesIO()
    image.save(buffer, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
