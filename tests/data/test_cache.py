import os

import pytest
import torch

from bhfl.data import cache
from bhfl.data.archive import ImageTree, LabelledImages
from bhfl.data.cache import load_tree


@pytest.fixture
def source(tmp_path, files, pack):
    (tmp_path / "sets").mkdir()
    return pack(tmp_path / "sets" / "a.tar.gz", files)


@pytest.fixture
def decoded(monkeypatch):
    """Counts the times that the pictures were decoded."""
    calls = []
    decode = cache.decode_tree
    monkeypatch.setattr(cache, "decode_tree", lambda *args: calls.append(args) or decode(*args))
    return calls


def cached(folder):
    return sorted(folder.glob("*.pt"))


def same(first, second):
    pairs = zip((first.train, first.test), (second.train, second.test), strict=True)
    return first.classes == second.classes and all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) for a, b in pairs
    )


def test_pictures_are_decoded_once_into_the_folder_of_the_user(source, decoded, user_cache):
    first, second = load_tree(source), load_tree(source)
    assert len(decoded) == 1
    assert same(first, second)
    assert list(source.parent.iterdir()) == [source]
    assert [path.name for path in user_cache.iterdir()] == [cached(user_cache)[0].name]
    assert user_cache.stat().st_mode & 0o777 == 0o700
    assert cached(user_cache)[0].stat().st_mode & 0o777 == 0o600


def test_a_folder_is_cached_and_read_again_when_it_changes(
    tmp_path, files, pack, picture, decoded, user_cache
):
    root = pack(tmp_path / "folder", files)
    load_tree(root)
    assert len(cached(user_cache)) == 1
    assert len(load_tree(root).train.targets) == 6
    assert len(decoded) == 1
    pack(root, {"train/cat/new.png": picture(5)})
    assert len(load_tree(root).train.targets) == 7


def test_a_changed_archive_is_decoded_again_whatever_its_time(
    source, files, pack, picture, decoded
):
    stat = source.stat()
    load_tree(source)
    pack(source, {**files, "train/cat/new.png": picture(5)})
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(load_tree(source).train.targets) == 7
    assert len(decoded) == 2


def test_large_archives_go_by_size_and_time(source, decoded, monkeypatch):
    monkeypatch.setattr(cache, "MAX_HASHED_BYTES", 10)
    load_tree(source)
    load_tree(source)
    assert len(decoded) == 1
    os.utime(source, (1, 1))
    load_tree(source)
    assert len(decoded) == 2


def test_each_image_size_has_its_own_cache(source, decoded):
    shapes = [load_tree(source, size).train.images.shape[-1] for size in (None, 3, 4, 3, None)]
    assert shapes == [6, 3, 4, 3, 6]
    assert len(decoded) == 3


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other", "text"])
def test_a_damaged_cache_is_rebuilt(damage, source, decoded, user_cache):
    good = load_tree(source)
    (file,) = cached(user_cache)
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        place = content.find(good.train.images.numpy().tobytes()[:32])
        content[place] ^= 1
        file.write_bytes(content)
    elif damage == "other":
        torch.save({"key": file.stem}, file)
    else:
        file.write_bytes(b"" if damage == "empty" else b"not a cache at all")
    expected = load_tree(source)
    assert len(decoded) == 2
    assert same(expected, load_tree(source))
    assert len(decoded) == 2


def test_a_cache_never_runs_code(source, tmp_path, user_cache):
    load_tree(source)
    (file,) = cached(user_cache)

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save(Payload(), file)
    load_tree(source)
    assert not (tmp_path / "owned").exists()


def test_a_read_only_source_is_cached_as_any_other(source, decoded, user_cache):
    source.parent.chmod(0o555)
    try:
        load_tree(source)
        load_tree(source)
    finally:
        source.parent.chmod(0o755)
    assert len(decoded) == 1
    assert len(cached(user_cache)) == 1


CANNOT = r"a.tar.gz is decoded anew in each run, as the cache cannot be used: .*"


def test_without_a_folder_the_pictures_still_load(source, user_cache):
    user_cache.parent.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match=CANNOT + "File exists"):
        assert len(load_tree(source).train.targets) == 6


def test_a_read_only_cache_is_respected(source, user_cache):
    user_cache.mkdir(parents=True, mode=0o555)
    with pytest.warns(UserWarning, match=CANNOT + "is read-only"):
        assert len(load_tree(source).train.targets) == 6
    assert list(user_cache.iterdir()) == []


def test_a_failed_write_leaves_nothing_behind(source, monkeypatch, user_cache):
    def full(_stored, stream):
        stream.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(cache.torch, "save", full)
    with pytest.warns(UserWarning, match=CANNOT + "no space left on device"):
        load_tree(source)
    assert list(user_cache.iterdir()) == []


# ---- what others may have put there


