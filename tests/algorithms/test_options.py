"""Every option of every algorithm has an effect on a run: what has none to show is no option."""

import inspect
import re
import warnings
from dataclasses import fields, is_dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from bhfl import algorithms
from bhfl.algorithms.fedlq import Budget, Sensitivity
from bhfl.algorithms.prowd import Dequantizer, Mask
from bhfl.comm.network import Profile, SimulatedNetwork
from bhfl.downlink import Downlink
from bhfl.engine.checkpoint import digest
from tests.federation import Client, fake, fit

CLIENTS = (("ternary", 2), (8, 1), (32, 2))
TWICE = {"max_rounds": 2}
"""Runs whose first round does not show an option; of all others it is enough."""
FEW_HIGH = (("ternary", 5), (32, 1))
RARE = {"clients": FEW_HIGH, "clients_per_round": 2, "sampling": "uniform", **TWICE}
"""Rounds without a high-bit client."""
LATE = {"clients": ((32, 4),), "network": 0.7}
SLOW = {"network": 2.5}
DIFFERENCES = {"max_rounds": 2, "downlink": Downlink(8, "differences")}
"""The deadline of a slow network."""
SOON = Dequantizer(warmup_rounds=1, period=1, first_steps=2, steps=2, buffer_size=8)
OFTEN = Sensitivity(refresh=1)
BY_CLIENTS = Sensitivity("clients", refresh=1)
FEW = {"straggler_fraction": 0.9}
OTHER = algorithms.FedDyn(0.1)
WIDE = {"features": "net.1"}
HEAD = {"personal": ("net.5",)}
HEAD_FIRST = {**HEAD, "head_steps": 1}
MANY = {"clients": (("ternary", 4), (32, 4)), "min_clients": 8}
PRIVATE = {"sampling": "poisson", "weights": "uniform"}

