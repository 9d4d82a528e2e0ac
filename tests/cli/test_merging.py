"""Layers laid one over the other: what is merged, what is replaced, what a class starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import pytest
import torch
import yaml
from torch import nn

from bhfl.cli.hints import Checked, Instance, Section
from bhfl.cli.reading import Layer, read_layers
from bhfl.cli.schema import Checker
from bhfl.data import Partitioner
from bhfl.engine.algorithm import Algorithm
from tests.cli.conftest import Command

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Mask:
    tau: float = 0.05
    scope: str = "layer"


SCHEMA = Section(
    {
        "algorithm": Instance(Algorithm),
        "clients": Checked(len),
        "trainer": Section({"name": str, "rounds": int, "items": list[str], "mode": Optional[str]}),
        "mask": Union[Mask, None],
        "optimizer": Optimizer,
        "partition": Partitioner,
        "parts": list[Partitioner],
        "table": dict[str, Any],
        "rates": dict[str, float],
        "words": Optional[dict[str, str]],
    }
)
SGD: dict[str, Any] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
# of a name that no other package has, which a short one leads to in any process
RPROP: dict[str, Any] = {"class_path": "torch.optim.Rprop", "init_args": {"lr": 0.1}}


def merged(*given: Any) -> dict[str, Any]:
    """What layers come to: mappings are files, words are typed."""
    checker = Checker(SCHEMA, {"optimizer": {"class_path": "torch.optim.SGD"}})
    layers = []
    for one in given:
        layers += [Layer(one, "f")] if isinstance(one, dict) else read_layers([one])
    for layer in layers:
        assert checker(layer) == []
    return checker.merged


ADAM = "--optimizer=torch.optim.Adam"
CASES: list[tuple[list[Any], dict[str, Any]]] = [
    # sections key by key, other mappings whole
    (
        [{"trainer": {"name": "a"}}, {"trainer": {"rounds": 3}}],
        {"trainer": {"name": "a", "rounds": 3}},
    ),
    ([{"trainer": {"name": "a"}}, "--trainer.name=1e3"], {"trainer": {"name": "1e3"}}),
    # null is a word where text alone is wanted
    ([{"trainer": {"mode": "a"}}, "--trainer.mode=null"], {"trainer": {"mode": None}}),
    ([{"trainer": {"name": "a"}}, "--trainer.name=null"], {"trainer": {"name": "null"}}),
    ([{"table": {"a": 1}}, {"table": {"b": 2}}], {"table": {"b": 2}}),
    ([{"table": {"a": 1}}, "--table={b: 2}"], {"table": {"b": 2}}),
    ([{"table": {"a": 1}}, "--table.b=2"], {"table": {"a": 1, "b": 2}}),
    ([{"table": {"a": 1}}, "--table.b=[word"], {"table": {"a": 1, "b": "[word"}}),
    ([{"clients": {8: 5}}, "--clients={4: 1}"], {"clients": {4: 1}}),
    ([{"clients": {"int8": 5}}, "--clients.int4=1"], {"clients": {"int8": 5, "int4": 1}}),
    ([{"rates": {"a": 1.0}}, "--rates.b=2.5"], {"rates": {"a": 1.0, "b": 2.5}}),
    ([{"words": {"a": "x"}}, "--words.b=1e3"], {"words": {"a": "x", "b": "1e3"}}),
    # options of an option
    ([{"mask": {"tau": 0.1}}, {"mask": {"scope": "m"}}], {"mask": {"tau": 0.1, "scope": "m"}}),
    ([{"mask": {"tau": 0.1}}, "--mask={scope: m}"], {"mask": {"tau": 0.1, "scope": "m"}}),
    ([{"mask": {"tau": 0.1}}, "--mask=null", "--mask.scope=m"], {"mask": {"scope": "m"}}),
    ([{"mask": None}, "--mask.tau=3"], {"mask": {"tau": 3}}),
    # a class that is named starts from its own defaults, and keeps its options when named again
    ([{"optimizer": SGD}, ADAM], {"optimizer": {"class_path": "torch.optim.Adam"}}),
    (
        [{"optimizer": SGD}, ADAM, "--optimizer.lr=0.2"],
        {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.2}}},
    ),
    ([{"optimizer": RPROP}, ADAM, "--optimizer=Rprop"], {"optimizer": {"class_path": "Rprop"}}),
    ([{"optimizer": RPROP}, "--optimizer=Rprop"], {"optimizer": {**RPROP, "class_path": "Rprop"}}),
    ([{"optimizer": SGD}, "--optimizer={class_path: torch.optim.SGD}"], {"optimizer": SGD}),
    (
        [{"optimizer": SGD}, "--optimizer.lr=1"],
        {"optimizer": {**SGD, "init_args": {"lr": 1, "momentum": 0.9}}},
    ),
    (
        [{"optimizer": SGD}, {"optimizer": {"lr": 2}}, {"optimizer": {"init_args": {"lr": 3}}}],
        {"optimizer": {**SGD, "init_args": {"lr": 3, "momentum": 0.9}}},
    ),
    (
        [{"optimizer": {"lr": 2}}, {"optimizer": SGD}],
        {"optimizer": SGD},
    ),
    (
        [{"optimizer": SGD}, "--optimizer.class_path=torch.optim.Adam"],
        {"optimizer": {"class_path": "torch.optim.Adam"}},
    ),
    (
        ["--partition=Dirichlet", "--partition.alpha=3"],
        {"partition": {"class_path": "Dirichlet", "init_args": {"alpha": 3}}},
    ),
    # lists are replaced, added to, and changed at their end
    ([{"trainer": {"items": ["a"]}}, {"trainer": {"items": ["b"]}}], {"trainer": {"items": ["b"]}}),
    ([{"trainer": {"items": ["a"]}}, "--trainer.items+=on"], {"trainer": {"items": ["a", "on"]}}),
    (["--trainer.items+=a", "--trainer.items+=[b, c]"], {"trainer": {"items": ["a", "b", "c"]}}),
    (["--trainer.items+=a", "--trainer.items=[b]"], {"trainer": {"items": ["b"]}}),
    (
        ["--parts+=IID", "--parts+=Dirichlet", "--parts.alpha=3"],
        {
            "parts": [
                {"class_path": "IID"},
                {"class_path": "Dirichlet", "init_args": {"alpha": "3"}},
            ]
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), CASES, ids=str)
def test_layers_over_layers(given: list[Any], expected: dict[str, Any]) -> None:
    assert merged(*given) == expected


@pytest.mark.parametrize(("args", "lr"), [
    (["--model.optimizer", "torch.optim.Adam"], 0.001),
    (["--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", "0.2"], 0.2),
    (["--model.optimizer", "torch.optim.SGD"], 0.1),
])  # fmt: skip
def test_an_optimiser_that_is_named_trains_at_its_own_rate(
    bhfl: Command, tmp_path: Path, args: list[str], lr: float
) -> None:
    (tmp_path / "sgd.yaml").write_text(yaml.safe_dump({"model": {"optimizer": SGD}}))
    done = bhfl("fit", "--config", "tiny.yaml", "--config", "sgd.yaml", *args, "--print_config")
    assert (done.code, done.err) == (0, "")
    optimizer = yaml.safe_load(done.out)["model"]["init_args"]["optimizer"]
    assert optimizer["init_args"]["lr"] == lr


def test_typed_options_that_come_too_early_are_told(bhfl: Command) -> None:
    words = ["--model.optimizer.lr", "0.2", "--model.optimizer", "torch.optim.Adam"]
    done = bhfl("fit", "--config", "tiny.yaml", *words, "--print_config")
    assert yaml.safe_load(done.out)["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.001
    assert done.err == (
        "note: --model.optimizer.lr has no effect: a later option replaces what it belongs to\n"
    )


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--trainer.downlink", "client"], "client"),
        (["--trainer.downlink", "4"], 4),
        (
            ["--trainer.downlink", "{bits: 4, send: differences}"],
            {"bits": 4, "send": "differences", "keep": 5},
        ),
        (
            ["--trainer.downlink.send=differences", "--trainer.downlink.keep=2"],
            {"bits": "client", "send": "differences", "keep": 2},
        ),
        # the word before is short for the first of the group
        (
            ["--trainer.downlink=4", "--trainer.downlink.send=differences"],
            {"bits": 4, "send": "differences", "keep": 5},
        ),
        (
            ["--trainer.downlink=float32", "--trainer.downlink={send: differences}"],
            {"bits": "float32", "send": "differences", "keep": 5},
        ),
    ],
)
def test_an_option_may_be_a_word_or_a_group(bhfl: Command, words: list[str], meant: object) -> None:
    done = bhfl("fit", "--config", "tiny.yaml", *words, "--print_config")
    assert (done.code, done.err) == (0, "")
    assert yaml.safe_load(done.out)["trainer"]["downlink"] == meant
    refused = bhfl("fit", "--config", "tiny.yaml", "--trainer.downlink", "{sent: weights}")
    assert (refused.code, refused.out) == (2, "")
    assert "sent is an unknown option of Downlink; did you mean 'send'?" in refused.err
