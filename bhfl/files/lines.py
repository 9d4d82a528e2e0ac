"""Tables that users write: CSV files whose columns are known, told of by file, line and column."""

import csv
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Line = tuple[str, Mapping[str, str]]
"""Where a line is, and its cells by column."""


def read_lines(path: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[Line]:
    """The lines of a CSV file after its header.

    Args:
        path: The file.
        required: The columns that it must have.
        optional: Those that it may have besides.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has other columns, a line of another length, or no line.
    """
    number = 0
    # spreadsheets write a byte order mark, and csv wants line ends as they are
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        _check_header(header, path, required, optional)
        for row in reader:
            if not row:
                continue
            where = f"{path}:{reader.line_num}"
            if len(row) != len(header):
                raise ValueError(f"{where}: must have {len(header)} columns, got {len(row)}")
            number += 1
            yield where, dict(zip(header, row, strict=True))
    if not number:
        raise ValueError(f"{path} has no line after the header")


def sha256_of(path: Path) -> str:
    """The digest of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_header(
    header: list[str], path: Path, required: Sequence[str], optional: Sequence[str]
) -> None:
    for name in required:
        if name not in header:
            raise ValueError(
                f"{path}:1: column {name} is missing, got {','.join(header) or 'an empty file'}"
            )
    known = [*required, *optional]
    for name in header:
        if name not in known or header.count(name) > 1:
            raise ValueError(
                f"{path}:1: columns must be distinct and of {','.join(known)}, got {name!r}"
            )


def whole_cell(line: Line, column: str, least: int = 0) -> int:
    """A whole number in a line.

    Raises:
        ValueError: There is none, or one below `least`.
    """
    where, cells = line
    text = cells[column].strip()
    # int() would take 1_0, and the digits of other alphabets
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise ValueError(
            f"{where}: column {column} must be a whole number >= {least}, got {text!r}"
        )
    return int(text)


def number_of(text: str | None) -> float:
    """The number that a cell says; NaN where it says none, or there is no cell."""
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def number_cell(line: Line, column: str) -> float:
    """A finite number of at least 0 in a line.

    Raises:
        ValueError: There is none.
    """
    where, cells = line
    text = cells[column].strip()
    # NaN fails the test below, in the same words as what is out of range
    value = number_of(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{where}: column {column} must be a finite number >= 0, got {text!r}")
    return value
