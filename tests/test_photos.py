"""Pictures from anywhere: what is refused and why, what arrives unchanged, whether garments are still recognised."""

import importlib
import io
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, PngImagePlugin
from scipy.ndimage import gaussian_filter

from fmnist_utils import ROOT
from fmnist_utils.app import decoding, photos
from fmnist_utils.app.cutout import cut_out
from fmnist_utils.app.photos import STEPS, BadImage, examine, prepare, read_image
from fmnist_utils.checkpoints import load_model
from fmnist_utils.data import CLASSES, load, train_val_split


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shirt(size: tuple[int, int] = (120, 160)) -> Image.Image:
    """A dark shape on white, wider above than below, right of the middle: no turn or mirroring leaves it as it was."""
    image = Image.new("RGB", size, "white")
    width, height = size
    corners = ((0.35, 0.2), (0.95, 0.2), (0.75, 0.85), (0.45, 0.85))
    ImageDraw.Draw(image).polygon([(x * width, y * height) for x, y in corners], fill=(40, 60, 90))
    return image


def on_ground(pixels: np.ndarray, ground: str, random: np.random.Generator) -> Image.Image:
    """A product photograph of a garment of the data set: larger, off centre, noisy, before some background."""
    side = int(random.integers(200, 360))
    values = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), np.float32)
    outline = Image.fromarray((values > 6).astype(np.uint8) * 255).filter(ImageFilter.MedianFilter(7))
    cover = np.asarray(outline.filter(ImageFilter.GaussianBlur(1)), np.float32)[..., None] / 255
    height, width = (int(side * random.uniform(1.2, 2)) for _ in range(2))
    top, left = (int(random.uniform(0.03, 0.97) * (length - side)) for length in (height, width))
    colour = {"white": (252, 252, 252), "coloured": random.integers(120, 256, 3), "black": (4, 4, 4)}
    picture = np.ones((height, width, 3), np.float32) * np.float32(colour.get(ground, (230, 220, 210)))
    if ground == "shaded":
        y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
        picture *= (1 - 0.3 * x - 0.25 * y)[..., None]
    part = picture[top : top + side, left : left + side]
    garment = (values if ground == "black" else 255 - values)[..., None]
    picture[top : top + side, left : left + side] = part * (1 - cover) + garment * cover
    picture += random.normal(0, 1.5, picture.shape)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


# ------------------------------------------------------------------------------------------------ decoding


@pytest.mark.parametrize(
    ("kind", "mode", "tolerance"),
    [("PNG", "RGB", 0), ("PNG", "L", 0), ("PNG", "LA", 0), ("PNG", "RGBA", 0), ("BMP", "RGB", 0), ("TIFF", "RGB", 0),
     ("GIF", "L", 0), ("JPEG", "RGB", 12), ("JPEG", "L", 12), ("WEBP", "RGB", 16), ("TIFF", "CMYK", 2),
     ("JPEG", "CMYK", 14), ("PNG", "P", 0), ("PNG", "1", 0)],
)  # fmt: skip
def test_formats_and_modes_give_the_same_picture(kind, mode, tolerance):
    image = shirt().convert(mode)
    found = read_image(encoded(image, kind))
    assert found.mode in ("L", "RGB", "RGBA") and found.size == image.size
    difference = np.asarray(found.convert("RGB"), int) - np.asarray(image.convert("RGB"), int)
    assert np.abs(difference).mean() <= tolerance / 4 and np.percentile(np.abs(difference), 95) <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_shades(kind):
    values = np.asarray(shirt().convert("L"))
    found = read_image(encoded(Image.fromarray(values.astype(np.uint16) * 257), kind))
    np.testing.assert_array_equal(np.asarray(found), values)


def test_float_tiff_from_0_to_1():
    values = np.asarray(shirt().convert("L"))
    found = read_image(encoded(Image.fromarray(values.astype(np.float32) / 255), "TIFF"))
    np.testing.assert_array_equal(np.asarray(found), values)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animation_gives_its_first_frame_and_says_so(kind):
    data = encoded(shirt(), kind, save_all=True, append_images=[Image.new("RGB", (120, 160), "red")], lossless=True)
    image = read_image(data)
    assert np.abs(np.asarray(image.convert("L"), int) - np.asarray(shirt().convert("L"), int)).mean() < 2
    assert "first frame" in prepare(image)[1][0][0]
    assert "frame" not in prepare(read_image(encoded(shirt(), kind)))[1][0][0]


