"""What a run was made with, as its folder tells."""

import subprocess
from pathlib import Path

import pytest
import torch

from bhfl.engine import environment as found
from bhfl.engine.environment import environment, git, processor, versions
from bhfl.settings import Role


def call_git(folder: Path, *command: str) -> None:
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(folder), *name, *command], check=True, capture_output=True)


def test_the_commit_is_told_and_whether_known_files_were_changed(tmp_path: Path) -> None:
    assert git(tmp_path) is None
    call_git(tmp_path, "init")
    (tmp_path / "model.py").write_text("1\n")
    call_git(tmp_path, "add", ".")
    call_git(tmp_path, "commit", "-m", "first")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "new").touch()
    told = git(tmp_path)
    assert told is not None
    assert len(told["commit"]) == 40
    assert told["changed"] is False
    (tmp_path / "model.py").write_text("2\n")
    assert git(tmp_path) == {"commit": told["commit"], "changed": True}


def test_where_there_is_no_git_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git(Path()) is None


def test_versions_leave_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "PACKAGES", ("numpy", "no-such-package"))
    # what stands under the cache
    told = versions.__wrapped__()
    assert list(told) == ["bhfl", "python", "numpy", "torch"]
    assert told["torch"] == torch.__version__


def test_the_processor_has_a_name_and_what_torch_uses_of_it() -> None:
    told = processor()
    assert told["name"]
    assert told["capability"] == torch.backends.cpu.get_cpu_capability()
    assert told["cores"] >= 1


def test_the_backends_that_were_chosen_are_told_by_group_and_layer() -> None:
    told = {Role.NUMERICS.value: {"backends": {"int8": {"net.0": "int8"}}}}
    env = environment(told, 2, channels_last=True)
    assert env["backends"] == {"int8": {"net.0": "int8"}}
    assert (env["threads"], env["channels_last"]) == (2, True)
    assert environment({Role.NUMERICS.value: {}}, 1, channels_last=False)["backends"] == {}
