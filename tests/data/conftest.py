"""Small picture sets, in memory and on disk."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "bhfl"


def picture(
    seed: int, size: tuple[int, int] = (6, 5), kind: str = "PNG", mode: str = "RGB"
) -> bytes:
    """An encoded picture of random pixels, `size` as (columns, rows)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def files() -> Files:
    """Two classes, three training pictures and one test picture of each."""
    counts = {"train": 3, "test": 1}
    names = [
        f"{split}/{label}/{i}.png"
        for split in counts
        for label in ("cat", "dog")
        for i in range(counts[split])
    ]
    return {name: picture(seed) for seed, name in enumerate(names)}


def pack(path: Path, files: Files) -> Path:
    """Write `files` as a .zip, a tar, or (no suffix) a folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif path.suffix:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path


@pytest.fixture(name="pack")
def pack_fixture() -> Callable[[Path, Files], Path]:
    return pack


@pytest.fixture(name="picture")
def picture_fixture() -> Callable[..., bytes]:
    return picture
