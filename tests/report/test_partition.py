"""Who has which samples: tables, CSV and picture."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bhfl.report.partition import Partition, _order, draw, skew, table, write_csv


def made(num_clients: int = 4, num_labels: int | None = 3, **changes: Any) -> Partition:
    labels = None
    samples = 1 + np.arange(num_clients)
    if num_labels is not None:
        labels = np.zeros((num_clients, num_labels), np.int64)
        labels[np.arange(num_clients), np.arange(num_clients) % num_labels] = samples
    options = {
        "title": "Own by $x$",
        "groups": ["int4", "float32"],
        "group_of": np.arange(num_clients) * 2 // num_clients,
        "samples": samples,
        "val": samples * 0,
        "test": samples * 0 + 2,
        "labels": labels,
    }
    return Partition(**{**options, **changes})


def test_the_table_tells_groups_and_clients() -> None:
    lines = table(made()).splitlines()
    assert lines[4].split() == ["int4", "2", "3", "1", "1.5", "2", "0", "4", "1.0"]
    assert lines[6].split() == ["all", "4", "10", "1", "2.5", "4", "0", "8", "1.0"]
    assert lines[-1].split() == ["3", "float32", "4", "0", "2", "4", "0", "0"]
    long = table(made(30, 25))
    assert long.endswith("and 10 more clients, in the CSV file")
    assert "client    group  samples  val  test  labels\n" in long
    without = table(made(4, None))
    assert "label skew" not in without
    assert "labels" not in without.split("client ")[1]


def test_skew_is_the_mean_distance_to_the_mix_of_all() -> None:
    assert skew(np.array([[5, 5], [20, 20], [0, 0]])) == 0
    assert skew(np.array([[5, 0], [0, 5]])) == 0.5
    # against (8/12, 4/12): by 1/3 and 2/3
    assert skew(np.array([[8, 0], [0, 4]])) == pytest.approx(0.5)
    alone = np.array([[9, 0, 0], [0, 1, 0], [0, 0, 2]])
    assert skew(alone) == pytest.approx((3 / 12 + 11 / 12 + 10 / 12) / 3)


def test_the_csv_has_a_line_for_each_client(tmp_path: Path) -> None:
    write_csv(made(30, groups=["a,b", "float32"]), tmp_path / "partition.csv")
    rows = list(csv.DictReader((tmp_path / "partition.csv").read_text().splitlines()))
    assert len(rows) == 30
    assert rows[4] == {
        "client": "4", "group": "a,b", "samples": "5", "val_samples": "0", "test_samples": "2",
        "label_0": "0", "label_1": "5", "label_2": "0",
    }  # fmt: skip


def test_many_clients_are_put_in_order_and_spread() -> None:
    assert _order(made(40)).tolist() == list(range(40))
    order = _order(made(60))
    assert order[:30].max() == 29
    assert [client % 3 for client in order[:30].tolist()] == [0] * 10 + [1] * 10 + [2] * 10
    many = _order(made(3000, None))
    assert len(set(many.tolist())) == 1000
    # the largest of a group come first
    assert (np.diff(many[:500]) < 0).all()


@pytest.mark.parametrize(("num_clients", "num_labels"), [(3, 3), (60, 50), (60, None)])
def test_a_picture_is_drawn(num_clients: int, num_labels: int | None, tmp_path: Path) -> None:
    draw(made(num_clients, num_labels), tmp_path / "partition.png")
    assert (tmp_path / "partition.png").read_bytes().startswith(b"\x89PNG")
