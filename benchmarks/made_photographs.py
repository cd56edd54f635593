"""Made-up photographs of garments, from images of the data set: many grounds, things in the way, turned, in shade.

What :mod:`photographs`, the benchmark, is about; :func:`compose` makes one.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter

Random = np.random.Generator


# ------------------------------------------------------------------------------------------------------ the grounds


def _smooth(random: Random, shape: tuple[int, int], *sigma: float) -> np.ndarray:
    """Noise without detail below ``sigma`` pixels, standard deviation 1, float64 [H, W, 1]."""
    noise = gaussian_filter(random.normal(size=shape), sigma if len(sigma) > 1 else sigma[0])
    return (noise / noise.std())[..., None]


def _colour(random: Random, low: int = 140, high: int = 235) -> np.ndarray:
    return random.integers(low, high) + random.normal(0, 12, 3)


def _seams(random: Random, shape: tuple[int, int], across: int, along: int, dark: float) -> np.ndarray:
    """Thin dark lines around boards or tiles, and a shade for each: float64 [H, W, 1], to multiply."""
    height, width = shape
    picture, start = np.ones((height, width, 1)), -int(random.integers(across))
    for left in range(start, width, across):
        for top in range(-int(random.integers(along)), height, along):
            part = picture[max(0, top) : max(0, top + along), max(0, left) : max(0, left + across)]
            part *= 1 + random.normal(0, 0.035)
            part[-2:], part[:, -2:] = dark * part[-2:], dark * part[:, -2:]
    return picture


def even(random: Random, shape: tuple[int, int]) -> np.ndarray:
    return np.ones((*shape, 3)) * _colour(random, 235, 254)


def coloured(random: Random, shape: tuple[int, int]) -> np.ndarray:
    return np.ones((*shape, 3)) * random.integers(120, 256, 3)


def shaded(random: Random, shape: tuple[int, int]) -> np.ndarray:
    y, x = np.linspace(0, 1, shape[0])[:, None], np.linspace(0, 1, shape[1])
    return _colour(random, 200, 240) * (1 - 0.3 * x - 0.25 * y)[..., None]


def striped(random: Random, shape: tuple[int, int]) -> np.ndarray:
    x = np.arange(shape[1])[:, None] // int(random.integers(12, 30)) % 2
    return np.ones((*shape, 3)) * (_colour(random, 190, 240) - x * random.uniform(6, 20))


def wood(random: Random, shape: tuple[int, int]) -> np.ndarray:
    tan = np.array([190, 150, 110]) * random.uniform(0.8, 1.15)
    grain = 1 + 0.03 * _smooth(random, shape, 25, 1)
    return tan * grain * _seams(random, shape, int(random.integers(50, 90)), int(random.integers(250, 500)), 0.6)


def tiles(random: Random, shape: tuple[int, int]) -> np.ndarray:
    side = int(random.integers(70, 130))
    return _colour(random, 170, 230) * (1 + 0.01 * _smooth(random, shape, 6)) * _seams(random, shape, side, side, 0.75)


def bricks(random: Random, shape: tuple[int, int]) -> np.ndarray:
    red = np.array([180, 120, 100]) * random.uniform(0.85, 1.2)
    return red * (1 + 0.05 * _smooth(random, shape, 2)) * _seams(random, shape, 90, 35, 1.2)


def carpet(random: Random, shape: tuple[int, int]) -> np.ndarray:
    return _colour(random) * (1 + 0.06 * _smooth(random, shape, 1.2) + 0.03 * _smooth(random, shape, 8))


def sheet(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Wrinkled: long folds, lit from one side."""
    folds = sum(_smooth(random, shape, *random.permutation([10, 60])) for _ in range(2))
    return _colour(random, 190, 240) * (1 + 0.05 * folds)


