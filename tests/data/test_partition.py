import io
import re
import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bhfl.data.natural import ByColumn
from bhfl.data.partition import (
    IID,
    Dirichlet,
    Partitioner,
    QuantitySkew,
    Shards,
    stratified_sample,
)

LABELS = np.arange(1797) % 10
PARTITIONERS = [IID(), Dirichlet(0.3), Dirichlet(100.0), Shards(2), QuantitySkew(0.5, min_size=2)]


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("partition", PARTITIONERS, ids=repr)
@settings(max_examples=25, deadline=None)
@given(
    num_clients=st.integers(1, 8),
    num_classes=st.integers(1, 12),
    size=st.integers(200, 400),
    seed=st.integers(0, 99),
)
def test_every_sample_is_with_exactly_one_client(partition, num_clients, num_classes, size, seed):
    labels = rng(seed).integers(0, num_classes, size)
    parts = partition(labels, num_clients, rng(seed))
    assert len(parts) == num_clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(size))
    assert all(len(part) >= partition.min_size and (np.diff(part) > 0).all() for part in parts)
    again = partition(labels, num_clients, rng(seed))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_iid_sizes_differ_by_one_at_most_and_depend_on_the_generator():
    first, second = IID()(LABELS, 7, rng(0)), IID()(LABELS, 7, rng(1))
    assert {len(part) for part in first} == {256, 257}
    assert not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def label_share(parts):
    """Mean over clients of the share of the most frequent label."""
    return np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts])


def test_dirichlet_skew_grows_as_alpha_falls():
    shares = [label_share(Dirichlet(alpha)(LABELS, 10, rng())) for alpha in (1000.0, 1.0, 0.1)]
    assert shares[0] < 0.13
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.4


def test_dirichlet_survives_an_alpha_that_underflows():
    parts = Dirichlet(1e-6, max_tries=5)(LABELS, 2, rng())
    assert sum(map(len, parts)) == len(LABELS)


def test_dirichlet_retries_until_the_smallest_client_is_large_enough():
    def smallest(min_size, tries=1000):
        return min(len(part) for part in Dirichlet(0.2, min_size, tries)(LABELS, 20, rng(1)))

    assert smallest(1) < 30 <= smallest(30)


@pytest.mark.parametrize(
    ("min_size", "message"), [(10, "clients must be at most 179 .* got 500"), (1, "no draw")]
)
def test_impossible_dirichlet_ends_soon_with_an_error(min_size, message):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message):
        Dirichlet(0.001, min_size)(LABELS, 500, rng())
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "partition", [IID(), Dirichlet(1000.0), Shards(2), QuantitySkew(0.5)], ids=repr
)
def test_fifty_thousand_samples_over_ten_thousand_clients(partition):
    start = time.perf_counter()
    parts = partition(np.arange(50_000) % 10, 10_000, rng())
    assert time.perf_counter() - start < 10
    assert len(parts) == 10_000