def planted(file, **changes):
    """The cached set changed and sealed again, as one who can write to the folder would."""
    stored = torch.load(file, weights_only=True)
    for key, value in changes.items():
        split, _, part = key.partition("_")
        stored[split] = {**stored[split], part: value} if part else value
    train, test = LabelledImages(**stored["train"]), LabelledImages(**stored["test"])
    tree = ImageTree(stored["classes"], train, test)
    file.unlink()
    torch.save(stored | {"checksum": cache._checksum(tree)}, file)
    file.chmod(0o600)


@pytest.mark.parametrize(
    "changes",
    [
        {"train_targets": torch.full((6,), 99)},
        {"train_targets": torch.full((6,), -1)},
        {"train_targets": torch.zeros(6, dtype=torch.int32)},
        {"train_targets": torch.zeros(5, dtype=torch.int64)},
        {"train_images": torch.zeros(6, 3, 5, 6, 1)},
        {"train_images": torch.zeros(6, 3, 5, 6)},
        {"test_images": torch.zeros(2, 3, 9, 9, dtype=torch.uint8)},
        {
            "test_images": torch.zeros(0, 3, 5, 6, dtype=torch.uint8),
            "test_targets": torch.zeros(0, dtype=torch.int64),
        },
        {"classes": ["dog", "cat"]},
        {"classes": ["cat", "cat"]},
        {"classes": [1, 2]},
    ],
)
def test_what_no_decoding_could_have_made_is_not_taken(changes, source, decoded, user_cache):
    good = load_tree(source)
    planted(cached(user_cache)[0], **changes)
    assert same(load_tree(source), good)
    assert len(decoded) == 2


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_can_write_is_not_taken(mode, source, decoded, user_cache):
    load_tree(source)
    cached(user_cache)[0].chmod(mode)
    load_tree(source)
    assert len(decoded) == 2


def test_a_link_in_the_cache_is_not_followed(source, decoded, user_cache, tmp_path):
    load_tree(source)
    (file,) = cached(user_cache)
    file.rename(tmp_path / "elsewhere.pt")
    file.symlink_to(tmp_path / "elsewhere.pt")
    load_tree(source)
    assert len(decoded) == 2
    assert not file.is_symlink()


def test_a_folder_that_others_can_write_is_not_trusted_and_then_closed(source, decoded, user_cache):
    load_tree(source)
    user_cache.chmod(0o777)
    load_tree(source)
    assert len(decoded) == 2
    assert user_cache.stat().st_mode & 0o777 == 0o700


def test_the_folder_of_another_user_is_not_used(source, decoded, user_cache, monkeypatch):
    load_tree(source)
    monkeypatch.setattr(cache.os, "geteuid", lambda: 12345)
    with pytest.warns(UserWarning, match=CANNOT + "belongs to another user"):
        load_tree(source)
    assert len(decoded) == 2


def test_a_file_beside_the_source_is_not_looked_at(source, decoded, user_cache):
    load_tree(source)
    (file,) = cached(user_cache)
    file.rename(source.parent / file.name)
    load_tree(source)
    assert len(decoded) == 2


# ---- where it lies, and how much


def test_what_was_not_used_for_longest_is_removed(source, user_cache, monkeypatch):
    for size in (3, 4, 5):
        load_tree(source, size)
    files = sorted(cached(user_cache), key=lambda file: file.stat().st_mtime_ns)
    for age, file in enumerate(reversed(files)):
        os.utime(file, (1000 - age, 1000 - age))
    load_tree(source, 3)  # used again
    monkeypatch.setattr(cache, "MAX_CACHE_BYTES", 2 * files[0].stat().st_size + 2000)
    load_tree(source, 6)
    assert files[0].exists()
    assert [file.exists() for file in files[1:]] == [False, False]
    assert len(cached(user_cache)) == 2


def test_two_folders_that_look_alike_are_two_sets(tmp_path, files, pack, picture):
    first = pack(tmp_path / "a", {name: picture(0, kind="BMP") for name in files})
    second = pack(tmp_path / "b", {name: picture(1, kind="BMP") for name in files})
    for file in (*first.rglob("*.png"), *second.rglob("*.png")):
        os.utime(file, (1, 1))
    assert not same(load_tree(first), load_tree(second))


def test_names_that_are_no_text_are_fine(tmp_path, files, pack):
    name = os.fsdecode(b"\xff\xfe")
    root = pack(
        tmp_path / "folder",
        {place.replace("dog", name): content for place, content in files.items()},
    )
    assert load_tree(root).classes == load_tree(root).classes == ["cat", name]


@pytest.mark.parametrize("given", [None, "", "relative"])
@pytest.mark.parametrize(
    ("platform", "place"), [("linux", ".cache/bhfl"), ("darwin", "Library/Caches/bhfl")]
)
def test_the_default_user_folder(monkeypatch, tmp_path, platform, place, given):
    monkeypatch.delenv("XDG_CACHE_HOME")
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(cache.sys, "platform", platform)
    assert cache._user_folder() == tmp_path / place
