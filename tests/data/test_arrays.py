"""The arrays of one client: batches as a data module deals them, and files that cannot be used."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bhfl.data import Arrays, FakeImages
from bhfl.engine.random import RandomKeys


def saved(file: Path, **arrays: object) -> Path:
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file


def ready(file: Path, **options: object) -> Arrays:
    data = Arrays(file, **options)  # type: ignore[arg-type]
    data.setup("fit")
    return data


@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"augment": "crop_flip"}])
def test_batches_are_those_of_a_data_module(tmp_path: Path, options: dict[str, object]) -> None:
    whole = FakeImages(num_train=50, batch_size=8, **options)  # type: ignore[arg-type]
    whole.setup("fit")
    sizes = whole.federate(2, 0)
    source = whole.load(train=True)
    members = whole.split.clients[1]
    parts = {"train_inputs": source.inputs[members], "train_targets": source.labels[members]}
    file = saved(tmp_path / "a.npz", **parts)
    normal = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    own = ready(file, batch_size=8, **options, **normal)
    assert own.federate(2, 0) == [sizes[1]] * 2
    assert own.num_batches(1) == whole.num_batches(1)
    rng = RandomKeys(0, 3, 1)
    pairs = zip(own.client_batches(1, rng, 2), whole.client_batches(1, rng, 2), strict=True)
    for (x, y), (wanted, label) in pairs:
        assert torch.equal(x, wanted)
        assert torch.equal(y, label)


def test_samples_that_are_held_out_are_measured_on(tmp_path: Path) -> None:
    x, y = np.ones((5, 2), np.float32), np.arange(5)
    own = saved(tmp_path / "own", train_inputs=x, train_targets=y, val_inputs=x, val_targets=y)
    both = {"val_inputs": x[:2], "val_targets": y[:2], "test_inputs": x[:3], "test_targets": y[:3]}
    data = ready(Path(f"{own}.npz"), shared=saved(tmp_path / "all.npz", **both))
    (val,) = data.client_val_batches(0) or ()
    assert torch.equal(val[1], torch.arange(5))
    assert data.client_test_batches(0) is None
    assert [len(next(iter(some))[1]) for some in (data.val_batches(), data.test_batches())] == [
        2,
        3,
    ]
    alone = ready(Path(f"{own}.npz"))
    with pytest.raises(ValueError, match=r"data.shared must hold val_inputs and val"):
        alone.val_batches()


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"inputs": np.ones(3)}, "data.file must hold train_inputs and train_targets"),
        (
            {"train_inputs": np.ones(3), "train_targets": np.ones(2)},
            "data.file must hold as many train_targets as train_inputs, got 2 and 3",
        ),
        ({"train_inputs": np.array([{}]), "train_targets": np.ones(1)}, "must be an .npz file of"),
        (
            {"train_inputs": np.array(["a"]), "train_targets": np.ones(1)},
            "the train_inputs of data.file must be numbers, got <U1; text is numbered by",
        ),
        (
            {"train_inputs": np.ones(1), "train_targets": np.ones(1, "complex64")},
            "the train_targets of data.file must be numbers, got complex64",
        ),
        ({"train_inputs": 3.0, "train_targets": 1}, "train_inputs of many samples, got one number"),
        (
            {"train_inputs": np.ones(3), "train_targets": np.ones(3), "val_inputs": np.ones(3)},
            "data.file must hold val_inputs and val_targets, got val_inputs",
        ),
    ],
)
def test_a_file_that_cannot_be_used(
    tmp_path: Path, arrays: dict[str, object], problem: str
) -> None:
    """An object among them would have to be unpickled."""
    with pytest.raises(ValueError, match=problem):
        ready(saved(tmp_path / "a.npz", **arrays))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.file must be an .npz file of numbers: .*No such"):
        ready(tmp_path / "none.npz")


def test_a_file_of_another_kind_or_a_broken_one(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.npz", train_inputs=np.ones(99), train_targets=np.ones(99))
    whole = file.read_bytes()
    np.save(tmp_path / "one.npy", np.ones(3))
    for held in ((tmp_path / "one.npy").read_bytes(), whole[:200], whole[:90] + whole[91:]):
        file.write_bytes(held)
        with pytest.raises(ValueError, match=r"data.file must be an .npz file of numbers: "):
            ready(file)


def test_numbers_that_torch_does_not_compute_with_are_read_as_those_it_does(
    tmp_path: Path,
) -> None:
    """Of uint16, a batch was one of uint16, by which every local step failed."""
    for kind, wanted in (("uint16", torch.int64), (">f4", torch.float32), (">i8", torch.int64)):
        x = np.array([[1], [2], [3]], kind)
        data = ready(saved(tmp_path / "a.npz", train_inputs=x, train_targets=np.arange(3)))
        ((inputs, _),) = data.client_batches(0, RandomKeys(0, 0, 0), 0)
        assert inputs.dtype == wanted
        assert sorted(inputs.flatten().tolist()) == [1, 2, 3]


def test_targets_are_of_the_types_that_losses_take(tmp_path: Path) -> None:
    for kind, wanted in (("int32", torch.int64), ("float64", torch.float32)):
        file = saved(tmp_path / "a.npz", train_inputs=[1.0], train_targets=np.ones(1, kind))
        ((_, targets),) = ready(file).client_batches(0, RandomKeys(0, 0, 0), 0)
        assert targets.dtype == wanted


def test_numbers_that_normalise_fit_the_channels(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.npz", train_inputs=np.ones((2, 3, 4, 4)), train_targets=[0, 1])
    with pytest.raises(ValueError, match=r"data.mean must have one number for each of 3 channels"):
        ready(file, mean=[0.5, 0.5])
    with pytest.raises(ValueError, match=r"data.std must be positive, got \[0.0\]"):
        Arrays(file, std=[0.0])