Case = tuple[Any, dict[str, Any], dict[str, Any]]
"""Another value of an option, what else the algorithm is made with, and options of the trainer."""
CASES: dict[str, dict[str, Case]] = {
    "FedProx": {
        "mu": (1.0, {}, {}),
        "straggler_fraction": (0.9, {}, {}),
        "stragglers": ("drop", FEW, {}),
    },
    "FedPAQ": {
        "bits": (4, {}, {}),
        "norm": ("l2", {}, {}),
        "bucket_size": (7, {}, {}),
        "error_feedback": (True, {"bits": 3}, TWICE),
        "top_k": (0.1, {}, {}),
    },
    "FedCOM": {
        "bits": (4, {}, {}),
        "server_lr": (0.5, {}, {}),
        "norm": ("l2", {}, {}),
        "bucket_size": (7, {}, {}),
        "error_feedback": (True, {"bits": 3}, TWICE),
        "top_k": (0.1, {}, {}),
    },
    "FedCOMGATE": {
        "bits": (4, {"allow_inexact": True}, {}),
        "server_lr": (0.5, {"allow_inexact": True}, {}),
        "norm": ("l2", {"allow_inexact": True}, {}),
        "bucket_size": (7, {"allow_inexact": True}, {}),
        "allow_inexact": (True, {}, {}),
        "top_k": (0.1, {"allow_inexact": True}, {}),
    },
    "SCAFFOLD": {"server_lr": (0.5, {}, {}), "control_bits": (32, {}, {})},
    "MOON": {
        "features": ("net.4", WIDE, TWICE),
        "mu": (0.0, WIDE, TWICE),
        "temperature": (0.1, WIDE, TWICE),
    },
    "FedDyn": {"alpha": (0.1, {}, {})},
    "Ditto": {"lam": (1.0, {}, {})},
    "FedExP": {"eps": (1e3, {}, {})},
    "FedPer": {"personal": (("net.3", "net.5"), HEAD, {})},
    "FedRep": {
        "personal": (("net.3", "net.5"), HEAD_FIRST, {}),
        "head_steps": (2, HEAD_FIRST, {"local_epochs": 3}),
    },
    "Median": {"client": (OTHER, {}, {})},
    "TrimmedMean": {"trim": (0.3, {}, {}), "client": (OTHER, {}, {})},
    "Krum": {"wild": (2, {}, MANY), "chosen": (2, {}, MANY), "client": (OTHER, {}, MANY)},
    "GeometricMedian": {
        "steps": (1, {}, {}),
        "smoothing": (10.0, {}, {}),
        "client": (OTHER, {}, {}),
    },
    "ClippedMean": {
        "bound": (0.01, {}, {}),
        "quantile": (0.5, {}, {}),
        "rate": (1.0, {"quantile": 0.5}, {}),
        "client": (OTHER, {}, {}),
    },
    "DPFedAvg": {
        "bound": (0.01, {}, PRIVATE),
        "noise_multiplier": (2.0, {}, PRIVATE),
        "delta": (1e-3, {}, PRIVATE),
        "quantile": (0.5, {}, PRIVATE),
        "rate": (1.0, {"quantile": 0.5}, PRIVATE),
        "count_noise": (2.0, {"quantile": 0.5}, PRIVATE),
    },
    "AdaQuantFL": {
        "bits": (4, {}, {}),
        "max_bits": (2, {}, TWICE),
        "norm": ("l2", {}, {}),
        "error_feedback": (True, {}, TWICE),
        "top_k": (0.1, {}, {}),
    },
    "GroupedAvgAsymmetric": {"rule": ("all", {}, {})},
    "ProWD": {
        "mask": (None, {"dequantizer": None}, {}),
        "mask.coarse": (None, {"dequantizer": None}, {}),
        "mask.tau": (0.5, {"dequantizer": None}, {}),
        "mask.scope": ("model", {"dequantizer": None}, {}),
        "mask.per": ("group", {"dequantizer": None}, {}),
        "mask.fill": ("high", {"dequantizer": None}, {}),
        "mask.high_max_age": (0, {"dequantizer": None}, RARE),
        "dequantizer": (None, {"dequantizer": SOON}, {}),
        "dequantizer.ladder": ((2, 4, 8, 32), {"dequantizer": SOON}, {}),
        "dequantizer.warmup_rounds": (2, {"dequantizer": SOON}, {}),
        "dequantizer.period": (2, {"dequantizer": SOON}, TWICE),
        "dequantizer.first_steps": (3, {"dequantizer": SOON}, {}),
        "dequantizer.steps": (3, {"dequantizer": SOON}, TWICE),
        "dequantizer.distill_weight": (0.5, {"dequantizer": SOON}, {}),
        "dequantizer.buffer_size": (9, {"dequantizer": SOON}, {}),
        "dequantizer.pool_size": (1, {"dequantizer": SOON}, {}),
        "dequantizer.lr": (1e-4, {"dequantizer": SOON}, {}),
        "dequantizer.arch": ("pointwise", {"dequantizer": SOON}, {}),
        "dequantizer.bound": ("none", {"dequantizer": SOON}, {}),
        "global_models": ("single", {"dequantizer": None}, {}),
        "payload": ("delta", {"dequantizer": None}, {}),
        "delta_ref": ("broadcast", {"dequantizer": None}, {}),
        "client": (OTHER, {"dequantizer": None, "global_models": "single"}, {}),
        "error_feedback": (True, {"dequantizer": None, "payload": "delta"}, TWICE),
    },
    "FedLQ": {
        "payload": ("delta", {}, {}),
        "candidates": ((2, 8), {}, {}),
        "budget.rule": ("quantile", {}, SLOW),
        "budget.average_bits": (6, {}, {}),
        "budget.quantile": (0.3, {"budget": Budget("quantile")}, SLOW),
        "sensitivity.source": ("clients", {"sensitivity": OFTEN}, {}),
        "sensitivity.bits": ((3,), {"sensitivity": OFTEN}, {}),
        "sensitivity.samples": (8, {"sensitivity": BY_CLIENTS}, {}),
        "sensitivity.refresh": (2, {"sensitivity": OFTEN}, TWICE),
        "sensitivity.decay": (0.0, {"sensitivity": OFTEN}, TWICE),
        "sensitivity.shrinkage": (0.0, {"sensitivity": OFTEN}, {}),
        "sensitivity.metric": ("accuracy", {"sensitivity": OFTEN}, {}),
        "sensitivity.joint": ("convex", {"sensitivity": OFTEN}, {}),
        "solver": ("greedy_down", {"budget": Budget(average_bits=3.7)}, {}),
        "infeasible": ("skip", {"budget": Budget("deadline")}, LATE),
        "plan": ("server", {}, {}),
        "side_bits": (8, {"payload": "delta"}, {}),
        "both_ways": (True, {"budget": Budget("quantile")}, {**SLOW, **DIFFERENCES}),
        "error_feedback": (True, {"payload": "delta"}, TWICE),
    },
}
OPTIONS = [(name, key) for name, options in CASES.items() for key in options]


