"""Modules in the current folder: the user's own are found, and none that somebody else looks
for.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bhfl.cli.classes import resolve
from bhfl.cli.current_folder import CurrentFolder, find_in_current_folder, forget_start_folder
from tests.cli.conftest import TINY, Command

MODULES = {
    "mine_model.py": "import mine_helpers\nfrom bhfl.algorithms import FedAvg\n\n\n"
    "class Mine(FedAvg):\n    helper = mine_helpers.VALUE\n\n"
    "    def later(self):\n        from mine_package.inner import VALUE\n\n        return VALUE\n",
    "mine_helpers.py": "VALUE = 7\n",
    "mine_package/__init__.py": "",
    "mine_package/inner.py": "from mine_package import deep\n\nVALUE = deep.VALUE\n",
    "mine_package/deep.py": "import mine_late\n\nVALUE = mine_late.VALUE\n",
    "mine_late.py": "VALUE = 8\n",
    "probed_by_others.py": "raise SystemExit('somebody ran this')\n",
    "numpy.py": "raise SystemExit('somebody ran this')\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("mine_"):
            del sys.modules[name]


def own(name: str) -> type:
    from bhfl.engine.algorithm import Algorithm

    return resolve(name, Algorithm)


def test_a_class_of_a_configuration_and_what_it_imports_are_found(folder: Path) -> None:
    find_in_current_folder()
    cls = own("mine_model.Mine")
    assert cls.helper == 7  # type: ignore[attr-defined]
    assert cls().later() == 8


def test_what_others_look_for_is_not_found(folder: Path) -> None:
    find_in_current_folder()
    own("mine_model.Mine")
    for name in ("probed_by_others", "mine_late"):
        assert importlib.util.find_spec(name) is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)
    with pytest.raises(ModuleNotFoundError):
        import probed_by_others  # noqa: F401


def test_what_is_installed_comes_first(folder: Path) -> None:
    find_in_current_folder()
    with pytest.raises(ValueError, match="must name an Algorithm"):
        own("numpy.Mine")  # which is not run


def test_only_one_folder_is_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_in_current_folder()
    (folder / "other").mkdir()
    monkeypatch.chdir(folder / "other")
    find_in_current_folder()
    (finder,) = [finder for finder in sys.meta_path if isinstance(finder, CurrentFolder)]
    assert finder.folder == str(folder / "other")
    with pytest.raises(ValueError, match="No module named 'mine_model'"):
        own("mine_model.Mine")


def test_the_folder_that_python_m_puts_first_is_taken_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(folder), "/elsewhere"])
    forget_start_folder()
    forget_start_folder()
    assert sys.path == ["/elsewhere"]


PROBED = (
    "tabulate",
    "ruamel",
    "pynvml",
    "IPython",
    "psutil",
    "pandas",
    "cloudpickle",
    "wandb",
    "rich",
    "typeshed_client",
)


def test_no_module_that_came_with_data_is_run(real_bhfl: Command, folder: Path) -> None:
    (folder / "sitecustomize.py").unlink(missing_ok=True)
    for name in PROBED:
        (folder / f"{name}.py").write_text(f"open('ran-{name}', 'w')\n")
    (folder / "c.yaml").write_text(TINY + "algorithm: mine_model.Mine\n")
    done = real_bhfl("fit", "--config", "c.yaml", "--trainer.max_rounds", 1)
    assert done.code == 0, done.err
    assert "mine_model.Mine" in (folder / "runs" / "tiny" / "version_0" / "config.yaml").read_text()
    assert sorted(path.name for path in folder.glob("ran-*")) == []


def test_help_for_a_class_of_ones_own(bhfl: Command, folder: Path) -> None:
    done = bhfl("fit", "--algorithm.help", "mine_model.Mine")
    assert done.code == 0, done.err
    assert "mine_model.Mine" in done.out


def test_a_current_folder_that_is_gone_is_told(bhfl: Command, monkeypatch, tmp_path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    before = list(sys.path)
    forget_start_folder()
    assert sys.path == before
    # no torch is needed to tell, which cannot always be loaded there
    monkeypatch.setitem(sys.modules, "bhfl.engine.checkpoint", None)
    code, out, err = bhfl("init", "demo")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "the current folder is not there any more: go to another one" in err
