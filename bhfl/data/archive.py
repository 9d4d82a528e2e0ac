"""Labelled pictures from a folder tree or an archive of one, laid out as ``train/<class>/*`` and
``test/<class>/*``.

Archives are treated as hostile: nothing is ever written to disk under a name from inside, links and
devices are refused, sizes are bounded before memory is taken, and only plain picture formats are
decoded. Folders are their user's own: links in them are followed.

A JPEG holds no checksum: damage inside one that its decoder passes over is not seen. Archives in
.zip and .tar.gz have checksums of their own, which are checked.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bhfl.data.limits import Budget, check_member
from bhfl.data.members import members
from bhfl.files import walk

# 192 MiB once decoded to RGB
MAX_PIXELS = 2**26
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp"}
REFUSED = {".tif", ".tiff", ".gif", ".jp2", ".heic", ".avif"}
"""The formats of pictures that are not decoded. They are refused: passing over them, like over
texts, would lose pictures silently.
"""
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP")
"""The decoders of Pillow that may run on hostile bytes."""
SPLITS = ("train", "test")


@dataclass(frozen=True)
class LabelledImages:
    """One split of a picture set."""

    images: Tensor
    """uint8 ``[n, 3, H, W]``, RGB."""
    targets: Tensor
    """int64 ``[n]``: positions in the sorted list of class names."""


@dataclass(frozen=True)
class ImageTree:
    """A picture set with its class names, sorted."""

    classes: list[str]
    train: LabelledImages
    test: LabelledImages


@dataclass
class _Pixels:
    """A split while it is read."""

    data: bytearray = field(default_factory=bytearray)
    """All pictures in one growing buffer, so that none is in memory twice."""
    classes: list[str] = field(default_factory=list)
    """The class of each picture."""


def decode_tree(path: Path, image_size: int | None = None) -> ImageTree:
    """Decode all pictures, in the order of the archive, or of the sorted names of a folder.

    Args:
        path: A .zip, a .tar with any compression, or a folder.
        image_size: The number of rows and columns that all pictures are resized to (bilinear); None
            if they have one size.

    Raises:
        ValueError: A picture cannot be read, is too large, lies elsewhere, differs in size, is
            there twice or is of another format, and the message names it; the archive is damaged;
            the pictures take more memory than there is, or far more than their files could honestly
            hold; a split has no pictures, or the test split has a class of its own.
    """
    splits = {name: _Pixels() for name in SPLITS}
    shape: tuple[int, ...] = ()
    budget = Budget(path)
    try:
        for name, content in _pictures(path, budget):
            split, label = _place(path, name)
            pixels = _decode(path, name, content, image_size, budget)
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise ValueError(
                    f"image_size must be set for pictures of several sizes: {name!r} of {path} is "
                    f"{pixels.shape[1]}x{pixels.shape[2]}, those before it {shape[1]}x{shape[2]}"
                )
            budget.keep(pixels.nbytes)
            splits[split].data += pixels.tobytes()
            splits[split].classes.append(label)
    except MemoryError as error:
        raise ValueError(
            f"the pictures of {path} do not fit in memory: set image_size, or take fewer"
        ) from error
    return _assemble(path, splits, shape)


def _pictures(path: Path, budget: Budget) -> Iterator[tuple[str, bytes]]:
    """The name and the content of each picture file."""
    if path.is_dir():
        for file in picture_files(path):
            name = file.relative_to(path).as_posix()
            size = file.stat().st_size
            check_member(path, name, size)
            budget.source(size)
            yield name, file.read_bytes()
        return
    if not path.is_file():
        raise ValueError(
            f"archive must be a .tar, .tar.gz or .zip file, or root a folder, and {path} is not "
            "there"
        )
    budget.source(path.stat().st_size)
    seen = set()
    for name, content in members(path, _is_picture):
        # a//b and a/./b are the same picture
        place = PurePosixPath(name)
        if place in seen:
            raise ValueError(
                f"an archive must hold each picture once, and {name!r} is twice in {path}"
            )
        seen.add(place)
        yield name, content


def picture_files(path: Path) -> list[Path]:
    """The picture files of a folder tree, sorted; folders and files behind links are among them.

    Raises:
        ValueError: A link leads nowhere, or what is named like a picture is not a file.
        OSError: A folder cannot be read.
    """
    found = []
    for folder, folders, names in walk(path):
        # in place: the walk enters what is left in its own list
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = folder / name
            if file.is_file():
                if _is_picture(name):
                    found.append(file)
                continue
            dangling = file.is_symlink()
            # a link that leads nowhere may be meant for a folder of pictures, whatever its name
            if _is_picture(name) or (dangling and not name.startswith(".")):
                what = "a link that leads nowhere" if dangling else "no file"
                raise ValueError(f"{path} must hold folders and pictures, and {file} is {what}")
    # a file system lists a folder in an order of its own
    return sorted(found)


def _is_picture(name: str) -> bool:
    """Whether to read a file of this name; texts are passed over, and hidden files, which macOS
    adds to archives.
    """
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES | REFUSED and not path.name.startswith(".")


def _place(path: Path, name: str) -> tuple[str, str]:
    """The split and the class of a picture, from its path."""
    file = PurePosixPath(name)
    if file.suffix.lower() in REFUSED:
        taken = ", ".join(sorted(SUFFIXES))
        raise ValueError(f"pictures must be {taken}, and {name!r} of {path} is not")
    # from the end: archives often have one folder around all that is in them
    parts = file.parts
    if len(parts) < 3 or parts[-3] not in SPLITS:
        raise ValueError(
            f"pictures must lie in train/<class>/ or test/<class>/, and {name!r} of {path} does not"
        )
    return parts[-3], parts[-2]


def _decode(
    path: Path, name: str, content: bytes, image_size: int | None, budget: Budget
) -> NDArray[np.uint8]:
    """One picture as uint8 ``[3, H, W]``."""
    # here, since importing the package is to load no library of pictures
    from PIL import Image

    try:
        # this reads the header alone: both bounds hold before anything is decoded
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"it has {width} x {height} pixels, more than {MAX_PIXELS}")
            budget.decode(3 * width * height)
            pixels = _eight_bits(picture)
            # before it is resized: with a palette Pillow would take the nearest pixel, whatever it
            # is asked for
            if pixels.mode != "RGB":
                pixels = pixels.convert("RGB")
            if image_size is not None:
                pixels = pixels.resize((image_size, image_size), Image.Resampling.BILINEAR)
            return np.asarray(pixels).transpose(2, 0, 1)
    # decode_tree knows what helps
    except MemoryError:
        raise
    # hostile bytes: the decoders raise whatever they like
    except Exception as error:
        raise ValueError(f"picture {name!r} of {path} cannot be read: {error}") from error


def _eight_bits(picture: Any) -> Any:
    """A picture of at most 8 bits a channel, which are the higher ones of 16."""
    from PIL import Image

    # Pillow would clip 16 bits to the largest of 8
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"it must have at most 16 bits a channel, and its mode is {picture.mode}")
    return picture


def _assemble(path: Path, splits: dict[str, _Pixels], shape: tuple[int, ...]) -> ImageTree:
    """The set, with classes numbered and pictures as tensors."""
    for name, split in splits.items():
        if not split.classes:
            raise ValueError(f"{path} must hold pictures in {name}/<class>/, and has none")
    classes = sorted(set(splits["train"].classes))
    unknown = sorted(set(splits["test"].classes) - set(classes))
    if unknown:
        raise ValueError(
            f"classes of test/ must be among those of train/, and {unknown[0]!r} of {path} is not"
        )
    number = {label: i for i, label in enumerate(classes)}
    images = {}
    for name, split in splits.items():
        images[name] = LabelledImages(
            # no copy, as the pictures may take up to half of the memory
            torch.frombuffer(split.data, dtype=torch.uint8).view(-1, *shape),
            torch.tensor([number[label] for label in split.classes]),
        )
    return ImageTree(classes, images["train"], images["test"])
