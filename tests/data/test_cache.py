import os

import pytest
import torch

from bhfl.data import cache
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
    return sorted(folder.glob("*.bhfl.pt"))


def same(first, second):
    pairs = zip((first.train, first.test), (second.train, second.test), strict=True)
    return first.classes == second.classes and all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) for a, b in pairs
    )


def test_pictures_are_decoded_once(source, decoded):
    first, second = load_tree(source), load_tree(source)
    assert len(decoded) == 1
    assert same(first, second)
    assert [path.name for path in source.parent.iterdir() if path != source] == [cached(source.parent)[0].name]


def test_a_folder_is_cached_beside_it_and_read_again_when_it_changes(tmp_path, files, pack, picture, decoded):
    root = pack(tmp_path / "folder", files)
    load_tree(root)
    assert len(cached(tmp_path)) == 1
    assert len(load_tree(root).train.targets) == 6
    assert len(decoded) == 1
    pack(root, {"train/cat/new.png": picture(5)})
    assert len(load_tree(root).train.targets) == 7


def test_a_changed_archive_is_decoded_again_whatever_its_time(source, files, pack, picture, decoded):
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
def test_a_damaged_cache_is_rebuilt(damage, source, decoded):
    good = load_tree(source)
    (file,) = cached(source.parent)
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        place = content.find(good.train.images.numpy().tobytes()[:32])
        content[place] ^= 1
        file.write_bytes(content)
    elif damage == "other":
        torch.save({"key": file.name.split(".")[-3]}, file)
    else:
        file.write_bytes(b"" if damage == "empty" else b"not a cache at all")
    expected = load_tree(source)
    assert len(decoded) == 2
    assert same(expected, load_tree(source))
    assert len(decoded) == 2


def test_a_cache_never_runs_code(source, tmp_path):
    load_tree(source)
    (file,) = cached(source.parent)

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save(Payload(), file)
    load_tree(source)
    assert not (tmp_path / "owned").exists()


def test_a_read_only_folder_is_respected(source, decoded, user_cache):
    source.parent.chmod(0o555)
    try:
        load_tree(source)
        load_tree(source)
        assert list(source.parent.iterdir()) == [source]
    finally:
        source.parent.chmod(0o755)
    assert len(decoded) == 1
    assert len(cached(user_cache)) == 1


def test_without_any_folder_the_pictures_still_load(source, user_cache):
    source.parent.chmod(0o555)
    user_cache.parent.write_text("a file where the folder should be")
    try:
        with pytest.warns(UserWarning, match="no folder to keep the decoded .* in"):
            assert len(load_tree(source).train.targets) == 6
    finally:
        source.parent.chmod(0o755)


def test_a_failed_write_leaves_nothing_behind(source, monkeypatch, user_cache):
    def full(_stored, stream):
        stream.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(cache.torch, "save", full)
    with pytest.warns(UserWarning, match="no folder"):
        load_tree(source)
    assert list(source.parent.iterdir()) == [source]
    assert list(user_cache.iterdir()) == []


def test_the_default_user_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache._user_folder() == tmp_path / ".cache" / "bhfl"
