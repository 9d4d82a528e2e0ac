"""Checkpoints are whole or refused, and what was there before stays until the new one is."""

import errno
import os
import pickle
import random
import resource
import sys
import time
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bhfl.engine import checkpoint
from bhfl.engine.checkpoint import CheckpointError, digest, load, load_last, prune, round_path, save
from bhfl.engine.client.store import ClientStore
from bhfl.files import writing as files
from tests.engine.hand_made import keep


def state(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "w": torch.randn(7, 5, generator=generator),
        "n": torch.tensor(3),
        "e": torch.zeros(0),
    }
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
    data = path.read_bytes()
    rng = random.Random(0)
    expected = digest(state())
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
    with pytest.raises(CheckpointError, match="format must be 7, got 99"):
        load(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="format must be 7, got None"):
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
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.ckpt",
        "round=00009.ckpt",
        "round=00010.ckpt",
    ]


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
        monkeypatch.setattr(files.os, step, full)
    with pytest.raises(OSError, match="No space left"):
        save(path, state(2))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_what_this_process_wrote_is_compared_again_only_once_it_is_touched(tmp_path, monkeypatch):
    store = ClientStore(tmp_path / "clients")
    keep(store, 0, 1, {"algorithm": {"w": torch.arange(3.0)}})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "digest", lambda state: "another")
        assert torch.equal(store.load(0, 1)["algorithm"]["w"], torch.arange(3.0))
        with pytest.raises(CheckpointError, match="damaged"):
            ClientStore(tmp_path / "clients", store.table()).load(0, 1)
    (path,) = (tmp_path / "clients").rglob("client=0-*.pt")
    content = path.read_bytes()
    place = content.index(torch.arange(3.0).numpy().tobytes())
    path.write_bytes(content[:place] + b"\1" + content[place + 1 :])
    # the clock of a file system is coarse
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(CheckpointError, match="damaged"):
        store.load(0, 1)


def test_client_store_versions(tmp_path):
    store = ClientStore(tmp_path / "clients")
    assert store.load(7, 5) is None
    for round in (1, 3, 4):
        keep(store, 7, round, {"algorithm": {"round": round}})
    keep(store, 70, 4, {"algorithm": {"round": 4}})
    found = [store.load(7, round)["algorithm"]["round"] for round in (1, 2, 3, 9)]
    assert found == [1, 1, 3, 4]
    assert store.load(7, 0) is None
    store.rewind(3)
    assert store.load(7, 9)["algorithm"]["round"] == 3
    assert store.load(70, 9) is None
    store.prune(7, [3])
    assert store.load(7, 2) is None
    assert store.load(7, 3)["algorithm"]["round"] == 3


def test_what_clients_came_to_waits_for_its_verdict(tmp_path):
    store = ClientStore(tmp_path / "clients")
    for client in (1, 2, 3, 4):
        store.put(client, 1, {"algorithm": {"client": client}}, final=client != 3)
    assert [store.load(client, 9) for client in (1, 2, 3, 4)] == [None] * 4
    assert store.pending(3) == {"algorithm": {"client": 3}}
    assert not list(tmp_path.rglob("*.pt"))
    store.drop(2)
    store.commit([1, 2, 3])  # of which 2 has nothing left to keep
    found = [store.load(client, 1) for client in (1, 2, 3, 4)]
    assert found == [{"algorithm": {"client": 1}}, None, {"algorithm": {"client": 3}}, None]
    ClientStore(tmp_path / "clients", store.table()).check()
    store.drop_all()
    store.drop(4)
    assert store.pending(4) is None
    files = sorted(path.name for path in (tmp_path / "clients").rglob("*") if path.is_file())
    assert files == ["client=1-round=00001.pt", "client=3-round=00001.pt"]


def counted(rows):
    """A client's state beside a model that others keep too."""
    return {"algorithm": {"rows": torch.arange(rows)}, "common": {"start/w": torch.ones(70_000)}}


def inodes(folder):
    return {path.stat().st_ino for path in folder.rglob("*-common.pt")}


