"""CSV files in Kaggle's layout: a header, then a label and 784 pixels in every row."""

import codecs
import csv
import functools
import gzip
import io
import re
from itertools import zip_longest
from pathlib import Path

import numpy as np

from fmnist_utils.sources.files import DataError, read_bytes, replacing

_HEADER = ["label", *(f"pixel{i}" for i in range(1, 785))]


def read_table(path: str | Path) -> np.ndarray:
    """A `.csv` or `.csv.gz` file: uint8 [N, 785], the label and the pixels of every row, N >= 1.

    Raises DataError naming the line (the header is line 1), column and value of the first thing that is wrong.
    """
    raw = read_bytes(path)
    table = read_fast(raw)
    return read_carefully(raw, path) if table is None else table


def write_table(table: np.ndarray, path: Path) -> None:
    """Write what `read_table` reads as `table`, uint8 [N, 785]. DataError unless the name and the folder will do."""
    if not path.name.lower().endswith((".csv", ".csv.gz")) or not path.parent.is_dir():
        raise DataError(f"{path}: give a name that ends in .csv or .csv.gz, in a folder that exists.")
    # Joining 256 ready-made texts is several times faster than formatting 47 million numbers.
    texts = [str(value) for value in range(256)]
    lines = (",".join([texts[value] for value in row.tobytes()]) for row in table)
    content = "\n".join([",".join(_HEADER), *lines, ""]).encode()
    if path.name.lower().endswith(".gz"):
        content = gzip.compress(content, compresslevel=6, mtime=0)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read_fast(raw: bytes) -> np.ndarray | None:
    """A file's content as pandas reads it, uint8 [N, 785], or None when anything at all looks unusual."""
    import pandas as pd

    body = raw.removeprefix(codecs.BOM_UTF8)
    header = ",".join(_HEADER).encode()
    # Of a cell "1\0002" some versions of pandas read the 1.
    if not body.startswith((header + b"\n", header + b"\r\n")) or b"\0" in body:
        return None
    try:
        # Without a header pandas neither renames duplicate columns nor takes a surplus one for an index.
        table = pd.read_csv(io.BytesIO(body), header=None, skiprows=1)
    except (ValueError, OverflowError):
        return None
    if table.shape[1] != 785 or (table.dtypes != np.int64).any() or body.count(b",") != 784 * (len(table) + 1):
        return None
    if table.min().min() < 0 or table.max().max() > 255 or table[0].max() > 9:
        return None
    return table.to_numpy(np.uint8)


def read_carefully(raw: bytes, path: str | Path) -> np.ndarray:
    """The same, row by row; raises DataError, which names `path`, at the first thing that is wrong."""
    problem, start = "a NUL byte, which text does not have", raw.find(b"\0")
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        problem, start = "not UTF-8 text", error.start
    if start >= 0:
        line = raw.count(b"\n", 0, start) + 1
        raise DataError(f'{path}, line {line}: {problem}. Save the file again as "CSV UTF-8".')
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8-sig", newline=""))
    rows = []
    try:
        _check_header(next(reader, []), path)
        # Empty lines are no rows, for pandas as here.
        for row in filter(None, reader):
            rows.append(_parse_row(row, f"{path}, line {reader.line_num}"))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}. Is it a CSV file?") from error
    if not rows:
        raise DataError(f"{path} has a header but no rows. Write the data again.")
    return np.frombuffer(bytearray().join(rows), np.uint8).reshape(-1, 785)


def _check_header(header: list[str], path: str | Path) -> None:
    pairs = enumerate(zip_longest(header, _HEADER, fillvalue="nothing"), start=1)
    for column, (found, expected) in pairs:
        if found != expected:
            problem = f"{found[:40]!r} where {expected!r} belongs ({len(header)} columns, expected 785)"
            hint = "The first line must be the header label,pixel1,pixel2,...,pixel784, each name once"
            raise DataError(f"{path}, line 1, column {column}: {problem}. {hint}.")


def _parse_row(row: list[str], where: str) -> bytes:
    if len(row) != 785:
        raise DataError(f"{where}: {len(row)} columns, expected 785. Write one label and 784 pixels in every row.")
    values = [_integer(cell) for cell in row]
    for column, cell, value in zip(_HEADER, row, values, strict=True):
        largest = 9 if column == "label" else 255
        if value is None or not 0 <= value <= largest:
            problem = "is not an integer" if value is None else f"is outside 0-{largest}"
            hint = f"Write a whole number from 0 to {largest}, without decimal point or exponent"
            raise DataError(f"{where}, column {column}: {cell[:40]!r} {problem}. {hint}.")
    return bytes(values)


# Remembered, since a file has up to 47 million cells but hardly more than 256 different ones.
@functools.lru_cache(maxsize=1024)
def _integer(text: str) -> int | None:
    # int() alone would take "1_0" and other scripts' digits, and fail beyond 4,300 digits.
    return int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,1000}\s*", text) else None
