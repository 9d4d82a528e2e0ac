"""A fleet reads well in YAML, on the command line and in Python; what is wrong is said."""

from collections import Counter

import pytest

from bhfl.engine.fleet import Fleet
from bhfl.quant import BitSpec


def labels(value, num_clients=None):
    fleet = Fleet(value)
    found = Counter()
    for group, count in zip(fleet.groups, fleet.counts(num_clients), strict=True):
        found[group.bits.label] += count
    return found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({8: 5, 32: 5}, {"int8": 5, "float32": 5}),
        ({"8": 2, "float32": 1}, {"int8": 2, "float32": 1}),
        ({"ternary": 3, 4: 3, 32: 4}, {"ternary": 3, "int4": 3, "float32": 4}),
        ([{"bits": 8, "count": 2}, {"bits": "wage2888", "count": 1}], {"int8": 2, "wage2888": 1}),
        ([{"bits": {"weights": 5, "activations": 6}, "count": 2}], {"w5a6": 2}),
    ],
)
def test_counts(value, expected):
    assert labels(value) == expected


@pytest.mark.parametrize("total", [3, 10, 11, 97])
def test_fractions_are_shared_out_by_largest_remainder(total):
    value = [
        {"bits": 8, "fraction": 0.3},
        {"bits": "wage2888", "fraction": 0.3},
        {"bits": 32, "fraction": 0.4},
    ]
    counts = labels(value, total)
    assert sum(counts.values()) == total
    assert all(
        abs(counts[g] - f * total) < 1
        for g, f in [("int8", 0.3), ("wage2888", 0.3), ("float32", 0.4)]
    )


def test_a_share_that_comes_to_no_client_is_refused():
    value = [{"bits": 8, "fraction": 0.96}, {"bits": 32, "fraction": 0.04}]
    assert labels(value, 13) == {"int8": 12, "float32": 1}
    message = r"clients: a fraction of 0\.04 must be at least one of 12 clients, got 0"
    with pytest.raises(ValueError, match=message):
        labels(value, 12)


def test_groups_keep_their_order():
    fleet = Fleet({32: 1, 8: 2})
    assert [group.label for group in fleet.groups] == ["float32", "int8"]
    assert list(fleet.counts()) == [1, 2]


@pytest.mark.parametrize(
    "value",
    [
        {8: 5, 32: 5},
        [{"bits": 8, "fraction": 0.5}, {"bits": "wage2888", "fraction": 0.5}],
        [{"bits": {"weights": 5, "activations": 6, "range_rule": "mse"}, "count": 2}],
    ],
)
def test_the_config_of_a_fleet_is_that_fleet(value):
    fleet = Fleet(value)
    again = Fleet(fleet.to_config())
    assert again == fleet
    assert again.to_config() == fleet.to_config()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "clients must hold at least one group"),
        ([], "clients must hold at least one group"),
        ("8x5", "clients must be a mapping"),
        (7, "clients must be a mapping"),
        ({1: 5}, r"clients\[0\]: .*2\.\.16 or 32, got 1"),
        ({33: 5}, r"clients\[0\]: .*got 33"),
        ({8: 0}, r"clients\[0\]: count must be an integer from 1"),
        ({8: -1}, r"clients\[0\]: count"),
        ({8: 2.5}, r"clients\[0\]: count must be an integer .* got 2\.5"),
        ({8: True}, r"clients\[0\]: count must be an integer .* got True"),
        ({8: None}, r"clients\[0\]: needs either count or fraction"),
        ({8: 10**26}, r"clients\[0\]: count must be an integer from 1 to"),
        ({"ternry": 5}, r"clients\[0\]: .*ternary"),
        ({8: 5, "int8": 5}, "int8 is given more than once"),
        (
            [{"bits": BitSpec(weights=4, name="mine")}],
            r"got {'bits': BitSpec\.parse\({'weights': 4, 'range_rule': 'mse', 'name': 'mine'}\)}$",
        ),
        ({BitSpec(weights=8, activations=8): None}, r"BitSpec\.parse\('int8'\)"),
        ([{"bits": 8}], r"clients\[0\]: needs either count or fraction"),
        ([{"count": 8}], r"clients\[0\]: bits is missing"),
        (
            [{"bits": 8, "fraktion": 0.5}],
            r"clients\[0\]: unknown key 'fraktion'; did you mean 'fraction'",
        ),
        (
            [{"bits": 8, "fraction": 0.5, "count": 3}],
            r"clients\[0\]: needs either count or fraction",
        ),
        ([{"bits": 8, "fraction": 1.5}], r"clients\[0\]: fraction must be in \(0, 1\], got 1\.5"),
        ([{"bits": 8, "fraction": float("nan")}], r"fraction must be in \(0, 1\], got nan"),
        ([{"bits": 8, "fraction": "50%"}], r"fraction must be in \(0, 1\], got '50%'"),
        (
            [{"bits": 8, "fraction": 0.5}, {"bits": 32, "fraction": 0.4}],
            r"fractions must sum to 1, got 0\.9",
        ),
        (
            [{"bits": 8, "fraction": 0.5}, {"bits": 32, "count": 4}],
            "all have a count or all have a fraction",
        ),
        ([8, 32], r"clients\[0\]: must be a mapping"),
    ],
)
def test_bad_fleets(value, message):
    with pytest.raises(ValueError, match=message):
        Fleet(value)


def test_all_problems_at_once():
    with pytest.raises(ValueError) as error:
        Fleet([{"bits": 1, "count": 2}, {"bits": 8, "count": 0}])
    assert str(error.value).count("\n") == 1


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="num_clients must say how many"):
        Fleet([{"bits": 8, "fraction": 1.0}]).counts()
    with pytest.raises(ValueError, match="num_clients must be 10, the sum"):
        Fleet({8: 5, 32: 5}).counts(11)
    assert list(Fleet({8: 1}).counts(1)) == [1]
    assert [group.bits for group in Fleet({8: 1}).groups] == [BitSpec.parse(8)]
