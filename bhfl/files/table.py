"""A CSV that grows by rows, and by a column where a row is the first to have a value for it."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

from bhfl.files.writing import append, durable

Kept = Callable[[Mapping[str, str]], bool]


class TableFile:
    """A CSV whose rows are on disk when they are written. A kill may cut off its last rows.

    Args:
        path: The file.
        columns: What every such file begins with; others follow as rows come to have them.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.first = list(columns)
        self.columns = list(columns)

    def cut(self, keep: Kept) -> int:
        """Write the file anew with its rows up to the first that is damaged or not to be kept; a
        file that is no such table has none.

        Args:
            keep: Says of a row, by column, whether it stays.

        Returns:
            The number of rows that are left.
        """
        number = 0
        with suppress(FileNotFoundError), open(self.path, encoding="utf-8", newline="") as file:
            rows = _whole(file)
            self.columns = next(rows, self.first)
            if self.columns[: len(self.first)] != self.first:
                rows = iter(())
                self.columns = list(self.first)
            kept = takewhile(lambda row: keep(dict(zip(self.columns, row, strict=True))), rows)
            number = self._rewrite(kept)
        if not self.path.exists():
            self._rewrite(())
        return number

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows, see `append`.

        Args:
            rows: Values by column; what is missing or None is left empty.
        """
        names = dict.fromkeys(chain.from_iterable(rows))
        if new := [name for name in names if name not in self.columns]:
            empty = [""] * len(new)
            with open(self.path, encoding="utf-8", newline="") as file:
                before = _whole(file)
                self.columns = [*next(before), *new]
                self._rewrite([*row, *empty] for row in before)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in rows:
            writer.writerow([row.get(name) for name in self.columns])
        append(self.path, text.getvalue().encode())

    def _rewrite(self, rows: Iterable[Sequence[str]]) -> int:
        """Write the head and some rows; their number."""
        number = 0
        with durable(self.path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(self.columns)
            for row in rows:
                writer.writerow(row)
                number += 1
            text.detach()
        return number


def _whole(lines: Iterable[str]) -> Iterator[list[str]]:
    """The head and the rows up to the first that has not a cell for each column, or is no text."""
    width = 0
    # whatever bytes a damaged file holds
    with suppress(csv.Error, UnicodeDecodeError):
        for row in csv.reader(lines):
            width = width or len(row)
            if len(row) != width:
                return
            yield row