def test_large_picture_becomes_small_and_metadata_goes():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Some Camera"
    image = read_image(encoded(shirt((1500, 900)), "JPEG", exif=exif, comment=b"secret"))
    assert image.size == (photos.SIDE, round(photos.SIDE * 900 / 1500))
    assert dict(image.getexif()) == {0x0112: 6} and image.info.keys() == {"exif"}


# ------------------------------------------------------------------------------------------------- refusals


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that declares a size, with one row of pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = zlib.compress(bytes(1 + width))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def png_with_text(length: int) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * length, zip=True)
    return encoded(shirt(), pnginfo=text)


def png_with(name: bytes, body: bytes) -> bytes:
    """The shirt as PNG, with a chunk more behind its header."""
    data = encoded(shirt())
    part = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data[:33] + part + data[33:]


ODD = {
    "PNG, EXIF is junk": png_with(b"eXIf", b"junk"),
    "PNG, EXIF breaks off": png_with(b"eXIf", b"MM\0*\0\0\0\x08\0\x05\x01\x12"),
    "PNG, EXIF in a text that is none": png_with(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 4\nzz")
    ),
    "PNG, text of another compression": png_with(b"zTXt", b"Comment\0\x07xx"),
    "PNG, text that unpacks to 50 MB": png_with_text(50_000_000),
    "PNG, half a resolution": png_with(b"pHYs", b"\0"),
    "WebP, EXIF is junk": encoded(shirt(), "WEBP", exif=b"Exif\0\0junk", lossless=True),
}


