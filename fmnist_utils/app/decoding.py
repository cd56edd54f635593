"""A picture file, decoded safely: what is checked before any pixel is, and what is left of it.

Used by :mod:`fmnist_utils.app.photos`. Explained in ``notebooks/07_deployment.ipynb``.
"""

import contextlib
import io
import queue
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late

import numpy as np
from PIL import Image

MAX_BYTES = 10_000_000
MAX_PIXELS = 40_000_000
MIN_SIDE = 8
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
#: Longest side kept of a picture, in pixels: plenty for 28, and little memory per client.
SIDE = 256
#: Passes over the pixels of a JPEG; a fifth of them where it has five megapixels and more.
MAX_SCANS = 100
#: Seconds that one picture, and those before it in the queue, may take.
SECONDS = 20
ORIENTATION = 0x0112  # EXIF
MAX_EXIF = 65_536
#: Bytes of one value of a TIFF's tag, by the number of its kind.
VALUE_BYTES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), 1)) | {16: 8, 17: 8, 18: 8}
NOTE = "note"
# A decoded picture of MAX_PIXELS takes 160 MB: never for two clients at once, and always in one thread, because the C
# library keeps freed memory for each thread that had it.
_waiting: queue.Queue | None = None


class BadImage(ValueError):
    """A file that cannot be used as a picture; the message is for the person who sent it."""


def read_image(data: bytes, name: str = "image", max_bytes: int = MAX_BYTES) -> Image.Image:
    """The picture in a file's bytes, mode L, RGB or RGBA, its longest side at most ``SIDE`` pixels.

    ``info`` holds nothing but the EXIF orientation and a note where only the first of several frames is used, or a JPEG
    breaks off behind its last pixel. Size and number of pixels are checked before any pixel is decoded, one picture is
    decoded at a time, nothing is written to disk, and ``name`` is only quoted. Raises :class:`BadImage` for whatever is
    not a complete picture in one of ``FORMATS``, is larger than ``max_bytes`` or ``MAX_PIXELS``, or has a side below
    ``MIN_SIDE``.
    """
    shown = "".join(c for c in name.replace("\\", "/").rpartition("/")[2] if c.isprintable())[:60] or "image"
    if not data:
        raise BadImage(f"“{shown}” is empty (0 bytes). Was it copied completely?")
    if len(data) > max_bytes:
        raise BadImage(f"“{shown}” has {len(data) / 1e6:.1f} MB; {max_bytes / 1e6:g} MB is the limit. Make it smaller.")
    if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<":
        raise BadImage(f"“{shown}” is a text such as SVG or HTML, not a picture made of pixels. Send a PNG or JPEG.")
    if data[4:8] == b"ftyp" and data[8:11] in (b"hei", b"hev", b"mif", b"msf", b"avi"):
        kind = "an AVIF" if b"avi" in data[8:40] else "a HEIC"
        raise BadImage(f"“{shown}” is {kind} file, which this app does not read. Save or export it as JPEG first.")
    try:
        return _in_turn(_decode, data, shown)
    except BadImage:
        raise
    except Image.UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS[:-1])
        raise BadImage(f"“{shown}” is not a picture that can be read: send {kinds} or {FORMATS[-1]}.") from error
    except Image.DecompressionBombError as error:
        raise BadImage(_too_many(shown)) from error
    except Exception as error:  # decoders raise anything on damaged bytes
        raise BadImage(f"“{shown}” is damaged or incomplete. Save or copy it again.") from error


def _too_many(shown: str) -> str:
    return f"“{shown}” has more than {MAX_PIXELS / 1e6:g} megapixels, the limit. Make it smaller."


