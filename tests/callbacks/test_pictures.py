"""Pictures for TensorBoard: labels by client, and bits by layer."""

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bhfl.algorithms import FedAvg
from bhfl.callbacks import Pictures
from bhfl.callbacks.heatmap import CELL, GAP, heatmap
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fit


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
