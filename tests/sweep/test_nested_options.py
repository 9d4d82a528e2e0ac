"""Options of an option, such as ``algorithm.mask.tau``: given to methods, tuned, compared with
those of finished runs, and told by the labels of the report.
"""

from pathlib import Path

import pytest

from bhfl.cli.reading import ConfigError
from bhfl.report.command import write_report
from bhfl.sweep.check import Configs
from bhfl.sweep.plan import Plan
from bhfl.sweep.reader import read_matrix
from bhfl.sweep.survey import DONE, MISSING, Survey
from tests.cli.conftest import Command

OWN = """\
from dataclasses import dataclass
from bhfl.algorithms import FedAvg

@dataclass(frozen=True)
class Mask:
    tau: float = 0.05
    scope: str = "layer"

class Nested(FedAvg):
    def __init__(self, mask: Mask | None = Mask(), mu: float = 0.5) -> None:
        self.mask = mask
"""
MATRIX = """\
base: {trainer.max_rounds: 1, algorithm: own_swept.Nested}
seeds: [0]
methods:
  plain: {config: tiny.yaml}
  none: {config: tiny.yaml, algorithm.mask: null}
  more: {config: tiny.yaml, algorithm.mask.tau: 0.1}
  model: {config: tiny.yaml, algorithm.init_args.mask.scope: model}
  both: {config: tiny.yaml, algorithm.mask: {tau: 0.1, scope: model}}
"""
TUNED = """\
base: {trainer.max_rounds: 1, algorithm: own_swept.Nested}
seeds: [0]
methods:
  layer: {config: tiny.yaml}
  model: {config: tiny.yaml, algorithm.mask.scope: model}
tune: {key: algorithm.init_args.mask.tau, values: [0.1, 0.2], seeds: [9]}
"""


@pytest.fixture(autouse=True)
def own(bhfl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An algorithm whose option has options, in the working folder."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_swept.py").write_text(OWN)


def plan(text: str) -> Plan:
    Path("m.yaml").write_text(text)
    return Plan(read_matrix("m.yaml"), Path("runs/m"))


def test_each_method_is_told_its_own() -> None:
    there = plan(MATRIX)
    configs = Configs(machine=False)
    found = {}
    for cell in there.cells:
        result = configs(there.job(cell))["result"]
        keys = ("algorithm.mask", "algorithm.mask.tau", "algorithm.mask.scope")
        found[cell.method] = [result.get(key) for key in keys]
    assert found == {
        "plain": [True, 0.05, "layer"],
        "none": [None, None, None],
        "more": [True, 0.1, "layer"],
        "model": [True, 0.05, "model"],
        "both": [True, 0.1, "model"],
    }


def test_finished_runs_are_compared_and_labelled_by_them(bhfl: Command) -> None:
    there = plan(MATRIX.replace("  both", "#  both"))
    for cell in there.cells:
        code, _, err = bhfl(*there.job(cell).args)
        assert (code, err) == (0, "")
    survey = Survey(there, Configs(machine=False))
    assert set(survey.states().values()) == {DONE}
    text = write_report(list(survey.finished()), "report")
    labels = [line.split("  ")[0] for line in text.splitlines() if line.startswith("Nested")]
    # a table of differences follows
    assert labels[:4] == [
        "Nested",
        "Nested (mask=none)",
        "Nested (tau=0.1)",
        "Nested (scope=model)",
    ]
    assert set(labels[4:]) == set(labels[1:4])
    changed = MATRIX.replace("tau: 0.1}\n  model", "tau: 0.2}\n  model")
    with pytest.raises(ConfigError) as refused:
        Survey(plan(changed.replace("mask: null", "mu: 0.5")), Configs(machine=False))
    first, second = refused.value.problems
    made = "version_0 was made with other options: algorithm.mask"
    assert first.startswith(f"runs/m/none/seed0/{made}: None -> True, algorithm.mask.scope: ")
    assert second.startswith(f"runs/m/more/seed0/{made}.tau: 0.1 -> 0.2; move it away")


def test_an_option_of_an_option_is_tuned() -> None:
    there = plan(TUNED)
    configs = Configs(machine=False)
    found = {}
    for name, job in there.all_trials(there.cells).items():
        found[name] = configs(job)["result"]["algorithm.mask.tau"]
    assert found == {
        f"_tuning/{method}/{value}/seed9": value
        for method in ("layer", "model")
        for value in (0.1, 0.2)
    }
    assert MISSING in Survey(there, configs).states().values()


GIVEN = "must not be given elsewhere too, and algorithm.init_args.mask.tau is"
LEFT_OUT = "must not be an option of algorithm.mask, which is null elsewhere"


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("algorithm.mask.tau: 0.1", GIVEN),
        ("algorithm.mask: {tau: 0.1}", GIVEN),
        ("algorithm.mask: null", LEFT_OUT),
        ("algorithm: {init_args: {mask: null}}", LEFT_OUT),
    ],
)
def test_what_is_tuned_is_neither_given_nor_left_out_elsewhere(given: str, rule: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plan(TUNED.replace("algorithm.mask.scope: model", given))
    assert refused.value.problems == [f"m.yaml:6: tune.key {rule}"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            "algorithm.mask.tua: 0.1",
            "m.yaml:6: algorithm.mask.tua is an unknown option of Mask; "
            "did you mean 'tau'? (more/seed0)",
        ),
        (
            "algorithm.mask: false",
            "m.yaml:6: algorithm.mask must be a mapping of the options of Mask or null, got false; "
            "did you mean null? (more/seed0)",
        ),
        (
            "trainer.callbacks: {a: 1}",
            "m.yaml:6: trainer.callbacks must be a list or null, got {'a': 1} (more/seed0)",
        ),
    ],
)
def test_a_slip_is_told_with_its_place_in_the_matrix(given: str, problem: str) -> None:
    there = plan(MATRIX.replace("algorithm.mask.tau: 0.1}\n", f"{given}}}\n"))
    with pytest.raises(ConfigError) as refused:
        Configs(machine=False).check([there.job(cell) for cell in there.cells])
    assert refused.value.problems == [problem]
