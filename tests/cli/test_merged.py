"""A server's configuration with what a client's own says in its place."""

from __future__ import annotations

from typing import Any

import pytest

from bhfl.cli.plain_client import merged

SERVER = {
    "model": {"class_path": "bhfl.models.Classifier", "init_args": {"net": "cnn"}},
    "data": {"class_path": "bhfl.data.Digits", "init_args": {"batch_size": 32, "root": "there"}},
    "trainer": {"threads": 1},
}


def test_own_arguments_change_those_of_the_same_class_one_by_one() -> None:
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
    arguments = {"net": "mlp", "optimizer": sgd}
    server = {
        **SERVER,
        "model": {"class_path": "bhfl.models.Classifier", "init_args": arguments},
    }
    layers = [
        {"model": {"class_path": "Classifier", "optimizer": {"lr": 0.2}}},
        {"model": {"init_args": {"norm": "batch"}, "label_smoothing": 0.1}},
        {"data": "Arrays", "trainer": {"threads": 2}},
    ]
    config = merged(server, layers, {})
    changed = {**sgd, "init_args": {"lr": 0.2, "momentum": 0.9}}
    assert config["model"]["init_args"] == {
        "net": "mlp",
        "optimizer": changed,
        "norm": "batch",
        "label_smoothing": 0.1,
    }
    assert config["data"] == {"class_path": "Arrays", "init_args": {"batch_size": 32}}
    assert config["trainer"]["threads"] == 2
    other = merged(server, [{"model": {"optimizer": {"class_path": "torch.optim.Adam"}}}], {})
    adam = {"class_path": "torch.optim.Adam", "init_args": {}}
    assert other["model"]["init_args"]["optimizer"] == adam
    assert server["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.1


@pytest.mark.parametrize(
    ("layer", "problem"),
    [
        ({"trainer": {"thraeds": 2}}, "trainer.thraeds is no option; did you mean 'threads'"),
        ({"trainer": [1]}, r"trainer must be a mapping of options, got \[1\]"),
        ({"data": None}, "data must be a mapping of class_path and init_args, got None"),
        ({"model": {"init_args": 3}}, "model must be a mapping of class_path and init_args"),
    ],
)
def test_an_own_section_that_is_none_is_refused(layer: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        merged(SERVER, [layer], {})
