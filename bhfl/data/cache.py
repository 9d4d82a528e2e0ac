"""A cache of decoded picture sets on disk. Files are written whole or not at all, checked when they
are read, and rebuilt when they are damaged.

The files lie in the user's own cache folder, which nobody else can write to:
``$XDG_CACHE_HOME/bhfl``, ``~/.cache/bhfl``, or ``~/Library/Caches/bhfl`` on macOS. When it grows
beyond `MAX_CACHE_BYTES`, what was not used for longest is removed.
"""

import hashlib
import os
import stat
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bhfl.data.archive import ImageTree, LabelledImages, decode_tree, picture_files
from bhfl.files import durable, user_path

FORMAT = 3
"""The version of the files, which is part of their names."""
MAX_HASHED_BYTES = 2**30
"""The largest archive whose content is hashed."""
MAX_CACHE_BYTES = 16 * 2**30
"""The size of the whole cache folder at most; the set in use stays, whatever its size."""


def load_tree(path: str | Path, image_size: int | None = None) -> ImageTree:
    """The pictures under `path`: from the cache, or else decoded, and put into the cache.

    Args:
        path: A folder or an archive, see `decode_tree`.
        image_size: See `decode_tree`.

    Raises:
        ValueError: See `decode_tree`.
    """
    path = user_path(path).absolute()
    if not path.exists():
        # it says what is missing
        return decode_tree(path, image_size)
    key = hashlib.sha256(f"{FORMAT} {image_size} {_identity(path)}".encode()).hexdigest()
    file = _user_folder() / f"{key}.pt"
    if (tree := _read(file, key)) is not None:
        return tree
    tree = decode_tree(path, image_size)
    if problem := _write(file, key, tree):
        warnings.warn(
            f"{path} is decoded anew in each run, as the cache cannot be used: {problem}",
            stacklevel=2,
        )
        return tree
    _remove_old(file)
    # the file's pages are shared by the processes of a machine, the decoded tensors are not
    return _read(file, key) or tree


def _user_folder() -> Path:
    """The folder of the cache; a relative XDG_CACHE_HOME is ignored, as its specification says."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        return given / "bhfl"
    usual = "~/Library/Caches/bhfl" if sys.platform == "darwin" else "~/.cache/bhfl"
    return Path(usual).expanduser()


def _identity(path: Path) -> str:
    """A digest that changes when the source does.

    It is that of the content of an archive that is quick to hash. Of a larger one, and of a folder,
    it is that of the place, size and times of each file: no change leaves all of them as they were,
    because no program can set the time of the last change of a file's record (ctime).
    """
    if path.is_file() and path.stat().st_size <= MAX_HASHED_BYTES:
        with path.open("rb") as stream:
            return _digest(iter(lambda: stream.read(2**20), b""))
    lines = []
    for file in picture_files(path) if path.is_dir() else [path]:
        s = file.stat()
        found = (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        lines.append(b"%s\0%d %d %d %d %d\n" % (os.fsencode(file), *found))
    return _digest(lines)


def _digest(chunks: Iterable[Any]) -> str:
    """The SHA-256 of some buffers one after the other."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _checksum(tree: ImageTree) -> str:
    tensors = [*vars(tree.train).values(), *vars(tree.test).values()]
    return _digest([repr(tree.classes).encode(), *map(Tensor.numpy, tensors)])


# ---- reading -------------------------------------------------------------------------------------


def _read(file: Path, key: str) -> ImageTree | None:
    """The cached set; None if the file is missing, damaged, of another source or not this user's
    own.
    """
    try:
        own = _is_own(file.parent.stat()) and _is_own(file.lstat())
        # a link is not followed
        if not (own and stat.S_ISREG(file.lstat().st_mode)):
            return None
        # weights_only: whatever the file holds, nothing of it is run
        stored = torch.load(str(file), mmap=True, weights_only=True)
        train = LabelledImages(**stored["train"])
        tree = ImageTree(stored["classes"], train, LabelledImages(**stored["test"]))
        if stored["key"] != key or not _is_sound(tree) or stored["checksum"] != _checksum(tree):
            return None
    # damage shows in many ways, and the answer to all of them is to rebuild
    except Exception:
        return None
    with suppress(OSError):
        # what was used last is kept longest
        os.utime(file)
    return tree


def _is_own(found: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user, and nobody else can write to it."""
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_sound(tree: ImageTree) -> bool:
    """Whether a set is one that `decode_tree` could have made."""
    if not all(isinstance(name, str) for name in tree.classes):
        return False
    return tree.classes == sorted(set(tree.classes)) and all(
        split.images.dtype == torch.uint8
        and split.images.ndim == 4
        and split.images.shape[1:] == tree.train.images.shape[1:]
        and split.images.shape[1] == 3
        and split.targets.dtype == torch.int64
        and split.targets.shape == split.images.shape[:1]
        and len(split.targets) > 0
        and 0 <= int(split.targets.min()) <= int(split.targets.max()) < len(tree.classes)
        for split in (tree.train, tree.test)
    )


# ---- writing -------------------------------------------------------------------------------------


def _write(file: Path, key: str, tree: ImageTree) -> str:
    """Write the set durably.

    Returns:
        Why it cannot be written; empty if it was.
    """
    stored = {
        "key": key,
        "classes": tree.classes,
        "train": vars(tree.train),
        "test": vars(tree.test),
        "checksum": _checksum(tree),
    }
    folder = file.parent
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.geteuid():
            return f"{folder} belongs to another user"
        # the administrator could write all the same
        if not folder.stat().st_mode & stat.S_IWUSR:
            return f"{folder} is read-only"
        # one that was there before may be open to others
        folder.chmod(0o700)
        with durable(file, mode=0o600) as stream:
            torch.save(stored, stream)
    # torch.save reports a full disk as a RuntimeError
    except (OSError, RuntimeError) as error:
        return f"{folder}: {error}"
    return ""


def _remove_old(newest: Path) -> None:
    """Remove what was not used for longest, until the folder is within its bound."""
    # another process may be removing the same files
    with suppress(OSError):
        found = [(file, file.lstat()) for file in newest.parent.iterdir() if file != newest]
        left = newest.stat().st_size
        for file, status in sorted(found, key=lambda item: item[1].st_mtime, reverse=True):
            left += status.st_size
            if left > MAX_CACHE_BYTES:
                file.unlink()