def test_what_clients_have_in_common_is_kept_once(tmp_path):
    store = ClientStore(tmp_path / "clients")
    for client in (1, 2, 300):
        store.put(client, 1, counted(client))
    store.commit([1, 2, 300])
    assert len(inodes(tmp_path)) == 1
    assert sum(path.stat().st_size for path in tmp_path.rglob("*-round=00001.pt")) < 70_000
    again = ClientStore(tmp_path / "clients", store.table())
    again.check()
    found = [again.load(client, 1) for client in (1, 2, 300)]
    assert digest(found[1]) == digest(counted(2))
    assert found[0]["common"]["start/w"] is found[2]["common"]["start/w"]
    # the file of a version is its own: to drop one takes nothing from the others
    keep(again, 1, 2, counted(5))
    assert len(inodes(tmp_path)) == 1
    again.prune(1, [2])
    again.rewind(1)
    assert sorted(path.name for path in tmp_path.rglob("client=1-*")) == []
    assert digest(again.load(300, 1)) == digest(counted(300))


def test_what_is_common_is_as_it_was_saved_whatever_a_client_does_to_it(tmp_path):
    store = ClientStore(tmp_path / "clients")
    state = counted(1)
    keep(store, 1, 1, state)
    state["common"]["start/w"].add_(1)
    store.load(1, 1)["common"]["start/w"].mul_(3)
    assert digest(store.load(1, 1)) == digest(counted(1))
    keep(store, 2, 1, counted(2))
    keep(store, 3, 1, {"common": {"start/w": -torch.zeros(70_000)}})
    keep(store, 4, 1, {"common": {"start/w": torch.zeros(70_000)}})
    assert store.load(3, 1)["common"]["start/w"].signbit().all()
    assert not store.load(4, 1)["common"]["start/w"].signbit().any()
    assert len(inodes(tmp_path)) == 3


def test_what_is_common_is_copied_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def no_links(*names):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("bhfl.engine.client.common.os.link", no_links)
    store = ClientStore(tmp_path / "clients")
    for client in (1, 2):
        keep(store, client, 1, counted(client))
    assert len(inodes(tmp_path)) == 2
    assert digest(ClientStore(store.folder, store.table()).load(2, 1)) == digest(counted(2))


def test_what_is_common_is_missed(tmp_path):
    store = ClientStore(tmp_path / "clients")
    for client in (1, 2):
        keep(store, client, 1, counted(client))
    keep(store, 3, 1, {"common": {"start/w": torch.zeros(3)}})
    path = tmp_path / "clients" / "0000" / "client=1-round=00001-common.pt"
    good = path.read_bytes()
    other = path.with_name("client=3-round=00001-common.pt").read_bytes()
    path.unlink()
    for content, message in {
        None: "there is no .*client=1-round=00001-common.pt",
        b"cut": "client=1-round=00001-common.pt: not a readable checkpoint",
        other: "client=1-round=00001-common.pt: another file than the one",
        good[:9000] + b"!" + good[9001:]: "client=1-round=00001-common.pt: damaged",
    }.items():
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            ClientStore(store.folder, store.table()).load(1, 1)
        assert ClientStore(store.folder, store.table()).load(2, 1)
    table = store.table()
    path.unlink()
    with pytest.raises(CheckpointError, match=r"there is no .*client=1-round=00001-common\.pt"):
        ClientStore(store.folder, table).check()


def test_what_a_client_leaves_as_it_was_is_not_written_for_a_verdict(tmp_path):
    store = ClientStore(tmp_path / "clients")
    kept = {"a": torch.zeros(70_000), "b": torch.zeros(70_000), "c": torch.zeros(3)}
    keep(store, 1, 1, {"algorithm": kept})
    state = store.load(1, 1)["algorithm"]
    state["b"].add_(1)
    state["d"], state["c"] = state["c"], torch.ones(3)
    store.put(1, 2, {"algorithm": state}, final=False)
    (waiting,) = tmp_path.rglob(".*.tmp")
    assert 280_000 < waiting.stat().st_size < 300_000
    assert digest(store.pending(1)) == digest({"algorithm": state})
    store.commit([1])
    assert digest(store.load(1, 2)) == digest({"algorithm": state})
    assert not list(tmp_path.rglob(".*.tmp"))


