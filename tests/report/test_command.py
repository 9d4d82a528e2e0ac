"""``bhfl report``, from runs to files: whole ones, damaged ones, and those being written."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bhfl.report.command import main, write_report
from tests.report import made


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures, which other tests look at."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def failing(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    assert left.value.code == 2
    return capsys.readouterr().err


def test_the_console_and_three_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.run(tmp_path / "runs" / "a", made.config(clients={"float32": 10}), {"float32": 0.9})
    assert (
        main([str(tmp_path / "runs"), "--out", str(tmp_path / "new" / "out"), "--target", "0.4"])
        == 0
    )
    out = capsys.readouterr().out
    assert out.startswith("Digits, IID, cnn, 10 x float32\n---")
    assert "\nUntil 40 %\n" in out
    files = {path.name: path.read_text() for path in (tmp_path / "new" / "out").iterdir()}
    assert files.keys() == {"report.md", "report.csv", "report.html"}
    assert files["report.md"].startswith(
        "# Runs compared\n\n## Digits, IID, cnn, 10 x float32\n\n| method |"
    )
    assert files["report.csv"].startswith("settings,method,state,")
    assert files["report.html"].count("<img") == 3


@pytest.mark.usefixtures("plain")
def test_everything_but_pictures_works_without_matplotlib(tmp_path: Path) -> None:
    made.run(tmp_path / "a")
    assert "FedAvg" in write_report([tmp_path], tmp_path / "out")
    assert "No pictures are drawn" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.usefixtures("plain")
def test_one_whole_run_among_damaged_ones(tmp_path: Path) -> None:
    for name in ("whole", "killed", "torn", "no-config", "empty", "a-list"):
        made.run(tmp_path / name, made.config(seed=len(name)))
    (tmp_path / "killed" / "summary.json").unlink()
    (tmp_path / "torn" / "rounds.jsonl").write_text("torn\n")
    (tmp_path / "no-config" / "settings.json").write_text("a: [")
    (tmp_path / "empty" / "rounds.jsonl").write_text("")
    (tmp_path / "a-list" / "summary.json").write_text('{"metrics": [], "rounds": 3}')
    text = write_report([tmp_path], tmp_path / "out")
    assert [line.split()[:4] for line in text.splitlines() if line.startswith("FedAvg ")] == [
        ["FedAvg", "80.0", "90.0", "85.0"]
    ]
    assert len([line for line in text.splitlines() if line.startswith("FedAvg, seed ")]) == 4
    assert f"{tmp_path}/killed: not finished: 3 of 3 rounds" in text
    torn = (
        "not finished: 0 rounds in rounds.jsonl, 3 in summary.json; "
        "line 1 of rounds.jsonl is damaged"
    )
    assert f"{tmp_path}/torn: {torn}" in text
    assert f"{tmp_path}/no-config: settings.json is damaged" in text
    assert "3 of 3 rounds; summary.json is damaged: its metrics are no mapping" in text
    assert f"{tmp_path}/empty: not finished: 0 rounds in rounds.jsonl" in text


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
_rows = st.lists(
    st.dictionaries(st.sampled_from(list(made.rows([{"int8": 0.5}])[0])), _json, max_size=6),
    max_size=4,
)
_told = made.told(made.config())
_keys = st.sampled_from(list({**_told["task"], **_told["result"]}))
_settings = st.dictionaries(
    st.sampled_from(list(_told)), _json | st.dictionaries(_keys, _json, max_size=6), max_size=5
)


@pytest.mark.usefixtures("plain")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    _rows,
    _settings,
    st.dictionaries(st.sampled_from(["metrics", "rounds", "bytes"]), _json, max_size=3),
)
@example(
    [{"round": 1}],
    {"result": {"algorithm": "FedAvg"}},
    {"rounds": 1, "metrics": {"test/acc_avg": 1e400}, "bytes": 3},
)
def test_no_content_of_a_file_stops_the_report(
    tmp_path_factory: pytest.TempPathFactory, rows: list, told: dict, summary: dict
) -> None:
    root = tmp_path_factory.mktemp("fuzz")
    made.run(root / "whole")
    rows = [{"round": i, **row} for i, row in enumerate(rows, 1)]
    odd = made.write(root / "odd", made.config(), rows, finished=False)
    (odd / "settings.json").write_text(json.dumps(told))
    (odd / "summary.json").write_text(json.dumps(summary))
    assert "FedAvg" in write_report([root], root / "out", target=0.5)


# ---- what is refused


def test_errors_are_lines_and_exit_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.run(tmp_path / "a")
    out = tmp_path / "out"
    assert failing(capsys, tmp_path / "x", tmp_path / "y", "--out", out).count("error: ") == 2
    assert "got 7" in failing(capsys, tmp_path, "--target", "7", "--out", out)
    assert "got --window 3 and --baseline None" in failing(
        capsys, tmp_path, "--window", "3", "--out", out
    )
    assert "got 'X'; there are FedAvg" in failing(
        capsys, tmp_path, "--target", ".5", "--baseline", "X", "--out", out
    )
    assert "invalid float value: 'high'" in failing(capsys, tmp_path, "--target", "high")
    assert "unrecognized arguments: --targe" in failing(capsys, tmp_path, "--targe", "0.5")
    assert not out.exists()


def test_an_output_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.run(tmp_path / "a")
    assert "--out must be a folder that can be written to" in failing(
        capsys, tmp_path, "--out", tmp_path / "a" / "env.json" / "out"
    )


def test_a_full_disk_below_the_console_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    made.run(tmp_path / "run")
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(SystemExit) as left:
        main([str(tmp_path), "--out", str(tmp_path / "out")])
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"


def test_a_report_replaces_the_one_before(tmp_path: Path) -> None:
    made.run(tmp_path / "a", ends={"float32": 0.5})
    first = write_report([tmp_path / "a"], tmp_path)
    assert write_report([tmp_path], tmp_path) == first  # a report is no run
    assert sorted(path.name for path in tmp_path.glob("*.*")) == [
        "report.csv",
        "report.html",
        "report.md",
    ]


def test_it_starts_without_torch(tmp_path: Path) -> None:
    made.run(tmp_path / "a", ends={"float32": 0.5})
    code = (
        "import sys, bhfl.main\n"
        "try: bhfl.main.main(['report', 'a'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'lightning', 'jsonargparse'} & set(sys.modules)"
    )
    source = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "FedAvg" in done.stdout
    assert (tmp_path / "report" / "report.html").exists()


def test_one_hostile_run_does_not_keep_the_others_from_their_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for seed in (0, 1):
        made.run(tmp_path / "runs" / f"good{seed}", made.config(seed=seed))
    evil = {
        **made.config(seed=2),
        "algorithm": {"class_path": "<b>\x1b[31m$\\frac{", "init_args": [1]},
    }
    folder = made.run(tmp_path / "runs" / os.fsdecode(b"bad\xff\n\x1b[2J"), evil)
    (folder / "events.out.tfevents.1.x").write_bytes(bytes(range(256)) * 9)
    odd = {
        "result": {"trainer.seed": 3, "algorithm": [1]},
        "task": {"clients": [1], "model": [[]], "data": 1.5},
        "length": 7,
    }
    (made.run(tmp_path / "runs" / "types") / "settings.json").write_text(json.dumps(odd))
    assert main(["~/runs/", "--out", "~/out put/ü", "--target", "0.5"]) == 0
    shown = capsys.readouterr().out
    texts = [
        shown,
        *(
            (tmp_path / "out put" / "ü" / f"report.{kind}").read_text()
            for kind in ("md", "csv", "html")
        ),
    ]
    assert not any("\x1b" in text for text in texts)
    assert not any("<b>" in text for text in (texts[1], texts[3]))
    assert "FedAvg  " in shown
