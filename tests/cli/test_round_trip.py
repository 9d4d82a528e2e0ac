"""What is accepted is written to ``config.yaml`` and ``--print_config``, and reads back equal."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bhfl.cli.hints import Section
from bhfl.cli.parser import Parser
from bhfl.cli.reading import ConfigError, Layer, read_text
from bhfl.cli.schema import Checker
from bhfl.plain import plain, written
from tests.cli.conftest import Command

TEXTS = [
    "1e3", "7e12345", "+.5", "-1e3", "1_0e2", "._", "0x10", "0b1", "012", "08", "0o7", "on", "yes",
    "No", "null", "~", "Null", "2024-01-01", ".inf", "-.INF", ".nan", "1:30", "1:30.5", "=", "<<",
    "", " ", "  a ", "a: b", "a #b", "#", "'", '"', "[1", "[1, 2]", "{a", "{a: 1}", "*a", "&a",
    "!x", "!!int x", "!!timestamp x", "!!bool x", "- a", "? a", "%", "@", "`", "|", "é", "𝔘",
    "a\nb", "a\n", "\n", "\t", "a\tb", "\u2028", "\x85", "\ufeff", "\x01", "12e", "²", "٣", "-",
    "--", "9" * 5000, "NaN", "True", "x" * 300, "a  b" * 60, "{a, b}", "a:", "1.10", "[" * 40,
]  # fmt: skip
texts = st.one_of(
    st.sampled_from(TEXTS[:-3]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40),
)


class Colour(enum.Enum):
    RED = 1
    ON = 2


SCALARS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (bool, st.booleans()),
    (str, texts),
    (set[str], st.lists(texts, unique=True)),
    (Literal["a", "on", 3, None], st.sampled_from(["a", "on", 3, None])),
    (Colour, st.sampled_from(["RED", "ON"])),
    (Path, texts.filter(lambda text: text.strip() not in ("", "-"))),
    (Callable, st.sampled_from(["torch.nn.functional.relu", "math.sqrt", "torch.nn.ReLU"])),
    (Any, st.one_of(texts, st.integers(), st.none(), st.lists(st.integers()))),
]


@st.composite
def typed(draw: st.DrawFn, depth: int = 2) -> tuple[Any, st.SearchStrategy[Any]]:
    """A type hint and values of it, as a file spells them."""
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(SCALARS))
    inner, values = draw(typed(depth - 1))
    other, others = draw(typed(depth - 1))
    return draw(
        st.sampled_from([
            (list[inner], st.lists(values, max_size=3)),
            (Sequence[inner], st.lists(values, max_size=3)),
            (dict[str, inner], st.dictionaries(texts, values, max_size=3)),
            (tuple[inner, ...], st.lists(values, max_size=3)),
            (tuple[inner, other], st.tuples(values, others).map(list)),
            (Optional[inner], st.one_of(st.none(), values)),
            (Union[inner, other], st.one_of(values, others)),
        ])
    )  # fmt: skip


def accepted(hint: Any, text: str) -> tuple[Any, str]:
    """The value of an option of this hint in a file of this text, and what is written of it."""
    values = read_text(text)
    problems = Checker(Section({"x": hint}), {})(Layer(values, "config.yaml"))
    if problems:
        raise ConfigError(*problems)
    parser = Parser()
    parser.add_argument("--x", type=hint)
    config = parser.parse_object(values)
    return config.x, parser.dump(config, skip_none=False)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_is_accepted_reads_back_equal(data: st.DataObject) -> None:
    hint, values = data.draw(typed())
    try:
        value, text = accepted(hint, written({"x": data.draw(values)}))
    except ConfigError:
        return
    again, same_text = accepted(hint, text)
    assert same(again, value)
    assert same(accepted(hint, same_text)[0], value)


def test_a_number_that_would_be_read_back_as_a_path_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"x: 0 cannot be written to config\.yaml"):
        accepted(Path | int, "x: 0\n")
    value, text = accepted(Path | int, "x: folder\n")
    assert accepted(Path | int, text)[0] == value == Path("folder")


def test_what_jsonargparse_writes_as_another_member_of_a_union_is_refused() -> None:
    refused: list[tuple[Any, str]] = [
        (list[Colour] | list[Callable], "x: [torch.nn.functional.relu, torch.nn.ReLU]\n"),
        (tuple[Path | None, list[Callable]], "x: [null, [torch.nn.ReLU]]\n"),
    ]
    for hint, text in refused:
        with pytest.raises(ConfigError, match=r"^x: .* cannot be written to config\.yaml"):
            accepted(hint, text)
    written_again = accepted(list[Callable], refused[0][1])[1]
    assert written_again.startswith("x:\n- torch.nn.functional.relu\n- class_path")


def same(first: Any, second: Any) -> bool:
    """Whether two values and all in them are of the same kinds and equal."""
    if isinstance(first, (set, frozenset)):
        return type(first) is type(second) and first == second
    if isinstance(first, dict):
        return same(list(first.items()), list(second.items()))
    if isinstance(first, (list, tuple)):
        return (
            type(first) is type(second)
            and len(first) == len(second)
            and all(map(same, first, second))
        )
    return repr(first) == repr(second)


def test_sets_are_written_in_an_order_of_their_own() -> None:
    texts = [f"word {i}" for i in range(20)]
    assert read_text(accepted(set[str], written({"x": texts[::-1]}))[1])["x"] == sorted(texts)


NESTED_SETS: list[Any] = [
    list[set[str]], tuple[set[str], ...], tuple[list[set[str]], ...], list[tuple[set[str], int]],
    tuple[dict[str, set[str]], ...], dict[str, tuple[Optional[set[str]], ...]],
    Optional[tuple[list[Optional[set[str]]], ...]], list[Union[set[str], int]],
    tuple[tuple[Sequence[set[str]], ...], ...], list[frozenset[str]],
]  # fmt: skip


def spelled_as(hint: Any, words: list[str]) -> Any:
    """A value of `hint`, one item in each container, and `words` for a set."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Union:
        return spelled_as(args[0], words)
    if origin is dict:
        return {"key": spelled_as(args[1], words)}
    if origin in (set, frozenset):
        return words
    if hint is int:
        return 3
    args = args[:1] if origin is not tuple or args[-1] is Ellipsis else args
    return [spelled_as(arg, words) for arg in args]


