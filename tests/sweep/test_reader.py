"""Matrices are read, or refused with everything that is wrong with them."""

import subprocess
import sys
from pathlib import Path

import pytest

from bhfl.cli.packaged import packaged_folder
from bhfl.cli.reading import ConfigError
from bhfl.sweep.matrix import Option, Tune
from bhfl.sweep.reader import read_matrix

WHOLE = """\
name: whole
base: {data.archive: a.tar, trainer: {max_rounds: 3}}
seeds: [0, 7]
settings:
  half: {clients: {ternary: 5, float32: 5}}
  all: {clients: {8: 10}}
methods:
  FedAvg: {config: c.yaml}
  ProWD-mask: {config: c.yaml, algorithm.mask: true}
tune: {key: model.init_args.optimizer.lr, values: [0.1, 0.2], seeds: [100, 0], margin: 0.05, last: 3, setting: half}
first: [all]
report: {target: 0.5, window: 3}
"""  # noqa: E501
LEAST = "seeds: [0]\nmethods: {A: {config: c.yaml}}\n"


def words(options: list[Option]) -> list[str]:
    return [option.word for option in options]


def test_a_whole_matrix(folder: Path) -> None:
    (folder / "m.yaml").write_text(WHOLE)
    matrix = read_matrix("m.yaml")
    assert (matrix.name, matrix.seeds, matrix.first) == ("whole", [0, 7], ["all"])
    assert words(matrix.base) == ["--data.archive=a.tar", "--trainer={max_rounds: 3}"]
    assert words(matrix.settings["half"]) == ["--clients={ternary: 5, float32: 5}"]
    assert words(matrix.settings["all"]) == ["--clients={8: 10}"]
    assert words(matrix.methods["FedAvg"]) == []
    assert words(matrix.methods["ProWD-mask"]) == ["--algorithm.mask=true"]
    assert matrix.tune == Tune(
        "model.init_args.optimizer.lr", [0.1, 0.2], [100, 0], 0.05, "val/acc_avg", 3, "half"
    )
    given = {key: value for key, value in matrix.report.items() if value is not None}
    assert given == {"target": 0.5, "window": 3}
    option = matrix.methods["ProWD-mask"][0]
    assert option.layer.place(("algorithm", "mask")) == "m.yaml:9: "
    assert matrix.base[1].layer.place(("trainer", "max_rounds")) == "m.yaml:2: "


def test_the_least_matrix(folder: Path) -> None:
    (folder / "some").mkdir()
    (folder / "some" / "m.yaml").write_text(LEAST.replace("c.yaml", "../c.yaml"))
    matrix = read_matrix("some/m.yaml", seeds=[3])
    assert (matrix.name, matrix.settings, matrix.tune) == ("m", {"": []}, None)
    assert (matrix.configs, matrix.seeds) == ({"A": "some/../c.yaml"}, [3])


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (True, "true"), (None, "null"), (1e-5, "1.0e-05"), ("a b", "a b"), ([2, "x"], "[2, x]"),
        ({"a": "yes"}, "{a: 'yes'}"),
    ],
)  # fmt: skip
def test_values_become_arguments(value: object, word: str) -> None:
    assert Option("x.y", value, layer=None).word == f"--x.y={word}"  # type: ignore[arg-type]


def test_methods_have_seeds_of_their_own(folder: Path) -> None:
    own = "methods: {A: {config: c.yaml, seeds: [0, 5]}, B: {config: c.yaml}}\nseeds: [0]\n"
    (folder / "m.yaml").write_text(own)
    assert read_matrix("m.yaml").seeds_of == {"A": [0, 5]}
    assert words(read_matrix("m.yaml").methods["A"]) == []
    assert read_matrix("m.yaml", seeds=[3]).seeds_of == {"A": [3]}
    (folder / "m.yaml").write_text(own.replace("5", "-5"))
    with pytest.raises(ConfigError, match=r"m.yaml:1: methods.A.seeds\[1\] must be an integer"):
        read_matrix("m.yaml")