def jpeg_with(*remarks: bytes, between: bytes = b"") -> bytes:
    """A JPEG whose camera noted a quarter turn, with more such parts, and stray bytes between them, behind it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(shirt(), "JPEG", exif=exif)
    place = data.index(b"\xff\xdb")
    more = (between + b"\xff\xe1" + struct.pack(">H", len(remark) + 2) + remark for remark in remarks)
    return data[:place] + b"".join(more) + data[place:]


@pytest.mark.parametrize("between", [b"", b"\xff", b"junk", b"\xff\0", b"\xff\xd0"])
@pytest.mark.parametrize("cut", [0, 2])
def test_jpeg_of_many_remarks_is_read_in_little_time(between, cut, monkeypatch):
    opened, whole = [], Image.open
    monkeypatch.setattr(Image, "open", lambda file, **more: opened.append(len(file.getvalue())) or whole(file, **more))
    plain, data = jpeg_with(), jpeg_with(*[b"Exif\0\0MM\0*\0\0\0\x08\0\0"] * 50_000, between=between)
    found = read_image(data[: len(data) - cut])
    assert found.getexif()[0x0112] == 6 and opened and max(opened) < len(plain) + 300
    np.testing.assert_array_equal(np.asarray(found), np.asarray(read_image(plain)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("case", ODD)
def test_odd_remarks_make_no_sound_picture_damaged(case):
    tracemalloc.start()
    try:
        found = read_image(ODD[case])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(np.asarray(found.convert("RGB")), np.asarray(shirt()))
    assert torch.equal(prepare(found)[0], prepare(shirt())[0]) and peak < 5_000_000


BAD = {
    "nothing": (b"", "0 bytes"),
    "text": (b"just some text", "not a picture"),
    "random bytes": (np.random.default_rng(0).bytes(5_000), "not a picture"),
    "SVG": (b'\xef\xbb\xbf <?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"></svg>', "SVG or HTML"),
    "HTML": (b"<!DOCTYPE html><script>alert(1)</script>", "SVG or HTML"),
    "PDF": (b"%PDF-1.7\n%stuff", "not a picture"),
    "PostScript, which Pillow would run": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    "icon, a format not on the list": (encoded(shirt((32, 32)), "ICO"), "not a picture"),
    "truncated JPEG": (encoded(shirt(), "JPEG")[:-700], "damaged or incomplete"),
    "truncated PNG": (encoded(shirt())[:-300], "damaged or incomplete"),
    "truncated GIF": (encoded(shirt(), "GIF")[:300], "damaged or incomplete"),
    "truncated TIFF": (encoded(shirt(), "TIFF")[:9_000], "damaged or incomplete"),
    "header of a PNG only": (encoded(shirt())[:20], "holiday"),
    "PNG with a wrong checksum": (encoded(shirt())[:60] + b"\0\0\0\0" + encoded(shirt())[64:], "holiday"),
    "100 megapixels": (png_of_size(10_000, 10_000), "megapixels"),
    "4 gigapixels": (png_of_size(65_000, 65_000), "megapixels"),
    "side of 2 thousand million": (png_of_size(2**31 - 1, 1)[:60], "holiday"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "HEIC file.*as JPEG"),
    "HEIC of ten bits": (b"\0\0\0\x18ftypheim\0\0\0\0mif1heim" + bytes(200), "a HEIC file.*as JPEG"),
    "AVIF": (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + bytes(200), "an AVIF file.*as JPEG"),
    "AVIF under its family's name": (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif" + bytes(200), "an AVIF file.*as JPEG"),
    "1×1": (encoded(Image.new("RGB", (1, 1))), "1×1 pixel"),
    "a line": (encoded(Image.new("RGB", (5_000, 1))), "too few"),
    "50 MB": (bytes(50_000_000), "50.0 MB; 10 MB is the limit"),
}


def tiff_of_tags(order: str, big: bool, number: int) -> bytes:
    """A TIFF of 64×64 pixels with further tags, which all claim the same 4,000 bytes."""
    tags = [(256, 4, 64), (257, 4, 64), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 16), (277, 3, 1), (278, 4, 64),
            (279, 4, 4096)]  # fmt: skip
    long, list_at = "Q" if big else "L", 16 + 4096
    mark = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "H", 43 if big else 42)
    head = mark + (struct.pack(order + "HHQ", 8, 0, list_at) if big else struct.pack(order + "L8x", list_at))
    pads = {3: ("H", 6 if big else 2), 4: ("L", 4 if big else 0)}
    body = [struct.pack(f"{order}HH{long}{pads[kind][0]}{pads[kind][1]}x", tag, kind, 1, value)
            for tag, kind, value in tags]  # fmt: skip
    body += [struct.pack(f"{order}HH{long}{long}", 40_000 + i, 7, 4_000, 16) for i in range(number)]
    return head + b"\x80" * 4096 + struct.pack(order + ("Q" if big else "H"), len(body)) + b"".join(body) + bytes(8)


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_tiff_whose_tags_claim_more_than_it_holds_is_not_opened(order, big, monkeypatch):
    assert read_image(tiff_of_tags(order, big, 1)).size == (64, 64)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(BadImage, match="damaged or incomplete"):
        read_image(tiff_of_tags(order, big, 1_000))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_note_of_a_camera_that_is_too_long_is_not_read(kind, monkeypatch):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 70_000
    monkeypatch.setattr(Image.Image, "getexif", lambda _: pytest.fail("it was read"))
    assert read_image(encoded(shirt(), kind, exif=exif)).size == (120, 160)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [1, 2])
def test_jpeg_that_lacks_its_last_bytes_is_read_with_a_note(missing, progressive):
    whole = encoded(shirt(), "JPEG", progressive=progressive)
    assert whole.endswith(b"\xff\xd9")
    cut = read_image(whole[:-missing])
    assert cut.info["note"].startswith("its last bytes are missing")
    np.testing.assert_array_equal(np.asarray(cut), np.asarray(read_image(whole)))


@pytest.mark.parametrize("missing", [12, 40, 200, 1000])
def test_jpeg_that_lacks_pixels_is_not_read(missing):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8))
    with pytest.raises(BadImage, match="damaged or incomplete"):
        read_image(encoded(noise, "JPEG")[:-missing])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_or_two_sentences_with_little_memory(case):
    data, expected = BAD[case]
    tracemalloc.start()
    try:
        with pytest.raises(BadImage, match=expected) as caught:
            read_image(data, "holiday.png")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert "“holiday.png”" in message and message[-1] in ".?" and len(message) < 160 and "\n" not in message
    assert peak < 5_000_000


@pytest.mark.parametrize(
    ("name", "shown"),
    [("../../etc/passwd", "“passwd”"), (r"C:\Users\me\shirt.png", "“shirt.png”"), ("a\u202egnp.exe", "“agnp.exe”"),
     ("line\nbreak\0.png", "“linebreak.png”"), ("x" * 500, "“" + "x" * 60 + "”"), ("photos/", "“image”")],
)  # fmt: skip
def test_name_is_only_quoted(name, shown):
    with pytest.raises(BadImage) as caught:
        read_image(b"", name)
    assert shown in str(caught.value)


def test_no_file_is_opened_or_written(monkeypatch, tmp_path):
    def forbidden(*arguments, **options):
        raise AssertionError("a file was opened")

    data = {kind: encoded(shirt(), kind) for kind in photos.FORMATS}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.open", forbidden)
    for content in data.values():
        prepare(read_image(content, str(tmp_path / "shirt.png")))
    assert not list(tmp_path.iterdir())


def test_limit_of_bytes_is_a_parameter():
    data = encoded(shirt(), "BMP")
    assert read_image(data, max_bytes=len(data)).size == (120, 160)
    with pytest.raises(BadImage, match="limit"):
        read_image(data, max_bytes=len(data) - 1)


def test_eight_threads_get_what_one_gets():
    files = [encoded(shirt((200 + 10 * i, 300)), "JPEG") for i in range(8)]
    expected = [np.asarray(prepare(read_image(data))[0]) for data in files]
    found = [None] * 8

    def work(i: int) -> None:
        found[i] = np.asarray(prepare(read_image(files[i]))[0])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    np.testing.assert_array_equal(found, expected)


def in_scans(side: int, more: int) -> bytes:
    """A progressive JPEG, its last scan repeated."""
    data = encoded(shirt((side, side)), "JPEG", progressive=True)
    return data[:-2] + more * data[data.rindex(b"\xff\xda") : -2] + b"\xff\xd9"


@pytest.mark.parametrize(("side", "more"), [(300, 200), (2500, 30)])
def test_jpeg_of_many_scans_is_refused_before_it_is_decoded(side, more, monkeypatch):
    monkeypatch.setattr(Image.Image, "draft", lambda *_: pytest.fail("decoding began"))
    with pytest.raises(BadImage, match=r"is a JPEG in \d+ scans"):
        read_image(in_scans(side, more))


def test_jpeg_of_a_few_scans_is_read():
    assert read_image(in_scans(2500, 5)).size == (photos.SIDE, photos.SIDE)


def test_picture_that_takes_too_long_is_given_up_and_the_next_one_is_read(monkeypatch):
    going_on = threading.Event()
    monkeypatch.setattr(decoding, "SECONDS", 0.05)
    with pytest.raises(BadImage, match="too long"):
        decoding._in_turn(going_on.wait)
    going_on.set()
    monkeypatch.undo()
    assert read_image(encoded(shirt())).size == (120, 160)


def test_a_decoder_at_work_does_not_keep_the_process_from_ending():
    code = (
        "from fmnist_utils.app import decoding; import time; decoding.SECONDS = 0.1; decoding._in_turn(time.sleep, 900)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "too long" in done.stderr


# ---------------------------------------------------------------------------------------------- preparation


@pytest.mark.parametrize("steps", [tuple(STEPS), ()])
def test_images_of_the_data_set_pass_unchanged(steps):
    for image in load("test").subset(100).images:
        for mode in ("L", "RGB", "RGBA"):
            found, stages = prepare(read_image(encoded(Image.fromarray(image.numpy()).convert(mode))), steps)
            assert found.dtype == torch.uint8 and torch.equal(found, image)
            assert np.array_equal(np.asarray(stages[-1][1]), image)


def test_28_pixels_on_white_are_negated():
    image = next(image for image in load("test").images if image[:3].max() == 0)
    found, _ = prepare(Image.fromarray(255 - image.numpy()), ["background"])
    assert (found.int() - image.int()).abs().float().mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_put_right(orientation):
    # What a viewer does (the standard's table), undone: Pillow's own transpositions.
    turn = Image.Transpose
    undo = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
            6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270}  # fmt: skip
    stored = shirt().transpose(undo[orientation]) if orientation > 1 else shirt()
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected, _ = prepare(shirt())
    image = read_image(encoded(stored, exif=exif))
    assert (prepare(image)[0].int() - expected.int()).abs().max() <= 2
    without = prepare(image, [step for step in STEPS if step != "orientation"])[0]
    assert ((without.int() - expected.int()).abs().float().mean() > 5) == (orientation > 1)


def test_each_step_does_what_it_says():
    image = shirt((200, 160))  # the shape: 70 to 190 across, 32 to 136 down
    everything, stages = prepare(image)
    rows, columns = (everything > 60).any(1).nonzero()[:, 0], (everything > 60).any(0).nonzero()[:, 0]
    assert (columns.min(), columns.max()) == (0, 27)  # the longest edge fills the picture, as in the data set
    assert len(rows) == pytest.approx(28 * 104 / 120, abs=1) and rows.min() + rows.max() == pytest.approx(27, abs=1)
    assert everything.float().mean() > 80 and everything[0, 0] == 0
    assert all(isinstance(text, str) and isinstance(picture, Image.Image) for text, picture in stages)
    assert stages[0][1] is image and stages[-1][1].size == (28, 28)
    assert np.array_equal(np.asarray(stages[-1][1]), everything)

    def without(*names: str) -> torch.Tensor:
        return prepare(image, [step for step in STEPS if step not in names])[0]

    assert without("background")[0, 0] == 255 and without("background")[14, 14] < 80
    assert (without("crop") > 60).sum() < 0.6 * (everything > 60).sum()
    stretched = (without("aspect") > 60).any(1)
    assert stretched.all() and not (everything > 60).any(1).all()
    assert (without("centre") > 60).any(1).nonzero().min() == 0
    middle = (without("crop") > 60).nonzero().float().mean(0)[1]
    off = (without("crop", "centre") > 60).nonzero().float().mean(0)[1]
    assert middle == pytest.approx(13.5, abs=1) and off > 16


@pytest.mark.parametrize(("colour", "inside"), [((30, 30, 30), 225), ((250, 250, 250), 250)])
def test_transparent_ground_is_filled_with_what_the_garment_stands_out_from(colour, inside):
    cover = shirt().convert("L").point(lambda value: 255 * (value < 128))
    image = Image.new("RGBA", cover.size, (255, 0, 255, 0))  # a colour that nobody sees
    image.paste(Image.new("RGBA", cover.size, (*colour, 255)), mask=cover)
    found, stages = prepare(read_image(encoded(image)))
    assert found[0, 0] == 0 and found[10, 14] == pytest.approx(inside, abs=3)
    assert any("Transparent" in text for text, _ in stages)


@pytest.mark.parametrize("size", [(280, 280), (560, 400), (64, 64)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_drawing_in_white_on_black_keeps_its_colours_and_is_centred(size, mode):
    image = Image.new(mode, size, "black")
    width, height = size
    box = [0.1 * width, 0.1 * height, 0.1 * width + 0.5 * height, 0.7 * height]
    ImageDraw.Draw(image).rectangle(box, fill="white")
    found, _ = prepare(image)
    assert found[14, 14] == 255 and found[0, 0] == 0
    rows, columns = (found > 127).any(1).nonzero()[:, 0], (found > 127).any(0).nonzero()[:, 0]
    assert len(rows) == 28 and len(columns) == pytest.approx(28 * 0.5 / 0.6, abs=2)
    assert abs(columns.min() + columns.max() - 27) <= 1


@pytest.mark.parametrize("colour", ["white", "black", (90, 140, 200)])
def test_picture_without_anything_in_it_says_so(colour):
    found, stages = prepare(Image.new("RGB", (100, 80), colour))
    assert found.max() == 0 and any("no garment" in text for text, _ in stages)


def test_unknown_step_is_named():
    with pytest.raises(ValueError, match="centre"):
        prepare(shirt(), ["center"])


@pytest.mark.parametrize(("ground", "least"), [("white", 0.9), ("coloured", 0.9), ("shaded", 0.88), ("black", 0.9)])
def test_photographed_garments_get_the_class_of_the_original(ground, least):
    random, garments = np.random.default_rng(1), load("test").subset(50, seed=3)
    model = load_model(ROOT / "data" / "models" / "small-cnn")
    images = [encoded(on_ground(image.numpy(), ground, random), "JPEG", quality=80) for image in garments.images]
    found = torch.stack([prepare(read_image(data))[0] for data in images])
    with torch.no_grad():
        expected, classes = model(garments.images).argmax(1), model(found).argmax(1)
    wrong = [f"{CLASSES[a]} -> {CLASSES[b]}" for a, b in zip(expected, classes, strict=True) if a != b]
    assert 1 - len(wrong) / len(garments) >= least, wrong


# ------------------------------------------------------------------------------------- photographs of other kinds


@pytest.fixture(scope="module")
def made():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("photographs")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def garments():
    return train_val_split(load("train"))[1]


@pytest.mark.parametrize("kind", ["wood floor", "rough wall", "price tag", "hanger", "edge of a table"])
def test_what_is_around_a_garment_is_left_out(kind, made, garments):
    images, labels = made.photographs(garments, kind, 40, seed=7)
    model, found = load_model(ROOT / "data" / "models" / "small-cnn"), [examine(image) for image in images]
    with torch.no_grad():
        right = model(torch.stack([one.pixels for one in found])).argmax(1) == labels
    assert right.float().mean() >= 0.75
    assert sum(bool(one.doubt) for one in found) <= 8


@pytest.mark.parametrize(
    ("kind", "why"),
    [("two garments", "more than one"), ("half in shade", "edge"), ("nothing, even ground", "nothing stands out"),
     ("nothing, wood floor", "nothing stands out")],
)  # fmt: skip
def test_no_single_garment_is_said(kind, why, made, garments):
    images, _ = made.photographs(garments, kind, 20, seed=7)
    assert sum(why in examine(image).doubt for image in images) >= 17


@pytest.mark.parametrize(("change", "found"), [((20, -10, -10), True), ((-10, -10, 20), True), ((20, 20, 20), False)])
def test_on_a_ground_of_many_shades_another_colour_stands_out_and_another_shade_does_not(change, found):
    shades = gaussian_filter(np.random.default_rng(0).normal(size=(200, 160)), 6)
    pixels = 150 + 12 * (shades / shades.std())[..., None] * np.ones(3)
    pixels[60:140, 50:110] += change
    cover = cut_out(Image.fromarray(pixels.clip(0, 255).astype(np.uint8))).cover[65:135, 55:105]
    assert cover.mean() > 0.95 if found else cover.mean() < 0.3


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_what_takes_a_whole_side_is_doubted_and_a_garment_cut_tightly_is_not(turn):
    shadow, shirt = np.full((2, 160, 160, 3), 230, np.uint8)
    shadow[:60] = 90
    shirt[:, 35:125] = shirt[20:60] = 90
    assert "along the edge" in cut_out(Image.fromarray(shadow).rotate(turn)).doubt
    assert not cut_out(Image.fromarray(shirt).rotate(turn)).doubt


def test_even_ground_gives_no_doubt(made, garments):
    images, _ = made.photographs(garments, "even ground", 40, seed=7)
    assert sum(bool(examine(image).doubt) for image in images) <= 2


def test_a_picture_cut_tightly_to_its_garment_is_seldom_doubted(made, garments):
    images, _ = made.photographs(garments, "cut tightly", 60, seed=7)
    assert sum(bool(examine(image).doubt) for image in images) <= 15


def test_a_thin_drawing_is_no_speck_and_black_is_nothing():
    image = Image.new("L", (280, 280))
    ImageDraw.Draw(image).line([(60, 40), (220, 40), (220, 240), (60, 240), (60, 40)], 255, 6)
    found = examine(image)
    assert not found.doubt and (found.pixels[[0, -1]] > 100).float().mean() > 0.8
    assert "nothing" in examine(Image.new("L", (28, 28))).doubt


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_to_the_left(turns):
    even = shirt((120, 156))  # of an even number of pixels at 28×28: an odd one cannot be in the middle
    found = examine(even, turns=turns)
    expected = torch.rot90(examine(even).pixels, turns)
    assert (found.pixels.int() - expected.int()).abs().float().mean() < 3
    assert any("as you asked" in text for text, _ in found.stages)
