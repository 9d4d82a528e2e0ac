"""``bhfl init`` writes what one begins with, and overwrites nothing."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bhfl.cli.init import STARTS
from bhfl.cli.packaged import packaged_names
from bhfl.files import write_text
from tests.cli.conftest import Command

NAMES = "demo, module, images, links, network, sweep"


def test_it_is_answered_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys, bhfl.main\n"
        "try: bhfl.main.main(sys.argv[1:])\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "assert not {'torch', 'lightning', 'numpy', 'jsonargparse'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, "init", "demo", "--out", str(tmp_path / "a/b.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "a/b.yaml").exists()


def test_names_are_listed(bhfl: Command) -> None:
    code, out, err = bhfl("init", "--list")
    assert (code, err) == (0, "")
    for name in (*STARTS, *packaged_names()):
        assert re.search(rf"^  {name} ", out, re.M), name
    code, out, _ = bhfl("init", "--help")
    assert (code, out[:16]) == (0, "usage: bhfl init")


@pytest.mark.parametrize("name", STARTS)
def test_what_is_written_says_the_commands_that_run_it(bhfl: Command, name: str) -> None:
    code, out, err = bhfl("init", name)
    assert (code, err) == (0, "")
    text = Path(f"{name}.yaml").read_text()
    command = out.splitlines()[1].removeprefix("next: ")
    assert command.endswith(f" {name}.yaml")
    assert f"#   {command}" in text
    assert "FILE" not in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["demoo"], f"NAME must be one of {NAMES}, got 'demoo'; did you mean 'demo'?"),
        (["zebra"], f"NAME must be one of {NAMES}, got 'zebra'"),
        ([], f"NAME is missing: bhfl init NAME, which is one of {NAMES}"),
        (["demo", "links"], "'links' is not understood: bhfl init NAME [--out FILE] [--list]"),
        (["demo", "--ouut", "a"], "--ouut is not understood: bhfl init NAME [--out FILE] [--list]"),
        (["demo", "--out"], "--out needs a file"),
        (["demo", "--out", "~nobody_of_this_name/x"], "--out must be a file: ~nobody_of_this_name"),
    ],
)
def test_what_it_refuses(bhfl: Command, args: list[str], problem: str) -> None:
    before = os.listdir()
    done = bhfl("init", *args)
    assert (done.code, done.out) == (2, "")
    assert len(done.problems) == 1
    assert done.problems[0].startswith(problem)
    assert os.listdir() == before


def test_no_file_is_overwritten(bhfl: Command) -> None:
    Path("my_module.py").write_text("mine")
    Path("there.yaml").symlink_to("nowhere.yaml")
    for name, out in (("module", "module.yaml"), ("demo", "there.yaml"), ("demo", ".")):
        done = bhfl("init", name, "--out", out)
        there = "my_module.py" if name == "module" else out
        assert done.code == 2
        assert done.problems == [f"{there} is there already, and is left as it is"]
    assert Path("my_module.py").read_text() == "mine"
    assert sorted(os.listdir()) == ["my_module.py", "there.yaml", "tiny.yaml"]


def test_a_file_elsewhere_is_run_from_its_folder(bhfl: Command) -> None:
    done = bhfl("init", "module", "--out", "a b/c d.yaml")
    assert done.out.endswith("next: cd 'a b' && bhfl fit --config 'c d.yaml'\n")
    assert sorted(os.listdir("a b")) == ["c d.yaml", "my_module.py"]
    assert "--config 'c d.yaml' --model.width 64" in Path("a b/c d.yaml").read_text()


def test_an_end_between_two_files_leaves_none(
    bhfl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def interrupted(file: Path, text: str) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(file)
        write_text(file, text)

    before = os.listdir()
    with monkeypatch.context() as patch:
        patch.setattr("bhfl.cli.init.write_text", interrupted)
        bhfl("init", "module")
    assert written == [Path("module.yaml")]
    assert os.listdir() == before
    assert bhfl("init", "module").code == 0


def test_a_full_disk_leaves_no_part_of_a_file(bhfl: Command, monkeypatch) -> None:
    """What was there would be left as it is by the next command."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = os.listdir()
    monkeypatch.setattr(os, "fsync", full)
    done = bhfl("init", "demo")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: [Errno 28] No space left on device: 'demo.yaml'")
    assert os.listdir() == before
