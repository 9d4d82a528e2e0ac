import re

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from bhfl.data import Digits, Dirichlet, FakeImages, FromDatasets
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import FederatedData, server_data


def ready(num_clients=6, seed=0, **options):
    data = FakeImages(num_train=200, num_test=50, shape=(3, 8, 8), num_classes=5, **options)
    data.prepare_data()
    data.setup("fit")
    data.federate(num_clients, seed)
    return data


def joined(batches):
    return tuple(torch.cat(part) for part in zip(*batches, strict=True))


def same(first, second):
    first, second = joined(first), joined(second)
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be an integer from 1 to 2,147,483,648, got 0"),
        (
            {"eval_batch_size": 2.5},
            "data.eval_batch_size must be an integer from 1 to 2,147,483,648, got 2.5",
        ),
        ({"val_fraction": 1.0}, "data.val_fraction must be in [0, 1), got 1.0"),
        (
            {"val_fraction": float("nan")},
            "data.val_fraction must be in [0, 1), got nan",
        ),
        (
            {"client_val_fraction": -0.1},
            "data.client_val_fraction must be in [0, 1), got -0.1",
        ),
        (
            {"client_test_fraction": 1.0},
            "data.client_test_fraction must be in [0, 1), got 1.0",
        ),
        (
            {"client_val_fraction": 0.5, "client_test_fraction": 0.5},
            "data.client_val_fraction and data.client_test_fraction must leave training samples "
            "and sum to less than 1, got 1",
        ),
        ({"holdout": -1}, "data.holdout must be an integer from 0 to 2,147,483,648, got -1"),
        (
            {"max_train_samples": 0},
            "data.max_train_samples must be an integer from 1 to 2,147,483,648, got 0",
        ),
        (
            {"max_eval_samples": 0},
            "data.max_eval_samples must be an integer from 1 to 2,147,483,648, got 0",
        ),
        ({"num_workers": None}, "data.num_workers must be an integer from 0 to 1,024, got None"),
        ({"augment": "mixup"}, "data.augment must be one of none, crop_flip, got 'mixup'"),
        ({"partition": "iid"}, "data.partition must be a Partitioner, got 'iid'"),
    ],
)
def test_options_are_checked_at_once(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Digits(**options)


def test_batches_before_the_split_are_refused():
    with pytest.raises(RuntimeError, match="call federate"):
        Digits().val_batches()


def test_it_is_what_the_engine_asks_for():
    assert isinstance(Digits(), FederatedData)


def test_federate_counts_the_training_samples():
    data = ready(client_val_fraction=0.25, val_fraction=0.2, holdout=10, partition=Dirichlet(0.5))
    counts = data.federate(6, seed=0)
    assert counts == [len(part) for part in data.partition_record()["clients"]]
    for client, count in enumerate(counts):
        batches = list(data.client_batches(client, RandomKeys(0), 0))
        assert len(batches) == data.num_batches(client)
        inputs, targets = joined(batches)
        assert inputs.shape == (count, 3, 8, 8)
        assert len(targets) == count
    record = data.partition_record()
    assert data.federate(6, seed=0) == counts
    assert data.partition_record() == record
    assert data.federate(6, seed=1) != counts


def test_client_batches_follow_from_seed_round_client_and_epoch_only():
    data, other = ready(augment="crop_flip"), ready(augment="crop_flip")
    expected = list(data.client_batches(2, RandomKeys(1, 4, 2), 0))
    list(other.client_batches(1, RandomKeys(1, 4, 1), 0))
    list(other.val_batches())
    torch.rand(3)
    assert same(expected, other.client_batches(2, RandomKeys(1, 4, 2), 0))
    for changed in (RandomKeys(2, 4, 2), RandomKeys(1, 5, 2)):
        assert not same(expected, data.client_batches(2, changed, 0))


def test_epochs_differ_in_order_only():
    data = ready()
    first, second = (joined(data.client_batches(0, RandomKeys(0), epoch)) for epoch in (0, 1))
    assert not torch.equal(first[0], second[0])
    assert sorted(x.sum().item() for x in first[0]) == sorted(x.sum().item() for x in second[0])


@pytest.mark.parametrize(("batch_size", "left"), [(7, 28), (30, 30), (33, 30), (64, 30)])
def test_a_small_last_batch_can_be_left_out_but_never_the_only_one(batch_size, left):
    data = ready(val_fraction=0.1, batch_size=batch_size, drop_last=True)
    assert [len(part) for part in data.split.clients] == [30] * 6
    batches = [list(data.client_batches(2, RandomKeys(0, 0, 2), epoch)) for epoch in (0, 1)]
    assert [sum(len(labels) for _, labels in epoch) for epoch in batches] == [left] * 2
    assert [len(epoch) for epoch in batches] == [data.num_batches(2)] * 2
    assert not same(*batches)


def test_augmentation_changes_pictures_but_not_the_order():
    plain, changed = (
        joined(ready(augment=a).client_batches(0, RandomKeys(0), 0)) for a in ("none", "crop_flip")
    )
    assert torch.equal(plain[1], changed[1])
    assert not torch.equal(plain[0], changed[0])


def test_evaluation_batches_are_fixed_and_plain():
    data = ready(augment="crop_flip", val_fraction=0.3, client_val_fraction=0.5, eval_batch_size=16)
    assert [len(targets) for _, targets in data.val_batches()] == [16, 16, 16, 12]
    assert same(data.val_batches(), ready(val_fraction=0.3).val_batches())
    assert same(data.test_batches(), ready(seed=9).test_batches())
    assert same(data.client_val_batches(0), data.client_val_batches(0))


def test_no_validation_where_none_was_asked_for():
    data = ready(val_fraction=0.0)
    assert list(data.val_batches()) == []
    assert data.client_val_batches(0) is None


def test_each_client_has_a_test_set_of_its_own():
    data = ready(client_val_fraction=0.2, client_test_fraction=0.3)
    other = ready(client_val_fraction=0.2)
    assert other.client_test_batches(0) is None
    assert "client_test" not in other.partition_record()
    split = data.split
    for client in range(6):
        mine = (split.clients[client], split.client_val[client], split.client_test[client])
        assert len(joined(data.client_test_batches(client))[1]) == len(mine[2]) == 9
        # neither another client's share nor this one's validation moves
        assert torch.equal(mine[1], other.split.client_val[client])
        assert torch.equal(torch.cat(mine[::2]).sort().values, other.split.clients[client])
    assert same(data.test_batches(), other.test_batches())


def test_a_data_module_of_one_s_own_need_have_no_test_sets_of_clients():
    class Own:
        def client_val_batches(self, client_id):
            return None

    assert server_data(Own()).client_test_batches(0) is None


def test_max_eval_samples_caps_evaluation_and_leaves_training_alone():
    data, full = ready(max_eval_samples=10), ready()
    assert data.partition_record() == full.partition_record()
    for batches in (data.val_batches(), data.test_batches()):
        assert torch.bincount(joined(batches)[1]).tolist() == [2] * 5
    assert same(data.test_batches(), ready(seed=3, max_eval_samples=10).test_batches())
    assert same(full.val_batches(limit=10), data.val_batches())
    assert same(data.val_batches(limit=99), data.val_batches())


def test_holdout_is_for_the_server():
    data = ready(holdout=20, eval_batch_size=8)
    assert [len(targets) for _, targets in data.holdout_batches()] == [8, 8, 4]
    kept = joined(data.holdout_batches())[0]
    assert kept.shape == (data.num_holdout(), 3, 8, 8) == (20, 3, 8, 8)
    assert torch.equal(joined(data.holdout_batches(limit=5))[0], kept[::4])
    assert torch.equal(joined(data.holdout_batches(limit=99))[0], kept)
    assert ready().num_holdout() == 0
    assert list(ready().holdout_batches()) == []


class Pictures(Dataset):
    """A map-style dataset that is not made of tensors."""

    def __init__(self, size):
        self.size, self.targets = size, [i % 4 for i in range(size)]

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.full((1, 8, 8), float(index)), self.targets[index]


def test_any_map_style_dataset_will_do():
    data = FromDatasets(
        Pictures(40), Pictures(12), batch_size=8, augment="crop_flip", max_eval_samples=4
    )
    assert (data.num_classes, data.input_shape) == (4, (1, 8, 8))
    data.setup("fit")
    assert data.federate(2, 0) == [18, 18]
    assert [len(targets) for _, targets in data.client_batches(0, RandomKeys(0), 0)] == [8, 8, 2]
    assert sorted(joined(data.test_batches())[1].tolist()) == [0, 1, 2, 3]


def test_a_subset_has_the_targets_of_its_samples():
    whole = Pictures(30)
    data = FromDatasets(Subset(Subset(whole, range(2, 30)), [3, 0, 9]), whole, val_fraction=0.0)
    assert data._train.targets.tolist() == [int(whole[i][1]) for i in (5, 2, 11)]


def test_targets_can_be_given_for_the_split():
    inputs, soft = torch.rand(20, 3), torch.rand(20, 2)
    pair = TensorDataset(inputs, soft)
    data = FromDatasets(pair, pair, targets=[0, 1] * 10, num_classes=2)
    data.federate(2, 0)
    assert joined(data.client_batches(0, RandomKeys(0), 0))[1].shape == (9, 2)
    with pytest.raises(ValueError, match="targets must be one for each of 20 samples, got 3"):
        FromDatasets(pair, pair, targets=[0, 1, 0]).federate(2, 0)
    with pytest.raises(ValueError, match="targets must have one dimension"):
        FromDatasets(pair, pair).federate(2, 0)


@pytest.mark.parametrize("wrapped", [False, True])
def test_evaluation_is_capped_evenly_where_nobody_knows_the_labels(wrapped):
    pair = TensorDataset(torch.arange(20.0).unsqueeze(1), torch.rand(20, 2))
    pair = Subset(pair, range(20)) if wrapped else pair
    data = FromDatasets(pair, pair, targets=[0, 1] * 10, num_classes=2, max_eval_samples=4)
    data.setup("test")
    assert joined(data.test_batches())[0].flatten().tolist() == [0, 5, 10, 15]


def test_tokens_kept_for_the_server_stay_integers():
    pair = TensorDataset(torch.arange(40).view(20, 2), torch.arange(20) % 2)
    data = FromDatasets(pair, pair, holdout=4)
    data.federate(2, 0)
    assert joined(data.holdout_batches())[0].dtype == torch.int64


def test_augment_needs_pictures():
    pair = TensorDataset(torch.rand(20, 3), torch.arange(20))
    with pytest.raises(
        ValueError, match=r"data.augment must be none for inputs of shape \(3,\), got 'crop_flip'"
    ):
        FromDatasets(pair, pair, augment="crop_flip").setup("fit")


def test_num_classes_is_checked():
    pair = TensorDataset(torch.rand(20, 3), torch.arange(20))
    with pytest.raises(
        ValueError, match="num_classes must be an integer from 1 to 2,147,483,648, got 0"
    ):
        FromDatasets(pair, pair, num_classes=0)


@pytest.mark.parametrize(
    ("labels", "odd"), [([-1, 1], "-1"), ([0.5, 1.0], "0.5"), ([np.nan, 1.0], "nan")]
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_that_are_no_classes_are_told_before_anything_is_trained(labels, odd, split):
    fine = (np.zeros((2, 3)), np.array([0, 1]))
    data = FromDatasets(**{"train": fine, "test": fine, split: (fine[0], np.array(labels))})
    message = (
        rf"given for targets that are no numbers of classes, 0 and up, got {odd} in data.{split}"
    )
    with pytest.raises(ValueError, match=message):
        _ = data.num_classes


def test_classes_of_the_test_alone_are_counted():
    x = np.zeros((3, 2))
    assert FromDatasets((x, np.arange(3)), (x, np.arange(3) + 4)).num_classes == 7
    with pytest.raises(ValueError, match="targets must have a value for each sample, and sample 2"):
        FromDatasets((x, np.array([0, 1, np.nan])), (x, np.arange(3))).federate(1, 0)


def test_options_can_be_typed_on_a_command_line():
    jsonargparse = pytest.importorskip("jsonargparse")
    # a class is known by its name alone once it is loaded
    from bhfl.data import CIFAR10, FederatedDataModule

    assert issubclass(CIFAR10, FederatedDataModule)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FederatedDataModule, "data")
    typed = [
        "--data=CIFAR10",
        "--data.archive=a.tar",
        "--data.batch_size=7",
        "--data.partition=Dirichlet",
    ]
    options = parser.parse_args([*typed, "--data.partition.alpha=0.1"]).data.init_args
    assert (options.archive, options.root, options.batch_size) == ("a.tar", "data", 7)
    assert options.partition.init_args.alpha == 0.1
    column = parser.parse_args(
        ["--data=Digits", "--data.partition=ByColumn", "--data.partition.column=[1, 0]"]
    )
    assert column.data.init_args.partition.init_args.column == [1, 0]
    default = parser.parse_args(["--data=bhfl.data.Digits"]).data.init_args
    assert default.partition.class_path == "bhfl.data.IID"
    with pytest.raises(jsonargparse.ArgumentError, match="bacth_size"):
        parser.parse_args(["--data=CIFAR10", "--data.bacth_size=7"])


def test_the_labels_of_each_client_are_counted():
    data = ready()
    counts = data.label_counts(4)
    assert counts.shape == (4, 5)
    assert data.label_counts(99).shape == (6, 5)
    for client, mine in enumerate(counts):
        _, labels = joined(data.client_batches(client, RandomKeys(0), 0))
        assert mine.tolist() == torch.bincount(labels, minlength=5).tolist()


def test_targets_that_are_no_classes_are_not_counted():
    data = FromDatasets(POINTS, POINTS, targets=torch.rand(40), num_classes=1)
    data.setup("fit")
    data.federate(2, 0)
    assert data.label_counts(2) is None


POINTS = TensorDataset(torch.randn(40, 3), torch.rand(40))