def inner_sets(value: Any) -> Iterator[Any]:
    """The sets in a value."""
    if isinstance(value, (set, frozenset)):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from inner_sets(item)


@pytest.mark.parametrize("hint", NESTED_SETS, ids=str)
def test_sets_in_other_values_stay_sets_and_are_written_in_order(hint: Any) -> None:
    words = [f"word {i}" for i in range(20)]
    shuffled = written({"x": spelled_as(hint, words[::-1])})
    value, text = accepted(hint, shuffled)
    assert list(inner_sets(value)) == [set(words)]
    assert read_text(text)["x"] == spelled_as(hint, sorted(words))
    again, same_text = accepted(hint, text)
    assert same(again, value)
    assert same_text == text


def test_writing_leaves_the_configuration_as_it_is() -> None:
    parser = Parser()
    parser.add_argument("--x", type=tuple[list[tuple[Path, set[str]]], ...])
    config = parser.parse_object({"x": [[["a", ["b"]]]]})
    parser.dump(config)
    assert config.x == ([(Path("a"), {"b"})],)


OPTIONAL = Optional[Callable]
NULLS = ["null", "math.sqrt, null", "null, torch.nn.ReLU", "torch.nn.functional.relu, null"]


@pytest.mark.parametrize(
    "hint", [list[OPTIONAL], tuple[OPTIONAL, ...], Sequence[OPTIONAL]], ids=str
)
@pytest.mark.parametrize("items", NULLS)
def test_null_beside_functions_is_written_as_null(hint: Any, items: str) -> None:
    value, text = accepted(hint, f"x: [{items}]\n")
    assert None in value
    assert None in read_text(text)["x"]
    again, same_text = accepted(hint, text)
    assert same(again, value)
    assert same_text == text


@pytest.mark.parametrize(("hint", "value"), [
    (str, text) for text in TEXTS
] + [(list[str], TEXTS), (dict[str, str], dict(zip(TEXTS, TEXTS, strict=True)))])  # fmt: skip
def test_text_stays_text(hint: Any, value: Any) -> None:
    found, text = accepted(hint, written({"x": value}))
    assert found == value
    assert accepted(hint, text)[0] == value


def test_text_where_numbers_and_truth_values_may_stand_too() -> None:
    for text in ("0x10", "1:30", "on", "yes", "0b1", "#", "1_0"):
        assert accepted(Union[int, float, bool, None, str], written({"x": text}))[0] == text


