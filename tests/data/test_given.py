"""The forms in which `FromDatasets` takes data."""

import re

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)

from bhfl.data import ByColumn, FromDatasets, Shards
from bhfl.data.source import LoaderSource, TensorSource
from bhfl.engine.random import RandomKeys
from bhfl.engine.written import UnwrittenError, spell
from bhfl.recorded import plain

X = torch.arange(60.0).view(30, 2)
Y = torch.arange(30) % 3
USERS = np.array(list("abcde")).repeat(6)


class Table(Dataset):
    """Rows that are mappings, each of which draws from a global generator."""

    def __init__(self, lost=()):
        self.users = USERS
        self.lost = lost

    def __len__(self):
        return 30

    def __getitem__(self, index):
        torch.rand(1)
        row = {"x": X[index], "label": int(Y[index]), "user": USERS[index]}
        return {key: value for key, value in row.items() if (index, key) not in self.lost}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def ready(train, test=None, num_clients=3, **options):
    options = {"val_fraction": 0.0, "batch_size": 4, **options}
    data = FromDatasets(train, train if test is None else test, **options)
    data.setup("fit")
    data.federate(num_clients, 0)
    return data


def mine(data, client):
    """The inputs and the targets of a client, in the order of the data."""
    inputs, targets = zip(*data.client_batches(client, RandomKeys(0), 0), strict=True)
    inputs = torch.cat(inputs)
    order = inputs[:, 0].argsort()
    return inputs[order], torch.cat(targets)[order]


@pytest.mark.parametrize("convert", [torch.clone, torch.Tensor.numpy], ids=["torch", "numpy"])
def test_pairs_of_arrays_are_as_fast_as_tensors(convert):
    data = ready((convert(X), convert(Y.to(torch.int32))))
    expected = ready(TensorDataset(X, Y))
    assert isinstance(data._train, TensorSource)
    for client in range(3):
        for found, wanted in zip(mine(data, client), mine(expected, client), strict=True):
            assert torch.equal(found, wanted)
            assert found.dtype == wanted.dtype


def test_arrays_that_torch_cannot_read_as_they_lie():
    x, y = X.numpy(), Y.numpy()
    swapped = (x.astype(">f4"), y.astype(">i8"))
    for pair in ((x[::-1], y[::-1]), (np.asfortranarray(x), y), swapped):
        data = ready(pair, num_clients=1)
        assert torch.equal(mine(data, 0)[0], X)
        assert torch.equal(data._train.labels[data._train.inputs[:, 0].argsort()], Y)


def test_the_dtypes_of_pairs_are_those_that_losses_take():
    source = FromDatasets((X.numpy().astype(np.uint16), Y.double()), (X, Y))._train
    assert (source.inputs.dtype, source.labels.dtype) == (torch.int64, torch.float32)
    read_only = X.numpy().copy()
    read_only.flags.writeable = False
    assert torch.equal(FromDatasets((read_only, Y.bool()), (X, Y))._train.inputs, X)


@pytest.mark.parametrize("train", [(X, Y), [(X, Y)]], ids=["pair", "list"])
def test_arrays_are_not_written_to_a_configuration(train):
    data = FromDatasets(train, (X, Y))
    told = plain(data)["init_args"]
    assert told["train"]["init_args"] == {"len": len(train)}
    with pytest.raises(UnwrittenError, match=r"builtins.(tuple|list) is no class that a config"):
        spell(told["train"])


def test_random_splits_have_the_targets_and_the_speed_of_what_they_are_of():
    first, second = random_split(TensorDataset(X, Y), [20, 10])
    data = FromDatasets(Subset(first, range(15)), second)
    assert isinstance(data._train, TensorSource)
    assert torch.equal(data._train.inputs, X[first.indices[:15]])
    assert data._test.targets.tolist() == Y[second.indices].tolist()
    assert isinstance(FromDatasets(Table(), Table(), targets="label")._train, LoaderSource)


LISTS = {
    "arrays": lambda part: (X[part].numpy(), Y[part].numpy()),
    "tensor sets": lambda part: TensorDataset(X[part], Y[part]),
    "subsets": lambda part: Subset(TensorDataset(X, Y), range(30)[part]),
    "others": lambda part: Named([(X[i], int(Y[i])) for i in range(30)[part]]),
}


class Named(list, Dataset):
    """Samples with targets."""

    @property
    def targets(self):
        return [target for _, target in self]


