"""`fmnist_utils.data` against independent readers (torchvision, struct, pandas) on the real, bundled files."""

import gzip
import hashlib
import pickle
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision

from fmnist_utils import ROOT, data
from fmnist_utils.data import CLASSES, DataError, FashionMNIST
from fmnist_utils.scale.processes import batch_weights
from fmnist_utils.sources import csv_files, files
from fmnist_utils.sources import idx as idx_files

pytestmark = pytest.mark.filterwarnings("error")

BUNDLED = ROOT / "data" / "fashion-mnist"
TEST_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
HEADER = ",".join(["label", *(f"pixel{i}" for i in range(1, 785))])


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """An empty home and current folder, so that this machine's own caches do not matter."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project folder without data, and no mirror to download from."""
    monkeypatch.setattr(files, "ROOT", tmp_path / "project")
    monkeypatch.setattr(idx_files, "ROOT", tmp_path / "project")
    monkeypatch.setattr(idx_files, "MIRRORS", ())
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


@pytest.fixture(scope="module")
def test_set() -> FashionMNIST:
    return data.load("test")


@pytest.fixture(scope="module")
def torchvision_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("torchvision")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in BUNDLED.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return root


def idx(values, magic=None, shape=None) -> bytes:
    """An IDX file made by hand; `magic` and `shape` may lie."""
    values = np.asarray(values, np.uint8)
    shape = shape or values.shape
    return struct.pack(f">{1 + len(shape)}I", magic or 0x800 + len(shape), *shape) + values.tobytes()


