"""When a curve has reached a target, by hand and by property."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bhfl.report.goals import time_to_accuracy


def test_time_to_accuracy_by_hand() -> None:
    times, accuracies = [10.0, 20.0, 30.0, 40.0, 50.0], [0.5, 0.7, 0.6, 0.8, 0.75]
    assert time_to_accuracy(times, accuracies, 0.5) == 10
    assert time_to_accuracy(times, accuracies, 0.65) == 20
    assert time_to_accuracy(times, accuracies, 0.65, window=3) == 40
    assert time_to_accuracy(times, accuracies, 0.5, window=2) == 20
    assert time_to_accuracy(times, accuracies, 0.9) == math.inf
    assert time_to_accuracy([], [], 0.1) == math.inf
    assert time_to_accuracy([1.0, 2.0], [math.nan, 0.5], 0.4) == 2
    assert time_to_accuracy([100, 200], [0.1, 0.9], 0.5) == 200


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
    st.integers(1, 4),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_higher_target_never_comes_sooner(
    accuracies: list[float], window: int, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    times = [float(step) for step in range(len(accuracies))]
    assert time_to_accuracy(times, accuracies, low, window) <= time_to_accuracy(
        times, accuracies, high, window
    )


def test_errors_of_curves() -> None:
    with pytest.raises(ValueError, match="times must be cumulative: they must not fall"):
        time_to_accuracy([5.0, 3.0], [0.1, 0.2], 0.5)
