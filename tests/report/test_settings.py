"""What of a configuration makes runs comparable, and what they are called."""

from typing import Any

import pytest

from bhfl.report import settings
from bhfl.report.settings import Options, fleet, labels
from tests.report.made import config, told


def task(one: dict[str, Any]) -> Options:
    return settings.task(told(one))


def method(one: dict[str, Any]) -> Options:
    return settings.method(told(one))


def titles(configs: list[dict[str, Any]]) -> list[str]:
    return settings.titles([told(one) for one in configs])


def named(*configs: dict[str, Any]) -> list[str]:
    return labels([method(one) for one in configs])


# ---- labels


def test_an_algorithm_alone_needs_no_more() -> None:
    """However much the algorithms' own training differs."""
    assert named(
        config("FedAvg"), config("ProWD", model__optimizer={"init_args": {"lr": 0.1}})
    ) == ["FedAvg", "ProWD"]


def test_a_switch_that_is_on_goes_without_saying() -> None:
    whole, half = config("ProWD", dequantizer=True), config("ProWD", dequantizer=False)
    assert named(whole, half, config("FedAvg")) == ["ProWD", "ProWD (dequantizer=False)", "FedAvg"]


def test_a_learning_rate_is_told_only_where_nothing_else_is_left() -> None:
    """Each row was tuned to its own."""
    rates = [{"init_args": {"lr": rate}} for rate in (0.1, 0.05, 0.02)]
    switches = [{}, {"mask": False}, {"dequantizer": False}]
    configs = [
        config("ProWD", model__optimizer=lr, **off) for lr, off in zip(rates, switches, strict=True)
    ]
    assert named(*configs) == ["ProWD", "ProWD (mask=False)", "ProWD (dequantizer=False)"]
    assert named(*(config("ProWD", model__optimizer=lr) for lr in rates[:2])) == [
        "ProWD (lr=0.1)",
        "ProWD (lr=0.05)",
    ]


def test_what_most_rows_share_goes_without_saying() -> None:
    modes = [("weights", "late"), ("delta", "late"), ("weights", "skip"), ("weights", "late")]
    configs = [
        config("FedLQ", payload=p, infeasible=i, bits=b)
        for (p, i), b in zip(modes, (4, 4, 4, 2), strict=True)
    ]
    assert named(*configs) == [
        "FedLQ",
        "FedLQ (payload=delta)",
        "FedLQ (infeasible=skip)",
        "FedLQ (bits=2)",
    ]


def test_values_of_equal_right_are_all_told() -> None:
    assert named(*(config("FedPAQ", bits=b) for b in (2, 3))) == [
        "FedPAQ (bits=2)",
        "FedPAQ (bits=3)",
    ]


def test_options_of_options_that_are_off_are_told() -> None:
    mask = {"class_path": True, "init_args": {"tau": 0.05, "cap": 1}}
    configs = [config("ProWD", mask=None), config("ProWD", mask=mask), config("FedAvg")]
    assert named(*configs) == ["ProWD (mask=none)", "ProWD", "FedAvg"]


def test_no_label_is_shortened_into_another() -> None:
    """Both are on for most rows, so that two would be called by the name alone."""
    configs = [config("X", a=a, b=b) for a, b in ((True, 1), (True, 2), (False, 1), (False, 2))]
    found = named(*configs)
    assert len(set(found)) == 4
    assert found[3] == "X (a=False, b=2)"


def test_an_option_that_is_not_set() -> None:
    other = config(trainer__server_optimizer={"class_path": "bhfl.engine.server_optimizer.Yogi"})
    assert named(config(), other) == ["FedAvg", "FedAvg (server_optimizer=Yogi)"]


def test_algorithms_of_one_name_are_told_apart() -> None:
    own = {**config(), "algorithm": {"class_path": "mine.FedAvg"}}
    assert named(config(), own) == [
        "FedAvg (algorithm=bhfl.algorithms.FedAvg)",
        "FedAvg (algorithm=mine.FedAvg)",
    ]


def test_options_that_end_alike_are_told_in_full() -> None:
    configs = [config("X", mask={"size": size}, chain={"size": 3 - size}) for size in (1, 2)]
    assert named(*configs) == ["X (algorithm.mask.size=1)", "X (algorithm.mask.size=2)"]


