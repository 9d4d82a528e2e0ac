from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TypeVar, Union

import pytest
import torch
from jsonargparse.typing import PositiveInt
from torch import nn

from bhfl.algorithms import FedProx
from bhfl.cli.classes import indefinite, resolve
from bhfl.cli.hints import Section
from bhfl.cli.naming import parameters
from bhfl.cli.reading import Layer, Text
from bhfl.cli.schema import Checker
from bhfl.data import CIFAR10, Digits, Partitioner
from bhfl.engine.algorithm import Algorithm


class Colour(Enum):
    RED = 1


OptimizerCallable = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def problems(hint: Any, value: Any, defaults: Mapping[str, Any] | None = None) -> list[str]:
    return Checker(Section({"x": hint}), defaults or {})(Layer({"x": value}, "f"))


FITS = [
    (int, 3), (float, 3), (float, 0.5), (bool, True), (str, "a"), (None, None),
    (Any, [1, {"a": None}]), (Optional[int], None), (int | None, 4),
    (Union[int, str, list[int]], [1, 2]), (Annotated[int, "count"], 3), (Literal["a", "b"], "a"),
    (Literal[1, 2], 2), (list[int], []), (tuple[int, ...], [1, 2]), (Iterable[str], ["a"]),
    (dict[str, int], {"a": 1}), (Mapping[str, Any], {}), (Path, "a/b"),
    (Union[float, torch.Tensor], 0.1), (Partitioner, "IID"),
    (Partitioner, "bhfl.data.partition.Dirichlet"), (Partitioner, {"class_path": "Dirichlet"}),
    (Partitioner, {"class_path": "Dirichlet", "init_args": {"alpha": 1}}),
    (OptimizerCallable, "SGD"),
    (OptimizerCallable, {"class_path": "torch.optim.SGD", "init_args": {"lr": 1}}),
    (Union[str, nn.Module], "cnn"), (timedelta, "0:01:00"), (Colour, "RED"), (PositiveInt, 3),
    (type[int], "int"), (TypeVar("T"), 3), (bytes, "a"),
]  # fmt: skip

MISFITS = [
    (int, 3.0, "an integer, got 3.0"), (int, True, "an integer, got true"),
    (int, "3", "an integer, got '3'"), (int, None, "an integer, got null"),
    (float, "x", "a number, got 'x'"), (float, False, "a number, got false"),
    (float, float("inf"), "a number, got inf"), (bool, 1, "true or false, got 1"),
    (str, 3, "text, got 3"), (Optional[int], "a", "an integer or null, got 'a'"),
    (Literal["aa", "bb"], "ab", "one of aa, bb, got 'ab'"),
    (Literal[1], True, "one of 1, got true"), (list[int], 3, "a list, got 3"),
    (dict[str, int], [], "a mapping, got []"), (list[int], ["a"], "x[0] must be an integer"),
    (Path, 3, "a path, got 3"), (Union[float, torch.Tensor], "a", "a number, got 'a'"),
    (Partitioner, 3, "a Partitioner (class_path and init_args), got 3"),
    (Partitioner, "Iid", "did you mean 'IID'?"),
    (Partitioner, {"class_path": "IID", "init_args": {"a": 1}}, "x.a is an unknown option of IID"),
    (
        OptimizerCallable, {"class_path": "SGD", "init_args": {"lr": "x"}},
        "x.lr must be a number, got 'x'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("hint", "value"), FITS)
def test_values_that_fit(hint: Any, value: Any) -> None:
    assert problems(hint, value) == []


@pytest.mark.parametrize(("hint", "value", "message"), MISFITS)
def test_values_that_do_not(hint: Any, value: Any, message: str) -> None:
    (problem,) = problems(hint, value)
    assert message in problem


@pytest.mark.parametrize(("hint", "text", "fits"), [
    (int, "3", True), (int, "'3'", False), (str, "3", True), (str, "yes", True),
    (bool, "true", True), (bool, "yes", False), (list[int], "[1, 2]", True),
    (Optional[int], "null", True), (int, "null", False), (Partitioner, "IID", True),
    (Partitioner, "{class_path: Dirichlet, init_args: {alpha: x}}", False),
    (Literal["a"], "a", True), (float, "nan", False),
])  # fmt: skip
def test_typed_values(hint: Any, text: str, fits: bool) -> None:
    assert (problems(hint, Text(text)) == []) == fits


def test_a_class_holds_for_later_layers() -> None:
    checker = Checker(Section({"data": Partitioner}), {"data": {"class_path": "bhfl.data.IID"}})
    assert checker(Layer({"data": {"alpha": 1}}, "f")) == [
        "f:1: data.alpha is an unknown option of IID; name a class that has it: Dirichlet, "
        "QuantitySkew"
    ]
    assert checker(Layer({"data": "Dirichlet"}, "f")) == []
    assert checker(Layer({"data": {"alpha": 1}}, "f")) == []
    assert checker(Layer({"data": {"init_args": {"alpha": 1.5, "beta": 1}}}, "f"))[0].startswith(
        "f:1: data.beta is an unknown option"
    )


def test_options_of_an_unknown_class_are_left_to_the_parser() -> None:
    checker = Checker(Section({"data": Partitioner}), {"data": {"class_path": "bhfl.data.IID"}})
    assert (
        len(checker(Layer({"data": {"class_path": "Nope", "init_args": {"alpha": 1}}}, "f"))) == 1
    )


def test_parameters_follow_options_to_the_bases() -> None:
    fields, is_open = parameters(CIFAR10)
    assert {"archive", "root", "download", "partition", "batch_size"} <= fields.keys()
    assert not is_open
    assert parameters(Digits)[0].keys() == fields.keys() - {"archive", "root", "download"}


def test_parameters_of_a_class_that_takes_anything() -> None:
    class Open:
        def __init__(self, a: int, **anything: Any) -> None: ...

    class Loose:
        def __init__(self, a: int = None, b=3) -> None: ...  # noqa: RUF013

    assert parameters(Open) == ({"a": int}, True)
    assert parameters(Loose) == ({"a": Optional[int], "b": Any}, False)
    assert parameters(type("Bare", (), {})) == ({}, False)


def test_resolve() -> None:
    assert resolve("FedProx", Algorithm) is resolve("bhfl.algorithms.FedProx", Algorithm) is FedProx
    assert indefinite(Algorithm) == "an Algorithm"
    for name in (
        "torch.nn",
        "torch.nn.functional.relu",
        "json.JSONDecoder",
        "bhfl.algorithms.Nope",
        "a b",
        "",
        3,
        None,
    ):
        with pytest.raises(ValueError, match="must name an Algorithm"):
            resolve(name, Algorithm)
