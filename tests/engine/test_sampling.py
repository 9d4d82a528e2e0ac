"""Cohorts and random streams are functions of their keys."""

from collections import Counter

import pytest
import torch

from bhfl.engine.random import PURPOSES, RandomKeys
from bhfl.engine.sampling import cohort_size, sample_cohort
from bhfl.engine.types import Client
from bhfl.quant import BitSpec


def fleet(*groups: tuple[int, int]) -> list[Client]:
    specs = [BitSpec.parse(bits) for bits, count in groups for _ in range(count)]
    return [Client(i, spec, 10) for i, spec in enumerate(specs)]


def test_the_same_key_gives_the_same_draws_and_any_other_gives_others():
    def draw(*key, purpose="shuffle", extra=()):
        return tuple(torch.rand(3, generator=RandomKeys(*key).torch(purpose, *extra)).tolist())

    assert draw(0, 1, 2) == draw(0, 1, 2)
    others = {
        draw(1, 1, 2),
        draw(0, 2, 2),
        draw(0, 1, 3),
        draw(0, 1, 2, extra=(1,)),
        draw(0, 1, 2, purpose="augment"),
    }
    assert len(others) == 5
    assert draw(0, 1, 2) not in others


def test_streams_are_independent_of_global_generators():
    torch.manual_seed(1)
    first = RandomKeys(0, 0, 0).integer("dropout")
    torch.rand(10)
    assert RandomKeys(0, 0, 0).integer("dropout") == first
    before = torch.random.get_rng_state()
    torch.rand(3, generator=RandomKeys(0).torch("sample"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_purpose_has_its_own_stream():
    assert len({RandomKeys(3, 1, 4).integer(purpose) for purpose in PURPOSES}) == len(PURPOSES)


@pytest.mark.parametrize(
    ("asked", "size"), [(None, 10), (4, 4), (0.5, 5), (0.01, 1), (1.0, 10), (0.25, 2)]
)
def test_cohort_size(asked, size):
    assert cohort_size(10, asked) == size


@pytest.mark.parametrize("sampling", ["stratified", "uniform"])
def test_a_cohort_is_a_function_of_seed_and_round_without_replacement(sampling):
    clients = fleet((8, 30), (32, 10))
    first = sample_cohort(clients, 8, 0, 3, sampling)
    assert first == sample_cohort(clients, 8, 0, 3, sampling)
    assert first != sample_cohort(clients, 8, 0, 4, sampling)
    ids = [client.id for client in first]
    assert ids == sorted(set(ids))
    assert len(ids) == 8


def test_stratified_cohorts_hold_every_group_in_proportion():
    clients = fleet((2, 1), (8, 29), (32, 10))
    for round in range(30):
        counts = Counter(
            client.group for client in sample_cohort(clients, 8, 0, round, "stratified")
        )
        assert counts["ternary"] == 1
        assert counts["int8"] in (5, 6)
        assert sum(counts.values()) == 8


def test_fewer_places_than_groups():
    clients = fleet((2, 5), (8, 5), (32, 5))
    seen = set()
    for round in range(40):
        cohort = sample_cohort(clients, 2, 0, round, "stratified")
        assert len({client.group for client in cohort}) == len(cohort) == 2
        seen |= {client.group for client in cohort}
    assert seen == {"ternary", "int8", "float32"}


def test_every_client_is_drawn_about_as_often():
    clients = fleet((8, 10), (32, 10))
    counts = Counter(
        c.id for round in range(2000) for c in sample_cohort(clients, 4, 0, round, "stratified")
    )
    assert max(abs(counts[i] - 400) for i in range(20)) < 5 * (400 * 0.8) ** 0.5


def test_a_full_cohort_is_everyone():
    clients = fleet((8, 3), (32, 2))
    assert sample_cohort(clients, 5, 0, 0, "stratified") == clients
