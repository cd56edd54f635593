"""Whatever happens to the bytes of a file, it is read as it was or refused in a sentence that names it.

The damage is random and seeded; FMNIST_DAMAGED=10000 tries that many damaged files of each kind instead of 200.
"""

import gzip
import hashlib
import io
import json
import os
import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from fmnist_utils import data
from fmnist_utils.app import photos
from fmnist_utils.checkpoints import load_model, save_model
from fmnist_utils.data import DataError
from fmnist_utils.models import build_model
from fmnist_utils.results import Result, load_predictions
from fmnist_utils.sources import csv_files, idx

COUNT = int(os.environ.get("FMNIST_DAMAGED", 200))


def damaged(content: bytes, number: int) -> bytes:
    """`content` with one change, or a few, such as disks, networks and editors make."""
    rng = np.random.default_rng(number)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        size = len(content)
        # Half of the changes near the start, where the headers are.
        start = int(rng.integers(0, min(size, 64) + 1 if rng.random() < 0.5 else size + 1))
        stop = min(size, start + int(rng.integers(1, 40)))
        before, inside, behind = content[:start], content[start:stop], content[stop:]
        noise = rng.bytes(len(inside))
        flipped = bytes([inside[0] ^ 1 << int(rng.integers(8))]) if inside else b""
        sign = bytes(rng.choice(list(b'0123456789,.-+eE \r\n"\0[]{}:'), 1).astype(np.uint8))
        digits = re.sub(rb"[0-9]", lambda _: b"%d" % rng.integers(10), inside)
        middle = [
            *(flipped + inside[1:], sign + inside[1:], sign + inside, digits, noise, noise + inside, b"", inside * 2),
            *(bytes(len(inside)), inside.replace(b"\n", b"\r\n"), inside[::-1]),
        ]
        choice = rng.integers(len(middle) + 2)
        if choice < len(middle):
            content = before + middle[choice] + behind
        else:
            content = [before, content + [b"\0", b"\n", b"\r\n", noise][rng.integers(4)]][choice - len(middle)]
    return content


def outcomes(content: bytes, path, read, refusal=ValueError, exact=True) -> Counter:
    """How many damaged files were read and refused; whatever else happens fails, with the damage's number."""
    seen = Counter()
    path.write_bytes(content)
    expected = read(path)
    for number in range(COUNT):
        broken = damaged(content, number)
        path.write_bytes(broken)
        try:
            found = read(path)
        except refusal as error:
            assert path.name in str(error), f"damage {number}: {error}"
            seen["refused"] += 1
            continue
        except Exception as error:
            raise AssertionError(f"damage {number}: {type(error).__name__}: {error}") from error
        assert not exact or found == expected, f"damage {number} was not noticed"
        seen["read"] += 1
    print(f"{path.name}: {dict(seen)}")
    assert seen["refused"] and seen["read"]
    return seen


def content_of(dataset) -> tuple[bytes, bytes]:
    return dataset.images.numpy().tobytes(), dataset.labels.numpy().tobytes()


@pytest.fixture(scope="module")
def images():
    return data.load("test").subset(12)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("which", [0, 1], ids=["images", "labels"])
def test_published_idx_files(which, ending, images, tmp_path, monkeypatch):
    arrays = images.images.numpy(), images.labels.numpy().astype(np.uint8)
    names, hashes = list(idx.PUBLISHED["test"]), []
    for name, array in zip(names, arrays, strict=True):
        header = (0x800 + array.ndim).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in array.shape)
        raw = header + array.tobytes()
        hashes.append(hashlib.sha256(raw).hexdigest())
        (tmp_path / f"{name}{ending}").write_bytes(gzip.compress(raw) if ending else raw)
    monkeypatch.setattr(idx, "PUBLISHED", {"test": dict(zip(names, hashes, strict=True))})
    monkeypatch.setattr(idx, "search_folders", lambda: [tmp_path])
    path = tmp_path / f"{names[which]}{ending}"
    outcomes(path.read_bytes(), path, lambda _: content_of(data.load("test")), DataError)


