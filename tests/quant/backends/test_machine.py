"""What a machine computes fast: told by its processor, or measured once and kept."""

import json
from pathlib import Path

import pytest
import torch

from bhfl.quant.backends import machine

VNNI = {"avx2", "avx512_vnni"}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bhfl"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices that were measured, on a machine that tells nothing."""
    asked: list[str] = []

    def measure(device: str) -> machine.Table:
        asked.append(device)
        return {("int8", "linear"): 256}

    monkeypatch.setattr(machine, "_flags", lambda: None)
    monkeypatch.setattr(machine, "measure", measure)
    return asked


@pytest.mark.parametrize("flags", [{"avx2"}, {"avx2", "avx512_f", "avx512_bf16"}])
def test_no_backend_is_fast_without_products_of_codes(
    flags: set[str], monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    monkeypatch.setattr(machine, "_flags", lambda: flags)
    assert machine.table_of("cpu") == {}
    assert measured == []


@pytest.mark.parametrize(
    "flags",
    [VNNI, {"avx2", "avx_vnni"}, {"amx_int8", "amx_bf16"}, None],
    # the text of a set differs from process to process
    ids=["vnni", "avx-vnni", "amx", "unknown"],
)
def test_where_they_may_be_fast_it_is_measured(
    flags: set[str] | None, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    monkeypatch.setattr(machine, "_flags", lambda: flags)
    assert machine.table_of("cpu") == {("int8", "linear"): 256}
    assert measured == ["cpu"]


@pytest.mark.parametrize(
    ("version", "fast"),
    [
        ((7, 0), set()),
        ((7, 5), {"int8", "integer"}),
        ((9, 0), {"int8", "integer", "int8-bfloat16"}),
    ],
)
def test_a_gpu_tells(
    version: tuple[int, int], fast: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: version)
    assert {backend for backend, _ in machine.table_of("cuda")} == fast
    assert machine.table_of("mps") == {}


def test_flags_of_linux_where_torch_tells_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    told = "processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\n"
    monkeypatch.setattr(machine, "cpuinfo", lambda: told)
    assert machine._flags() == {"fpu", "avx2", "avx512_vnni"}
    monkeypatch.setattr(machine, "cpuinfo", lambda: "")
    assert machine._flags() is None
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    assert machine._flags() is None


def test_one_measurement_is_kept(measured: list[str], own_folder: Path) -> None:
    table = {("int8", "linear"): 256}
    assert machine.table_of("cpu") == table
    assert machine.table_of("cpu") == table
    assert measured == ["cpu"]
    assert [json.loads(file.read_text()) for file in own_folder.iterdir()] == [
        [["int8", "linear", 256]]
    ]


def test_a_machine_on_which_nothing_gains_is_measured_once_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def measure(device: str) -> machine.Table:
        asked.append(device)
        return {}

    monkeypatch.setattr(machine, "_flags", lambda: None)
    monkeypatch.setattr(machine, "measure", measure)
    assert [machine.table_of("cpu") for _ in range(2)] == [{}, {}]
    assert asked == ["cpu"]


def test_another_number_of_threads_is_measured_by_itself(
    measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.table_of("cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    machine.table_of("cpu")
    monkeypatch.setattr(torch, "__version__", "99.0")
    machine.table_of("cpu")
    assert measured == ["cpu"] * 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[[[[",
        b"[" * 60_000,
        b'{"int8": 3}',
        b'[["int8", "linear", "256"]]',
        b'[["int8", "linear", true]]',
        b'[["int8", "linear", 0]]',
        b'[["int8", "linear"]]',
        b'[["int8", "square", 8]]',
        b"7",
    ],
)
def test_a_damaged_file_is_made_anew(content: bytes, measured: list[str], own_folder: Path) -> None:
    machine.table_of("cpu")
    (file,) = own_folder.iterdir()
    file.write_bytes(content)
    assert machine.table_of("cpu") == {("int8", "linear"): 256}
    assert measured == ["cpu"] * 2
    assert json.loads(file.read_text()) == [["int8", "linear", 256]]


def test_a_home_that_cannot_be_written_costs_the_measurement_alone(
    measured: list[str], own_folder: Path
) -> None:
    own_folder.write_text("a file stands here")
    assert machine.table_of("cpu") == {("int8", "linear"): 256}
    assert own_folder.read_text() == "a file stands here"
