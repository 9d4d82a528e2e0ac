"""Run folders: which there are, and what is read of them, whole, unfinished or damaged."""

import json
import math
import os
from pathlib import Path

import pytest

from bhfl.report.reading import find_runs, number, read_run
from tests.federation import fit
from tests.report import made

# ---- folders


def test_runs_are_found_at_any_depth_once_and_by_number(tmp_path: Path) -> None:
    wanted = [made.run(tmp_path / "a" / f"version_{i}") for i in (9, 10)]
    last = made.run(tmp_path / "b" / "version_1")
    (wanted[0] / "checkpoints").mkdir()
    made.run(wanted[0] / "clients" / "version_0")  # inside a run there are no runs
    (tmp_path / "empty").mkdir()
    assert find_runs([tmp_path]) == find_runs([tmp_path / "*"]) == [*wanted, last]
    assert find_runs([wanted[1], tmp_path / "a", wanted[0]]) == wanted[::-1]
    assert find_runs([tmp_path / "*" / "*"]) == [*wanted, last]
    assert find_runs([tmp_path / "a" / "version_1*"]) == wanted[1:]


def test_a_run_is_known_before_its_first_round_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "version_0"
    folder.mkdir()
    (folder / "env.json").write_text("{}")
    assert find_runs([tmp_path]) == [folder]
    assert (read_run(folder).finished, read_run(folder).missing) == (False, "0 rounds")


def test_paths_without_a_run_are_all_named(tmp_path: Path) -> None:
    made.run(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError) as error:
        find_runs([tmp_path / "empty", tmp_path / "good", tmp_path / "none", tmp_path / "no-*"])
    lines = str(error.value).splitlines()
    rule = "RUN must be a run folder (with rounds.jsonl or summary.json or env.json) or hold some"
    assert lines[0] == f"{tmp_path}/empty: no run in it; {rule}"
    assert lines[1:] == [f"{tmp_path}/{name}: no such folder; {rule}" for name in ("none", "no-*")]
    with pytest.raises(ValueError, match="RUN is missing: a run folder, or one that holds some"):
        find_runs([])


# ---- what is read


def test_a_real_run_is_read_whole(tmp_path: Path) -> None:
    trainer = fit(tmp_path)
    found = read_run(trainer.run.folder)
    assert (found.finished, found.missing, found.num_rounds) == (True, "", 3)
    assert found.faults == ()
    assert found.groups == ["int8", "float32"]
    assert found.series("val/acc_int8") == {
        row["round"]: row["val/acc_int8"] for row in trainer.run.history
    }
    assert found.total("uplink_bytes") == trainer.run.ledger.total("uplink_bytes")
    assert found.last("comm/uplink_MB") == trainer.run.ledger.metrics()["comm/uplink_MB"]
    assert 0 <= found.metrics["test/acc_avg"] <= 1


def test_settings_and_state(tmp_path: Path) -> None:
    whole = read_run(made.run(tmp_path / "a", made.config(seed=4)))
    assert (whole.seed, whole.max_rounds, whole.faults) == (4, 3, ())
    open_ = read_run(made.run(tmp_path / "b", made.config(max_rounds=20), finished=False))
    assert (open_.finished, open_.missing, open_.faults) == (False, "3 of 20 rounds", ())
    assert open_.groups == ["int8", "float32"]


def test_groups_are_not_other_metrics(tmp_path: Path) -> None:
    """Clients' own accuracies, and another metric whose name begins alike."""
    names = {"val/acc_local_int8": [0.1], "val/acc_top5_int8": [0.2]}
    found = made.rows([{"int8": 0.5, "float32": 0.6}], **names)
    folder = made.write(tmp_path / "a", made.config(), found)
    (folder / "summary.json").write_text(
        json.dumps({"rounds": 1, "metrics": {}, "bytes": {"float32": {}, "int8": {}}})
    )
    assert read_run(folder).groups == ["int8", "float32"]


def test_accuracy_by_another_name(tmp_path: Path) -> None:
    folder = made.run(tmp_path / "a")
    for name in ("rounds.jsonl", "summary.json"):
        (folder / name).write_text((folder / name).read_text().replace("/acc_", "/accuracy_"))
    assert (read_run(folder).metric, read_run(folder).groups) == ("accuracy", ["int8", "float32"])


@pytest.mark.parametrize("value", ["1", None, True, math.nan, math.inf, 10**400, [1]])
def test_no_number(value: object) -> None:
    assert math.isnan(number(value))


# ---- damage


def test_a_line_being_written_is_no_fault(tmp_path: Path) -> None:
    folder = made.run(tmp_path / "a", finished=False)
    text = (folder / "rounds.jsonl").read_text()
    (folder / "rounds.jsonl").write_text(text[:-20])
    assert (read_run(folder).num_rounds, read_run(folder).faults) == (2, ())


