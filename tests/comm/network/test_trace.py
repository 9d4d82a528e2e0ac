"""Trace files: how they are read, and that every error names the file, the line and the column."""

from pathlib import Path

import pytest

from bhfl.comm.network import Link, SimulatedNetwork, TraceLinks, Workload

TRACE = """client,round,uplink_bps,downlink_bps,latency_s,compute_flops
0,1,1e6,4e6,0.1,1e9
1,1,2e6,8e6,0.2,2e9
0,2,3e6,9e6,0.3,1e9

1,2,5e6,1e7,0.4,2e9
"""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return str(path)


def test_a_trace_is_read_and_repeated(tmp_path: Path) -> None:
    network = SimulatedNetwork(trace=written(tmp_path, TRACE))
    link = network.link(2, 1)
    assert link == Link(uplink_bps=5e6, downlink_bps=1e7, latency_seconds=0.4, compute_flops=2e9)
    assert [network.link(r, 0).uplink_bps for r in range(5)] == [3e6, 1e6, 3e6, 1e6, 3e6]


def test_a_trace_without_optional_columns_has_no_latency_and_computes_in_no_time(
    tmp_path: Path,
) -> None:
    network = SimulatedNetwork(
        trace=written(tmp_path, "round,client,downlink_bps,uplink_bps\n0,0,2e6,1e6\n")
    )
    found = network.client_times(
        0, [Workload(client=0, download_bytes=4_000_000, upload_bytes=1_000_000)]
    )[0]
    assert (found.download_seconds, found.compute_seconds, found.upload_seconds) == (16.0, 0.0, 8.0)


HEADER = "client,round,uplink_bps,downlink_bps\n"
COLUMNS = "client,round,uplink_bps,downlink_bps,latency_s,compute_flops"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: column client is missing, got an empty file"),
        (
            "client,round,uplink_bps\n",
            ":1: column downlink_bps is missing, got client,round,uplink_bps",
        ),
        (
            HEADER.replace("\n", ",latency\n"),
            f":1: columns must be distinct and of {COLUMNS}, got 'latency'",
        ),
        (
            HEADER.replace("\n", ",client\n"),
            f":1: columns must be distinct and of {COLUMNS}, got 'client'",
        ),
        (HEADER, " has no line after the header"),
        (
            HEADER + "0,0,1e6,1e6\n1,0,fast,1e6\n",
            ":3: column uplink_bps must be a finite number >= 0, got 'fast'",
        ),
        (
            HEADER + "0,0,1e6,nan\n",
            ":2: column downlink_bps must be a finite number >= 0, got 'nan'",
        ),
        (HEADER + "0,0,-1,1e6\n", ":2: column uplink_bps must be a finite number >= 0, got '-1'"),
        (HEADER + "0,0,0,1e6\n", ":2: column uplink_bps must be > 0, got '0'"),
        (HEADER + "0,1.5,1e6,1e6\n", ":2: column round must be a whole number >= 0, got '1.5'"),
        (
            HEADER + "phone,0,1e6,1e6\n",
            ":2: column client must be a whole number >= 0, got 'phone'",
        ),
        (HEADER + "0,0,1e6\n", ":2: must have 4 columns, got 3"),
        (HEADER + "0,0,1e6,1e6\n0,0,1e6,1e6\n", ":3: client 0 has round 0 twice"),
        (HEADER + "0,0,1e6,1e6\n2,0,1e6,1e6\n", " has no line for client 1 in round 0"),
        (
            HEADER + "0,0,1e6,1e6\n1,0,1e6,1e6\n0,1,1e6,1e6\n",
            " has no line for client 1 in round 1",
        ),
    ],
)
def test_trace_errors_name_file_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as error:
        TraceLinks(path)
    assert str(error.value) == path + message


def test_a_client_that_a_trace_lacks(tmp_path: Path) -> None:
    path = written(tmp_path, TRACE)
    with pytest.raises(ValueError) as error:
        SimulatedNetwork(trace=path).link(0, 2)
    assert str(error.value) == f"{path} has no client 2: it has clients 0..1"
    with pytest.raises(FileNotFoundError):
        SimulatedNetwork(trace=path + ".missing")