@pytest.mark.parametrize("text", TEXTS)
def test_no_reader_takes_written_text_for_something_else(text: str) -> None:
    out = written([text, {text: text}])
    assert yaml.safe_load(out) == plain(out) == read_text(out) == [text, {text: text}]


@pytest.mark.parametrize(("text", "why"), [
    ("[" * 60, "nested at most 50 deep"), ("a\0b", "NUL"), ("\udcff", "valid UTF-8"),
    ("- " * 60 + "a", "50 deep"),
])  # fmt: skip
def test_text_that_nothing_could_read_is_refused(text: str, why: str) -> None:
    from bhfl.cli.reading import read_layers

    with pytest.raises(ConfigError, match=why):
        read_layers(["--trainer.name", text])


OWN = """\
import enum, functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, Protocol, Union
import torch, torch.nn.functional as F
from torch import nn
from bhfl.algorithms import FedAvg

@dataclass
class Options:
    a: int = 1

class Shape(Protocol):
    def area(self) -> float: ...

class Outer:
    class Inner(FedAvg): ...

def own(x: int) -> int:
    return x

class Mine(FedAvg):
    def __init__(
        self, function: Callable = F.cross_entropy, maybe: Optional[Callable] = None, typed: Callable[[int], int] = own,
        of_tensors: Callable[[torch.Tensor], torch.Tensor] = F.relu, part: Callable = functools.partial(own, 1),
        nameless: Callable = lambda x: x, pair: tuple[int, str] = (1, "a"), pairs: list[tuple[str, int]] = [("a", 1)],
        infinite: float = float("inf"), ends: tuple[float, float] = (-float("inf"), 0.0), nan: float = float("nan"),
        kind: torch.dtype = torch.float32, device: torch.device = torch.device("cpu"), module: nn.Module = nn.ReLU(),
        anything: Any = (1, 2), untyped=(3, [4]), thing: object = object(), tensor: torch.Tensor = torch.zeros(2),
        options: Options = Options(), many: list[Options] = [Options(2)], text: str = "1e3", version="1.10",
        switch: Union[bool, str] = "on", number: Union[int, str] = "1:30", path: Path = Path("~/x"),
        whole: Optional[dict[str, Optional[tuple[int, Union[int, str]]]]] = None, shape: Optional[Shape] = None,
        unknown: "NoSuch" = None, cls: type[nn.Module] = nn.ReLU, some: set[int] = {2, 1},
    ) -> None:
        self.all = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
"""  # noqa: E501


def algorithm(bhfl: Command, *args: object) -> tuple[dict[str, Any], str]:
    """What an algorithm was given in a run, and the run's ``config.yaml``."""
    import bhfl.cli.federated_cli as cli
    from bhfl.cli.reading import read_layers

    class Built(cli.FederatedCLI):
        def _run_subcommand(self, subcommand: str) -> None: ...

    words = ["fit", "--config", "tiny.yaml", *map(str, args)]
    built = Built(words, read_layers(words[1:]))
    saved = next(
        callback for callback in built.trainer.callbacks if isinstance(callback, cli.SaveConfig)
    )
    return built.trainer.algorithm.all, saved.text


def test_defaults_of_every_kind_are_read_back_or_left_to_the_class(
    bhfl: Command, tmp_path: Path
) -> None:
    (tmp_path / "own_hints.py").write_text(OWN)
    # and finds the module
    assert bhfl("fit", "--algorithm", "own_hints.Mine", "--print_config").code == 0
    given, text = algorithm(bhfl, "--algorithm", "own_hints.Mine")
    (tmp_path / "again.yaml").write_text(text)
    again, same_text = algorithm(bhfl, "--config", "again.yaml")
    assert {key: repr(value) for key, value in again.items()} == {
        key: repr(value) for key, value in given.items()
    }
    assert same_text == text
    kept = yaml.safe_load(text)["algorithm"]["init_args"]
    assert {"function", "pair", "pairs", "text", "path", "options", "kind", "some"} <= kept.keys()
    assert not {"infinite", "ends", "nan", "nameless", "part", "thing", "tensor"} & kept.keys()