def put(folder: Path, images: bytes, labels: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(TEST_FILES, (images, labels), strict=True):
        (folder / name).write_bytes(content)
    return folder


def put_published(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in TEST_FILES:
        (folder / f"{name}.gz").write_bytes((BUNDLED / f"{name}.gz").read_bytes())
    return folder


def same(a: FashionMNIST, b: FashionMNIST) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def assert_explains(error: pytest.ExceptionInfo, *fragments: str) -> None:
    missing = [fragment for fragment in fragments if fragment not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


# The bundled files


@pytest.mark.parametrize("split", ["train", "test"])
def test_bundled_files_agree_with_torchvision(split, torchvision_root):
    expected = torchvision.datasets.FashionMNIST(torchvision_root, train=split == "train")
    found = data.load(split)
    assert torch.equal(found.images, expected.data) and torch.equal(found.labels, expected.targets)
    assert found.images.dtype == torch.uint8 and found.labels.dtype == torch.int64
    assert found.source == "data/fashion-mnist (SHA-256 verified)"
    assert list(CLASSES) == expected.classes
    assert same(found, data.load(split, torchvision_root))


def test_read_idx_agrees_with_the_raw_bytes():
    for name, start in zip(TEST_FILES, (16, 8), strict=True):
        raw = gzip.decompress((BUNDLED / f"{name}.gz").read_bytes())
        values = data.read_idx(BUNDLED / f"{name}.gz")
        assert values.dtype == np.uint8 and values.tobytes() == raw[start:]
        assert values.shape == struct.unpack(f">{start // 4 - 1}I", raw[4:start])
        assert values.flags.writeable


# Finding the files


@pytest.mark.parametrize(
    "place, shown",
    [
        ("project/data/fashion-mnist", "data/fashion-mnist"),
        ("home/data/FashionMNIST/raw", "data/FashionMNIST/raw"),
        ("project/data/FashionMNIST/raw", "data/FashionMNIST/raw"),
        ("home/.keras/datasets/fashion-mnist", "~/.keras/datasets/fashion-mnist"),
        ("keras/datasets/fashion-mnist", None),
        ("home/.cache/fmnist_utils/fashion-mnist", "~/.cache/fmnist_utils/fashion-mnist"),
    ],
)
def test_load_searches_the_usual_folders(place, shown, project, tmp_path, monkeypatch, test_set):
    put_published(tmp_path / place)
    if place.startswith("keras"):
        monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    found = data.load("test")
    assert same(found, test_set)
    assert found.source == f"{shown or tmp_path / place} (SHA-256 verified)"


def test_home_data_is_searched_from_elsewhere_too(project, tmp_path, monkeypatch):
    put_published(tmp_path / "home/data/FashionMNIST/raw")
    monkeypatch.chdir(tmp_path)
    assert data.load("test").source == "~/data/FashionMNIST/raw (SHA-256 verified)"


def test_a_folder_with_half_of_the_files_is_passed_over(project, home, test_set):
    (put_published(project / "data/fashion-mnist") / f"{TEST_FILES[1]}.gz").unlink()
    put_published(home / ".keras/datasets/fashion-mnist")
    assert ".keras" in data.load("test").source


@pytest.mark.parametrize("changed", [0, 1], ids=TEST_FILES)
def test_files_found_must_be_the_published_ones(changed, project):
    folder = put_published(project / "data/fashion-mnist")
    path = folder / f"{TEST_FILES[changed]}.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[-1] ^= 1
    path.write_bytes(gzip.compress(raw, compresslevel=1, mtime=0))
    with pytest.raises(DataError) as error:
        data.load("test")
    assert_explains(error, str(path), "SHA-256", "Delete it")
    assert data.load("test", folder).source == "data/fashion-mnist (not the published files: SHA-256 differs)"


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_given_folder_may_spell_its_files_in_four_ways(dotted, compressed, tmp_path):
    images = np.arange(3 * 784).reshape(3, 28, 28) % 256
    put(tmp_path, idx(images), idx([9, 0, 3]))
    for name in TEST_FILES:
        path = tmp_path / (name.replace("-idx", ".idx") if dotted else name)
        (tmp_path / name).replace(path)
        if compressed:
            (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            path.unlink()
    found = data.load("test", str(tmp_path))
    assert found.labels.tolist() == [9, 0, 3] and np.array_equal(found.images, images)
    assert "not the published" in found.source


# Downloading, from file:// mirrors


@pytest.fixture
def mirrors(project, tmp_path, monkeypatch) -> tuple[Path, Path]:
    folders = tmp_path / "mirror1", tmp_path / "mirror2"
    for folder in folders:
        put_published(folder)
    monkeypatch.setattr(idx_files, "MIRRORS", tuple(f"{folder.as_uri()}/" for folder in folders))
    return folders


def spoil(folder: Path, how: str) -> None:
    for name in TEST_FILES:
        path = folder / f"{name}.gz"
        content = {
            "truncated": path.read_bytes()[:-99],
            "other data": gzip.compress(b"no", mtime=0),
            "a web page": b"<html>",
        }
        path.unlink() if how == "missing" else path.write_bytes(content[how])


def test_download_once_then_use_the_copy(mirrors, project, test_set, monkeypatch):
    assert same(data.load("test"), test_set)
    monkeypatch.setattr(idx_files, "MIRRORS", ())
    assert same(data.load("test"), test_set)
    assert sorted(p.name for p in (project / "data/fashion-mnist").iterdir()) == [f"{name}.gz" for name in TEST_FILES]


def test_download_goes_home_when_the_project_is_read_only(mirrors, project, monkeypatch):
    monkeypatch.setattr(idx_files.os, "access", lambda path, mode: False)
    assert data.load("test").source == "~/.cache/fmnist_utils/fashion-mnist (SHA-256 verified)"
    assert not list(project.iterdir())


@pytest.mark.parametrize("how", ["truncated", "other data", "a web page", "missing"])
def test_a_bad_mirror_falls_to_the_next(how, mirrors, project, test_set):
    spoil(mirrors[0], how)
    assert same(data.load("test"), test_set)
    spoil(mirrors[1], how)
    for path in (project / "data/fashion-mnist").iterdir():
        path.unlink()
    with pytest.raises(DataError) as error:
        data.load("test")
    urls = [f"{mirror.as_uri()}/{TEST_FILES[0]}.gz" for mirror in mirrors]
    assert_explains(error, *urls, str(project / "data/fashion-mnist"), "Check the connection")
    assert not list((project / "data/fashion-mnist").iterdir())


# Damaged IDX files

IMAGES, LABELS = np.zeros((3, 28, 28)), [1, 2, 3]
GZIP = gzip.compress(idx(IMAGES), mtime=0)


@pytest.mark.parametrize(
    "name, content, fragment",
    [
        ("truncated.gz", GZIP[: len(GZIP) // 2], "gzip"),
        ("header.gz", b"PK" + GZIP[2:], "take .gz off"),
        ("deflate.gz", GZIP[:10] + b"\x07" + GZIP[11:], "gzip"),
        ("checksum.gz", GZIP[:-8] + bytes([GZIP[-8] ^ 1]) + GZIP[-7:], "gzip"),
        ("empty", b"", "empty"),
        ("empty.gz", b"", "empty"),
        ("nothing-in-it.gz", gzip.compress(b"", mtime=0), "empty"),
        ("magic", idx(IMAGES, magic=0xD03), "0x00000d03"),
        ("two-bytes", b"\0\0", "0x0000,"),
        ("header-cut-off", idx(IMAGES)[:10], "16-byte header"),
        ("too-narrow", idx(np.zeros((3, 28, 27))), "28x27"),
        ("too-short", idx(IMAGES, shape=(4, 28, 28)), "declares 3136 bytes of data (4 items) but has 2352"),
        ("trailing", idx(IMAGES) + b"\0", "has 2353"),
        ("huge-count", idx(IMAGES, shape=(2**32 - 1, 28, 28)), "but has 2352"),
        ("labels-too-short", idx(LABELS, shape=(4,)), "declares 4 bytes"),
        ("labels-trailing", idx(LABELS) + b"\0", "has 4"),
        ("label-10", idx([1, 10, 3]), "label 10 of item 1"),
    ],
)
def test_damaged_idx_file(name, content, fragment, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        data.read_idx(tmp_path / name)
    assert_explains(error, str(tmp_path / name), fragment)


@pytest.mark.parametrize(
    "images, labels, fragment",
    [
        (idx(IMAGES), idx([1, 2]), "3 images but 2 labels"),
        (idx(IMAGES), idx([1, 2, 255]), "label 255 of item 2"),
        (idx(LABELS), idx(IMAGES), "exchanged"),
        (idx(np.zeros((0, 28, 28))), idx([]), "N >= 1"),
    ],
)
def test_files_that_do_not_belong_together(images, labels, fragment, tmp_path):
    with pytest.raises(DataError) as error:
        data.load("test", put(tmp_path, images, labels))
    assert_explains(error, str(tmp_path), fragment)


@pytest.mark.parametrize("read", [data.read_idx, data.read_csv])
@pytest.mark.parametrize("name", ["missing", "missing.gz", "folder", "folder.csv"])
def test_no_such_file(read, name, tmp_path):
    if name.startswith("folder"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError) as error:
        read(tmp_path / name)
    assert_explains(error, str(tmp_path / name), "Give the path of a file")


def test_load_refuses_what_is_neither_folder_nor_csv(tmp_path):
    (tmp_path / "images").write_bytes(idx(IMAGES))
    for source, fragment in [("images", "give the folder"), ("none", "exists"), (".", f"has no {TEST_FILES[0]}")]:
        with pytest.raises(DataError) as error:
            data.load("test", tmp_path / source)
        assert_explains(error, str(tmp_path / source), fragment)
    with pytest.raises(DataError, match="'validation'"):
        data.load("validation")


# Files that are not what their name says


@pytest.mark.parametrize(
    "name, content, fragment",
    [
        ("a.csv", b"PK\x03\x04" + b"\0" * 50, "zip archive. Unpack it"),
        ("a.csv.gz", b"PK\x03\x04" + b"\0" * 50, "zip archive. Unpack it"),
        ("b.csv", gzip.compress(b"label,pixel1", mtime=0), "Put .gz behind its name"),
        ("b.csv.gz", gzip.compress(gzip.compress(b"label", mtime=0), mtime=0), "uncompressed, is compressed by gzip"),
        ("c.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        ("c.csv.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        ("d.csv", b"\n<!DOCTYPE html><html>", "web page"),
        (TEST_FILES[0], gzip.compress(b"\0\0", mtime=0), "Put .gz behind its name"),
        (f"{TEST_FILES[0]}.gz", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ],
)
def test_disguised_files_get_the_right_advice(name, content, fragment, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        data.load("test", tmp_path / name if ".csv" in name else tmp_path)
    assert_explains(error, str(tmp_path / name), fragment)


def test_folders_named_like_data_files_are_no_data_files(tmp_path, test_set):
    folder = put_published(tmp_path)
    for name in TEST_FILES:
        (folder / name).mkdir()
    assert same(data.load("test", folder), test_set)


@pytest.mark.parametrize("folder", [".", "fashion.csv"])
def test_folder_of_csv_files_names_one_to_give(folder, tmp_path, test_set):
    (tmp_path / folder).mkdir(exist_ok=True)
    data.write_csv(test_set.subset(10), tmp_path / folder / "few.csv")
    with pytest.raises(DataError) as error:
        data.load("test", tmp_path / folder)
    assert_explains(error, "has few.csv", str(tmp_path / folder / "few.csv"), "instead of the folder")


@pytest.mark.parametrize("below", ["", "FashionMNIST", "FashionMNIST/raw"])
def test_torchvision_folders_are_found_at_every_level(below, torchvision_root, test_set):
    assert same(data.load("test", torchvision_root / below), test_set)


def test_files_beside_another_copy_are_the_ones_that_are_read(tmp_path):
    put_published(tmp_path / "raw")
    assert len(data.load("test", put(tmp_path, idx(IMAGES), idx(LABELS)))) == 3


def test_handwritten_digits_are_called_by_their_name(tmp_path, monkeypatch):
    images, labels = idx(IMAGES), idx(LABELS)
    folder = put(tmp_path / "MNIST" / "raw", images, labels)
    monkeypatch.setattr(idx_files, "_MNIST", {hashlib.sha256(labels).hexdigest()})
    with pytest.warns(UserWarning, match="MNIST's handwritten digits, not Fashion-MNIST"):
        assert data.load("test", tmp_path / "MNIST").source == f"{folder} (MNIST's handwritten digits)"


def test_home_is_where_a_tilde_says(home, test_set):
    data.write_csv(test_set.subset(10), "~/few.csv")
    assert (home / "few.csv").is_file()
    assert data.read_csv("~/few.csv").source == data.load("test", "~/few.csv").source == "~/few.csv"


def test_without_a_home_folder_only_what_needs_it_fails(project, monkeypatch, test_set):
    def no_home(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(Path, "expanduser", lambda path: no_home() if str(path).startswith("~") else path)
    put_published(project / "data/fashion-mnist")
    assert same(data.load("test"), test_set)
    with pytest.raises(DataError, match=r"~/few.csv: there is no such home folder\. Give the whole path, or set HOME"):
        data.load("test", "~/few.csv")


# CSV


def csv_lines() -> list[str]:
    """A header and three rows, lines 1 to 4."""
    return [HEADER, *(",".join(map(str, [label, *([label, 255] * 392)])) for label in (3, 1, 4))]


def with_cell(line: int, column: int, value: str) -> bytes:
    lines = [text.split(",") for text in csv_lines()]
    lines[line - 1][column] = value
    return "\n".join(",".join(cells) for cells in lines).encode()


def with_line(line: int, edit) -> bytes:
    lines = csv_lines()
    lines[line - 1] = edit(lines[line - 1])
    return "\n".join(lines).encode()


@pytest.mark.parametrize("name", ["some.csv", "some.csv.gz"])
def test_csv_round_trip_and_pandas(name, tmp_path, test_set):
    some = test_set.subset(1000)
    data.write_csv(some, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]
    table = pd.read_csv(tmp_path / name)
    assert list(table.columns) == HEADER.split(",")
    assert np.array_equal(table["label"], some.labels)
    assert np.array_equal(table.drop(columns="label"), some.images.flatten(1))
    assert same(data.read_csv(tmp_path / name), some)
    assert same(data.load("train", tmp_path / name), some)


def test_csv_written_by_pandas(tmp_path, test_set, monkeypatch):
    some = test_set.subset(50)
    table = pd.DataFrame(some.images.flatten(1).numpy(), columns=HEADER.split(",")[1:])
    table.insert(0, "label", some.labels.numpy())
    table.to_csv(tmp_path / "kaggle.csv", index=False)
    # An ordinary file must not need the slow reader.
    monkeypatch.delattr(csv_files, "read_carefully")
    assert same(data.read_csv(tmp_path / "kaggle.csv"), some)


PLAIN = "\n".join(csv_lines()).encode()
UNUSUAL = {
    "byte order mark": b"\xef\xbb\xbf" + PLAIN,
    "Windows line ends": PLAIN.replace(b"\n", b"\r\n") + b"\r\n",
    "old Mac line ends": PLAIN.replace(b"\n", b"\r"),
    "empty lines": PLAIN.replace(b"\n", b"\n\n") + b"\n\n",
    "spaces": with_cell(3, 2, " 255 "),
    "leading zeros": with_cell(3, 2, "0255"),
    "plus sign": with_cell(3, 2, "+255"),
    "quoted header": PLAIN.replace(b"label", b'"label"'),
    "quoted number": with_cell(3, 2, '"255"'),
    "all quoted": b'"' + PLAIN.replace(b",", b'","').replace(b"\n", b'"\n"') + b'"',
}


@pytest.mark.parametrize("content", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_but_sound_csv(content, tmp_path):
    path = tmp_path / "unusual.csv"
    path.write_bytes(content)
    found = data.read_csv(path)
    assert found.labels.tolist() == [3, 1, 4]
    assert found.images.flatten(1).tolist() == [[label, 255] * 392 for label in (3, 1, 4)]
    # Both readers must agree on what is sound.
    assert np.array_equal(csv_files.read_carefully(content, path)[:, 1:], found.images.flatten(1))


@pytest.mark.parametrize("quote", ["", '"'])
def test_csv_of_one_row(quote, tmp_path):
    (tmp_path / "one.csv").write_text("\n".join(csv_lines()[:2]).replace("label", f"{quote}label{quote}"))
    assert data.read_csv(tmp_path / "one.csv").labels.tolist() == [3]


BAD_CSV = {
    "empty file": (b"", ["empty"]),
    "header only": (HEADER.encode() + b"\n", ["no rows"]),
    "no header": (with_line(1, lambda line: "9" + ",0" * 784), ["line 1", "column 1", "'9'", "must be the header"]),
    "blank first line": (b"\n" + PLAIN, ["line 1", "column 1", "0 columns"]),
    "label last": (with_line(1, lambda line: line[6:] + ",label"), ["line 1", "column 1", "'pixel1'", "'label'"]),
    "misspelt": (with_cell(1, 9, "pixle9"), ["line 1", "column 10", "'pixle9' where 'pixel9' belongs"]),
    "duplicate": (with_cell(1, 9, "pixel8"), ["line 1", "column 10", "'pixel8'", "each name once"]),
    "column missing everywhere": (
        "\n".join(line.rsplit(",", 1)[0] for line in csv_lines()).encode(),
        ["line 1", "column 785", "'nothing' where 'pixel784' belongs", "784 columns"],
    ),
    "surplus column everywhere": (
        PLAIN.replace(b"\n", b",0\n") + b",0",
        ["line 1", "column 786", "'0'", "786 columns"],
    ),
    "surplus in every row": (
        PLAIN.replace(b"\n", b",0\n").replace(b"784,0", b"784") + b",0",
        ["line 2", "786 columns"],
    ),
    "comma after every row": (PLAIN.replace(b"\n", b",\n").replace(b"784,", b"784") + b",", ["line 2", "786 columns"]),
    "missing in every row": (
        "\n".join([HEADER, *(line.rsplit(",", 1)[0] for line in csv_lines()[1:])]).encode(),
        ["line 2", "784 columns"],
    ),
    **{f"surplus in line {n}": (with_line(n, "{},0".format), [f"line {n}", "786 columns"]) for n in (2, 3, 4)},
    **{f"missing in line {n}": (with_line(n, lambda s: s[:-4]), [f"line {n}", "784 columns"]) for n in (2, 3, 4)},
    "surplus and missing": (PLAIN.replace(b"\n1,", b",1\n", 1), ["line 2", "786 columns"]),
    "not UTF-8": (with_cell(3, 5, "\xe9").decode().encode("latin-1"), ["line 3", "UTF-8"]),
    "UTF-16": (PLAIN.decode().encode("utf-16"), ["line 1", "UTF-8"]),
    "unclosed quote": (with_cell(3, 5, '"1'), ["line 4"]),
    "enormous quoted cell": (with_cell(3, 5, '"' + "1" * 200_000 + '"'), ["line 3", "field limit"]),
}


@pytest.mark.parametrize("content, fragments", BAD_CSV.values(), ids=BAD_CSV)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_bad_csv(content, fragments, suffix, tmp_path):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(gzip.compress(content, mtime=0) if suffix.endswith(".gz") else content)
    with pytest.raises(DataError) as error:
        data.read_csv(path)
    assert_explains(error, str(path), *fragments)


OUTSIDE = ["-1", "256", "9" * 30, "-" + "9" * 30, "2147483648", "18446744073709551615"]
NOT_INTEGERS = [
    "12.5",
    "12.0",
    "1e2",
    "abc",
    "",
    " ",
    "NaN",
    "True",
    "0x10",
    "1_0",
    "\u0663",
    "1 2",
    "9" * 5000,
]


@pytest.mark.parametrize("line, column", [(2, 0), (4, 0), (3, 1), (4, 784)])
def test_a_nul_byte_is_no_text(line, column, tmp_path):
    # pandas reads "1\0002" as 1, Python's csv refuses it up to 3.10 and takes it from 3.11 on.
    (tmp_path / "bad.csv").write_bytes(with_cell(line, column, "1\x002"))
    with pytest.raises(DataError, match=f"bad.csv, line {line}: a NUL byte") as error:
        data.read_csv(tmp_path / "bad.csv")
    assert "Save the file again" in str(error.value)


@pytest.mark.parametrize("value", [*OUTSIDE, *NOT_INTEGERS], ids=lambda value: repr(value)[:35])
@pytest.mark.parametrize("line, column", [(2, 0), (4, 0), (3, 1), (4, 784)])
def test_bad_cell(value, line, column, tmp_path):
    (tmp_path / "bad.csv").write_bytes(with_cell(line, column, value))
    with pytest.raises(DataError) as error:
        data.read_csv(tmp_path / "bad.csv")
    name, largest = ("label", 9) if column == 0 else (f"pixel{column}", 255)
    problem = "is not an integer" if value in NOT_INTEGERS else f"is outside 0-{largest}"
    place = f"{tmp_path / 'bad.csv'}, line {line}, column {name}: "
    assert_explains(error, place, f"{value[:40]!r} {problem}", f"Write a whole number from 0 to {largest}")


@pytest.mark.parametrize("value", ["12.0", "True", ""])
def test_bad_column(value, tmp_path):
    lines = [line.split(",") for line in csv_lines()]
    for cells in lines[1:]:
        cells[7] = value
    (tmp_path / "bad.csv").write_text("\n".join(",".join(cells) for cells in lines))
    with pytest.raises(DataError, match="line 2, column pixel7: .* is not an integer"):
        data.read_csv(tmp_path / "bad.csv")


def test_label_10_in_csv(tmp_path):
    (tmp_path / "bad.csv").write_bytes(with_cell(3, 0, "10"))
    with pytest.raises(DataError, match="line 3, column label: '10' is outside 0-9"):
        data.read_csv(tmp_path / "bad.csv")


def test_write_csv_leaves_nothing_behind(tmp_path, test_set, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "some.csv").write_text("old")

    def refuse(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        data.write_csv(test_set.subset(10), folder / "some.csv")
    assert [path.read_text() for path in folder.iterdir()] == ["old"]
    for name in ("some.txt", "some.gz", "none/some.csv"):
        with pytest.raises(DataError, match=r"\.csv\.gz, in a folder"):
            data.write_csv(test_set.subset(10), folder / name)


# The Dataset, its parts and its batches


@pytest.mark.parametrize(
    "images, labels",
    [
        (torch.zeros(2, 28, 28), torch.tensor([0, 1])),
        (torch.zeros(2, 28, 27, dtype=torch.uint8), torch.tensor([0, 1])),
        (torch.zeros(2, 784, dtype=torch.uint8), torch.tensor([0, 1])),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1])),
        (torch.zeros(2, 28, 28, dtype=torch.uint8), torch.tensor([0, 1, 2])),
        (torch.zeros(2, 28, 28, dtype=torch.uint8), torch.tensor([[0], [1]])),
        (torch.zeros(2, 28, 28, dtype=torch.uint8), torch.tensor([0, 1], dtype=torch.int32)),
        (torch.zeros(2, 28, 28, dtype=torch.uint8), torch.tensor([0, -1])),
        (torch.zeros(2, 28, 28, dtype=torch.uint8), torch.tensor([0, 10])),
        (torch.zeros(0, 28, 28, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)),
    ],
)
def test_dataset_refuses_other_shapes_and_types(images, labels):
    with pytest.raises(DataError):
        FashionMNIST(images, labels)


def test_items_and_selection(test_set):
    image, label = test_set[7]
    assert torch.equal(image, test_set.images[7]) and label == test_set.labels[7] and type(label) is int
    with pytest.raises(IndexError):
        test_set[10_000]
    for indices in ([5, 3, 3], np.array([5, 3, 3]), torch.tensor([5, 3, 3])):
        assert torch.equal(test_set.select(indices).images, test_set.images[[5, 3, 3]])
    bags = test_set.select(test_set.labels == 8)
    assert len(bags) == 1000 and set(bags.labels.tolist()) == {8}
    assert bags.source == "data/fashion-mnist (SHA-256 verified), 1,000 of 10,000 images"
    with pytest.raises(DataError):
        test_set.select(test_set.labels == 10)


def identities(dataset: FashionMNIST) -> Counter:
    return Counter(image.numpy().tobytes() + bytes([label]) for image, label in dataset)


@pytest.mark.parametrize("n", [1, 7, 10, 1003, 10_000])
def test_subset_is_stratified_and_seeded(n, test_set):
    part = test_set.subset(n)
    counts = Counter({label: 0 for label in range(10)})
    counts.update(part.labels.tolist())
    assert len(part) == n and max(counts.values()) - min(counts.values()) <= 1
    assert same(part, test_set.subset(n, seed=0))
    assert identities(part) <= identities(test_set)
    if n < 10_000:
        assert not same(part, test_set.subset(n, seed=1))
        assert identities(part) <= identities(test_set.subset(n + 500))


def test_subset_keeps_the_proportions_of_an_unbalanced_source(test_set):
    source = test_set.select(
        torch.cat([(test_set.labels == 0).nonzero()[:900], (test_set.labels == 1).nonzero()[:100]])[:, 0]
    )
    counts = Counter(source.subset(100).labels.tolist())
    assert abs(counts[0] - 90) <= 1 and abs(counts[1] - 10) <= 1


@pytest.mark.parametrize("n", [-1, 0, 10_001])
def test_subset_of_an_impossible_size(n, test_set):
    with pytest.raises(DataError, match="1 to 10000"):
        test_set.subset(n)


def test_train_val_split(test_set):
    train, val = data.train_val_split(test_set, val=1000, seed=3)
    assert set(Counter(val.labels.tolist()).values()) == {100} and set(Counter(train.labels.tolist()).values()) == {900}
    # Together the whole, each image once: so they are disjoint too.
    assert identities(train) + identities(val) == identities(test_set)
    again, other = (data.train_val_split(test_set, 1000, seed) for seed in (3, 4))
    assert same(train, again[0]) and same(val, again[1]) and not same(val, other[1])
    assert len(data.train_val_split(test_set)[1]) == 5000
    for size in (0, 10_000):
        with pytest.raises(DataError, match="1 to 9999"):
            data.train_val_split(test_set, size)


def test_batches_equal_stacked_items(test_set):
    some = test_set.subset(25)
    batches = list(data.make_loader(some, batch_size=10))
    assert [len(labels) for _, labels in batches] == [10, 10, 5]
    assert torch.equal(torch.cat([images for images, _ in batches]), torch.stack([image for image, _ in some]))
    assert torch.cat([labels for _, labels in batches]).tolist() == [label for _, label in some]
    assert batches[0][0].dtype == torch.uint8 and batches[0][1].dtype == torch.int64


class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitems__(self, indices):
        return torch.tensor(indices) ** 2


def test_loader_order_depends_on_its_seed_only():
    def order(loader):
        return torch.cat(list(loader)).tolist()

    before = torch.get_rng_state()
    first, second = (data.make_loader(Squares(), 4, shuffle=True, seed=5) for _ in range(2))
    shuffled = order(first)
    assert sorted(shuffled) == [i * i for i in range(10)] == order(data.make_loader(Squares(), 4))
    assert shuffled == order(second) != order(data.make_loader(Squares(), 4, shuffle=True, seed=6))
    assert shuffled != order(first), "each epoch has its own order"
    assert torch.equal(before, torch.get_rng_state())
    assert pickle.loads(pickle.dumps(first.collate_fn)) is first.collate_fn


def test_training_batch_of_a_single_image_is_left_out_but_evaluation_sees_every_image():
    assert [len(batch) for batch in data.make_loader(Squares(), 3, shuffle=True)] == [3, 3, 3]
    assert [len(batch) for batch in data.make_loader(Squares(), 3)] == [3, 3, 3, 1]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_each_batch_of_the_single_loader(processes, shuffle):
    loaders = [
        data.make_loader(Squares(), 4, shuffle, seed=5, process=i, processes=processes) for i in range(processes)
    ]
    whole = [list(batch) for batch in data.make_loader(Squares(), 4, shuffle, seed=5)]
    drop = processes == 3 and shuffle  # the last batch has two images: too few for three processes to learn from
    for part in zip(*loaders, whole[:-1] if drop else whole, strict=True):
        *parts, batch = map(list, part)
        assert sorted(sum(parts, [])) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("count", "size", "processes"), [(11, 4, 2), (10, 4, 2), (11, 4, 3), (12, 4, 4), (3, 8, 2)])
def test_weighted_means_of_the_parts_average_to_the_mean_of_the_batch(count, size, processes):
    values = torch.randn(count, generator=torch.Generator().manual_seed(0))
    images = FashionMNIST(torch.zeros(count, 28, 28, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))
    images.labels = torch.arange(count)  # to find the values again
    parts = [data.make_loader(images, size, process=i, processes=processes) for i in range(processes)]
    whole = [values[rows].mean() for _, rows in data.make_loader(images, size)]
    weighted = [
        torch.stack([values[rows].mean() * weight for (_, rows), weight in zip(part, batch_weights(part), strict=True)])
        for part in parts
    ]
    torch.testing.assert_close(torch.stack(weighted).mean(0), torch.stack(whole))
    assert batch_weights(data.make_loader(images, size)) == [1.0] * len(whole)