class Forward(Client):
    """A client with a forward pass, through which ProWD distils."""

    def forward(self, x):
        return self.net(x)


def Plain():
    """One without momentum."""
    return Forward(momentum=0.0)


def defaults_of(name: str) -> dict[str, Any]:
    """The options of an algorithm, groups as one."""
    _, *parameters = inspect.signature(getattr(algorithms, name).__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD}


def options_of(name: str) -> set[str]:
    """The options of an algorithm, those of groups by dotted keys."""
    found = set()
    for key, default in defaults_of(name).items():
        inner = fields(default) if is_dataclass(default) else []
        found |= {f"{key}.{field.name}" for field in inner}
        if not inner or name == "ProWD":  # whose groups can be left out
            found.add(key)
    return found


def test_every_option_is_looked_at():
    found = {name: options_of(name) for name in algorithms.__all__}
    assert {name: keys for name, keys in found.items() if keys} == {
        name: set(cases) for name, cases in CASES.items()
    }


def network(deadline: float) -> SimulatedNetwork:
    profile = Profile(uplink_bps=2e4, downlink_bps=8e4, compute_flops=1e9, spread=0.9)
    return SimulatedNetwork("slow", {"slow": profile}, deadline_seconds=deadline)


@cache
def _run(folder, name: str, given: tuple, settings: tuple) -> str:
    trainer_options = {"max_rounds": 1, "seed": 3, **dict(settings)}
    clients = dict(trainer_options.pop("clients", CLIENTS))
    if "network" in trainer_options:
        trainer_options["network"] = network(trainer_options["network"])
    algorithm = getattr(algorithms, name)(**dict(given))
    data = fake(120, holdout=24)
    try:
        module = Plain if name == "SCAFFOLD" else Forward
        run = fit(folder, algorithm, clients, module, data, **trainer_options)
    except ValueError as error:
        # FedCOMGATE alone refuses a run, unless allow_inexact
        if (name, given) != ("FedCOMGATE", ()):
            raise
        return str(error)
    rows = []
    for row in run.run.history:
        rows.append({key: value for key, value in row.items() if not key.startswith("time/")})
    return digest([run.server.params, run.server.extra, repr(rows)])


def outcome(folder, name: str, given: dict[str, Any], settings: dict[str, Any]) -> str:
    """What a run came to; equal runs are made once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _run(folder, name, tuple(given.items()), tuple(settings.items()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("options")


@pytest.mark.parametrize(("name", "key"), OPTIONS, ids=[".".join(pair) for pair in OPTIONS])
def test_an_option_has_an_effect(folder, name, key):
    value, given, settings = CASES[name][key]
    option, _, inner = key.partition(".")
    other = value
    if inner:
        other = replace(given.get(option, defaults_of(name)[option]), **{inner: value})
    assert outcome(folder, name, given, settings) != outcome(
        folder, name, {**given, option: other}, settings
    )


WRONG = [
    None,
    True,
    "word",
    "",
    b"bytes",
    -1,
    0,
    1,
    4,
    2.5,
    1e-300,
    1e300,
    10**400,
    float("nan"),
    float("inf"),
    [],
    ["word", 1],
    [[4]],
    {},
    {"bits": 4},
    object(),
    torch.tensor([4, 8]),
    np.array([4, 8]),
    np.int64(4),
    iter([4]),
]
NEEDED = {"MOON": WIDE, "FedPer": HEAD, "FedRep": HEAD_FIRST}
MADE = [*sorted(CASES), Mask, Dequantizer, Budget, Sensitivity]


@pytest.mark.parametrize("made", MADE, ids=lambda made: getattr(made, "__name__", made))
def test_a_wrong_value_is_refused_by_its_name(made):
    """It is taken, or refused by an error that names its option."""
    cls = getattr(algorithms, made) if isinstance(made, str) else made
    keys = CASES[made] if isinstance(made, str) else [field.name for field in fields(cls)]
    for key, value in product(keys, WRONG):
        if "." in key:
            continue
        try:
            cls(**{**NEEDED.get(made, {}), key: value})
        except ValueError as error:
            told = str(error)
            assert re.search(rf"\.{key}\b", told) and len(told) < 600, (key, value, told)  # noqa: PT018


def test_the_groups_are_those_that_can_be_imported():
    found = {**defaults_of("ProWD"), **defaults_of("FedLQ")}
    for group in (Mask, Dequantizer, Budget, Sensitivity):
        assert found[group.__name__.lower()] == group()