def parquet(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Small boards, every other field turned by a quarter."""
    field, picture = int(random.integers(60, 100)), np.ones((*shape, 1))
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    across = np.where((y // field + x // field) % 2, x, y) % (field // 4)
    picture *= np.where(across < 2, 0.65, 1)[..., None] * (1 + 0.03 * _smooth(random, shape, 3))
    return np.array([200, 165, 125]) * random.uniform(0.8, 1.1) * picture


def bed(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """A blanket with a few bent, soft folds."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] / 60
    bent = x * random.uniform(0.4, 1) + y * random.uniform(-1, 1) + 0.6 * _smooth(random, shape, 45)[..., 0]
    return _colour(random, 180, 240) * (1 + 0.07 * np.sin(2.2 * bent) ** 3)[..., None]


def concrete(random: Random, shape: tuple[int, int]) -> np.ndarray:
    spots = _smooth(random, shape, 2.5)
    return _colour(random, 160, 220) * (1 + 0.04 * _smooth(random, shape, 20) - 0.15 * (spots > 2.3) + 0.02 * spots)


def table(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Its edge, and the wall behind."""
    behind = (np.arange(shape[0]) < random.uniform(0.05, 0.2) * shape[0])[:, None, None]
    return np.where(behind, _colour(random, 130, 200), _colour(random, 190, 240)) * np.ones((*shape, 1))


def paper(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Crumpled: sharp creases between flat parts."""
    creases = np.minimum.reduce([np.abs(_smooth(random, shape, 25)) for _ in range(2)])
    return _colour(random, 200, 245) * (0.85 + 0.15 * np.tanh(creases * 8))


def wall(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Rough plaster."""
    rough = 0.05 * _smooth(random, shape, 1.5) + 0.04 * _smooth(random, shape, 4) + 0.03 * _smooth(random, shape, 15)
    return _colour(random, 170, 235) * (1 + rough)


def marble(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Dark veins where smooth noise passes zero."""
    veins = np.exp(-((_smooth(random, shape, 18) / 0.06) ** 2)) + 0.5 * np.exp(
        -((_smooth(random, shape, 9) / 0.05) ** 2)
    )
    return _colour(random, 200, 240) * (1 + 0.02 * _smooth(random, shape, 30) - 0.18 * veins.clip(0, 1))


def lawn(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Short grass: blades that stand, lighter and darker."""
    blades = 0.12 * _smooth(random, shape, 4, 0.8) + 0.05 * _smooth(random, shape, 20)
    return np.array([110, 150, 80]) * random.uniform(0.85, 1.2) * (1 + blades)


def checked(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """A tablecloth: bands both ways, darker where they cross."""
    width, light = int(random.integers(14, 34)), _colour(random, 215, 245)
    across, down = (np.arange(length) // width % 2 for length in shape)
    return light * (1 - random.uniform(0.06, 0.14) * (across[:, None] + down[None])[..., None])


def sand(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Ripples, and grains."""
    y = np.mgrid[0 : shape[0], 0 : shape[1]][0] / random.uniform(8, 16) + 2 * _smooth(random, shape, 30)[..., 0]
    grains = 0.04 * _smooth(random, shape, 0.8)
    return np.array([215, 195, 160]) * random.uniform(0.85, 1.1) * (1 + 0.04 * np.sin(y)[..., None] + grains)


def cork(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Brown grains, some of them dark."""
    grains = _smooth(random, shape, 2)
    return np.array([200, 160, 115]) * random.uniform(0.85, 1.15) * (1 + 0.05 * grains - 0.25 * (grains > 1.8))


def terrazzo(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Chips of stone in several colours."""
    picture = np.ones((*shape, 3)) * _colour(random, 205, 240)
    for _ in range(3):
        chips = _smooth(random, shape, random.uniform(3, 6)) > 1.7
        picture = np.where(chips, random.integers(90, 220, 3), picture)
    return picture


def jute(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Woven from thick yarn."""
    y, x = (np.mgrid[0 : shape[0], 0 : shape[1]] + 0.8 * _smooth(random, shape, 6)[..., 0]) / random.uniform(2, 4)
    return np.array([205, 180, 140]) * random.uniform(0.85, 1.1) * (1 + 0.08 * np.sin(x) * np.sin(y))[..., None]


def cardboard(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Corrugated, with a crease."""
    y = np.arange(shape[0])[:, None, None] / random.uniform(1.5, 3)
    crease = np.abs(np.arange(shape[1]) - random.uniform(0.2, 0.8) * shape[1]) < 2
    return np.array([195, 160, 120]) * random.uniform(0.9, 1.15) * (1 + 0.03 * np.sin(y)) * (1 - 0.2 * crease)[:, None]


def leather(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Grained, with a sheen."""
    grain = np.minimum.reduce([np.abs(_smooth(random, shape, 3)) for _ in range(2)])
    sheen = 1 + 0.06 * _smooth(random, shape, 60)
    return np.array([165, 125, 100]) * random.uniform(0.8, 1.3) * sheen * (0.88 + 0.12 * np.tanh(4 * grain))


def denim(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Twill: blue and white threads, aslant."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    twill = (0.5 + 0.5 * np.sin((x + y) / random.uniform(1.2, 2.2)))[..., None]
    worn = 0.06 * _smooth(random, shape, 25) + 0.05 * _smooth(random, shape, 1)
    return (np.array([95, 120, 165]) + 60 * twill) * random.uniform(0.8, 1.1) * (1 + worn)


def gravel(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Stones of several greys and browns, with gaps between them."""
    size, picture = random.uniform(3, 6), np.ones((*shape, 3)) * 110
    for _ in range(4):
        picture = np.where(_smooth(random, shape, size) > 0.4, _colour(random, 140, 210), picture)
    return picture * (1 + 0.04 * _smooth(random, shape, 1))


def knitted(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Thick stitches in columns."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] / random.uniform(3, 6)
    stitches = np.sin(x) ** 2 + 0.5 * np.sin(y + 1.5 * np.abs(np.sin(x)))
    return _colour(random, 170, 235) * (1 + 0.06 * stitches[..., None] + 0.03 * _smooth(random, shape, 20))


# -------------------------------------------------------------------------------------------- what is in the way


def _line(draw: ImageDraw.ImageDraw, points: list, width: int, fill) -> None:
    draw.line([tuple(point) for point in points], tuple(int(v) for v in fill), width, "curve")


def hanger(draw, random, box) -> None:
    left, top, right, bottom = box
    middle, rise, fill = (left + right) / 2, 0.12 * (bottom - top), _colour(random, 40, 120)
    _line(draw, [(left, top + rise), (middle, top - rise / 2), (right, top + rise)], 4, fill)
    draw.arc([middle - 14, top - rise / 2 - 40, middle + 14, top - rise / 2 - 10], 150, 90, tuple(map(int, fill)), 4)
    _line(draw, [(middle, top - rise / 2 - 12), (middle, top - rise / 2)], 4, fill)


def wooden_hanger(draw, random, box) -> None:
    left, top, right, bottom = box
    middle, drop, fill = (left + right) / 2, 0.1 * (bottom - top), _colour(random, 90, 150)
    _line(draw, [(left + 5, top + drop), (middle, top - 6), (right - 5, top + drop)], 9, fill)
    _line(draw, [(middle, top - 6), (middle, top - 45)], 4, (120, 120, 125))


def label(draw, random, box) -> None:
    """White, printed, hanging over the garment's edge."""
    x, y = box[2] - random.uniform(0, 20), box[1] + random.uniform(0.2, 0.7) * (box[3] - box[1])
    draw.rectangle([x, y, x + 30, y + 48], (252, 252, 252), (150, 150, 150), 1)
    for line in range(3):
        draw.line([x + 5, y + 12 + 10 * line, x + 25, y + 12 + 10 * line], (60, 60, 60), 2)


def ruler(draw, random, box) -> None:
    x = box[0] - random.uniform(25, 40)
    draw.rectangle([x, box[1], x + 9, box[3]], tuple(int(v) for v in _colour(random, 150, 200)))


def pegs(draw, random, box) -> None:
    left, top, right, _ = box
    y, fill = top + 4, _colour(random, 60, 150)
    _line(draw, [(0, y - 6), (2000, y + 6)], 3, fill)
    for x in (0.3, 0.7):
        x = left + x * (right - left)
        draw.rectangle([x - 4, y - 22, x + 4, y + 12], tuple(int(v) for v in _colour(random, 60, 220)))


def price_tag(draw, random, box) -> None:
    left, top, right, bottom = box
    x, y = right + random.uniform(5, 25), top + random.uniform(0.2, 0.8) * (bottom - top)
    _line(draw, [(right - 20, y - 15), (x + 8, y + 5)], 2, (90, 90, 90))
    draw.rectangle([x, y, x + 26, y + 42], (250, 225, 90), (80, 80, 60), 2)


def coin(draw, random, box) -> None:
    x, y = box[0] - random.uniform(20, 40), box[3] - random.uniform(0, 60)
    draw.ellipse([x, y, x + 20, y + 20], tuple(int(v) for v in _colour(random, 80, 140)))


def scissors(draw, random, box) -> None:
    """Beside it, open."""
    x, y, fill = box[2] + random.uniform(12, 30), box[3] - random.uniform(60, 110), _colour(random, 60, 140)
    for way in (-1, 1):
        _line(draw, [(x - 7 * way, y - 45), (x + 6 * way, y + 25)], 4, fill)
        draw.ellipse([x + 6 * way - 8, y + 22, x + 6 * way + 8, y + 42], outline=(40, 40, 45), width=4)


def pen(draw, random, box) -> None:
    """Across a corner of it, as left there."""
    x, y, fill = box[0] + random.uniform(-10, 15), box[3] - random.uniform(20, 60), _colour(random, 30, 120)
    _line(draw, [(x - 45, y + random.uniform(10, 30)), (x + 25, y - 15)], 5, fill)


def fingertips(draw, random, box) -> None:
    """Holding it at its lower edge, from below."""
    skin = tuple(int(v) for v in np.array([215, 170, 145]) * random.uniform(0.55, 1.1))
    left, foot = box[0] + random.uniform(0.3, 0.6) * (box[2] - box[0]), box[3] - 8
    for finger in range(3):
        draw.rounded_rectangle([left + 15 * finger, foot - 5 * (finger == 1), left + 15 * finger + 13, 2000], 6, skin)


def phone(draw, random, box) -> None:
    """Beside it, with a bright screen."""
    x, y = box[0] - random.uniform(50, 60), box[1] + random.uniform(0.1, 0.6) * (box[3] - box[1])
    draw.rounded_rectangle([x, y, x + 34, y + 66], 6, (35, 35, 40))
    draw.rectangle([x + 3, y + 6, x + 31, y + 60], tuple(int(v) for v in _colour(random, 150, 240)))


def cable(draw, random, box) -> None:
    """Lying under it and beyond."""
    left, top, right, foot = box
    bends = [
        (left - 60, foot - 10),
        (left - 20, foot + 14),
        ((left + right) / 2, foot + 6),
        (right + 30, foot + 18),
    ]
    _line(draw, [*bends, (right + 70, random.uniform(top, foot))], 3, _colour(random, 40, 110))


# ------------------------------------------------------------------------------------------------ the photographs


def garment(pixels: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of the data set, larger: brightness, float64 [side, side], and what it covers, 0 to 1."""
    values = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), float)
    outline = Image.fromarray((values > 6).astype(np.uint8) * 255).filter(ImageFilter.MedianFilter(7))
    return values, np.asarray(outline.filter(ImageFilter.GaussianBlur(1)), float) / 255


def compose(
    pixels: np.ndarray, random: Random, ground=even, things=(), turn: float = 0, second=None, light=None, tight=False
):
    """A photograph of a garment (none, one, or ``second`` beside it) on a ground, with ``things`` drawn over, or cut
    ``tight`` to the garment."""
    side = int(random.integers(170, 260))
    shape = tuple(int(side * random.uniform(1.35, 1.8)) for _ in range(2))
    if second is not None:
        shape = (shape[0], int(2.4 * side))
    top, left = (int(random.uniform(0.2, 0.8) * (length - side)) for length in shape)
    lefts = [left] if second is None else [int(0.1 * side), int(1.3 * side)]
    picture = ground(random, shape).astype(float)
    tint = random.uniform(0.75, 1, 3)
    for left, one in zip(lefts, [pixels, second], strict=False):
        if one is None:
            continue
        values, cover = garment(one, side)
        part = picture[top : top + side, left : left + side]
        part += (255 - values[..., None] * tint - part) * cover[..., None]
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    rows, columns = np.nonzero(garment(pixels, side)[1] > 0.5) if pixels is not None else ([0], [0])
    box = (lefts[0] + min(columns), top + min(rows), lefts[0] + max(columns), top + max(rows))
    draw = ImageDraw.Draw(image)
    for thing in things:
        thing(draw, random, box)
    if tight:
        image = image.crop(box)
    if turn:
        around = tuple(int(v) for v in np.median(picture[:5].reshape(-1, 3), axis=0))
        image = image.rotate(turn, Image.Resampling.BICUBIC, expand=turn % 90 == 0, fillcolor=around)
    values = np.asarray(image, float)
    if light is not None:
        values = values * light(random, values.shape[:2])
    values = values + random.normal(0, 1.5, values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def half_shade(random: Random, shape: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] / np.array(shape).reshape(2, 1, 1) - 0.5
    angle = random.uniform(0, 2 * np.pi)
    return np.where(np.cos(angle) * x + np.sin(angle) * y > random.uniform(-0.1, 0.1), 0.5, 1)[..., None]


def soft_shadow(random: Random, shape: tuple[int, int]) -> np.ndarray:
    return 1 - 0.08 * np.tanh(_smooth(random, shape, 60))


def dim_half(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """The shadow of a window's frame: a soft edge."""
    x = np.linspace(-1, 1, shape[1])[:, None] if random.random() < 0.5 else np.linspace(-1, 1, shape[0])[:, None, None]
    return np.ones((*shape, 1)) * (0.75 - 0.25 * np.tanh(12 * (x - random.uniform(-0.15, 0.15))))


def lamp(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """A bright spot, and corners that fall off."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] / np.array(shape).reshape(2, 1, 1)
    apart = (y - random.uniform(0.1, 0.9)) ** 2 + (x - random.uniform(0.1, 0.9)) ** 2
    return (0.78 + 0.3 * np.exp(-4 * apart))[..., None]


def leaves(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """The shadows of leaves, with soft edges."""
    return 0.86 + 0.14 * np.tanh(4 * _smooth(random, shape, 14))


def window(random: Random, shape: tuple[int, int]) -> np.ndarray:
    """Light that falls through a window with a bar, aslant; soft edges."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] / np.array(shape).reshape(2, 1, 1) - random.uniform(0.35, 0.65)
    across = x + random.uniform(-0.6, 0.6) * y
    lit = (0.3 - np.abs(across)) * 25
    bar = (np.abs(across) - 0.02) * 50
    return (0.85 + 0.15 * np.tanh(np.minimum(lit, bar)))[..., None]
