"""What a comparison comes to, in words."""

from pathlib import Path

import pytest

from bhfl.report.reading import find_runs, read_run
from bhfl.report.rows import sections
from bhfl.report.words import summary
from tests.report import made


def told(root: Path, runs: dict[str, dict[int, float]], finished: bool = True) -> str:
    """The words on runs of some methods, with an accuracy for each seed."""
    for method, accuracies in runs.items():
        for seed, accuracy in accuracies.items():
            folder = root / f"{method}{seed}"
            config = made.config(method, seed=seed)
            made.run(folder, config, {"float32": accuracy}, finished=finished)
    (section,) = sections([read_run(folder) for folder in find_runs([root])])
    return summary(section)


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (
            {"FedAvg": {0: 0.5, 1: 0.6}},
            "FedAvg has 55.00 % test accuracy of float32 clients, on 2 seeds.",
        ),
        (
            {"FedAvg": {0: 0.5, 1: 0.6}, "FedPAQ": {0: 0.4, 1: 0.5}, "Local": {0: 0.1, 1: 0.1}},
            "FedAvg is first, with 55.00 % test accuracy of float32 clients: 10.00 points ahead of "
            "FedPAQ, on 2 seeds that both have.",
        ),
        (
            {"FedAvg": {0: 0.5, 1: 0.6}, "FedPAQ": {0: 0.4, 1: 0.69}},
            "FedAvg is first, with 55.00 % test accuracy of float32 clients: 0.50 points ahead of "
            "FedPAQ, on 2 seeds that both have. That is within the spread over seeds: the two are "
            "level.",
        ),
        (
            {"FedAvg": {0: 0.5}, "FedPAQ": {0: 0.4}},
            "FedAvg is first, with 50.00 % test accuracy of float32 clients: 10.00 points ahead of "
            "FedPAQ, on 1 seed that both have. One seed tells little.",
        ),
        (
            {"FedAvg": {0: 0.5}, "FedPAQ": {0: 0.5}},
            "FedAvg and FedPAQ are equal, with 50.00 % test accuracy of float32 clients.",
        ),
    ],
    ids=["alone", "ahead", "level", "one seed", "equal"],
)
def test_who_is_first_by_how_much_on_how_many_seeds(tmp_path: Path, runs, words: str) -> None:
    assert told(tmp_path, runs) == words


def test_without_common_seeds_nobody_is_first(tmp_path: Path) -> None:
    assert told(tmp_path, {"FedAvg": {0: 0.5}, "FedPAQ": {1: 0.4}}).startswith("No method is first")


def test_runs_at_work_have_no_outcome(tmp_path: Path) -> None:
    assert told(tmp_path, {"FedAvg": {0: 0.5}}, finished=False) == "No run is finished yet."
