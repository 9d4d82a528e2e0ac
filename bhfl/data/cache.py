"""Decoded picture sets on disk: written whole or not at all, checked when read, rebuilt when damaged.

A cache lies beside its source, or in ``$XDG_CACHE_HOME/bhfl`` (``~/.cache/bhfl``) where that folder is read-only.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bhfl.data.archive import ImageTree, LabelledImages, decode_tree, picture_files

FORMAT = 1
MAX_HASHED_BYTES = 2**30


def load_tree(path: Path, image_size: int | None = None) -> ImageTree:
    """The pictures under `path`, from the cache where there is a sound one; else decoded, and cached.

    Args:
        path: A folder or an archive, see `decode_tree`.
        image_size: See `decode_tree`.

    Raises:
        ValueError: See `decode_tree`.
    """
    path = path.expanduser().absolute()
    if not path.exists():
        return decode_tree(path, image_size)  # which says what is missing
    key = hashlib.sha256(f"{FORMAT} {image_size} {_identity(path)}".encode()).hexdigest()[:16]
    files = [folder / f"{path.name}.{key}.bhfl.pt" for folder in (path.parent, _user_folder())]
    for file in files:
        if (tree := _read(file, key)) is not None:
            return tree
    tree = decode_tree(path, image_size)
    for file in files:
        if _write(file, key, tree):
            return _read(file, key) or tree  # the file's pages are shared by the processes of a machine
    warnings.warn(f"no folder to keep the decoded {path} in: it is decoded anew in each run", stacklevel=2)
    return tree


def _user_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bhfl"


def _identity(path: Path) -> str:
    """What changes when the source does: its content where that is quick to hash, sizes and times otherwise."""
    if path.is_file() and path.stat().st_size <= MAX_HASHED_BYTES:
        with path.open("rb") as stream:
            return _digest(iter(lambda: stream.read(2**20), b""))
    files = picture_files(path) if path.is_dir() else [path]
    stats = ((file.relative_to(path).as_posix(), file.stat()) for file in files)
    return _digest(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode() for name, stat in stats)


def _digest(chunks: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _tensors(tree: ImageTree) -> dict[str, Tensor]:
    return {
        "train_images": tree.train.images,
        "train_targets": tree.train.targets,
        "test_images": tree.test.images,
        "test_targets": tree.test.targets,
    }


def _checksum(tree: ImageTree) -> str:
    return _digest([repr(tree.classes).encode(), *(tensor.numpy() for tensor in _tensors(tree).values())])


def _read(file: Path, key: str) -> ImageTree | None:
    """The cached set, or None if the file is missing, damaged or of another source."""
    if not file.is_file():
        return None
    try:
        stored = torch.load(str(file), mmap=True, weights_only=True)
        train = LabelledImages(stored["train_images"], stored["train_targets"])
        test = LabelledImages(stored["test_images"], stored["test_targets"])
        tree = ImageTree(stored["classes"], train, test)
        return tree if stored["key"] == key and stored["checksum"] == _checksum(tree) else None
    except Exception:  # damage shows in many ways, and the answer to all of them is to rebuild
        return None


def _write(file: Path, key: str, tree: ImageTree) -> bool:
    """Write durably: a temporary file in the same folder, flushed, then renamed. False if the folder refuses."""
    stored = {"key": key, "classes": tree.classes, "checksum": _checksum(tree), **_tensors(tree)}
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        if file.parent == _user_folder():
            file.parent.mkdir(parents=True, exist_ok=True)
        if not _is_writable(file.parent):
            return False
        try:
            with temporary.open("xb") as stream:
                torch.save(stored, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError):  # a full disk; torch.save reports that as a RuntimeError
        return False
    return True


def _is_writable(folder: Path) -> bool:
    """Whether the folder is meant to be written to: the mode bits count for the administrator as well."""
    return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)