# ---- from elsewhere ------------------------------------------------------------------------------


def nested(depth: int) -> dict:
    value: dict = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def forged(path: Path, value: object) -> None:
    """A file that `save` would not write, with a digest where there is one."""
    # the pickler in Python, which has no limit of its own to how deep values are nested
    pickler = SimpleNamespace(__name__="pickle", Pickler=pickle._Pickler)
    content = {"format": checkpoint.FORMAT, "sha256": "0" * 64, "state": value}
    sys.setrecursionlimit(100_000)
    try:
        torch.save(content, path, pickle_module=pickler)
    finally:
        sys.setrecursionlimit(1000)


@pytest.mark.parametrize("depth", [70, 3000])
def test_what_is_nested_too_deep_is_neither_written_nor_read(tmp_path, depth):
    with pytest.raises(CheckpointError, match="must be nested at most 64 deep"):
        save(tmp_path / "a.ckpt", {"state": nested(depth)})
    assert not list(tmp_path.iterdir())
    forged(tmp_path / "a.ckpt", nested(depth))
    with pytest.raises(CheckpointError, match=r"a\.ckpt: not a readable checkpoint"):
        load(tmp_path / "a.ckpt")


@pytest.mark.parametrize("value", [[], None, "text", 5, torch.zeros(2), [{"server": {}}]])
def test_a_state_is_a_mapping(tmp_path, value):
    forged(tmp_path / "a.ckpt", value)
    with pytest.raises(CheckpointError, match="it holds no state with its SHA-256"):
        load(tmp_path / "a.ckpt")


def doubled(times: int) -> list:
    """Two of two of two: a hundred bytes for each doubling."""
    value: list = [torch.zeros(50)]
    for _ in range(times):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        {"a": torch.zeros(1).expand(10**12)},
        {"a": [torch.zeros(10**5)] * 10**5},
        {"a": doubled(60)},
        {"a": ["x" * 10**5] * 10**5},
    ],
)
def test_what_stands_for_more_than_its_file_holds_is_not_read(tmp_path, value):
    forged(tmp_path / "a.ckpt", value)
    assert (tmp_path / "a.ckpt").stat().st_size < 10**6
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="stands for more than its file can hold"):
        load(tmp_path / "a.ckpt")
    assert time.perf_counter() - start < 5


def test_a_packed_archive_is_not_unpacked(tmp_path):
    save(tmp_path / "a.ckpt", {"a": torch.zeros(10**6)})
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as source,
        zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in source.infolist():
            packed.writestr(member.filename, source.read(member))
    with pytest.raises(CheckpointError, match="it is cut off, or another kind of file"):
        load(tmp_path / "b.ckpt")


@pytest.mark.parametrize(
    "value",
    [
        {"a": {1, 2}}, {"a": 3j}, {"a": torch.float32}, {"a": torch.zeros(2).to_sparse()},
        {"a": torch.zeros(2, device="meta")}, {"a": 1 << 9000}, {"a": Evil(Path("canary"))},
        {"a": b"bytes"},
    ],
)  # fmt: skip
def test_what_is_no_plain_value_is_neither_written_nor_read(tmp_path, value):
    with pytest.raises(CheckpointError, match=r"^a must be"):
        save(tmp_path / "a.ckpt", value)
    forged(tmp_path / "b.ckpt", value)
    with pytest.raises(CheckpointError, match="not a readable checkpoint") as error:
        load(tmp_path / "b.ckpt")
    assert not {"weights_only", "\x1b", "unsafe"} & {*str(error.value).split()}
    assert "torch" not in str(error.value).replace("torch.s", "")


def test_the_entry_that_cannot_be_kept_is_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"^server\['extra'\]\['list'\]\[1\] must be a tensor, .* got set"
    ):
        save(tmp_path / "a.ckpt", {"server": {"extra": {"list": [1, set()]}}})