@pytest.mark.parametrize("form", LISTS)
def test_a_list_gives_each_client_a_data_set_of_its_own(form):
    parts = [slice(0, 5), slice(5, 20), slice(20, 30)]
    lists = [LISTS[form](part) for part in parts]
    data = ready(lists, lists, val=[*lists[:2], LISTS[form](slice(0, 0))])
    assert isinstance(data._train, LoaderSource) == (form == "others")
    for client, part in enumerate(parts):
        inputs, targets = mine(data, client)
        assert torch.equal(inputs, X[part])
        assert torch.equal(targets, Y[part])
        ((tested, _),) = data.client_test_batches(client)
        assert torch.equal(tested, X[part])
    assert sum(len(targets) for _, targets in data.val_batches()) == 20
    assert sum(len(targets) for _, targets in data.test_batches()) == 30
    assert [len(targets) for _, targets in data.client_val_batches(1)] == [15]
    assert data.client_val_batches(2) is None


def test_validation_and_tests_of_clients_can_be_taken_from_their_lists():
    lists = [(X[:15], Y[:15]), (X[15:], Y[15:])]
    options = {"client_val_fraction": 0.2, "client_test_fraction": 0.2, "val_fraction": 0.1}
    data = ready(lists, (X, Y), 2, **options)
    for client in range(2):
        ((inputs, _),) = data.client_test_batches(client)
        assert inputs[:, 0].lt(30).all() == (client == 0)
    assert sum(len(targets) for _, targets in data.val_batches()) == 3


def test_a_validation_split_takes_no_training_samples():
    data = ready((X, Y), val=(X[:8], Y[:8]), val_fraction=0.5)
    assert sum(data.split.clients.sizes) == 30
    assert torch.equal(torch.cat([inputs for inputs, _ in data.val_batches()]), X[:8])
    assert len(torch.cat([inputs for inputs, _ in data.val_batches(limit=3)])) == 3


def test_thousands_of_clients_of_their_own_are_two_arrays():
    count = 4_000
    inputs = torch.arange(2.0 * count).view(-1, 1)
    lists = [(inputs[2 * i : 2 * i + 2], torch.zeros(2)) for i in range(count)]
    data = ready(lists, lists[:1] * count, count)
    assert torch.equal(mine(data, count - 1)[0], inputs[-2:])
    assert isinstance(data._train, TensorSource)


def test_rows_that_are_mappings_are_read_by_the_names_of_their_columns():
    state = torch.get_rng_state()
    data = ready(Table(), targets="label", partition=ByColumn("user"), num_clients=5)
    assert torch.equal(torch.get_rng_state(), state)
    (batch, *_) = data.client_batches(1, RandomKeys(0), 0)
    assert set(batch) == {"x", "label", "user"}
    assert set(batch["user"]) == {"b"}
    pairs = ready(Table(), targets="label", inputs="x", partition=ByColumn("users"), num_clients=5)
    assert torch.equal(mine(pairs, 1)[0], X[6:12])
    assert pairs.input_shape == (2,)
    both = ready(ConcatDataset([Subset(Table(), range(12)), Table()]), targets="label")
    assert len(both._train.targets) == 42


def collated(samples):
    return torch.stack([inputs for inputs, _ in samples]).neg(), torch.tensor([0] * len(samples))


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_inputs_in_rows_are_read_as_those_of_arrays(convert):
    doubles = np.arange(6.0).reshape(3, 2)
    for array, divisor in ((doubles, 1), (doubles.astype(np.uint8), 255)):
        rows = [{"x": convert(one), "y": i} for i, one in enumerate(array)]
        ((inputs, targets),) = ready(rows, targets="y", inputs="x").test_batches()
        assert inputs.dtype == torch.float32
        assert torch.equal(inputs, torch.from_numpy(doubles).float() / divisor)
        assert targets.tolist() == [0, 1, 2]


def test_collate_fn_makes_the_batches():
    data = ready((X, Y), collate_fn=collated)
    (inputs, targets), *_ = data.client_batches(0, RandomKeys(0), 0)
    assert inputs.max() <= 0
    assert not targets.any()
    assert data._train.targets.tolist() == Y.tolist()


def test_pinned_memory_is_for_machines_with_a_gpu(monkeypatch):
    assert ready(Table(), targets="label", pin_memory=True)._train.loading["pin_memory"] is False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = FromDatasets(Table(), Table(), targets="label", pin_memory=True, num_workers=2)
    assert data._train.loading == {"pin_memory": True, "num_workers": 2, "collate_fn": None}


