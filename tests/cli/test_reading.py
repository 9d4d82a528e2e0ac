import time
import tracemalloc
from pathlib import Path

import pytest

from bhfl.cli.reading import (
    ConfigError,
    Text,
    asks_help,
    options,
    read_file,
    read_layers,
    read_text,
)

PLAIN = {
    "{a: 1, b: -2, c: +3}": {"a": 1, "b": -2, "c": 3},
    "[1.5, 1e3, 1.e-3, -.5, 1E+2]": [1.5, 1000.0, 0.001, -0.5, 100.0],
    "[true, False, TRUE]": [True, False, True],
    "[~, null, '']": [None, None, ""],
    "['yes', \"010\", 'null']": ["yes", "010", "null"],
    "[2024-01-01, 8x8, a-b, 1.2.3]": ["2024-01-01", "8x8", "a-b", "1.2.3"],
    "{8: 5, ternary: 3}": {8: 5, "ternary": 3},
    "": None,
}


@pytest.mark.parametrize(("text", "value"), PLAIN.items())
def test_plain_values(text: str, value: object) -> None:
    assert read_text(text) == value


AMBIGUOUS = [
    "yes",
    "NO",
    "on",
    "Off",
    "0x1F",
    "0b1",
    "012",
    "1_0",
    "1:30",
    "!!set {a}",
    "=",
    ".NaN",
    "{<<: {a: 1}}",
]


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_values_that_readers_take_differently(text: str) -> None:
    with pytest.raises(ConfigError):
        read_text(text)


TEN = ",".join(["*a{0}"] * 10)
BOMBS = {
    "aliases": "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{i + 1}: &a{i + 1} [{TEN.format(i)}]\n" for i in range(8)),
    "long text": f"a: &a {'x' * 900_000}\nb: [{','.join(['*a'] * 10_000)}]\n",
    "merged": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i + 1}: &a{i + 1} {{<<: [{TEN.format(i)}]}}\n" for i in range(8)),
    "sexagesimal": f"a: {':'.join(['1'] * 400_000)}\n",
    "long number": f"a: {'9' * 800_000}\n",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_unfolds_to_gigabytes_takes_neither_memory_nor_time(bomb: str) -> None:
    begun = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError) as refused:
            read_text(BOMBS[bomb])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(refused.value.problems) == 1
    assert peak < 100e6
    assert time.monotonic() - begun < 20


def test_a_file_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# " + "x" * 2**20)
    with pytest.raises(ConfigError, match="1,048,576"):
        read_file(str(path))


def test_anchors_and_aliases() -> None:
    assert read_text("{x: &x {a: 1}, y: [*x, *x]}") == {"x": {"a": 1}, "y": [{"a": 1}, {"a": 1}]}


def test_lines_are_those_of_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("x:\n  a: 1\n  b:\n  - 3\n  - c: 4\n")
    layer = read_file(str(path))
    places = {
        (): 1,
        ("x", "a"): 2,
        ("x", "b"): 3,
        ("x", "b", "[0]"): 4,
        ("x", "b", "[1]", "c"): 5,
        ("x", "zzz"): 1,
    }
    assert {keys: layer.place(keys) for keys in places} == {
        keys: f"{path}:{line}: " for keys, line in places.items()
    }


def test_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: yes\nb: 010\n")
    args = ["--config", str(tmp_path / "a.yaml"), "--config=nope.yaml", "stray"]
    with pytest.raises(ConfigError) as refused:
        read_layers(args)
    assert len(refused.value.problems) == 4


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_file(str(tmp_path / "a.yaml"))


def test_options_become_layers_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed_everything: 3\n")
    layers = read_layers(
        ["--x.y", "-1", "-c", str(tmp_path / "a.yaml"), "--x.list+=b", "--print_config"]
    )
    assert [layer.values for layer in layers] == [
        {"x": {"y": "-1"}},
        {"seed_everything": 3},
        {"x": {"list": ["b"]}},
    ]
    assert isinstance(layers[0].values["x"]["y"], Text)
    assert layers[0].gives(("x", "y"))
    assert not layers[0].gives(("x", "y", "z"))
    assert layers[0].name(("x", "init_args", "y", "[0]")) == "--x.y[0]"
    assert layers[1].name(("seed_everything",)) == "seed_everything"


def test_values_may_hold_equals_signs_and_spaces() -> None:
    assert list(options(["--a=b=c", "--clients", "{8: 5}", "--a="])) == [
        ("a", "b=c"),
        ("clients", "{8: 5}"),
        ("a", ""),
    ]
    assert list(options(["--flag", "-c", "a", "--", "--a", "-1"])) == [
        ("flag", None),
        ("config", "a"),
        ("", None),
        ("a", "-1"),
    ]


@pytest.mark.parametrize(
    "word", ["--help", "-h", "--data.help", "--trainer.callbacks.help=Progress"]
)
def test_help_is_asked_for(word: str) -> None:
    assert asks_help(["--config", "a", word])
    assert read_layers([word, "nonsense"]) == []


@pytest.mark.parametrize("word", ["--helper", "--data.helping", "help"])
def test_help_is_not_asked_for(word: str) -> None:
    assert not asks_help(["--config", "a", word])


@pytest.mark.parametrize("word", ["--trainer.max_rounds", "--flag"])
def test_an_option_without_a_value(word: str) -> None:
    with pytest.raises(ConfigError, match=f"^{word} expected one argument, got none$"):
        read_layers([word])


def test_a_list_that_is_added_to_a_list_is_several_items() -> None:
    (several, one) = read_layers(["--x+=[1, a]", "--x+={a: 1"])
    assert several.values == {"x": [1, "a"]}
    assert one.values == {"x": ["{a: 1"]}
    assert isinstance(one.values["x"][0], Text)
