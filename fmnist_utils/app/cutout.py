"""Where in a photograph the garment is: what differs from a smooth ground, without threads, seams and specks.

Used by :func:`fmnist_utils.app.photos.prepare`. The limits were tuned on photographs made from validation images, of
other kinds than those that ``benchmarks/photographs.py`` reports as held out. Explained in
``notebooks/07_deployment.ipynb``.
"""

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

#: What lies fewer than so many of the ground's standard deviations away from it is ground; from twice as many, garment.
APART = 3
#: Standard deviations that every ground is taken to have, in levels of a colour: of all that varies, and of brightness
#: besides, since a soft shadow changes that more than the colour.
LEAST, LEAST_BRIGHTNESS = 2, 4
#: What lies within this share of the garment's own distance from the ground is ground, too: a shadow, say.
BESIDE = 0.25
#: Parts of the picture with less than this share of the largest one's mass are not the garment: a tag, a coin.
LEAST_PART = 0.15
#: What is thinner than this share of the picture's longest side is not the garment: a seam, a hanger's wire.
THIN = 1 / 32
#: What takes this share of the frame is ground, such as a wall behind a table, where something else has a fifth of its
#: mass and does not.
ALONG_FRAME, INSTEAD = 0.06, 0.2
#: A second part of this share of the largest one's mass, beside it, is a second garment.
SECOND = 0.35
#: What takes more of a side of the picture is a shadow or the edge of a table, not a garment, which covers more of the
#: picture than ``SMALL``.
WHOLE_SIDE, SMALL = 0.9, 0.005
_SMOOTH_FROM = 112  # pixels: smaller pictures have no detail to lose


@dataclass
class Cut:
    """The garment in a picture: ``cover``, float32 [H, W], 0 on the ground to 1 on the garment; whether the ground
    counts as ``light``; its ``box`` (left, upper, right, lower edge in pixels), None where nothing stands out; and
    ``doubt``, empty, or why this is no single garment, as the end of a sentence.
    """

    cover: np.ndarray
    light: bool
    box: tuple[int, int, int, int] | None
    doubt: str


def cut_out(image: Image.Image) -> Cut:
    """Find the garment in an RGB picture.

    The ground is a smooth surface (quadratic in the coordinates, per colour) through the frame of the picture, fitted
    to ever fewer outliers, because a garment may reach the edge. How far a pixel is from it counts in the ground's own
    spread (Mahalanobis distance): folds, grain and blades of grass are lighter and darker shades of one colour, so that
    another colour tells more there than another brightness. What differs is opened, so that seams and wires part from
    the garment, and its connected parts are kept by their mass. Where a garment is far from the ground, a second look
    leaves out what is near to it.
    """
    if min(image.size) >= _SMOOTH_FROM:  # noise of single pixels and JPEG's ripples do not count
        image = image.filter(ImageFilter.BoxBlur(1))
    pixels = np.asarray(image, np.float32)
    ground, error, spread = _ground(pixels)
    apart = (pixels - ground) @ np.linalg.cholesky(np.linalg.inv(spread)).astype(np.float32)
    distance, even = np.sqrt(np.einsum("hwc,hwc->hw", apart, apart)), 3 * error <= 8
    cover, parts = _stands_out(distance, APART, even)
    doubt = _doubt(cover > 0.5, parts)
    limit = BESIDE * float(np.median(distance[cover > 0.5])) if parts else 0
    if limit > APART and (nearer := _stands_out(distance, limit, even)[0]).any():
        cover = nearer
    grey = (pixels[..., 0] + pixels[..., 1] + pixels[..., 2]) / 3  # NumPy's mean along so short an axis is slow, too
    garment = (cover * grey).sum() / max(cover.sum(), 1)
    behind = ground.mean()
    # Products are mostly shown on a light ground, and parts of them are lighter; a white shirt on grey is another case.
    light = bool(garment < ((behind + 255) / 2 if behind > 127 else behind / 2))
    inside = cover > 0.5
    box = None
    if inside.any():
        rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return Cut(cover, light, box, doubt)