def test_where_a_run_computed_is_no_setting() -> None:
    data = {"class_path": "bhfl.data.CIFAR10", "init_args": {}}
    here = {**config(), "data": data}
    moved = config(trainer__devices=4, trainer__name="x", trainer__threads=8)
    moved["data"] = {**data, "init_args": {"root": "/data", "archive": "x.tar", "num_workers": 2}}
    assert (task(moved), method(moved)) == (task(here), method(here))
    assert method(config(seed=1)) == method(config(seed=2))


def test_an_option_has_one_role() -> None:
    """As for resuming and sweeps: what changes the result, the length or the choice of the best."""
    for name in ("drop_last", "batch_size", "augment"):
        other = config(**{f"data__{name}": "other"})
        assert task(other) == task(config())
        assert method(other) != method(config())
    for name in ("max_rounds", "patience", "monitor", "mode", "local_steps"):
        other = config(**{f"trainer__{name}": "other"})
        assert (task(other), method(other) == method(config())) == (task(config()), False)
    for name in ("threads", "channels_last", "evaluate_clients", "keep_checkpoints", "logger"):
        assert method(config(**{f"trainer__{name}": "other"})) == method(config())


# ---- titles


def test_a_single_setting_is_told_whole() -> None:
    assert titles([config()]) == ["Digits, IID, cnn, 5 x int8, 5 x float32"]
    partition = {"class_path": "bhfl.data.Dirichlet", "init_args": {"alpha": 0.5, "min_size": 1}}
    network = {
        "class_path": "bhfl.comm.network.SimulatedNetwork",
        "init_args": {"profiles": {"iot": 0.3, "wifi": 0.7}},
    }
    skewed = config(data__partition=partition, trainer__network=network)
    assert titles([skewed]) == [
        "Digits, Dirichlet(alpha=0.5), cnn, 5 x int8, 5 x float32, over 0.3 iot, 0.7 wifi"
    ]


def test_of_several_settings_what_differs_is_told() -> None:
    fleets = [config(clients=clients) for clients in ({"ternary": 5, "32": 5}, {"float32": 10})]
    assert titles(fleets) == ["5 x ternary, 5 x float32", "10 x float32"]
    models = [config(), config(model__net="resnet8", data__holdout=64)]
    assert titles(models) == ["cnn", "resnet8"]
    traced = told(config(trainer__network={"trace": {"sha256": 64 * "a"}}))
    traced["machine"]["trainer.network.trace"] = "links.csv"
    assert settings.titles([told(config()), traced]) == [
        "no simulated links",
        "over links.csv",
    ]
    sizes = [config(), config(data__val_fraction=0.2)]
    assert titles(sizes) == ["val_fraction=none", "val_fraction=0.2"]
    # and no more than that, once all are told apart
    slow = config(trainer__network={"profiles": "iot", "seed": 3})
    assert titles([*sizes, slow]) == [
        "no simulated links, val_fraction=none",
        "no simulated links, val_fraction=0.2",
        "over iot, val_fraction=none",
    ]
    # data may be told by a list of all their labels
    first, second = titles([config(data__targets=[label] * 90) for label in (0, 1)])
    assert first == f"targets=[{'0, ' * 9}0, ... , 0, 0, 0]" != second


@pytest.mark.parametrize(
    ("clients", "words"),
    [
        ({"8": 5, "float32": 1}, "5 x int8, 1 x float32"),
        (
            [{"bits": "wage2888", "fraction": 0.25}, {"bits": 32, "fraction": 0.75}],
            "25 % wage2888, 75 % float32",
        ),
        ([{"bits": {"weights": 4, "activations": 8}, "count": 3}], "3 x weights 4 activations 8"),
        (None, "None"),
        ([1], "[1]"),
        ([{}], "None x None"),
    ],
)
def test_fleets_in_words(clients: Any, words: str) -> None:
    assert fleet(clients) == words


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"task": 1},
        {"task": {"clients": "x", "data": None, "model": 3}, "result": []},
        {"result": {"algorithm": []}},
    ],
)
def test_settings_of_another_shape(broken: dict[str, Any]) -> None:
    assert isinstance(settings.titles([broken, told(config())])[0], str)
    assert isinstance(settings.method(broken), dict)
