import fcntl
import gzip
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bhfl.data import CIFAR10, CIFAR100, MNIST, SVHN, Digits, FakeImages, FashionMNIST, ImageFolder
from bhfl.data.cache import load_tree
from bhfl.data.source import TensorSource

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpg.tar.gz"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def everything(batches):
    return tuple(torch.cat(part) for part in zip(*batches, strict=True))


def test_digits_have_a_fixed_stratified_test_split():
    data = Digits()
    data.setup("fit")
    assert sum(data.federate(5, 0)) == 1293
    inputs, targets = everything(data.test_batches())
    assert inputs.shape == (360, *data.input_shape)
    assert torch.bincount(targets).min() >= 35
    assert targets[:12].tolist() == everything(Digits().test_batches())[1][:12].tolist()
    pixels = data._train.inputs
    assert len({image.numpy().tobytes() for image in (*pixels, *data._test.inputs)}) == 1797
    normalised = (pixels - 0.3053) / 0.3761
    assert abs(normalised.mean()) < 0.01
    assert abs(normalised.std() - 1) < 0.01


def test_fake_images_follow_from_their_arguments_and_can_be_learned():
    first, second, other = (FakeImages(400, 100, (1, 8, 8), 4, seed=seed) for seed in (0, 0, 1))
    train, test = first.load(True), first.load(False)
    assert torch.equal(train.inputs, second.load(True).inputs)
    assert not torch.equal(train.inputs, other.load(True).inputs)
    assert not torch.equal(train.inputs[:100], test.inputs)
    assert torch.equal(test.inputs, FakeImages(4, 100, (1, 8, 8), 4).load(False).inputs)
    assert (first.num_classes, first.input_shape) == (4, (1, 8, 8))
    means = torch.stack([train.inputs[train.labels == label].float().mean(0) for label in range(4)])
    nearest = torch.cdist(test.inputs.float().flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == test.labels).float().mean() > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_train": 0},
            "FakeImages.num_train must be an integer from 1 to 2,147,483,648, got 0",
        ),
        ({"num_test": 0}, "FakeImages.num_test must be an integer from 1 to 2,147,483,648, got 0"),
        (
            {"num_classes": 0},
            "FakeImages.num_classes must be an integer from 1 to 2,147,483,648, got 0",
        ),
        (
            {"seed": -1},
            "FakeImages.seed must be an integer from 0 to 4,611,686,018,427,387,903, got -1",
        ),
        ({"shape": (8, 8)}, r"FakeImages.shape must be \(channels, rows, columns\), got \(8, 8\)"),
        (
            {"shape": (1, 8, 0)},
            "FakeImages.shape must be an integer from 1 to 2,147,483,648, got 0",
        ),
    ],
)
def test_fake_images_check_their_options(options, message):
    with pytest.raises(ValueError, match=message):
        FakeImages(**options)


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, CIFAR10, CIFAR100, SVHN])
def test_a_missing_set_says_what_to_do(kind, tmp_path):
    data = kind(root=str(tmp_path))
    data.prepare_data()
    with pytest.raises(
        ValueError,
        match=rf"data.root must hold torchvision's files of {kind.__name__}, and .*download",
    ):
        data.setup("fit")


