"""What other packages offer by entry points is named like what comes with bhfl."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bhfl.cli import classes
from bhfl.quant import backends, plugins
from tests.cli.conftest import Command

CODE = """\
from bhfl.callbacks import Callback
from bhfl.data import IID
from bhfl.engine import Algorithm
from bhfl.quant.backends.base import FAKE, Backend

class Offered(Algorithm):
    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

class Even(IID):
    pass

class Shout(Callback):
    def on_fit_end(self, trainer, metrics):
        print("SHOUTED")

class Own(type(FAKE)):
    name = "own"

number = 5
"""
POINTS = """\
[bhfl.algorithms]
MineElsewhere = offered_here:Offered
Broken = offered_broken:Anything
Leaving = offered_leaving:Anything
Number = offered_here:number
FedProx = offered_here:Offered

[bhfl.partitioners]
Evenly = offered_here:Even

[bhfl.callbacks]
Loud = offered_here:Shout

[bhfl.backends]
own = offered_here:Own
odd = offered_here:number
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution on the path, of which a part is broken."""
    site = tmp_path / "site"
    info = site / "offered-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    (site / "offered_here.py").write_text(CODE)
    (site / "offered_broken.py").write_text("raise RuntimeError('out of order')\n")
    (site / "offered_leaving.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.setattr(backends, "BACKENDS", backends.BACKENDS)
    before = dict(backends.BACKENDS)
    monkeypatch.syspath_prepend(site)
    forget()
    yield
    forget()
    backends.BACKENDS.clear()
    backends.BACKENDS.update(before)


def forget() -> None:
    plugins.offered.cache_clear()
    classes._offered.cache_clear()


def test_short_names_are_those_of_other_packages_too(
    bhfl: Command, package: None, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "clients: [{bits: 8, count: 2, backend: own}, {bits: 32, count: 2}]\n"
        "algorithm: {class_path: MineElsewhere, init_args: {factor: 2.0}}\n"
        "data: {init_args: {partition: Evenly}}\n"
        "trainer: {max_rounds: 1, callbacks: [Loud], validate_first: false}\n"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code, out, err = bhfl("fit", "--config", "tiny.yaml", "--config", "mine.yaml")
    assert code == 0, err
    assert "SHOUTED" in out
    assert out.count("Offered: 4 clients")
    config = yaml.safe_load((tmp_path / "runs/tiny/version_0/config.yaml").read_text())
    # whoever reads the run needs no entry point
    assert config["algorithm"] == {
        "class_path": "offered_here.Offered",
        "init_args": {"factor": 2.0},
    }
    assert config["data"]["init_args"]["partition"]["class_path"] == "offered_here.Even"
    told = [str(one.message) for one in caught if "left out" in str(one.message)]
    # each once, and none of what works
    assert sorted(text.partition(" is left out: ")[0] for text in told) == [
        "plug-in 'Broken' of offered (bhfl.algorithms)",
        "plug-in 'Leaving' of offered (bhfl.algorithms)",
        "plug-in 'Number' of offered (bhfl.algorithms)",
        "plug-in 'odd' of offered (bhfl.backends)",
    ]
    assert any("RuntimeError: out of order" in text for text in told)


def test_names_of_bhfl_come_first(package: None) -> None:
    from bhfl.algorithms import FedProx
    from bhfl.engine import Algorithm

    with pytest.warns(UserWarning, match="left out"):
        assert classes.resolve("FedProx", Algorithm) is FedProx
    with pytest.raises(ValueError, match="got 'MineElsewher'; did you mean 'MineElsewhere'"):
        classes.resolve("MineElsewher", Algorithm)