PAIR = (X, Y)
BAD = {
    "iterable": (lambda: ready(Stream(), PAIR), "data.train must be a data set with a length, of "
        "which any sample can be read, got a Stream: read it into a list or a TensorDataset first"),
    "loader": (lambda: ready(DataLoader(TensorDataset(*PAIR))), "got a DataLoader: read it into a "
        "list or a TensorDataset first; of Hugging Face, load without streaming; of a DataLoader, "
        "give its .dataset"),
    "generator": (lambda: ready(iter([])), "got a list_iterator"),
    "iterable of a client": (lambda: ready([TensorDataset(*PAIR), Stream()]), "data.train[1] must"),
    "mapping": (lambda: ready({"train": PAIR}), "data.train must be one data set, got a dict of"),
    "sets in a tuple": (lambda: ready((Table(), Table())), "data.train must hold two arrays "
        "(inputs, targets) where it is a tuple, got Table and Table; a list gives each client"),
    "lengths": (lambda: ready((X, Y[:9])), "data.train must have as many targets as inputs, got 9"),
    "text": (lambda: ready((X, USERS)), "the targets of data.train must be numbers, got <U1; text"),
    "too few lists": (lambda: ready([PAIR, PAIR]), "data.train must have a data set for each of 3 "
        "clients where it is a list, got 2"),
    "nothing left": (lambda: ready([(X[:1], Y[:1]), PAIR, PAIR], max_train_samples=4),
        "data.train is a list, and none of the samples of data.train[0] is left: lower "
        "data.val_fraction or data.holdout, or raise data.max_train_samples"),
    "test": (lambda: ready([PAIR, PAIR], [PAIR], 2), "data.test must be a list only where "
        "data.train is one of as many clients, got 1, and data.train is a list of 2"),
    "val": (lambda: ready(PAIR, val=[PAIR, PAIR]), "data.val must be a list only where data.train "
        "is one of as many clients, got 2, and data.train is no list"),
    "both": (lambda: ready([PAIR] * 3, [PAIR] * 3, client_test_fraction=0.1),
        "data.client_test_fraction must be 0 where data.test has a set of each client, got 0.1"),
    "partition": (lambda: ready([PAIR] * 3, PAIR, partition=Shards(2)), "data.partition must be "
        "left out where data.train has a set of each client, got Shards("),
    "empty": (lambda: ready([PAIR, (X[:0], Y[:0])], PAIR), "data.train[1] must have samples"),
    "shapes": (lambda: ready([PAIR, (X[:, :1], Y)], PAIR), "data.train[1] must have inputs like "
        "those of data.train[0], torch.float32 [2], got torch.float32 [1]"),
    "source": (lambda: ready([TensorSource(*PAIR)]), "data.train[0] must be a data set, got a Te"),
    "column": (lambda: ready(Table(), targets="lable"), "data.targets must name a column of row 0 "
        "of the data (there are x, label, user), got 'lable'; did you mean 'label'?"),
    "row": (lambda: ready(Table([(7, "label")]), targets="label"), "data.targets must name a "
        "column of row 7 of the data (there are x, user), got 'label'"),
    "missing": (lambda: ready([{"x": 1.0, "y": 0}, {"x": 2.0, "y": None}], targets="y"),
        "data.targets of data.train must have a value for each sample, and sample 1 has none"),
    "attribute": (lambda: ready(PAIR, partition=ByColumn("user")), "ByColumn.column must name a "
        "column of the data (there are none), got 'user'"),
    "inputs": (lambda: ready(Table(), targets="label", inputs="xs"), "data.inputs must name a "
        "column of the data (there are x, label, user), got 'xs'"),
    "inputs alone": (lambda: ready(Table(), inputs="x"), "data.targets must name a column where "
        "data.inputs does, got NoneType"),
    "nothing": (lambda: ready(None), "data.train must be a data set with a length, of which any "
        "sample can be read, got a NoneType"),
    "no name": (lambda: ByColumn(""), "ByColumn.column must be ids, a .npy file or the name of a"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_data_of_no_such_form_are_refused_with_what_to_do(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def hugging_face(**columns):
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"label": Y.tolist(), "user": USERS.tolist(), **columns})


def test_tables_of_hugging_face_give_mappings_or_pairs():
    table = hugging_face(x=X.tolist(), words=[[1] * (1 + i % 2) for i in range(30)])
    rows = ready(table.remove_columns("words"), partition=ByColumn("user"), num_clients=5)
    (batch, *_) = rows.client_batches(4, RandomKeys(0), 0)
    assert batch["x"].shape == (4, 2)
    assert set(batch["user"]) == {"e"}
    pairs = ready(table, inputs="x", targets="label", partition=ByColumn("user"), num_clients=5)
    assert isinstance(pairs._train, TensorSource)
    assert torch.equal(mine(pairs, 4)[0], X[24:])
    ragged = FromDatasets(table, table, inputs="words", targets="label", collate_fn=list)
    assert isinstance(ragged._train, LoaderSource)
    split = ready(Subset(table, range(12)), table, inputs="x", num_clients=2)
    assert sorted(torch.cat([mine(split, c)[0] for c in (0, 1)])[:, 0].tolist()) == [*X[:12, 0]]
    lists = [table.select(range(10)), table.select(range(10, 30))]
    assert torch.equal(mine(ready(lists, inputs="x", num_clients=2), 1)[0], X[10:])


def test_pictures_of_hugging_face_are_tensors_in_0_to_1():
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    pixels = np.random.default_rng(0).integers(256, size=(30, 4, 5, 3), dtype=np.uint8)
    table = hugging_face(image=[Image.fromarray(one) for one in pixels])
    assert isinstance(table.features["image"], datasets.Image)
    data = ready(table, inputs="image")
    ((inputs, _), *_) = data.test_batches()
    assert torch.equal(inputs, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)


@pytest.mark.parametrize("form", ["rows", "torch", "numpy", "part", "lists", "joined"])
def test_numbers_of_uint8_in_tables_are_pixels_too(form):
    datasets = pytest.importorskip("datasets")
    pixels = np.random.default_rng(0).integers(256, size=(30, 3, 2, 2), dtype=np.uint8)
    table = hugging_face(image=list(pixels)).cast_column(
        "image", datasets.Array3D((3, 2, 2), "uint8")
    )
    given = {
        "rows": table,
        "part": Subset(table, range(30)),
        "lists": [table.select(range(15)), table.select(range(15, 30))],
        "joined": ConcatDataset([table.select(range(15)), table.select(range(15, 30))]),
    }.get(form) or table.with_format(form)
    data = FromDatasets(given, given, inputs="image", eval_batch_size=30)
    data.setup("fit")
    data.setup("test")
    ((inputs, _), *_) = data.test_batches()
    assert torch.allclose(inputs, torch.from_numpy(pixels) / 255)


def test_pictures_of_16_bits_are_tensors_in_0_to_1_too():
    pytest.importorskip("datasets")
    from PIL import Image

    grey = np.arange(30 * 4, dtype=np.uint16).reshape(30, 2, 2) * 500
    data = ready(hugging_face(image=[Image.fromarray(one) for one in grey]), inputs="image")
    ((inputs, _), *_) = data.test_batches()
    assert torch.allclose(inputs[:, 0], torch.from_numpy(grey.astype(np.float32)) / 65535)


def test_targets_in_a_column_are_split_as_those_in_a_row():
    column = ready((X, Y[:, None]), num_clients=3)
    assert column.partition_record() == ready((X, Y), num_clients=3).partition_record()
    ((_, targets), *_) = column.test_batches()
    assert targets.shape[1:] == (1,)


@pytest.mark.parametrize("targets", [3, lambda: Y, {0: 1}])
def test_targets_that_are_no_rows_are_refused(targets):
    with pytest.raises(ValueError, match="targets must be one for each of 30 samples, got 1"):
        ready([(x, 0) for x in X], targets=targets)


def test_a_palette_is_looked_up():
    pytest.importorskip("datasets")
    from PIL import Image

    picture = Image.new("RGB", (2, 2), (200, 30, 7)).quantize(4)
    table = hugging_face(image=[picture] * 30)
    ((inputs, _), *_) = ready(Subset(table, range(9)), inputs="image").test_batches()
    assert torch.allclose(inputs[0, :, 0, 0] * 255, torch.tensor([200.0, 30.0, 7.0]))


def test_bad_tables_of_hugging_face_are_refused():
    datasets = pytest.importorskip("datasets")
    table = hugging_face(x=X.tolist())
    with pytest.raises(ValueError, match=r"data.train must be a data set with a length.*streaming"):
        FromDatasets(table.to_iterable_dataset(), table)
    with pytest.raises(ValueError, match=r"must be one data set, got a DatasetDict of \['train'\]"):
        FromDatasets(datasets.DatasetDict(train=table), table)
    message = r"data.targets must name a column of the data \(there are user, x\), got 'label'"
    with pytest.raises(ValueError, match=message):
        FromDatasets(table.remove_columns("label"), table)
