"""Checkpoints are whole or refused, and what was there before stays until the new one is."""

import os
import random
import warnings
from pathlib import Path

import pytest
import torch

from bhfl.engine import checkpoint, folder
from bhfl.engine.checkpoint import CheckpointError, digest, load, load_last, prune, round_path, save
from bhfl.engine.store import ClientStore


def state(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"w": torch.randn(7, 5, generator=generator), "n": torch.tensor(3), "e": torch.zeros(0)}
    return {"round": seed, "params": tensors, "extra": {"list": [1, 2.5, "x", None, True]}}


def test_round_trip(tmp_path):
    save(tmp_path / "a.ckpt", state())
    loaded = load(tmp_path / "a.ckpt")
    assert digest(loaded) == digest(state())
    assert torch.equal(loaded["params"]["w"], state()["params"]["w"])
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["format"] == checkpoint.FORMAT


def test_digest_sees_every_kind_of_change():
    changed = [state() for _ in range(7)]
    changed[1]["params"]["w"][3, 2] += 1e-7
    changed[2]["params"]["w"] = changed[2]["params"]["w"].double()
    changed[3]["extra"]["list"][3] = "None"
    changed[4]["params"]["w"] = changed[4]["params"]["w"].view(5, 7)
    changed[5]["params"]["m"] = changed[5]["params"].pop("w")
    changed[6]["extra"]["list"].append(None)
    assert len({digest(value) for value in changed}) == 7


def test_a_part_of_a_larger_tensor_is_kept_whatever_its_strides(tmp_path):
    part = torch.randn(5, 9)[:1, 0]
    assert part.stride() == (9,)
    save(tmp_path / "a.ckpt", {"part": part})
    assert torch.equal(load(tmp_path / "a.ckpt")["part"], part)
    assert digest(part) == digest(part.clone())


def test_truncated_files_are_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    save(path, state())
    data = path.read_bytes()
    for k in range(64):
        path.write_bytes(data[: len(data) * k // 64])
        with pytest.raises(CheckpointError, match=r"a\.ckpt"):
            load(path)


def test_a_flipped_bit_is_refused_or_harmless(tmp_path):
    path = tmp_path / "a.ckpt"
    save(path, state())
    data, rng, expected = path.read_bytes(), random.Random(0), digest(state())
    refused = 0
    for _ in range(300):
        broken = bytearray(data)
        broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            assert digest(load(path)) == expected
        except CheckpointError:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"])
def test_foreign_files(tmp_path, content):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load(path)


def test_a_folder_or_nothing_in_its_place(tmp_path):
    (tmp_path / "a.ckpt").mkdir()
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            load(tmp_path / name)


def test_another_format_and_plain_tensors(tmp_path):
    torch.save({"format": 99, "state": {}}, tmp_path / "a.ckpt")
    torch.save(torch.zeros(2), tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match="format must be 2, got 99"):
        load(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="format must be 2, got None"):
        load(tmp_path / "b.ckpt")


class Evil:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


def test_nothing_in_a_file_is_executed(tmp_path):
    canary = tmp_path / "canary"
    torch.save({"format": 1, "state": Evil(canary)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load(tmp_path / "a.ckpt")
    assert not canary.exists()


def test_last_falls_back_over_damaged_ones(tmp_path):
    for round in (1, 2, 3):
        save(round_path(tmp_path, round), state(round))
    round_path(tmp_path, 3).write_bytes(b"cut")
    with pytest.warns(UserWarning, match=r"round=00003.*falling back"):
        assert load_last(tmp_path)["round"] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for round in (1, 2):
            round_path(tmp_path, round).write_bytes(b"")
        with pytest.raises(CheckpointError, match="no usable checkpoint among 3"):
            load_last(tmp_path)


def test_prune_keeps_the_newest(tmp_path):
    for round in (1, 2, 10, 9):
        save(round_path(tmp_path, round), state())
    save(tmp_path / "best.ckpt", state())
    assert prune(tmp_path, 2) == [9, 10]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.ckpt", "round=00009.ckpt", "round=00010.ckpt"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, step):
    path = tmp_path / "a.ckpt"
    save(path, state(1))
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if step == "write":
        monkeypatch.setattr(checkpoint.torch, "save", full)
    else:
        monkeypatch.setattr(folder.os, step, full)
    with pytest.raises(OSError, match="No space left"):
        save(path, state(2))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_client_store_versions(tmp_path):
    store = ClientStore(tmp_path / "clients")
    assert store.load(7, 5) is None
    for round in (1, 3, 4):
        store.save(7, round, {"round": round})
    store.save(70, 4, {"round": 4})
    assert [store.load(7, round)["round"] for round in (1, 2, 3, 9)] == [1, 1, 3, 4]
    assert store.load(7, 0) is None
    store.rewind(3)
    assert store.load(7, 9)["round"] == 3
    assert store.load(70, 9) is None
    store.prune(7, [3])
    assert store.load(7, 2) is None
    assert store.load(7, 3)["round"] == 3