PROBLEMS = [
    ("seed: [0]", "m.yaml:3: seed is an unknown key of a matrix; did you mean 'seeds'?"),
    ("name: a/b", "m.yaml:3: name must be a name of letters, digits and . _ + -, got 'a/b'"),
    ("base: 5", "m.yaml:3: base must be a mapping of options such as trainer.max_rounds: 5, got 5"),
    (
        "base: {a b: 5}",
        "m.yaml:3: base.a b is not an option; options are as on the command line: "
        "trainer.max_rounds",
    ),
    (
        "base: {seed_everything: 5}",
        "m.yaml:3: base.seed_everything cannot be used: seed_everything is given by seeds",
    ),
    (
        "base: {trainer: {name: x}}",
        "m.yaml:3: base.trainer cannot be used: trainer.name is given by the sweep",
    ),
    (
        "base: {trainer.max_rounds: 3, trainer: {max_rounds: 5}}",
        "m.yaml:3: base.trainer gives trainer.max_rounds, which trainer.max_rounds gives before it",
    ),
    (
        "settings: {s: {model: {init_args: {lr: 1}}, model.lr: 2}}",
        "m.yaml:3: settings.s.model.lr gives model.lr, which model gives before it",
    ),
    (
        "base: {algorithm.a.b: 1, algorithm.a: {b: 2}}",
        "m.yaml:3: base.algorithm.a gives algorithm.a.b, which algorithm.a.b gives before it",
    ),
    (
        "base: {model.lr: 1, model: {class_path: CNN}}",
        "m.yaml:3: base.model gives model.lr, which model.lr gives before it",
    ),
    (
        "base: {clients.int8: 5, clients: {4: 1}}",
        "m.yaml:3: base.clients gives clients.int8, which clients.int8 gives before it",
    ),
    (
        "settings: {}",
        "m.yaml:3: settings must be a mapping of one or more names to their options, got {}",
    ),
    (
        "settings: {-: {}}",
        "m.yaml:3: settings.- must be a name of letters, digits and . _ + -, got '-'",
    ),
    ("settings: {A: {}}", "m.yaml:3: settings.A is the name of a method too"),
    ("first: [B]", "m.yaml:3: first[0] must be a method or a setting, got 'B'; known: A"),
    ("first: A", "m.yaml:3: first must be a list of one or more items, got 'A'"),
    (
        "report: {goal: 1}",
        "m.yaml:3: report.goal is an unknown key of a matrix; known: latex, metric, mode, order, "
        "published, target, window",
    ),
    ("report: {target: 5}", "m.yaml:3: report.target must be an accuracy in (0, 1) or null, got 5"),
    (
        "report: {window: 0}",
        "m.yaml:3: report.window must be an integer from 1 to 2,147,483,648, got 0",
    ),
    (
        "report: {published: no.csv}",
        "m.yaml:3: report.published must be a CSV, and there is no no.csv",
    ),
    ("report: {window: 3}", "m.yaml:3: report.window needs a target, got 3 and none"),
    ("report: 0.5", "m.yaml:3: report must be a mapping such as target: 0.9, got 0.5"),
    (
        "report: {metric: loss}",
        "m.yaml:3: report.metric must be a tag such as val/loss, got 'loss'",
    ),
    ("report: {mode: least}", "m.yaml:3: report.mode must be one of max, min, got 'least'"),
    ("report: {latex: 1}", "m.yaml:3: report.latex must be true or false, got 1"),
    ("report: {order: no.csv}", "m.yaml:3: report.order must be a CSV, and there is no no.csv"),
    ("tune: 5", "m.yaml:3: tune must be a mapping with key, values and seeds, got 5"),
    (
        "tune: {key: x, values: 1, seeds: [5]}",
        "m.yaml:3: tune.values must be a list of one or more items, got 1",
    ),
    (
        "tune: {key: x, values: [], seeds: [5]}",
        "m.yaml:3: tune.values must be a list of one or more items, got []",
    ),
    (
        "tune: {key: x, values: [[1]], seeds: [5]}",
        "m.yaml:3: tune.values[0] must be a number or a word, got [1]",
    ),
    (
        "tune: {key: x, values: [1, 1], seeds: [5]}",
        "m.yaml:3: tune.values[1] must be given once, and 1 is there twice",
    ),
    (
        "tune: {key: x, values: [1, '1'], seeds: [5]}",
        "m.yaml:3: tune.values[1] must be given once, and '1' is there twice",
    ),
    (
        "tune: {key: x, values: [1], seeds: 0}",
        "m.yaml:3: tune.seeds must be a list of one or more items, got 0",
    ),
    (
        "tune: {key: x, values: [1], seeds: [-1]}",
        "m.yaml:3: tune.seeds[0] must be an integer from 0 to 4,294,967,295, got -1",
    ),
    (
        "tune: {key: x, values: [1]}",
        "m.yaml:3: tune.seeds must be a list of one or more items, got null",
    ),
    (
        "tune: {key: x, values: [1], seeds: [5], margin: 0}",
        "m.yaml:3: tune.margin must be positive and finite, got 0",
    ),
    (
        "tune: {values: [1], seeds: [5]}",
        "m.yaml:3: tune.key must be an option such as model.optimizer.lr, got null",
    ),
    (
        "tune: {key: x, values: [1], seeds: [5], sed: 1}",
        "m.yaml:3: tune.sed is an unknown key of a matrix; did you mean 'seeds'?",
    ),
    (
        "tune: {key: x, values: [1], seeds: [5], metric: test/acc}",
        "m.yaml:3: tune.metric must be of the validation split, val/..., got 'test/acc'",
    ),
    (
        "tune: {key: x, values: [1], seeds: [5], last: 0}",
        "m.yaml:3: tune.last must be an integer from 1 to 2,147,483,648, got 0",
    ),
    (
        "tune: {key: x, values: [1], seeds: [5], setting: s}",
        "m.yaml:3: tune.setting needs settings, and there are none, got 's'",
    ),
    (
        "settings: {s: {}}\ntune: {key: x, values: [1], seeds: [5]}",
        "m.yaml:4: tune.setting must be one of the settings or each, got ''; known: each, s",
    ),
    (
        "base: {model: {init_args: {lr: 1}}}\ntune: {key: model.lr, values: [1], seeds: [5]}",
        "m.yaml:4: tune.key must not be given elsewhere too, and model.lr is",
    ),
    (
        "tune: {key: x, values: [1], seeds: [5], options: {x: 2}}",
        "m.yaml:3: tune.options must not give x, which is tuned",
    ),
    (
        "tune: {key: x, values: [1], seeds: [5], options: {seed_everything: 2}}",
        "m.yaml:3: tune.options.seed_everything cannot be used: seed_everything is given by seeds",
    ),
    (
        "tune: {key: x, values: [1], seeds: [5], like: [A]}",
        "m.yaml:3: tune.like must be a mapping of methods to those whose value they take, got "
        "['A']",
    ),
    (
        "tune: {key: x, values: [1], seeds: [5], like: {A: C}}",
        "m.yaml:3: tune.like.A must name methods, got 'C'; known: A",
    ),
    (
        "tune: {key: x, values: [1], seeds: [5], like: {A: A}}",
        "m.yaml:3: tune.like.A must be a method that is tuned itself, got 'A'",
    ),
    ("results: 5", "m.yaml:3: results must be a path, got 5"),
]


