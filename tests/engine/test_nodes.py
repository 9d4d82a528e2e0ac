"""Two nodes on one machine: two launchers, one process each, one folder between them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.test_processes import outcome

OPTIONS = [
    "-m", "bhfl", "fit", "--data=FakeImages", "--data.num_train=120", "--data.num_test=40",
    "--clients={8: 2, 32: 2}", "--model.net=mlp", "--trainer.max_rounds=2",
    "--trainer.logger=false",
]  # fmt: skip


def launcher(folder: Path, node: int, port: int, *more: str) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    meeting = [f"--node_rank={node}", "--master_addr=127.0.0.1", f"--master_port={port}"]
    own = [f"--trainer.default_root_dir={folder}", "--trainer.devices=1", "--trainer.num_nodes=2"]
    return subprocess.Popen(
        [*torchrun, *meeting, *OPTIONS, *own, "--trainer.timeout_seconds=60", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_two_nodes_come_to_what_one_process_does(tmp_path: Path) -> None:
    port = free_port()
    nodes = [launcher(tmp_path / "two", node, port) for node in range(2)]
    told = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    one = [sys.executable, *OPTIONS, f"--trainer.default_root_dir={tmp_path / 'one'}"]
    subprocess.run(one, check=True, capture_output=True, timeout=200)
    runs = [next((tmp_path / name).glob("*/version_0")) for name in ("one", "two")]
    assert outcome(runs[0]) == outcome(runs[1])


@pytest.mark.slow
def test_a_node_that_is_lost_ends_the_other_with_its_name(tmp_path: Path) -> None:
    port = free_port()
    nodes = [launcher(tmp_path, node, port, "--trainer.max_rounds=2000") for node in range(2)]
    assert nodes[0].stdout is not None
    for line in nodes[0].stdout:
        if line.startswith("round"):
            break
    children = subprocess.run(
        ["pgrep", "-P", str(nodes[1].pid)], capture_output=True, text=True, check=True
    )
    for child in [*children.stdout.split(), str(nodes[1].pid)]:
        os.kill(int(child), 9)
    told = nodes[0].communicate(timeout=200)[0]
    nodes[1].communicate(timeout=60)
    assert nodes[0].returncode != 0
    assert "process 1" in told or "rank 1" in told, told