def test_shards_give_each_client_few_labels():
    parts = Shards(2)(np.repeat(np.arange(10), 100), 20, rng())
    assert {len(part) for part in parts} == {50}
    assert max(len(np.unique(part // 100)) for part in parts) <= 2


def test_quantity_skew_keeps_the_label_mix_and_the_minimum():
    parts = QuantitySkew(0.2, min_size=5)(LABELS, 10, rng())
    sizes = sorted(map(len, parts))
    assert sizes[0] >= 5
    assert sizes[-1] > 3 * len(LABELS) / 10
    largest = max(parts, key=len)
    assert np.bincount(LABELS[largest]).max() / len(largest) < 0.15


def test_by_column_keeps_groups_whole():
    groups = np.array([30, 10, 20, 10, 30, 30])
    assert [part.tolist() for part in ByColumn(groups)(groups, 3, rng())] == [
        [1, 3],
        [2],
        [0, 4, 5],
    ]
    many = rng().integers(0, 50, 600)
    parts = ByColumn(many)(many, 7, rng())
    assert sum(len(np.unique(many[part])) for part in parts) == 50


def header(count):
    """The first bytes of a .npy file that claims `count` ids."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<i8", "fortran_order": False, "shape": (count,)}
    )
    return stream.getvalue()


@pytest.mark.parametrize("count", [4, 10**13, 10**25])
def test_a_npy_file_that_claims_more_ids_than_it_holds_takes_no_memory(count, tmp_path):
    path = tmp_path / "writers.npy"
    path.write_bytes(header(count) + bytes(24))
    with pytest.raises(
        ValueError,
        match=r"ByColumn.column must be the path of a .npy file of ids, got .*writers.npy",
    ):
        ByColumn(str(path))
    path.write_bytes(header(3) + bytes(24))
    assert len(ByColumn(path).column) == 3


def test_what_is_no_npy_file_is_one_error(tmp_path):
    path = tmp_path / "writers.npy"
    np.save(path, np.arange(50))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(whole)
        content[rng.integers(128)] = rng.integers(256)
        path.write_bytes(content)
        with suppress(ValueError):
            ByColumn(str(path))
    np.savez(tmp_path / "several.npz", a=np.arange(3))
    with pytest.raises(ValueError, match="it is an archive of several arrays"):
        ByColumn(str(tmp_path / "several.npz"))


def test_by_column_reads_a_npy_file(tmp_path):
    np.save(tmp_path / "writers.npy", np.array([1, 0, 1]))
    assert ByColumn(str(tmp_path / "writers.npy")).values(np.zeros(3)).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dirichlet(0), "Dirichlet.alpha must be positive and finite, got 0"),
        (
            lambda: Dirichlet(float("inf")),
            "Dirichlet.alpha must be positive and finite, got inf",
        ),
        (
            lambda: Dirichlet(float("nan")),
            "Dirichlet.alpha must be positive and finite, got nan",
        ),
        (
            lambda: Dirichlet(min_size=0),
            "Dirichlet.min_size must be an integer from 1 to 2,147,483,648, got 0",
        ),
        (
            lambda: Dirichlet(max_tries=True),
            "Dirichlet.max_tries must be an integer from 1 to 2,147,483,648, got True",
        ),
        (
            lambda: Shards(0),
            "Shards.shards_per_client must be an integer from 1 to 2,147,483,648, got 0",
        ),
        (lambda: QuantitySkew(-1), "QuantitySkew.alpha must be positive and finite, got -1"),
        (
            lambda: QuantitySkew(min_size=1.5),
            "QuantitySkew.min_size must be an integer from 1 to 2,147,483,648, got 1.5",
        ),
        (lambda: ByColumn([[1]]), "ByColumn.column must have one dimension, got shape (1, 1)"),
        (
            lambda: ByColumn(["ann", None]),
            "ByColumn.column must have a value for each sample, and sample 1 has none",
        ),
        (
            lambda: ByColumn("no.npy"),
            "ByColumn.column must be the path of a .npy file of ids, got 'no.npy'",
        ),
        (
            lambda: ByColumn([1, 2]).values(np.zeros(3)),
            "ByColumn.column must have one id for each of 3 samples, got 2",
        ),
        (
            lambda: ByColumn([0, 1])(np.array([0, 1, 1]), 3, rng()),
            "clients must be at most 2, the number of groups",
        ),
        (
            lambda: Dirichlet(0.3).values(np.array([1.0, 0.25])),
            "needs a label for each sample, a whole number for each kind, as targets, "
            "got numbers such as 0.25; IID",
        ),
        (
            lambda: IID()(LABELS, 0, rng()),
            "num_clients must be an integer from 1 to 2,147,483,648, got 0",
        ),
        (lambda: IID()(LABELS, 1798, rng()), "clients must be at most 1797 for IID()"),
        (lambda: Shards(3)(LABELS, 600, rng()), "clients must be at most 599 for Shards("),
    ],
)
def test_errors_name_key_rule_and_value(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(1, 300),
    count=st.integers(0, 300),
    num_classes=st.integers(1, 10),
    seed=st.integers(0, 99),
)
def test_stratified_sample_gives_each_label_its_share(size, count, num_classes, seed):
    count = min(count, size)
    labels = rng(seed).integers(0, num_classes, size)
    chosen = stratified_sample(labels, count, rng(seed))
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    for label in np.unique(labels):
        quota = count * np.sum(labels == label) / size
        assert abs(np.sum(labels[chosen] == label) - quota) < 1


@pytest.mark.parametrize(
    ("owners", "message"),
    [
        (np.zeros(898, int), r"Own\.assign must return integers \[1797\], got int64 \[898\]"),
        (np.zeros(1797), r"Own\.assign must return integers \[1797\], got float64 \[1797\]"),
        (np.full(1797, 3), r"Own\.assign must return clients 0 to 2, got 3 to 3"),
        (np.full(1797, -1), r"Own\.assign must return clients 0 to 2, got -1 to -1"),
    ],
)
def test_a_partitioner_of_one_s_own_is_checked(owners, message):
    class Own(Partitioner):
        def assign(self, labels, num_clients, rng):
            return owners

    with pytest.raises(ValueError, match=message):
        Own()(LABELS, 3, rng())


def test_a_partitioner_of_one_s_own_may_leave_clients_without_samples():
    class Own(Partitioner):
        min_size = 0

        def assign(self, labels, num_clients, rng):
            return np.full(len(labels), 2)

    assert [len(part) for part in Own()(LABELS[:2], 4, rng())] == [0, 0, 2, 0]
