"""Links read from a trace file, for instance of measured bandwidths."""

from collections.abc import Mapping
from pathlib import Path

from bhfl.comm.network.links import Link, Profile
from bhfl.files import user_path
from bhfl.files.lines import number_cell, read_lines, whole_cell

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
        """The line of this client and round; see `bhfl.comm.network.links.ProfileLinks.link`.

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
    for line in read_lines(path, REQUIRED, OPTIONAL):
        key = whole_cell(line, "client"), whole_cell(line, "round")
        if key in links:
            raise ValueError(f"{line[0]}: client {key[0]} has round {key[1]} twice")
        rates = {}
        if "latency_s" in line[1]:
            rates["latency_seconds"] = number_cell(line, "latency_s")
        for column in ("uplink_bps", "downlink_bps", "compute_flops"):
            if column in line[1]:
                rates[column] = number_cell(line, column)
                if not rates[column]:
                    raise ValueError(
                        f"{line[0]}: column {column} must be > 0, got {line[1][column].strip()!r}"
                    )
        links[key] = Link(**rates)
    return links
