"""What an object was made with is known whatever becomes of it, and can be written down."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bhfl.recorded import Recorded, described, flatten, plain, public_path


class Bare(Recorded):
    pass


class Base(Recorded):
    def __init__(self, lr: float = 0.1, *, steps: int = 5) -> None:
        self.lr, self.steps = lr, steps


class Derived(Base):
    def __init__(self, nu: float, *more: float, **options: Any) -> None:
        super().__init__(**options)
        self.nu = nu


class Heir(Derived):
    pass


@dataclass
class Tuning:
    threads: int = 1
    _seen: int = 0


@dataclass
class Made(Recorded):
    mu: float
    tuning: Tuning = field(default_factory=Tuning)


class Kind(Enum):
    FAST = 1


def made_with(thing: Any) -> Any:
    return described(thing)["init_args"]


def test_defaults_are_arguments_too() -> None:
    assert made_with(Base()) == {"lr": 0.1, "steps": 5}
    assert made_with(Base(0.5, steps=2)) == {"lr": 0.5, "steps": 2}
    assert made_with(Bare()) == {}


@pytest.mark.parametrize("cls", [Derived, Heir])
def test_options_are_followed_to_the_bases(cls: type) -> None:
    assert made_with(cls(1.0, steps=7)) == {"nu": 1.0, "lr": 0.1, "steps": 7}


def test_a_constructor_that_a_decorator_makes() -> None:
    found = flatten(described(Made(0.5, Tuning())), "a")
    assert found == {"a": f"{__name__}.Made", "a.mu": 0.5, "a.tuning.threads": 1, "a.tuning": True}


def test_what_happens_later_changes_nothing() -> None:
    tuning = Tuning(2)
    thing = Made(0.5, tuning)
    tuning.threads = 9
    thing.mu = 2.0
    for one in (thing, copy.copy(thing), copy.deepcopy(thing)):
        assert made_with(one)["mu"] == 0.5
        assert made_with(one)["tuning"]["init_args"] == {"threads": 2}


def test_wrong_arguments_are_refused_as_ever() -> None:
    with pytest.raises(TypeError, match=r"Bare\(\) takes no arguments"):
        Bare(1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'steep'"):
        Base(steep=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'nu'"):
        Derived()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, None),
        (True, True),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (Path("a/b"), "a/b"),
        ((1, 2), [1, 2]),
        ({8: (1,)}, {"8": [1]}),
        (np.arange(3), [0, 1, 2]),
        (torch.tensor([0.5, 1.0]), [0.5, 1.0]),
        (Kind.FAST, "Kind.FAST"),
        (torch.optim.SGD, "torch.optim.SGD"),
        (plain, "bhfl.recorded.plain"),
        (Base(0.5), {"class_path": f"{__name__}.Base", "init_args": {"lr": 0.5, "steps": 5}}),
    ],
)
def test_values_are_plain(value: Any, written: Any) -> None:
    assert plain(value) == written
    json.dumps(plain(value), allow_nan=False)


def test_long_lists_and_large_arrays_are_told_in_short() -> None:
    assert plain(list(range(1000))) == {"class_path": "builtins.list", "init_args": {"len": 1000}}
    assert plain(torch.zeros(10**5)) == {"class_path": "torch.Tensor", "init_args": {"len": 10**5}}


def test_objects_of_other_classes_are_their_public_attributes() -> None:
    class Plain:
        def __init__(self, size: int) -> None:
            self.size, self._secret, self.self = size, 1, self

        def __len__(self) -> int:
            return 7

    found = made_with(Plain(3))
    assert (found["size"], found["len"]) == (3, 7)
    assert "_secret" not in found
    assert plain(Plain(3), deep=False) == public_path(Plain)


def test_a_path_is_the_shortest_that_can_be_imported() -> None:
    from bhfl.algorithms import ProWD
    from bhfl.data import Digits

    assert public_path(ProWD) == "bhfl.algorithms.ProWD"
    assert public_path(Digits) == "bhfl.data.Digits"
    assert public_path(functools.wraps) == "functools.wraps"


def test_it_loads_no_torch() -> None:
    script = (
        "import sys, bhfl.recorded; assert not {'torch', 'lightning', 'numpy'} & {*sys.modules}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
