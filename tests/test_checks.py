"""What options may be: what each check takes, and what is said of the rest."""

import math
import sys
from subprocess import run

import pytest

from bhfl.checks import (
    LONGEST,
    Check,
    checked,
    choice,
    clipped,
    count,
    nearest,
    not_negative,
    or_none,
    positive,
    refuse,
    shown,
    suggestion,
    true_or_false,
    within,
)

NO_NUMBERS = [True, False, None, "1", "", [1], math.nan]


@pytest.mark.parametrize(
    ("check", "right", "wrong", "rule"),
    [
        (count(1, 9), [1, 9], [0, 10, 1.0, *NO_NUMBERS], "an integer from 1 to 9"),
        (count(0), [0, 2**31], [-1, 2**31 + 1], "an integer from 0 to 2,147,483,648"),
        (within("(0, 1]"), [1, 1.0, 1e-9], [0, 0.0, 1.1, *NO_NUMBERS], "in (0, 1]"),
        (within("[0, 1)"), [0, 0.5], [1, -1e-9], "in [0, 1)"),
        (positive, [1, 1e-9], [0, -1, math.inf, *NO_NUMBERS], "positive and finite"),
        (not_negative, [0, 1.5], [-1e-9, math.inf, *NO_NUMBERS], "finite and at least 0"),
        (choice("max", "min"), ["max"], ["Max", 1, None, ["max"]], "one of max, min"),
        (true_or_false, [True, False], [0, 1, None, "true"], "true or false"),
        (or_none(count(1, 9)), [None, 3], [0], "an integer from 1 to 9"),
    ],
)
def test_a_check_says_what_is_wrong(
    check: Check, right: list[object], wrong: list[object], rule: str
) -> None:
    for value in right:
        assert check(value) == ""
        assert checked("key", value, check) is value
    for value in wrong:
        told = check(value)
        assert told.startswith(f"must be {rule}, got {value!r}")
        with pytest.raises(ValueError) as refused:
            checked("key", value, check)
        assert str(refused.value) == f"key {told}"


def test_a_slip_is_told_the_word_that_is_meant() -> None:
    told = choice("stratified", "uniform")("unifrom")
    assert told.endswith("got 'unifrom'; did you mean 'uniform'?")


def test_all_problems_are_raised_at_once() -> None:
    refuse([])
    refuse(["", ""])
    with pytest.raises(ValueError, match=r"^a must be 1\nb must be 2$"):
        refuse(["a must be 1", "", "b must be 2"])


def test_a_long_value_is_cut() -> None:
    assert len(count(1)("x" * 10_000)) < LONGEST + 100


def test_checks_need_the_standard_library_alone() -> None:
    code = "import sys, bhfl.checks; assert not {'torch', 'numpy', 'yaml'} & set(sys.modules)"
    run([sys.executable, "-c", code], check=True, timeout=60)


def test_suggestions() -> None:
    assert nearest("zebra", ["b", "a"]) == nearest("a", []) == []
    assert suggestion("resnet9", ["resnet8", "resnet18", "vgg"], most=3).endswith(
        "' or 'resnet18'?"
    )
    assert suggestion("PROWD", ["FedAvg", "ProWD"]) == "; did you mean 'ProWD'?"
    assert suggestion("zebra", ["b", "a"]) == "; known: a, b"
    assert suggestion("zebra", ["b", "a"], others=False) == suggestion("zebra", []) == ""


def test_long_values_and_lines_are_cut() -> None:
    assert shown("x" * 1000) == "'" + "x" * 44 + " ... " + "x" * 9 + "'"
    assert len(clipped("x" * 1000)) == LONGEST
    assert clipped("short") == "short"
