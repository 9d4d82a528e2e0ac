"""Links read from a trace file, for instance of measured bandwidths."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from bhfl.comm.network.links import Link, Profile
from bhfl.files import user_path

REQUIRED = ("client", "round", "uplink_bps", "downlink_bps")
OPTIONAL = ("latency_s", "compute_flops")


class TraceLinks:
    """Links of a CSV file with the columns
    `client,round,uplink_bps,downlink_bps[,latency_s,compute_flops]`.

    Clients are numbered 0, 1, 2, ... and all have the same consecutive rounds. Rounds outside the
    file repeat it. Without the optional columns latency is 0 and computing takes no time.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not such a table; the message names file, line and column.
    """

    profiles: Mapping[str, Profile] = {}  # never changed

    def __init__(self, path: str | Path) -> None:
        self._path = user_path(path)
        self._links = _read(self._path)
        self._num_clients = 1 + max(client for client, _ in self._links)
        self._rounds = sorted({round_index for _, round_index in self._links})
        # at once, as a gap would end a run in its middle
        for client in range(self._num_clients):
            for round_index in range(self._rounds[0], self._rounds[-1] + 1):
                if (client, round_index) not in self._links:
                    raise ValueError(
                        f"{self._path} has no line for client {client} in round {round_index}"
                    )

    def link(self, round_index: int, client: int, profile: str | None = None) -> Link:
        """The line of this client and round; see `LinkSource.link`.

        Raises:
            ValueError: The file has no such client.
        """
        if client >= self._num_clients:
            raise ValueError(
                f"{self._path} has no client {client}: it has clients 0..{self._num_clients - 1}"
            )
        first = self._rounds[0]
        return self._links[client, first + (round_index - first) % len(self._rounds)]


def _read(path: Path) -> dict[tuple[int, int], Link]:
    """The links of a file, by client and round."""
    links: dict[tuple[int, int], Link] = {}
    # spreadsheets write a byte order mark, and csv wants line ends as they are
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        _check_header(header, path)
        for row in reader:
            if not row:
                continue
            where = f"{path}:{reader.line_num}"
            if len(row) != len(header):
                raise ValueError(f"{where}: must have {len(header)} columns, got {len(row)}")
            cells = dict(zip(header, row, strict=True))
            key = _whole(cells, "client", where), _whole(cells, "round", where)
            if key in links:
                raise ValueError(f"{where}: client {key[0]} has round {key[1]} twice")
            links[key] = _link(cells, where)
    if not links:
        raise ValueError(f"{path} has no line after the header")
    return links


def _check_header(header: list[str], path: Path) -> None:
    for name in REQUIRED:
        if name not in header:
            raise ValueError(
                f"{path}:1: column {name} is missing, got {','.join(header) or 'an empty file'}"
            )
    for name in header:
        if name not in REQUIRED + OPTIONAL or header.count(name) > 1:
            raise ValueError(
                f"{path}:1: columns must be distinct and of {','.join(REQUIRED + OPTIONAL)}, got "
                f"{name!r}"
            )


def _link(cells: dict[str, str], where: str) -> Link:
    """The link of a line, whose cells are given by column; `where` is its file and line."""
    rates = {}
    if "latency_s" in cells:
        rates["latency_seconds"] = _number(cells, "latency_s", where)
    for column in ("uplink_bps", "downlink_bps", "compute_flops"):
        if column in cells:
            rates[column] = _positive(cells, column, where)
    return Link(**rates)


def _whole(cells: dict[str, str], column: str, where: str) -> int:
    text = cells[column].strip()
    # int() would take 1_0, and the digits of other alphabets
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{where}: column {column} must be a whole number >= 0, got {text!r}")
    return int(text)


def _positive(cells: dict[str, str], column: str, where: str) -> float:
    value = _number(cells, column, where)
    if value == 0:
        raise ValueError(f"{where}: column {column} must be > 0, got {cells[column].strip()!r}")
    return value


def _number(cells: dict[str, str], column: str, where: str) -> float:
    text = cells[column].strip()
    try:
        value = float(text)
    except ValueError:
        # NaN fails the test below, in the same words as what is out of range
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{where}: column {column} must be a finite number >= 0, got {text!r}")
    return value
