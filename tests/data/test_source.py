import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from bhfl.data.augment import crop_flip
from bhfl.data.source import LoaderSource, TensorSource, as_source

IMAGES = torch.randint(
    256, (10, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
TARGETS = torch.arange(10) % 3
ORDER = torch.tensor([9, 2, 2, 0, 5])


class Pairs(Dataset):
    """Pictures with a transform that draws from all three global generators."""

    def __init__(self, noisy=False, **attributes):
        self.noisy = noisy
        self.__dict__.update(attributes)

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        noise = torch.rand(()) + np.random.rand() + random.random() if self.noisy else 0.0
        return IMAGES[index] / 255 + noise, TARGETS[index]


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def batches(source, augment=None, seed=1):
    return [tuple(batch) for batch in source.batches(ORDER, 2, generator(seed), augment)]


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for x, y in zip(first, second, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_tensor_batches_are_indexed_scaled_and_normalised():
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    found = batches(TensorSource(IMAGES, TARGETS, mean.tolist(), std.tolist()))
    assert [len(targets) for _, targets in found] == [2, 2, 1]
    inputs, targets = (torch.cat(part) for part in zip(*found, strict=True))
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(
        inputs, (IMAGES[ORDER] / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    )
    assert torch.equal(targets, TARGETS[ORDER])


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (torch.rand(10, 7), lambda x: x),
        (torch.rand(10, 4, dtype=torch.float64), lambda x: x.float()),
        (torch.randint(1000, (10, 4)), lambda x: x),
        (torch.rand(10), lambda x: x),
    ],
)
def test_inputs_of_other_kinds(inputs, expected):
    found = torch.cat([x for x, _ in batches(TensorSource(inputs, TARGETS))])
    assert torch.equal(found, expected(inputs[ORDER]))


def test_tensors_are_kept_once_and_never_changed():
    before = IMAGES.clone()
    source = TensorSource(IMAGES, TARGETS, (0.5,) * 3, (0.5,) * 3)
    batches(source, crop_flip)
    floats = torch.rand(10, 3, 6, 6)
    kept = floats.clone()
    batches(TensorSource(floats, TARGETS, (0.5,) * 3, (0.5,) * 3))
    assert source.inputs.data_ptr() == IMAGES.data_ptr()
    assert torch.equal(IMAGES, before)
    assert torch.equal(floats, kept)


def test_no_indices_no_batches():
    for source in (TensorSource(IMAGES, TARGETS), LoaderSource(Pairs())):
        assert list(source.batches(torch.empty(0, dtype=torch.int64), 2, generator())) == []


def test_both_paths_give_the_same_batches():
    assert equal(batches(TensorSource(IMAGES / 255, TARGETS)), batches(LoaderSource(Pairs())))


@pytest.mark.parametrize("augment", [None, crop_flip])
def test_batches_do_not_depend_on_the_number_of_workers(augment):
    alone, one, two = (
        batches(LoaderSource(Pairs(noisy=True), num_workers=n), augment) for n in (0, 1, 2)
    )
    assert equal(alone, one)
    assert equal(alone, two)
    assert not equal(alone, batches(LoaderSource(Pairs(noisy=True)), augment, seed=2))


def test_global_generators_are_left_alone():
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = states()
    batches(LoaderSource(Pairs(noisy=True)), crop_flip)
    assert LoaderSource(Pairs(noisy=True)).input_shape == (3, 6, 6)
    assert states() == before


@pytest.mark.parametrize("name", ["targets", "labels", "y"])
def test_targets_are_found(name):
    assert as_source(Pairs(**{name: TARGETS.tolist()})).targets.tolist() == TARGETS.tolist()


def test_targets_of_tensors_and_explicit_ones():
    pairs = TensorDataset(IMAGES, TARGETS)
    assert isinstance(as_source(pairs), TensorSource)
    assert as_source(pairs).targets.tolist() == TARGETS.tolist()
    explicit = as_source(pairs, list(range(10)))
    assert explicit.targets.tolist() == list(range(10))
    assert equal(batches(explicit), batches(as_source(pairs)))
    assert as_source(Pairs(), [1] * 10).targets.tolist() == [1] * 10


def test_errors():
    with pytest.raises(
        ValueError,
        match=r"targets must be given for a Pairs, which has no \.targets, \.labels or \.y",
    ):
        _ = as_source(Pairs()).targets
    with pytest.raises(ValueError, match="targets must be as many as the 10 inputs, got 3"):
        TensorSource(IMAGES, TARGETS[:3])


class SeldomNoisy(Dataset):
    """Of the samples one draws, from one generator; what it draws may be an error."""

    def __init__(self, draw, fails=False):
        self.draw = draw
        self.fails = fails

    def __len__(self):
        return 10

    def __getitem__(self, index):
        noise = self.draw() if index == 0 else 0.0
        if self.fails and noise < 0.9:
            raise ValueError(f"drawn: {noise}")
        return index + torch.rand(()).double() + noise, index


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: random.gauss(0, 1)])
def test_a_sample_that_draws_late_has_its_own_seed(draw, workers):
    dataset = SeldomNoisy(draw)
    found = torch.cat([x for x, _ in LoaderSource(dataset, [0], workers).batches(
        ORDER, 5, generator()
    )])  # fmt: skip
    seeds = torch.randint(2**32, (len(ORDER),), generator=generator()).tolist()
    alone = []
    for index, seed in zip(ORDER.tolist(), seeds, strict=True):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        alone.append(dataset[index][0])
    assert torch.equal(found, torch.stack(alone))


def test_a_sample_that_fails_by_what_it_draws_has_its_own_seed():
    seed = torch.randint(2**32, (1,), generator=generator()).tolist()[0]
    random.seed(seed)
    with pytest.raises(ValueError, match=f"drawn: {random.random()}"):
        list(
            LoaderSource(SeldomNoisy(random.random, fails=True)).batches(
                torch.tensor([0]), 1, generator()
            )
        )
    with pytest.raises(ValueError, match=r"drawn: 0\.0"):
        list(
            LoaderSource(SeldomNoisy(random.random, fails=True)).batches(
                torch.tensor([1]), 1, generator()
            )
        )


def test_what_else_a_sample_holds_is_left_beside_its_augmented_picture():
    rows = TensorDataset(IMAGES.float(), TARGETS, torch.arange(len(TARGETS)))
    source = LoaderSource(rows, TARGETS)
    ((images, targets, places),) = source.batches(torch.arange(3), 3, generator(), crop_flip)
    assert images.shape == IMAGES[:3].shape
    assert torch.equal(targets, TARGETS[:3])
    assert places.tolist() == [0, 1, 2]
