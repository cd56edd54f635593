"""From a picture to what the models take: made to look like the data set's images.

Fashion-MNIST was made from product photographs on white: trimmed to the garment, the longest edge brought to 28 pixels,
the shorter one extended evenly to both sides, negated, grey (Xiao et al., 2017, arXiv:1708.07747, section 2).
:func:`prepare` does the same to other pictures. It finds a garment before an even or smoothly shaded background, not in
a street. Explained in ``notebooks/07_deployment.ipynb``.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from fmnist_utils import check_name
from fmnist_utils.app.cutout import cut_out, frame
from fmnist_utils.app.decoding import FORMATS, MAX_BYTES, NOTE, ORIENTATION, SIDE, BadImage, plain, read_image

if TYPE_CHECKING:
    import torch

__all__ = ["FORMATS", "MAX_BYTES", "SIDE", "STEPS", "BadImage", "examine", "prepare", "read_image"]
SIZE = 28

#: The steps of :func:`prepare` in their order, with a label for people.
STEPS: dict[str, str] = {
    "orientation": "Turn it upright (as the camera noted)",
    "transparency": "Put transparent parts on a plain background",
    "background": "Make the background black",
    "crop": "Cut to the garment",
    "aspect": "Keep the proportions",
    "centre": "Put the garment in the middle",
}


class Prepared(NamedTuple):
    """``pixels``, uint8 [28, 28], as the models take it, an array where torch is not installed; the ``stages`` on the
    way as (what was done, picture); and ``doubt``, empty, or why there is no single garment in the picture, as the end
    of a sentence."""

    pixels: "torch.Tensor"
    stages: list[tuple[str, Image.Image]]
    doubt: str


def prepare(
    image: Image.Image, steps: Collection[str] = tuple(STEPS)
) -> tuple["torch.Tensor", list[tuple[str, Image.Image]]]:
    """``uint8 [28, 28]`` as the models take it, and the stages on the way as (what was done, picture).

    The last stage is the 28×28 picture itself. ``image`` may have any mode, such as a photograph from
    :func:`read_image` or a drawing in white on black; one that is 28×28, grey and on black is left as it is, bit for
    bit. Raises ``ValueError`` for a step that is not in ``STEPS``. :func:`examine` also says what it doubts.
    """
    return examine(image, steps)[:2]


def examine(image: Image.Image, steps: Collection[str] = tuple(STEPS), turns: int = 0) -> Prepared:
    """:func:`prepare`, after ``turns`` quarter turns to the left, and whether there is a single garment at all."""
    for step in steps:
        check_name("step", step, tuple(STEPS))
    note = image.info.get(NOTE)
    stages = [("The picture as it came" + (f" ({note})" if note else ""), image)]
    if "orientation" in steps and image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
        stages.append(("Turned upright", image))
    if turns % 4:
        image = image.rotate(90 * (turns % 4), expand=True)
        stages.append(("Turned as you asked", image))
    image = plain(image)
    if image.mode == "RGBA":
        image, transparent = _opaque(image, "transparency" in steps)
        if transparent:
            stages.append(("Transparent parts filled", image))
    if (ready := _ready(image)) is not None:
        stages.append(("Already 28×28 on black: left as it is", ready))
        doubt = "" if ready.getextrema()[1] > 32 else "nothing stands out from the ground"
        return Prepared(_tensor(ready), stages, doubt)

    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    cut, grey = cut_out(image.convert("RGB")), image.convert("L")
    edge = int(np.median(frame(np.asarray(grey))))
    if "background" in steps:
        values = np.asarray(grey, np.float32)
        grey = Image.fromarray(((255 - values if cut.light else values) * cut.cover).round().astype(np.uint8))
        edge = 0
        stages.append(("Negated, background made black" if cut.light else "Background made black", grey))
    if cut.box is None:
        stages[-1] = (stages[-1][0] + ": no garment found", stages[-1][1])
    else:
        grey = _placed(grey, cut.box, steps, edge, stages)
    small = _to_size(grey, "aspect" in steps, "centre" in steps, edge)
    stages.append(("28×28 pixels: what the network gets", small))
    return Prepared(_tensor(small), stages, cut.doubt)


def _tensor(image: Image.Image):
    pixels = np.array(image)
    try:  # programs that run exported files need nothing else of torch
        import torch
    except ImportError:
        return pixels
    return torch.from_numpy(pixels)


def _placed(grey: Image.Image, box: tuple, steps: Collection[str], edge: int, stages: list) -> Image.Image:
    """Cut to the box, or moved so that it is in the middle, as the steps say."""
    if "crop" in steps:
        grey = grey.crop(box)
        stages.append(("Cut to the garment", grey))
    elif "centre" in steps:
        shift = ((box[0] + box[2] - grey.width) / 2, (box[1] + box[3] - grey.height) / 2)
        grey = grey.transform(grey.size, Image.Transform.AFFINE, (1, 0, shift[0], 0, 1, shift[1]), fillcolor=edge)
        stages.append(("Garment moved to the middle", grey))
    return grey


def _opaque(image: Image.Image, fill: bool) -> tuple[Image.Image, bool]:
    """Without its transparency, and whether it had any: dark garments go onto white, light ones onto black."""
    alpha = np.asarray(image.getchannel("A"), np.float32)
    if not fill or alpha.min() == 255:
        return image.convert("RGB"), False
    brightness = np.average(np.asarray(image.convert("L")), weights=alpha) if alpha.any() else 0
    ground = Image.new("RGBA", image.size, "white" if brightness < 128 else "black")
    return Image.alpha_composite(ground, image).convert("RGB"), True


def _ready(image: Image.Image) -> Image.Image | None:
    """The image in mode L where it is one of the data set's kind: 28×28, grey, black outside."""
    if image.size != (SIZE, SIZE):
        return None
    pixels = np.asarray(image.convert("RGB"))
    if np.ptp(pixels, axis=2).any() or pixels[::27, ::27].min() > 32:
        return None
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0]))


def _to_size(grey: Image.Image, aspect: bool, centre: bool, edge: int) -> Image.Image:
    """28×28; padded with ``edge`` where the proportions are kept, evenly or, off centre, right and below only."""
    longest = max(grey.size)
    size = tuple(max(1, round(SIZE * side / longest)) for side in grey.size) if aspect else (SIZE, SIZE)
    small, result = grey.resize(size, Image.Resampling.LANCZOS), Image.new("L", (SIZE, SIZE), edge)
    result.paste(small, tuple((SIZE - side) // 2 for side in size) if centre else (0, 0))
    return result