@pytest.mark.parametrize(("line", "problem"), PROBLEMS)
def test_one_problem(folder: Path, line: str, problem: str) -> None:
    (folder / "m.yaml").write_text(f"{LEAST}{line}\n")
    with pytest.raises(ConfigError) as refused:
        read_matrix("m.yaml")
    assert refused.value.problems == [problem]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "",
            [
                "the matrix must hold a mapping of options such as trainer: {max_rounds: 5}; "
                "m.yaml is empty"
            ],
        ),
        (
            "seeds: [0, -1, 0, x]\nmethods: {A: {}, B: {config: no.yaml}, C: 5}\n",
            [
                "m.yaml:2: methods.A.config must be the method's configuration file, got null",
                "m.yaml:2: methods.B.config must be a YAML file or the name of one that comes with "
                f"bhfl, and there is no file 'no.yaml' in FOLDER or {packaged_folder()}; bhfl init "
                "--list lists them",
                "m.yaml:2: methods.C.config must be the method's configuration file, got null",
                (
                    "m.yaml:2: methods.C must be a mapping of options such as trainer.max_rounds: "
                    "5, got 5"
                ),
                "m.yaml:1: seeds[2] must be given once, and 0 is there twice",
                "m.yaml:1: seeds[1] must be an integer from 0 to 4,294,967,295, got -1",
                "m.yaml:1: seeds[3] must be an integer from 0 to 4,294,967,295, got 'x'",
            ],
        ),
        (
            "name: x\n",
            [
                (
                    "m.yaml:1: methods must be a mapping of one or more names to "
                    "their options, got null"
                ),
                "m.yaml:1: seeds must be a list of one or more items, got null",
            ],
        ),
        ("seeds: [0]\nseeds: [1]\n", ["m.yaml:2: seeds is given twice"]),
    ],
)
def test_all_problems_at_once(folder: Path, text: str, problems: list[str]) -> None:
    (folder / "m.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_matrix("m.yaml")
    problems = [problem.replace("FOLDER", str(folder)) for problem in problems]
    assert refused.value.problems == problems


def test_there_must_be_a_file(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"the matrix must be a YAML file or .* there is no file 'nope\.yaml' in"
    ):
        read_matrix("nope.yaml")


def test_a_bad_matrix_is_answered_without_torch(folder: Path) -> None:
    code = (
        "import sys, bhfl.main\n"
        "try: bhfl.main.main(['sweep', 'nope.yaml'])\n"
        "except SystemExit as stop: assert stop.code == 2\n"
        "assert not {'torch', 'lightning', 'jsonargparse'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.startswith("error: the matrix must be a YAML file or the name of one that")
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode == 0
