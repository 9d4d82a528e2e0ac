"""LEAF's JSON layout."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bhfl.data import IID, LEAF
from bhfl.engine.random import RandomKeys

USERS = {"ann": 4, "bob": 3, "cyd": 5}
rng = np.random.default_rng(0)
X = {user: rng.random((size, 4)).round(3).tolist() for user, size in USERS.items()}
Y = {user: [i % 3 for i in range(size)] for user, size in USERS.items()}


def write(file: Path, users=USERS, x=X, y=Y, **changes) -> Path:
    content = {
        "users": list(users),
        "num_samples": [len(y[user]) for user in users],
        "user_data": {user: {"x": x[user], "y": y[user]} for user in users},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**content, **changes}))
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "train" / "0.json", ["bob"])
    write(tmp_path / "train" / "1.json", ["cyd", "ann"])
    write(tmp_path / "test" / "0.json", ["cyd", "bob"])
    return tmp_path


def ready(root, num_clients=3, **options):
    data = LEAF(root, **{"val_fraction": 0.0, **options})
    data.setup("fit")
    data.federate(num_clients, 0)
    return data


def inputs_of(batches):
    return sorted(torch.cat([inputs for inputs, _ in batches]).flatten(1).tolist())


def test_each_user_is_a_client_with_a_test_of_its_own(root):
    data = ready(root)
    assert (data.num_classes, data.input_shape) == (3, (4,))
    expected = {user: sorted(np.float32(x).tolist()) for user, x in X.items()}
    for client, user in enumerate(USERS):
        assert inputs_of(data.client_batches(client, RandomKeys(0), 0)) == expected[user]
    assert data.client_test_batches(0) is None
    assert inputs_of(data.client_test_batches(2)) == expected["cyd"]
    assert inputs_of(data.test_batches()) == sorted(expected["cyd"] + expected["bob"])
    assert data.held_sizes("test").tolist() == [0, 3, 5]


def test_users_are_dealt_to_fewer_clients_with_their_tests(root):
    data = ready(root, 2)
    sizes = [data.split.clients.size(client) for client in (0, 1)]
    assert sum(sizes) == 12
    for client in (0, 1):
        mine = inputs_of(data.client_batches(client, RandomKeys(0), 0))
        tested = data.client_test_batches(client)
        assert all(x in mine for x in inputs_of(tested or [(torch.empty(0, 4), None)]))
    assert data.held_sizes("test").sum() == 8
    # the parts follow another split
    assert data.federate(3, 0) == [4, 3, 5]
    assert data.held_sizes("test").tolist() == [0, 3, 5]


def test_users_of_the_test_alone_are_nobody_s(root):
    write(root / "test" / "1.json", ["dan"], {"dan": X["ann"]}, {"dan": Y["ann"]})
    data = ready(root)
    assert data.held_sizes("test").tolist() == [0, 3, 5]
    assert len(data._test) == 12
    write(root / "test" / "1.json", ["dan"], {"dan": X["ann"]}, {"dan": [7] * len(Y["ann"])})
    assert ready(root).num_classes == 8
    write(root / "test" / "1.json", ["dan"], {"dan": X["ann"]}, {"dan": [-1] * len(Y["ann"])})
    with pytest.raises(ValueError, match=r"no numbers of classes, 0 and up, got -1 in data\.test"):
        _ = ready(root).num_classes


def test_other_splits_take_the_tests_of_clients_from_training(root):
    assert ready(root, client_test_fraction=0.4).held_sizes("test").tolist() == [1, 1, 2]
    assert ready(root, partition=IID()).client_test_batches(0) is None


def test_pictures_have_the_shape_that_is_asked_for(root):
    assert ready(root, shape=(1, 2, 2)).input_shape == (1, 2, 2)
    with pytest.raises(ValueError, match=r"LEAF.shape must hold the 4 numbers of an input, got"):
        ready(root, shape=(1, 3, 2))


def test_texts_are_numbers_of_their_characters(tmp_path):
    write(tmp_path / "train" / "a.json", ["ann"], {"ann": ["abca", "bcab"]}, {"ann": ["b", "d"]})
    write(tmp_path / "test" / "a.json", ["ann"], {"ann": ["azdb"]}, {"ann": ["z"]})
    data = ready(tmp_path, 1)
    assert data.num_classes == 5
    assert data._train.inputs.tolist() == [[0, 1, 2, 0], [1, 2, 0, 1]]
    assert data._train.targets.tolist() == [1, 3]
    ((inputs, targets),) = data.test_batches()
    assert (inputs.dtype, inputs.tolist(), targets.tolist()) == (torch.int64, [[0, 4, 3, 1]], [4])


BAD = {
    "nothing": ({}, "LEAF.root must hold train/*.json and test/*.json, and "),
    "no JSON": ({"0": "{"}, "0.json must be JSON of users, num_samples, and user_data with x"),
    "key": ({"0": {"user_data": None}}, "user_data with x and y of each user: TypeError"),
    "user": ({"0": {"user_data": {}}}, "user_data with x and y of each user: KeyError 'ann'"),
    "number": ({"0": {"num_samples": [3]}}, "0.json must hold 3 samples of 'ann', as num_samples "
        "says, got 4 of x and 4 of y"),
    "numbers": ({"0": {"num_samples": []}}, "0.json must tell num_samples of 1 users, got 0"),
    "ragged": ({"0": {"x": {"ann": [[1, 2], [1], [1], [1]]}}}, "must hold numbers of one shape or "
        "texts of one length as x, and those of 'ann' are not"),
    "lengths": ({"0": {"x": {"ann": ["ab", "a", "b", "c"]}}}, "texts of one length as x"),
    "target": ({"0": {"y": {"ann": [0.5] * 4}}}, "whole numbers or characters as y, and those of"),
    "mixed": ({"0": {"x": {"ann": ["ab"] * 4}}}, "must hold numbers as x and y, or texts and a"),
    "twice": ({"0": {}, "1": {}}, "1.json must hold users once, and 'ann' is there twice"),
    "shapes": ({"0": {}, "1": {"users": ["bob"], "x": {"bob": [[1]] * 3}}}, "x must be alike for "
        "all users of "),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_other_files_are_refused(case, tmp_path):
    files, message = BAD[case]
    for name, changes in files.items():
        file = tmp_path / "train" / f"{name}.json"
        write(file, **{"users": ["ann"], **(changes if isinstance(changes, dict) else {})})
        if isinstance(changes, str):
            file.write_text(changes)
    write(tmp_path / "test" / "0.json")
    with pytest.raises(ValueError, match=re.escape(message)):
        ready(tmp_path)
