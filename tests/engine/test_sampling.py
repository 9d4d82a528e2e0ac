"""Cohorts and random streams are functions of their keys."""

from collections import Counter

import numpy as np
import pytest
import torch

from bhfl.engine.random import PURPOSES, RandomKeys
from bhfl.engine.sampling import cohort_size, inclusion_rate, poisson_cohort, sample_cohort
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


@pytest.mark.parametrize(("asked", "rate"), [(None, 1.0), (4, 0.4), (0.25, 0.25), (10, 1.0)])
def test_the_rate_of_poisson_sampling_is_what_was_asked_for(asked, rate):
    assert inclusion_rate(10, asked) == rate


def test_under_poisson_clients_join_by_themselves():
    clients = fleet((8, 10), (32, 10))
    cohorts = [poisson_cohort(clients, 0.1, 0, round) for round in range(2000)]
    assert cohorts[7] == poisson_cohort(clients, 0.1, 0, 7)
    joined = np.array([[client in cohort for client in clients] for cohort in cohorts])
    # within five standard deviations: each client's rate, and the spread of the cohort's size
    assert np.abs(joined.mean(0) - 0.1).max() < 5 * (0.1 * 0.9 / 2000) ** 0.5
    sizes = joined.sum(1)
    assert sizes.min() == 0
    assert abs(sizes.var() - 20 * 0.1 * 0.9) < 5 * 1.8 * (2 / 2000) ** 0.5
    # of two clients as often both as if neither knew of the other
    both = (joined.T.astype(float) @ joined)[np.triu_indices(20, 1)] / 2000
    assert np.abs(both - 0.01).max() < 5 * (0.01 / 2000) ** 0.5
    assert poisson_cohort(clients, 1.0, 0, 0) == clients