def test_values_of_every_kind_that_are_given_are_read_back(bhfl: Command, tmp_path: Path) -> None:
    (tmp_path / "own_values.py").write_text(OWN)
    values = {
        "function": "torch.nn.functional.nll_loss", "maybe": "math.sqrt", "typed": "own_values.own",
        "pair": [7, "1e3"], "pairs": [["on", 2], ["#", 3]], "infinite": 0.5, "ends": [-1, 1e-7],
        "kind": "torch.float16", "text": "on", "switch": True, "number": "x: y",
        "many": [{"a": 5}, {}], "path": "~/a b", "cls": "torch.nn.GELU",
        "module": {
            "class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 2},
        },
        "whole": {"a": [1, "0x10"], "b": None}, "options": {"a": 3},
    }  # fmt: skip
    (tmp_path / "given.yaml").write_text(
        written({"algorithm": {"class_path": "own_values.Mine", "init_args": values}})
    )
    assert bhfl("fit", "--config", "given.yaml", "--print_config").code == 0
    given, text = algorithm(bhfl, "--config", "given.yaml")
    (tmp_path / "again.yaml").write_text(text)
    again, same_text = algorithm(bhfl, "--config", "again.yaml")
    assert {key: repr(value) for key, value in again.items()} == {
        key: repr(value) for key, value in given.items()
    }
    assert same_text == text
    assert (given["pair"], given["pairs"]) == ((7, "1e3"), [("on", 2), ("#", 3)])
    assert given["whole"] == {"a": (1, "0x10"), "b": None}


def test_a_class_inside_a_class(bhfl: Command, tmp_path: Path) -> None:
    (tmp_path / "own_nested.py").write_text(OWN)
    code, out, _ = bhfl("fit", "--algorithm", "own_nested.Outer.Inner", "--print_config")
    assert (code, "class_path: own_nested.Outer.Inner" in out) == (0, True)


# one of each kind: the other forms are among TEXTS
@pytest.mark.parametrize("name", ["1e3", "on", "2024-01-01", "1:30"])
def test_names_like_numbers(bhfl: Command, tmp_path: Path, name: str) -> None:
    code, out, _ = bhfl("fit", "--config", "tiny.yaml", f"--trainer.name={name}", "--print_config")
    assert code == 0
    (tmp_path / "printed.yaml").write_text(out)
    assert bhfl("fit", "--config", "printed.yaml", "--print_config").out == out
    assert yaml.safe_load(out)["trainer"]["name"] == name


R08 = """\
import lightning as L, torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

class Dicts(Dataset):
    def __init__(self, words: bool = False):
        self.words, self.targets = words, ["abcd"[i % 4] if words else i % 4 for i in range(32)]
    def __len__(self): return 32
    def __getitem__(self, i):
        x, y = torch.full((6,), float(i % 4)), i % 4
        return (x, y) if self.words else {"x": x, "y": y}

class Asks(L.LightningModule):
    def __init__(self, num_classes: int = 4, input_shape: tuple[int, ...] = (6,)):
        super().__init__()
        self.net = nn.Linear(6, 4)
    def training_step(self, batch, batch_idx):
        x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
        return F.cross_entropy(self.net(x), y)
    def validation_step(self, batch, batch_idx): self.log("val/acc", self.training_step(batch, batch_idx))
    test_step = validation_step
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), 0.1)

class Model(Asks):
    def __init__(self): super().__init__()
"""  # noqa: E501


@pytest.mark.parametrize("words", ["true", "false"])
def test_a_model_is_given_what_it_takes_alone(bhfl: Command, tmp_path: Path, words: str) -> None:
    (tmp_path / f"own_asked_{words}.py").write_text(R08)
    data = f"{{class_path: own_asked_{words}.Dicts, init_args: {{words: {words}}}}}"
    (tmp_path / "asked.yaml").write_text(
        f"clients: {{32: 1}}\nmodel: own_asked_{words}.Model\n"
        f"data: {{class_path: FromDatasets, init_args: {{train: {data}, test: {data}}}}}\n"
        "trainer: {max_rounds: 1, accelerator: cpu, devices: 1, logger: false}\n"
    )
    assert bhfl("fit", "--config", "asked.yaml")[::2] == (0, "")
    run = "runs/bhfl/version_0"
    assert bhfl("export", "--config", f"{run}/config.yaml", "--ckpt_path", "last")[::2] == (0, "")
    assert "library_name: bhfl" in (tmp_path / run / "export" / "README.md").read_text()
    code, _, err = bhfl("fit", "--config", "asked.yaml", "--model", f"own_asked_{words}.Asks")
    assert code in (2, 3)
    assert "Traceback" not in err
    assert (
        "num_classes must be given for targets that are no numbers" if words == "true" else "dict"
    ) in err