def test_what_is_read_does_not_change_with_the_file(tmp_path):
    save(tmp_path / "a.ckpt", state())
    loaded = load(tmp_path / "a.ckpt")
    with open(tmp_path / "a.ckpt", "r+b") as file:
        file.write(b"\0" * 5000)
    assert digest(loaded) == digest(state())


def test_tensors_that_share_memory_still_do(tmp_path):
    whole = torch.arange(6.0)
    save(tmp_path / "a.ckpt", {"a": whole, "b": whole[2:4], "c": {"d": whole}})
    loaded = load(tmp_path / "a.ckpt")
    loaded["a"][2] = 9
    assert loaded["b"].tolist() == [9, 3]
    assert loaded["c"]["d"][2] == 9


def test_a_full_disk_names_the_file_and_what_to_do(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        for numbers in (3000, 5000, 10**6):  # torch turns it into errors of its own at some places
            with pytest.raises(OSError, match=r"File too large: .*a\.ckpt") as error:
                save(tmp_path / "a.ckpt", {"a": torch.zeros(numbers), "b": torch.zeros(numbers)})
            assert str(error.value) == f"[Errno 27] File too large: '{tmp_path / 'a.ckpt'}'"
            assert error.value.__notes__ == [
                "(make room there; --ckpt_path last goes on from a run's last checkpoint)"
            ]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_temporary_file_is_written_through_no_link(tmp_path, monkeypatch):
    (tmp_path / "notes").write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0" * size)
    (tmp_path / ".a.ckpt.00000000.tmp").symlink_to(tmp_path / "notes")
    with pytest.raises(FileExistsError, match=r"a\.ckpt"):
        save(tmp_path / "a.ckpt", state())
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "a.ckpt").symlink_to(tmp_path / "notes")
    save(tmp_path / "a.ckpt", state())
    assert digest(load(tmp_path / "a.ckpt")) == digest(state())
    assert (tmp_path / "notes").read_text() == "mine"


# ---- what clients keep ---------------------------------------------------------------------------


def test_what_clients_keep_is_missed(tmp_path):
    store = ClientStore(tmp_path / "clients")
    for client in (3, 170):
        for round in (2, 4):
            keep(store, client, round, {"algorithm": {"round": round}})
    table = store.table()
    assert [table[key].tolist() for key in ("ids", "rounds")] == [[3, 170], [4, 4]]
    path = tmp_path / "clients" / "0000" / "client=3-round=00004.pt"
    ClientStore(tmp_path / "clients", table).check()
    good = path.read_bytes()
    other = path.with_name("client=3-round=00002.pt")
    for damage, message in {
        path.unlink: r"there is no .*client=3-round=00004\.pt",
        lambda: path.write_bytes(
            other.read_bytes()
        ): r"client=3-round=00004\.pt: another file than the one",
        lambda: path.write_bytes(b"cut"): r"client=3-round=00004\.pt: not a readable checkpoint",
    }.items():
        damage()
        again = ClientStore(tmp_path / "clients", table)
        for use in (again.check, lambda store=again: store.load(3, 4)):
            with pytest.raises(CheckpointError, match=message):
                use()
        assert again.load(170, 4) == {"algorithm": {"round": 4}}
        path.write_bytes(good)
    assert ClientStore(tmp_path / "clients", table).load(3, 4) == {"algorithm": {"round": 4}}
    assert ClientStore(tmp_path / "clients").load(3, 4) is None  # of a run that knows nothing of it


def test_a_run_folder_that_has_vanished_is_not_made_again(tmp_path):
    with pytest.raises(FileNotFoundError, match="version_0/clients"):
        keep(ClientStore(tmp_path / "version_0" / "clients"), 0, 1, {})


def test_a_place_that_cannot_be_taken_is_named_alone(tmp_path):
    (tmp_path / "a.ckpt").mkdir()
    with pytest.raises(IsADirectoryError) as error:
        save(tmp_path / "a.ckpt", state())
    assert str(error.value) == f"[Errno 21] Is a directory: '{tmp_path / 'a.ckpt'}'"
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
