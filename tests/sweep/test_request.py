"""The command line of a sweep."""

import math
from pathlib import Path

import pytest

from bhfl.cli.reading import ConfigError
from bhfl.sweep.request import read_request


def test_the_defaults() -> None:
    request = read_request(["m.yaml"])
    assert (request.matrix, request.jobs, request.minutes, request.dry_run) == (
        "m.yaml",
        1,
        math.inf,
        False,
    )
    assert (request.only, request.seeds, request.root, request.typed) == (
        [],
        None,
        Path("runs"),
        [],
    )


def test_all_of_it() -> None:
    words = (
        "--jobs 3 --minutes=0.5 --only A,B --seeds 4,5 --root out --dry_run m.yaml "
        "--data.archive a=b --clients {8: 1}"
    )
    request = read_request([*words.split(" ")[:-2], "{8: 1}"])
    assert (request.matrix, request.jobs, request.minutes, request.dry_run) == (
        "m.yaml",
        3,
        0.5,
        True,
    )
    assert (request.only, request.seeds, request.root) == (["A", "B"], [4, 5], Path("out"))
    assert [option.word for option in request.typed] == ["--data.archive=a=b", "--clients={8: 1}"]
    assert request.typed[0].layer.name(("data", "archive")) == "--data.archive"


def test_everything_that_is_wrong_is_said() -> None:
    args = [
        *(
            "--jobs=0",
            "--minutes=nan",
            "--only=",
            "--seeds=1,1",
            "--root= ",
            "--job=1",
            "--trainer.name=x",
        ),
        *("--seed_everything=1", "--data.archive", "--jobs=x", "--seeds=-1"),
        *("--seeds=4294967296", "--dry_run=false"),
    ]
    with pytest.raises(ConfigError) as refused:
        read_request(args)
    assert refused.value.problems == [
        "--jobs must be an integer from 1, got '0'",
        "--minutes must be a positive number, got 'nan'",
        "--only must be distinct methods and settings with commas between them, got ''",
        (
            "--seeds must be distinct integers from 0 to 4294967295 with commas between them, "
            "got '1,1'"
        ),
        "--root must be a folder, got ' '",
        "--job is an unknown option of sweep; did you mean 'jobs'?",
        "--trainer.name cannot be used: trainer.name is given by the sweep",
        "--seed_everything cannot be used: seed_everything is given by seeds",
        "--data.archive needs a value",
        "--jobs must be an integer from 1, got 'x'",
        (
            "--seeds must be distinct integers from 0 to 4294967295 with commas between them, "
            "got '-1'"
        ),
        (
            "--seeds must be distinct integers from 0 to 4294967295 with commas between them, "
            "got '4294967296'"
        ),
        "--dry_run takes no value, got 'false'",
        "a matrix is missing: bhfl sweep MATRIX.yaml",
    ]


def test_one_matrix_at_a_time() -> None:
    with pytest.raises(
        ConfigError, match=r"one matrix is swept at a time, and 'b\.yaml' is another"
    ):
        read_request(["a.yaml", "b.yaml"])