def test_idx_files_of_your_own_are_what_their_bytes_say(images, tmp_path):
    """There is no hash to compare with: what is read is the header's shape and the bytes behind it, or nothing."""
    raw = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (12, 28, 28)) + images.images.numpy().tobytes()

    def read(path):
        found = data.read_idx(path)
        assert found.tobytes() == path.read_bytes()[4 + 4 * found.ndim :]
        assert found.shape[1:] in ((28, 28), ())

    outcomes(raw, tmp_path / "images", read, DataError)


def test_compressed_csv_files(images, tmp_path):
    data.write_csv(images, tmp_path / "table.csv.gz")
    content = (tmp_path / "table.csv.gz").read_bytes()
    outcomes(content, tmp_path / "table.csv.gz", lambda path: content_of(data.read_csv(path)), DataError)


def test_csv_files_are_what_their_text_says(images, tmp_path):
    """A changed digit cannot be noticed: what is read is what Python's own `split` and `int` make of the text."""
    data.write_csv(images.select(range(3)), tmp_path / "table.csv")

    def read(path):
        found = csv_files.read_table(path)
        lines = path.read_bytes().decode("utf-8-sig").replace('"', "").splitlines()[1:]
        assert found.tolist() == [[int(cell) for cell in line.split(",")] for line in lines if line]

    outcomes((tmp_path / "table.csv").read_bytes(), tmp_path / "table.csv", read, DataError)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = build_model("small_cnn", weights=None, image_size=12, head=(0, 1, (), False))
    return save_model(model, tmp_path_factory.mktemp("models") / "model", recipe="mine")


@pytest.mark.parametrize("ending", [".safetensors", ".json"])
def test_model_files_and_cards(ending, saved, images):
    path = saved.with_suffix(ending)
    content = path.read_bytes()

    def read(_):
        with torch.no_grad():
            return load_model(saved)(images.images).numpy().tobytes()

    try:
        outcomes(content, path, read)
    finally:
        path.write_bytes(content)


def test_result_files(tmp_path):
    record = {
        **{"recipe": "mine", "profile": "cpu", "backbone": "vgg16", "weights": "none", "cut_after": None},
        **{"image_size": 28, "train_images": 10, "epochs": 1, "seeds": [0], "peak_memory_mb": 3, "date": "2026-01-01"},
        "metrics": {"test_accuracy": 0.5, "macro_f1": 0.5},
        "seconds": {"total": 1.0},
        "parameters": {"total": 2, "trainable": 1},
        "history": [{"epoch": 1, "val_accuracy": 0.5}],
        "hardware": {"device": "cpu", "cpu": "any", "cores": 1},
        "versions": {"torch": "2"},
    }
    # A changed number cannot be noticed.
    outcomes(json.dumps(record, indent=1).encode(), tmp_path / "mine-cpu.json", Result.read, exact=False)


def test_predictions(tmp_path):
    (tmp_path / "predictions").mkdir()
    path, rng = tmp_path / "predictions" / "mine.npz", np.random.default_rng(0)
    np.savez_compressed(path, test=rng.random((20, 10)).astype(np.float16))
    outcomes(path.read_bytes(), path, lambda _: load_predictions("mine", "test", tmp_path).tobytes())


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about remarks that it leaves out
@pytest.mark.parametrize("kind", photos.FORMATS)
def test_pictures(kind, images, tmp_path):
    """Most damage changes pixels, which cannot be noticed: what is read can be prepared for a model."""
    file = io.BytesIO()
    Image.fromarray(images.images[0].numpy()).convert("RGB").resize((60, 80)).save(file, kind)
    path = tmp_path / f"shirt.{kind.lower()}"

    def read(path):
        pixels, _, doubt = photos.examine(photos.read_image(path.read_bytes(), path.name))
        assert (pixels.dtype, pixels.shape, type(doubt)) == (torch.uint8, (28, 28), str)

    outcomes(file.getvalue(), path, read)