@pytest.mark.parametrize(
    "line",
    [
        '{"rou', "[]", "null", '{"val/acc": 1}', '{"round": "4"}', '{"round": 3}', "\udcff",
        "[" * 100_000, '{"round": 4, "comm/uplink_MB": 0.5}',
        '{"round": 4, "comm/downlink_MB": "x"}',
    ],
)  # fmt: skip
def test_rows_are_read_up_to_a_damaged_line(tmp_path: Path, line: str) -> None:
    folder = made.run(tmp_path / "a")
    with open(folder / "rounds.jsonl", "ab") as file:
        file.write(line.encode(errors="surrogateescape") + b'\n{"round": 9}\n')
    found = read_run(folder)
    assert found.num_rounds == 3
    assert found.faults == ("line 4 of rounds.jsonl is damaged: it is read up to there",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "a: [",
        "\x00",
        "&a [*a]",
        "a: &a {b: *a}",
        "{[1]: 2}",
        "- x",
        "{}",
        "[" * 100_000,
    ],
)
@pytest.mark.parametrize("name", ["settings.json", "summary.json"])
def test_damaged_mappings(tmp_path: Path, name: str, text: str) -> None:
    folder = made.run(tmp_path / "a")
    (folder / name).write_text(text)
    found = read_run(folder)
    assert found.faults == (f"{name} is damaged",)
    assert found.finished == (name == "settings.json")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    folder = made.run(tmp_path / "a")
    (folder / "summary.json").unlink()
    (folder / "summary.json").mkdir()
    assert read_run(folder).faults == ("summary.json cannot be read: Is a directory",)


def test_a_summary_of_other_rounds_does_not_count(tmp_path: Path) -> None:
    folder = made.run(tmp_path / "a")
    text = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    (folder / "rounds.jsonl").write_text("".join(text[:2]))
    assert (read_run(folder).finished, read_run(folder).missing) == (
        False,
        "2 rounds in rounds.jsonl, 3 in summary.json",
    )


# ---- what comes from elsewhere


@pytest.mark.parametrize("text", ["[" * 2**19 + "]" * 2**19, " " * 2**20 + "{}"])
def test_settings_that_are_too_large_or_too_deep(tmp_path: Path, text: str) -> None:
    folder = made.run(tmp_path / "a")
    (folder / "settings.json").write_text(text)
    found = read_run(folder)
    assert (found.told, len(found.faults)) == ({}, 1)
    assert found.faults[0].startswith("settings.json ")


def test_files_beyond_their_limits_are_not_read(tmp_path: Path) -> None:
    folder = made.run(tmp_path / "a")
    for name in ("rounds.jsonl", "summary.json", "settings.json"):
        os.truncate(folder / name, 2**40)
    assert [fault.split(":")[0] for fault in read_run(folder).faults] == [
        "summary.json cannot be read",
        "rounds.jsonl cannot be read",
        "settings.json cannot be read",
    ]


@pytest.mark.parametrize("name", ["rounds.jsonl", "summary.json", "settings.json"])
def test_pipes_and_devices_are_not_read(tmp_path: Path, name: str) -> None:
    folder = made.run(tmp_path / "a")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    fault = f"{name} cannot be read: it is a pipe or a device, not a file"
    assert read_run(folder).faults == (fault,)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    assert read_run(folder).faults == (fault,)


@pytest.mark.parametrize("round", ["true", "1e400", str(2**31 + 1), "-1", "1.5", "9" * 5000])
def test_a_round_that_is_none(tmp_path: Path, round: str) -> None:
    folder = made.run(tmp_path / "a")
    (folder / "rounds.jsonl").write_text(f'{{"round": {round}}}\n')
    assert read_run(folder).faults == ("line 1 of rounds.jsonl is damaged: it is read up to there",)


def test_text_of_a_run_is_printable(tmp_path: Path) -> None:
    evil = "\x1b[31mred\n\u202e\udcff"
    folder = made.write(tmp_path / "a", made.config(), made.rows([{evil: 0.5}]))
    (folder / "settings.json").write_text(json.dumps({"result": {evil: evil}}))
    found = read_run(folder)
    spelled = r"\x1b[31mred\n\u202e\udcff"
    assert found.groups == [spelled]
    assert found.told == {"result": {spelled: spelled}}


def test_runs_behind_links_are_found_once(tmp_path: Path) -> None:
    first, second = made.run(tmp_path / "disk" / "s0"), made.run(tmp_path / "runs" / "s1")
    (tmp_path / "runs" / "s0").symlink_to(tmp_path / "disk" / "s0")
    (tmp_path / "runs" / "loop").symlink_to("..")
    (tmp_path / "runs" / "again").symlink_to("s1")
    (tmp_path / "runs" / "nowhere").symlink_to("none")
    wanted = {first.resolve(), second.resolve()}
    for path in ("runs", "runs/", "runs/*", "runs/**", "**/s*", "**"):
        assert {run.resolve() for run in find_runs([tmp_path / path])} == wanted, path
        assert len(find_runs([f"{tmp_path}/{path}"])) == 2


def test_two_links_to_the_same_do_not_double_the_work(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}").mkdir()
        for link in "ab":
            (tmp_path / f"{i}" / link).symlink_to(tmp_path / f"{i + 1}")
    made.run(tmp_path / "40")
    assert len(find_runs([tmp_path / "0" / "**"])) == len(find_runs([tmp_path / "0"])) == 1


def test_the_home_folder_and_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run = made.run(tmp_path / "läufe [1] $x" / "a b")
    assert find_runs(["~/läufe [1] $x/"]) == find_runs(["~/*/a b"]) == [run]
    odd = tmp_path / os.fsdecode(b"\xff\xfe")
    made.run(odd)
    assert find_runs([odd]) == [odd]


def test_an_empty_path_is_no_folder() -> None:
    with pytest.raises(ValueError, match="a path must not be empty"):
        find_runs([""])