def frame(pixels: np.ndarray) -> np.ndarray:
    """The outermost pixels, about 3% of each side, as a list of them."""
    width = max(1, round(0.03 * min(pixels.shape[:2])))
    inside = np.zeros(pixels.shape[:2], bool)
    inside[width:-width, width:-width] = True
    return pixels[~inside]


def _largest(differences: np.ndarray) -> np.ndarray:
    """The largest of the colours' absolute differences, [..., 3] to [...]: NumPy is slow along so short an axis."""
    red, green, blue = np.moveaxis(np.abs(differences), -1, 0)
    return np.maximum(np.maximum(red, green), blue)


def _ground(pixels: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """The smooth ground, float32 [H, W, 3], how far the frame usually is from it, and the covariance of the colours in
    what the frame has besides, float64 [3, 3]."""
    terms, seen_terms = _terms(*pixels.shape[:2])
    seen = frame(pixels)
    error = _largest(seen - np.median(seen, axis=0))
    for count in (3, 6, 6):
        near = error <= max(12, 3 * np.median(error))
        surface = np.linalg.lstsq(seen_terms[near, :count], seen[near], rcond=None)[0]
        rest = seen - seen_terms[:, :count] @ surface
        error = _largest(rest)
    spread = np.cov(rest[error <= max(12, 3 * np.median(error))].T, ddof=0)
    spread += LEAST**2 * np.eye(3) + LEAST_BRIGHTNESS**2 / 3
    return (terms @ surface).clip(0, 255), float(np.median(error)), spread


@functools.lru_cache(8)
def _terms(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """What a quadratic surface is made of, float32 [H, W, 6], and its part in the frame; kept for pictures alike."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], 2).astype(np.float32)
    return terms, frame(terms)


def _stands_out(distance: np.ndarray, limit: float, even: bool) -> tuple[np.ndarray, list]:
    """Which part of each pixel is garment by its distance from the ground, float32 [H, W], 0 to 1; and of
    each part that is kept (its mass, its slices), largest first."""
    cover = (distance / limit - 1).clip(0, 1)
    mask = cover > 0.5
    if min(mask.shape) >= _SMOOTH_FROM:  # specks do not count: what most of the 25 pixels around are
        mask = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.BoxBlur(2))) > 127
    thin = round(max(mask.shape) * THIN / 2)
    thick = ndimage.binary_opening(mask, iterations=thin) if thin else mask
    if even and thick.sum() < mask.sum() / 2:  # a drawing with a fine pen, a sandal: the lines are the thing
        thick, thin = mask, 0
    labels, count = ndimage.label(thick, np.ones((3, 3)))
    if not count:
        return np.zeros_like(cover), []
    masses = ndimage.sum_labels(cover, labels, np.arange(1, count + 1))
    at_frame = np.bincount(frame(labels), minlength=count + 1)[1:] / len(frame(labels))
    inner = np.where(at_frame > ALONG_FRAME, 0, masses)
    masses = inner if inner.max() >= INSTEAD * masses.max() else masses
    order = [i for i in np.argsort(-masses) if masses[i] >= LEAST_PART * masses.max()]
    slices = ndimage.find_objects(labels)
    chosen = np.zeros(count + 1, bool)
    chosen[np.array(order) + 1] = True
    kept = chosen[labels]
    kept = ndimage.binary_dilation(kept, np.ones((3, 3)), iterations=thin + 2)  # what opening took from its edges
    return cover * kept, [(masses[i], slices[i]) for i in order]


def _doubt(inside: np.ndarray, parts: list) -> str:
    """Why this is no single garment, or nothing."""
    if inside.mean() < SMALL:
        return "nothing stands out from the ground"
    if max(side.mean() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1])) > WHOLE_SIDE:
        return "what stands out reaches far along the edge"
    (mass, first), others = parts[0], parts[1:]
    for other, second in others:
        beside = any(a.stop <= b.start or b.stop <= a.start for a, b in zip(first, second, strict=True))
        if beside and other >= SECOND * mass:
            return "there is more than one thing in it"
    return ""