def _decode(data: bytes, shown: str) -> Image.Image:
    data = _without_remarks(data)
    if data[:2] in (b"II", b"MM") and _claimed(data) > len(data):
        raise OSError("tags claim more than the file holds")
    image = Image.open(io.BytesIO(data), formats=FORMATS)  # reads no pixels yet
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(_too_many(shown))
    if min(image.size) < MIN_SIDE:
        size = f"{image.width}×{image.height} pixel{'s' * (max(image.size) > 1)}"
        raise BadImage(f"“{shown}” has {size}: too few to show a garment. Send a larger one.")
    # A JPEG of several pictures holds previews, no animation.
    if image.format in ("JPEG", "MPO") and (scans := data.count(b"\xff\xda")) > _most_scans(image):
        raise BadImage(f"“{shown}” is a JPEG in {scans} scans, far more than a picture needs. Save it again.")
    animated = image.format in ("PNG", "WEBP", "GIF") and getattr(image, "is_animated", False)
    note = "animated: its first frame" if animated else ""
    image.draft(None, (SIDE, SIDE))  # a JPEG is decoded at an eighth of its size where that is enough
    try:
        image.load()
    except OSError:
        if image.format not in ("JPEG", "MPO"):
            raise
        image, note = _without_end(data), "its last bytes are missing, but no pixels"
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # a sound picture may have a junk note about its orientation
        if len(image.info.get("exif", b"")) < MAX_EXIF:
            exif[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    # Skipping pixels first: a smooth reduction would copy the whole picture, once more for its transparency.
    image.thumbnail((4 * SIDE, 4 * SIDE), Image.Resampling.NEAREST, reducing_gap=None)
    image = plain(image)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    image.info = {"exif": exif.tobytes()} | ({NOTE: note} if note else {})
    return image


def _claimed(data: bytes) -> int:
    """Bytes of all the values in a TIFF's first list of tags: Pillow before 13 copies them, however often the same."""
    order, big = "<" if data[:2] == b"II" else ">", data[2:3] == b"+"  # as Pillow tells them apart
    (start,) = struct.unpack_from(f"{order}{'Q' if big else 'L'}", data, 8 if big else 4)
    (number,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, start)
    tag = struct.Struct(f"{order}2xH{'Q8x' if big else 'L4x'}")
    first = start + (8 if big else 2)
    tags = data[first : first + number * tag.size]
    found = tag.iter_unpack(tags[: len(tags) // tag.size * tag.size])
    return sum(VALUE_BYTES.get(kind, 0) * count for kind, count in found)


def _without_end(data: bytes) -> Image.Image:
    """A JPEG that breaks off behind its last pixel: what follows makes no difference then, and before it would.

    Raises ``OSError`` where pixels are missing.
    """
    ends = []
    for more in (b"", 64 * b"\x5a\xa5"):
        image = Image.open(io.BytesIO(data.rstrip(b"\xff") + more + b"\xff\xd9"), formats=("JPEG",))
        image.draft(None, (SIDE, SIDE))
        image.load()
        ends.append(image)
    if ends[0].tobytes() != ends[1].tobytes():
        raise OSError("pixels are missing")
    return ends[0]


def _without_remarks(data: bytes) -> bytes:
    """A PNG or JPEG without the parts that change no pixel here: Pillow refuses a PNG for a mistake in one of them, and
    copies what it has of a JPEG's for each further one, which takes long where there are hundreds of thousands."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg_without_remarks(data)
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    kept, place = [data[:8]], 8
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"pHYs", b"tIME", b"iCCP"):
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])


def _jpeg_without_remarks(data: bytes) -> bytes:
    """What decoding needs, and the first note of a camera: it tells which way is up."""
    kept, place, noted = [data[:2]], 2, False
    while 0 <= (place := data.find(b"\xff", place)) < len(data) - 3 and (kind := data[place + 1]) != 0xDA:
        if not (0xC0 <= kind <= 0xCF or 0xDB <= kind <= 0xEF or kind == 0xFE):  # fill or junk, which decoders skip
            place += 1
            continue
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        note = kind == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0" and not noted
        noted |= note
        # E0 and EE say how colours are stored; the others of E1 to EF, and FE, are remarks.
        if note or kind <= 0xE0 or kind == 0xEE:
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:] if place >= 0 else b""])


def _most_scans(image: Image.Image) -> int:
    """Every scan is a pass over all pixels; encoders write about ten, and more of them only in small pictures."""
    return min(MAX_SCANS, max(MAX_SCANS // 5, MAX_SCANS * 1_000_000 // (image.width * image.height)))


def _in_turn(work: Callable, *arguments):
    """The result of ``work``, one at a time, in a thread that does not keep the process from ending."""
    global _waiting
    if _waiting is None:
        _waiting = queue.Queue()
        threading.Thread(target=_serve, name="decoder", daemon=True).start()
    future = Future()
    _waiting.put((future, work, arguments))
    try:
        return future.result(SECONDS)
    except Late as error:  # TimeoutError itself is another one in Python 3.10
        future.cancel()
        raise BadImage("Reading this picture, or those before it, takes too long. Send a smaller one.") from error


def _serve() -> None:
    while True:
        future, work, arguments = _waiting.get()
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(work(*arguments))
        except BaseException as error:  # belongs to whoever waits for the result
            future.set_exception(error)
        del future, work, arguments  # a picture must not stay until the next one comes


def plain(image: Image.Image) -> Image.Image:
    """The same picture in mode L, RGB or RGBA."""
    if image.mode.startswith(("I", "F")):  # 16 bits and more: Pillow would cut off what is above 255
        values = np.asarray(image, np.float32)
        full = 65535 if image.mode.startswith("I;16") else next(v for v in (1, 255, 65535, np.inf) if values.max() <= v)
        full = values.max() if np.isinf(full) else full
        return Image.fromarray((values.clip(0) * (255 / full)).round().astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBa", "RGBA") or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")
