"""Options of an option: arguments that are frozen dataclasses, in files and on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Command

OWN = """\
from dataclasses import dataclass
from typing import Literal, Optional, Union
from bhfl.algorithms import FedAvg

@dataclass(frozen=True)
class Mask:
    tau: Union[int, float] = 0.05
    scope: Literal["layer", "model"] = "layer"
    coarse: Optional[float] = 0.1

    def __post_init__(self) -> None:
        if self.tau <= 0:
            raise ValueError(f"Mask.tau must be positive, got {self.tau}")

@dataclass(frozen=True)
class Budget:
    rule: Literal["average", "deadline"] = "average"
    widths: tuple[int, ...] = (2, 4)

class Nested(FedAvg):
    def __init__(
        self,
        mask: Mask | None = Mask(),
        other: Mask | None = None,
        budget: Budget = Budget(),
        mu: float = 0.5,
    ) -> None:
        print(mask, other, budget)
"""
MASK = {"tau": 0.05, "scope": "layer", "coarse": 0.1}
BUDGET = {"rule": "average", "widths": [2, 4]}
DEFAULTS: dict[str, Any] = {"mask": MASK, "other": None, "budget": BUDGET, "mu": 0.5}


@pytest.fixture
def nested(bhfl: Command, tmp_path: Path, request: pytest.FixtureRequest) -> Command:
    """``bhfl fit`` of an algorithm with such options; a file's options of it, then those typed."""
    module = f"own_nested_{abs(hash(request.node.name))}"
    (tmp_path / f"{module}.py").write_text(OWN)

    def command(given: str, *args: object) -> Any:
        (tmp_path / "nested.yaml").write_text(
            f"algorithm:\n  class_path: {module}.Nested\n  init_args:\n    {given or '{}'}\n"
        )
        return bhfl("fit", "--config", "tiny.yaml", "--config", "nested.yaml", *args)

    return command


GIVEN: list[tuple[str, list[str], dict[str, Any]]] = [
    ("", [], {}),
    ("mask: {tau: 0.1}", [], {"mask": {**MASK, "tau": 0.1}}),
    ("mask: {}", [], {}),
    ("mask: null", [], {"mask": None}),
    ("other: {tau: 3}", [], {"other": {**MASK, "tau": 3}}),
    ("other: {}", [], {"other": MASK}),
    ("budget: {widths: [8]}", [], {"budget": {**BUDGET, "widths": [8]}}),
    ("", ["--algorithm.mask.tau", "0.1"], {"mask": {**MASK, "tau": 0.1}}),
    ("", ["--algorithm.mask", "null"], {"mask": None}),
    ("", ["--algorithm.mask", "{tau: 3}"], {"mask": {**MASK, "tau": 3}}),
    ("", ["--algorithm.other.scope=model"], {"other": {**MASK, "scope": "model"}}),
    ("", ["--algorithm.budget.rule=deadline"], {"budget": {**BUDGET, "rule": "deadline"}}),
    (
        "mask: {tau: 0.1}",
        ["--algorithm.mask.coarse=0.5", "--algorithm.mask.scope", "model"],
        {"mask": {"tau": 0.1, "scope": "model", "coarse": 0.5}},
    ),
    ("mask: {tau: 0.1}", ["--algorithm.mask=null"], {"mask": None}),
    (
        "mask: {tau: 0.1}",
        ["--algorithm.mask=null", "--algorithm.mask.scope=model"],
        {"mask": {**MASK, "scope": "model"}},
    ),
    ("mask: null", ["--algorithm.mask.scope=model"], {"mask": {**MASK, "scope": "model"}}),
]


@pytest.mark.parametrize(("given", "args", "changed"), GIVEN)
def test_options_of_an_option(
    nested: Command, bhfl: Command, tmp_path: Path, given: str, args: list[str], changed: object
) -> None:
    code, out, err = nested(given, *args, "--print_config")
    assert (code, err) == (0, "")
    assert yaml.safe_load(out)["algorithm"]["init_args"] == {**DEFAULTS, **changed}
    (tmp_path / "printed.yaml").write_text(out)
    assert bhfl("fit", "--config", "printed.yaml", "--print_config").out == out


def test_the_algorithm_is_given_objects_and_the_run_keeps_their_options(
    nested: Command, tmp_path: Path
) -> None:
    code, out, err = nested("mask: {tau: 1}", "--algorithm.budget.widths=[3]")
    assert (code, err) == (0, "")
    assert out.startswith(
        "Mask(tau=1, scope='layer', coarse=0.1) None Budget(rule='average', widths=(3,))\n"
    )
    kept = yaml.safe_load((tmp_path / "runs/tiny/version_0/config.yaml").read_text())
    assert kept["algorithm"]["init_args"] == {
        **DEFAULTS,
        "mask": {**MASK, "tau": 1},
        "budget": {**BUDGET, "widths": [3]},
    }


NEITHER = "must be a mapping of the options of Mask or null, got"
REFUSED: list[tuple[str, list[str], str]] = [
    (
        "mask: {tua: 0.1}",
        [],
        "nested.yaml:4: algorithm.mask.tua is an unknown option of Mask; did you mean 'tau'?",
    ),
    (
        "mask: {scope: modle}",
        [],
        "mask.scope must be one of layer, model, got 'modle'; did you mean 'model'?",
    ),
    ("mask: false", [], f"nested.yaml:4: algorithm.mask {NEITHER} false; did you mean null?"),
    ("other: 3", [], f"algorithm.other {NEITHER} 3"),
    ("mask: layer", [], f"algorithm.mask {NEITHER} 'layer'"),
    (
        "rule: deadline",
        [],
        "algorithm.rule is an unknown option of Nested; known: budget.rule",
    ),
    (
        "budget: null",
        [],
        "algorithm.budget must be a mapping of the options of Budget, got null",
    ),
    ("mask: {tau: 0}", [], "Mask.tau must be positive, got 0"),
    (
        "",
        ["--algorithm.mask.tua", "0.1"],
        "--algorithm.mask.tua is an unknown option of Mask; did you mean 'tau'?",
    ),
    ("", ["--algorithm.mask=false"], f"--algorithm.mask {NEITHER} false; did you mean null?"),
    (
        "",
        ["--algorithm.budget.rule", "deadlin"],
        "--algorithm.budget.rule must be one of average, deadline, got 'deadlin'",
    ),
]


@pytest.mark.parametrize(("given", "args", "problem"), REFUSED)
def test_bad_options_of_an_option(
    nested: Command, given: str, args: list[str], problem: str
) -> None:
    code, _, err = nested(given, *args)
    assert code == 2
    assert problem in err
    assert "Traceback" not in err


def test_all_problems_of_such_options_come_at_once(nested: Command) -> None:
    problems = nested("mask: {tua: 1, scop: model}", "--algorithm.budget.widths", "2").problems
    assert [problem.split(" ")[-4:] for problem in problems[:2]] == [
        ["did", "you", "mean", "'tau'?"],
        ["did", "you", "mean", "'scope'?"],
    ]
    assert problems[2].startswith("--algorithm.budget.widths must be a list, got 2")
    assert len(problems) == 3
