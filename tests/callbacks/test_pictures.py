"""Pictures for TensorBoard: labels by client, and bits by layer."""

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bhfl.algorithms import FedAvg
from bhfl.callbacks import Pictures
from bhfl.callbacks.heatmap import CELL, GAP, heatmap
from bhfl.callbacks.scatter import COLOURS, SIZE, scatter
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fake, fit


def images(folder: Path) -> list[str]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events.Tags()["images"]


def test_a_larger_number_is_a_darker_cell_and_a_missing_one_is_grey() -> None:
    values = np.array([[0.0, 50.0], [100.0, np.nan]])
    picture = heatmap(values, ["a", "b"], ["x", "y"], "samples")
    assert picture.dtype == np.uint8
    height, width, _ = picture.shape
    # in the corners of the cells, where no text is
    right, down = CELL
    left, top = width - 2 * GAP - 2 * right + 2, height - GAP - 2 * down + 2
    zero = picture[top, left].sum()
    half = picture[top, left + right].sum()
    most = picture[top + down, left].sum()
    assert zero > half > most
    assert tuple(picture[top + down, left + right]) == (225, 225, 225)


def test_each_point_lies_where_its_numbers_say_in_the_colour_of_its_group() -> None:
    groups = {"a": ([10.0, 20.0], [0.0, 1.0]), "b": ([20.0], [0.0])}
    picture = scatter(groups, "acc", "samples").astype(int)
    assert picture.shape == (SIZE[1], SIZE[0], 3)
    places = {}
    for name, colour in zip(groups, COLOURS, strict=False):
        rows, columns = (np.abs(picture - colour).sum(2) < 30).nonzero()
        # below the line that names the groups
        places[name] = {(x // 100, y // 100) for x, y in zip(columns, rows, strict=True) if y > 60}
    (low_left, top_right), (low_right,) = (sorted(found) for found in places.values())
    assert low_left[0] < top_right[0] == low_right[0]
    assert top_right[1] < low_left[1] == low_right[1]


class Labelled(HandMade):
    """Batches by hand, of clients whose labels are known."""

    def label_counts(self, num_clients: int) -> np.ndarray:
        return np.array([[3, 3], [6, 0]])[:num_clients]


class Layered(FedAvg):
    """It says of each layer what it was sent with, as FedLQ does."""

    def summarize(self, server, metrics):
        return {"fedlq/bits_a": 4.0, "fedlq/bits_b": 0.0}


@pytest.mark.parametrize(
    ("algorithm", "data", "drawn"),
    [
        (FedAvg(), HandMade, []),
        (FedAvg(), Labelled, ["pictures/partition"]),
        (Layered(), Labelled, ["pictures/partition", "pictures/bits_by_layer"]),
    ],
)
def test_what_is_known_is_drawn(tmp_path: Path, algorithm, data, drawn: list[str]) -> None:
    trainer = fit(
        tmp_path,
        algorithm,
        {8: 1, 32: 1},
        Module,
        data([points(6), points(6, seed=3)]),
        monitor="train/loss",
        mode="min",
        max_rounds=2,
        callbacks=[Pictures()],
        logger=True,
    )
    assert images(trainer.run.folder) == drawn


def test_clients_are_drawn_after_the_test_where_they_have_samples_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "bhfl.callbacks.pictures.scatter", lambda *args: seen.append(args) or scatter(*args)
    )
    data = fake(client_test_fraction=0.3)
    options = {"max_rounds": 1, "callbacks": [Pictures()], "logger": True}
    trainer = fit(tmp_path, clients={8: 1, 32: 2}, data=data, **options)
    assert "pictures/clients" in images(trainer.run.folder)
    ((drawn, title, _),) = seen
    assert title == "accuracy in % on each client's own test samples; 3 clients"
    own = trainer.session.evaluator.own
    assert drawn["int8"] == ([trainer.clients[0].num_examples], [100 * own[0]["acc"]])
    assert len(drawn["float32"][1]) == 2