@pytest.mark.parametrize(
    "error", [OSError("no\nnetwork"), RuntimeError("no\nnetwork"), ValueError("no\nnetwork")]
)
def test_a_failed_download_names_the_set_and_the_folder(error, tmp_path, monkeypatch):
    def offline(root, **options):
        raise error

    monkeypatch.setattr("torchvision.datasets.MNIST", offline)
    message = (
        "data.download: torchvision's files of MNIST cannot be fetched to "
        f"'{tmp_path}' (no network)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        MNIST(root=str(tmp_path), download=True).prepare_data()


@pytest.mark.parametrize("root", ["", None])
def test_a_root_must_be_named(root):
    with pytest.raises(ValueError, match=r"data\.root must be a path: a path must not be empty"):
        MNIST(root=root)


def test_the_error_of_cifar10_names_the_archive(tmp_path):
    with pytest.raises(ValueError, match=r"data\.archive"):
        CIFAR10(root=str(tmp_path)).setup("fit")


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(
        size.to_bytes(4, "big") for size in array.shape
    )
    path.write_bytes(header + array.tobytes())
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(b""))


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_grey_sets_are_read_through_torchvision(kind, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = (np.arange(20) % 10).astype(np.uint8)
    for split in ("train", "t10k"):
        write_idx(tmp_path / kind.__name__ / "raw" / f"{split}-images-idx3-ubyte", pixels)
        write_idx(tmp_path / kind.__name__ / "raw" / f"{split}-labels-idx1-ubyte", labels)
    data = kind(root=str(tmp_path))
    data.setup("fit")
    assert data._train.inputs.dtype == torch.uint8
    assert torch.equal(data._train.inputs, torch.from_numpy(pixels).unsqueeze(1))
    assert data._train.input_shape == data.input_shape
    assert data._train.labels.tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("kind", "shape", "name", "option"),
    [
        (CIFAR10, (6, 32, 32, 3), "targets", {"train": True}),
        (CIFAR100, (6, 32, 32, 3), "targets", {"train": True}),
        (SVHN, (6, 3, 32, 32), "labels", {"split": "train"}),
    ],
)
def test_colour_sets_are_brought_to_channels_first(
    kind, shape, name, option, monkeypatch, tmp_path
):
    from torchvision import datasets

    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    calls = []

    def stub(root, **options):
        calls.append((root, options))
        if options["download"]:
            # others wait
            with open(tmp_path / ".bhfl.lock") as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return SimpleNamespace(data=pixels, **{name: list(range(6))})

    monkeypatch.setattr(datasets, kind.__name__, stub)
    data = kind(root=str(tmp_path), download=True)
    data.prepare_data()
    assert [options["download"] for _, options in calls] == [True, True]
    source = data.load(train=True)
    assert calls[-1] == (str(tmp_path), {**option, "download": False})
    channels_first = pixels if shape[1] == 3 else pixels.transpose(0, 3, 1, 2)
    assert torch.equal(source.inputs, torch.from_numpy(channels_first.copy()))
    assert source.input_shape == data.input_shape
    assert source.labels.tolist() == list(range(6))


@pytest.mark.parametrize(
    ("key", "name"), [("archive", "a.tar.gz"), ("archive", "a.zip"), ("root", "folder")]
)
def test_image_folder(key, name, tmp_path, files, pack):
    data = ImageFolder(
        **{key: str(pack(tmp_path / name, files))}, image_size=8, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    assert (data.num_classes, data.input_shape) == (2, (3, 8, 8))
    data.prepare_data()
    data.setup("fit")
    assert data.federate(2, 0) == [3, 2]
    inputs, targets = everything(data.test_batches())
    assert isinstance(data._test, TensorSource)
    torch.testing.assert_close(inputs, (data.tree.test.images / 255 - 0.5) / 0.25)
    assert targets.tolist() == [0, 1]


def test_image_folder_checks_its_options():
    with pytest.raises(
        ValueError, match="must have one of archive and root, got archive=None, root=None"
    ):
        ImageFolder()
    with pytest.raises(
        ValueError, match="must have one of archive and root, got archive='a', root='b'"
    ):
        ImageFolder(archive="a", root="b")
    with pytest.raises(
        ValueError, match="image_size must be an integer from 1 to 2,147,483,648, got 0"
    ):
        ImageFolder(archive="a", image_size=0)


def test_cifar10_reads_an_archive_of_pictures(tmp_path, picture, pack):
    files = {
        f"{split}/{name}/0.jpg": picture(0, (32, 32), "JPEG")
        for split in ("train", "test")
        for name in CLASSES
    }
    data = CIFAR10(archive=str(pack(tmp_path / "c.tar", files)))
    data.prepare_data()
    data.setup("fit")
    assert data._train.labels.tolist() == list(range(10))
    inputs, _ = everything(data.test_batches())
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CIFAR10.mean, CIFAR10.std))
    torch.testing.assert_close(inputs, (data._test.inputs / 255 - mean) / std)


def test_cifar10_refuses_an_archive_of_something_else(tmp_path, files, pack):
    data = CIFAR10(archive=str(pack(tmp_path / "c.tar", files)))
    with pytest.raises(
        ValueError,
        match=r"data.archive must hold 10 classes of \(3, 32, 32\) pictures, got 2 of \(3, 5",
    ):
        data.setup("fit")


@pytest.mark.slow
@pytest.mark.skipif(not ARCHIVE.exists(), reason=f"no {ARCHIVE}")
def test_the_whole_of_cifar10_is_decoded():
    tree = load_tree(ARCHIVE)
    assert tree.classes == CLASSES
    assert torch.bincount(tree.train.targets).tolist() == [5000] * 10
    assert torch.bincount(tree.test.targets).tolist() == [1000] * 10
    means = tree.train.images[::10].float().mean((0, 2, 3)) / 255
    torch.testing.assert_close(means, torch.tensor(CIFAR10.mean), atol=0.005, rtol=0)
