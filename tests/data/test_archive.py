import gzip
import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from bhfl.data import archive, limits, members
from bhfl.data.archive import decode_tree


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip", "folder"])
def test_every_container_gives_the_same_pictures(name, tmp_path, files, pack):
    tree = decode_tree(pack(tmp_path / name, files))
    assert tree.classes == ["cat", "dog"]
    assert tree.train.images.shape == (6, 3, 5, 6)
    assert tree.train.images.dtype == torch.uint8
    assert tree.train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert tree.test.targets.tolist() == [0, 1]
    pixels = np.array(Image.open(io.BytesIO(files["train/dog/1.png"])))
    assert torch.equal(tree.train.images[4], torch.from_numpy(pixels).permute(2, 0, 1))


def test_leading_folders_jpeg_grey_and_other_files_are_fine(tmp_path, picture, pack):
    files = {
        "./set/README.md": b"hello",
        "./set/train/a/._0.jpg": b"of a file system",
        "./set/train/a/0.JPG": picture(0, kind="JPEG"),
        "./set/test/a/0.jpeg": picture(1, kind="JPEG", mode="L"),
    }
    tree = decode_tree(pack(tmp_path / "a.tar", files))
    assert tree.train.images.shape == tree.test.images.shape == (1, 3, 5, 6)
    assert torch.equal(tree.test.images[0, 0], tree.test.images[0, 2])


def test_sixteen_bits_of_grey_become_eight(tmp_path, pack):
    ramp = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    stream = io.BytesIO()
    Image.fromarray(ramp).save(stream, "PNG")
    tree = decode_tree(
        pack(
            tmp_path / "a.zip",
            {f"{split}/a/0.png": stream.getvalue() for split in ("train", "test")},
        )
    )
    assert tree.train.images[0, 0].flatten().tolist() == list(range(0, 256, 4))


def test_image_size_resizes(tmp_path, files, picture, pack):
    files["train/dog/9.png"] = picture(9, size=(9, 9))
    path = pack(tmp_path / "a.tar", files)
    with pytest.raises(
        ValueError,
        match=r"image_size must be set .*'train/dog/9.png' of .* is 9x9, those before it 5x6",
    ):
        decode_tree(path)
    assert decode_tree(path, 4).train.images.shape == (7, 3, 4, 4)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip", "folder"])
def test_pictures_in_other_formats_are_refused_not_passed_over(name, tmp_path, files, pack):
    path = pack(tmp_path / name, files | {"train/bird/0.TIF": b"", "train/bird/._1.tif": b""})
    with pytest.raises(
        ValueError, match=r"pictures must be .bmp, .*, and 'train/bird/0.TIF' of .* is not"
    ):
        decode_tree(path)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip", "folder"])
@pytest.mark.parametrize("damage", [b"no picture", b""])
def test_unreadable_picture_is_named(name, damage, tmp_path, files, pack):
    files["train/cat/bad.jpg"] = damage
    with pytest.raises(ValueError, match=r"picture 'train/cat/bad.jpg' of .* cannot be read"):
        decode_tree(pack(tmp_path / name, files))


def test_truncated_picture_is_named(tmp_path, files, picture, pack):
    files["train/cat/0.png"] = picture(0, size=(64, 64))[:-2000]
    with pytest.raises(ValueError, match=r"picture 'train/cat/0.png' of .* cannot be read"):
        decode_tree(pack(tmp_path / "a.tar", files))


def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded(
    tmp_path, files, pack, monkeypatch
):
    monkeypatch.setattr(archive, "MAX_PIXELS", 29)
    with pytest.raises(ValueError, match=r"cannot be read: it has 6 x 5 pixels, more than 29"):
        decode_tree(pack(tmp_path / "a.tar", files))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip", "folder"])
def test_large_members_are_refused(name, tmp_path, files, pack, monkeypatch):
    path = pack(tmp_path / name, files)
    monkeypatch.setattr(limits, "MAX_MEMBER_BYTES", 100)
    with pytest.raises(
        ValueError, match=r"archive members must be at most 100 bytes, and .* has 1\d\d"
    ):
        decode_tree(path)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_announces_much_is_refused_unread(kind, tmp_path):
    member = tarfile.TarInfo("train/cat/0.png")
    member.type, member.size = kind, 2**40
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)
    with pytest.raises(ValueError, match=f"archive members must be at most .* has {2**40}"):
        decode_tree(tmp_path / "a.tar")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(kind, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as stream:
        member = tarfile.TarInfo("train/cat/0.png")
        member.type, member.linkname = kind, "/etc/passwd"
        stream.addfile(member)
    with pytest.raises(
        ValueError,
        match=r"files and folders only, and 'train/cat/0.png' of .* is a link or a device",
    ):
        decode_tree(tmp_path / "a.tar")


def test_nothing_is_extracted(tmp_path, files, picture, pack):
    files["../../train/cat/escape.png"] = picture(0)
    (tmp_path / "x" / "y").mkdir(parents=True)
    path = pack(tmp_path / "x" / "y" / "a.tar", files)
    before = sorted(tmp_path.rglob("*"))
    assert len(decode_tree(path).train.targets) == 7
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_a_cut_archive_is_an_error(name, tmp_path, files, pack):
    path = pack(tmp_path / name, files)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="archive must be a whole, unencrypted"):
        decode_tree(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cat/0.png": None},
            r"pictures must lie in train/<class>/ or test/<class>/, and 'cat/0.png'",
        ),
        ({"test/bird/0.png": None}, "classes of test/ must be among those of train/, and 'bird'"),
    ],
)
def test_layout_is_checked(change, message, tmp_path, files, picture, pack):
    files |= dict.fromkeys(change, picture(0))
    with pytest.raises(ValueError, match=message):
        decode_tree(pack(tmp_path / "a.tar", files))


@pytest.mark.parametrize("split", ["train", "test"])
def test_both_splits_are_needed(split, tmp_path, files, pack):
    kept = {name: content for name, content in files.items() if not name.startswith(split)}
    with pytest.raises(ValueError, match=f"must hold pictures in {split}/<class>/, and has none"):
        decode_tree(pack(tmp_path / "folder", kept))


def test_a_missing_archive_is_an_error(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"archive must be a .tar, .tar.gz or .zip file, or root a folder, and .* not",
    ):
        decode_tree(tmp_path / "none.tar")


# ---- cut and damaged archives


def test_a_tar_that_is_cut_anywhere_is_refused(tmp_path, files, pack):
    """tarfile takes one that is cut at a header, or inside one, for one that ends there."""
    path = pack(tmp_path / "a.tar", files)
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for cut in range(0, end + 1, 64):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"archive must be a whole"):
            decode_tree(path)
    path.write_bytes(whole[: end + 512])  # one block of zeros marks the end
    assert len(decode_tree(path).train.targets) == 6


@pytest.mark.parametrize("damage", ["zeros", "checksum"])
def test_a_damaged_header_is_not_the_end(damage, tmp_path, files, pack):
    path = pack(tmp_path / "a.tar", files)
    content = bytearray(path.read_bytes())
    place = content.index(b"train/dog/0.png")
    content[place : place + 512] = (
        bytes(512) if damage == "zeros" else b"x" + content[place + 1 : place + 512]
    )
    path.write_bytes(content)
    with pytest.raises(ValueError, match="archive must be a whole"):
        decode_tree(path)


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_compressed_archives_are_read_to_their_checksum(compression, tmp_path, files, pack):
    plain = pack(tmp_path / "a.tar", files)
    path = tmp_path / f"a.tar.{compression}"
    with tarfile.open(path, f"w:{compression}") as stream, tarfile.open(plain) as source:
        for member in source:
            stream.addfile(member, source.extractfile(member))
    assert len(decode_tree(path).train.targets) == 6
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole[:-6] + b"\1\2\3\4\5\6", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="archive must be a whole"):
            decode_tree(path)


def test_compressed_in_several_pieces(tmp_path, files, pack):
    plain = pack(tmp_path / "a.tar", files).read_bytes()
    path = tmp_path / "b.tar.gz"
    path.write_bytes(gzip.compress(plain[:5000]) + gzip.compress(plain[5000:]))
    assert len(decode_tree(path).train.targets) == 6


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path, files, picture, pack):
    inner = pack(
        tmp_path / "inner.zip", {f"{split}/owl/0.png": picture(0) for split in ("train", "test")}
    )
    path = pack(tmp_path / "a.tar", {**files, "inner.zip": inner.read_bytes()})
    assert decode_tree(path).classes == ["cat", "dog"]


def test_a_zip_whose_list_calls_a_picture_else_is_refused(tmp_path, files, pack):
    path = pack(tmp_path / "a.zip", files)
    head, _, tail = path.read_bytes().rpartition(b"train/dog/2.png")
    path.write_bytes(head + b"train/dog/2.txt" + tail)
    with pytest.raises(ValueError, match="archive must be a whole"):
        decode_tree(path)


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_picture_that_is_there_twice_is_refused(name, tmp_path, files, picture, pack):
    path = pack(tmp_path / name, files)
    again = picture(7)
    if name == "a.zip":
        with zipfile.ZipFile(path, "a") as stream:
            stream.writestr("./train/cat/0.png", again)
    else:
        with tarfile.open(path, "a") as stream:
            member = tarfile.TarInfo("./train/cat/0.png")
            member.size = len(again)
            stream.addfile(member, io.BytesIO(again))
    with pytest.raises(
        ValueError, match=r"must hold each picture once, and './train/cat/0.png' is twice"
    ):
        decode_tree(path)


# ---- bombs


@pytest.mark.parametrize("image_size", [None, 8])
@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "folder"])
def test_a_picture_that_its_source_cannot_hold_is_refused_at_its_header(
    name, image_size, tmp_path, files, pack
):
    black = io.BytesIO()
    Image.new("L", (5000, 5000)).save(black, "PNG")
    path = pack(tmp_path / name, files | {"train/cat/0.png": black.getvalue()})
    with pytest.raises(
        ValueError, match=r"train/cat/0.png.* must decode to at most 67,108,864, and .* be 75,0"
    ):
        decode_tree(path, image_size)


def test_many_small_bombs_count_together(tmp_path, files, pack, monkeypatch):
    monkeypatch.setattr(limits, "MIN_DECODED_BYTES", 10_000)
    monkeypatch.setattr(limits, "MAX_RATIO", 1)
    black = io.BytesIO()
    Image.new("L", (40, 40)).save(black, "PNG")
    path = pack(
        tmp_path / "a.zip",
        {f"{split}/a/{i}.png": black.getvalue() for split in ("train", "test") for i in "01"},
    )
    with pytest.raises(
        ValueError, match=r"'test/a/0.png' .* must decode to at most 10,000, and .* be 14,400"
    ):
        decode_tree(path)


def test_no_more_is_kept_than_half_of_the_memory(tmp_path, files, pack, monkeypatch):
    monkeypatch.setattr(limits, "memory_bytes", lambda: 700)
    with pytest.raises(
        ValueError, match=r"at most half of this machine's memory, 350 bytes: set image_size"
    ):
        decode_tree(pack(tmp_path / "a.zip", files))
    assert len(decode_tree(tmp_path / "a.zip", 3).train.targets) == 6


def test_a_tar_of_much_else_is_refused(tmp_path, files, pack, monkeypatch):
    path = pack(tmp_path / "a.tar.gz", {"zeros.txt": bytes(100_000), **files})
    monkeypatch.setattr(members, "MIN_DECODED_BYTES", 50_000)
    monkeypatch.setattr(members, "MAX_RATIO", 1)
    with pytest.raises(ValueError, match="must unpack to at most 50,000 bytes"):
        decode_tree(path)


def test_a_long_extended_header_is_refused_unread(tmp_path):
    member = tarfile.TarInfo("train/cat/0.png")
    member.type, member.size = tarfile.XGLTYPE, 2**21
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)
    with pytest.raises(ValueError, match="an extended header has 2097152 bytes"):
        decode_tree(tmp_path / "a.tar")


# ---- folders of the user's own


def test_links_in_a_folder_are_followed(tmp_path, files, picture, pack):
    root = pack(tmp_path / "root", files)
    for split in ("train", "test"):
        pack(tmp_path / "elsewhere", {f"{split}/owl/0.png": picture(3)})
        (root / split / "owl").symlink_to(tmp_path / "elsewhere" / split / "owl")
    (root / "train" / "cat" / "link.png").symlink_to(
        tmp_path / "elsewhere" / "train" / "owl" / "0.png"
    )
    (root / "train" / "cat" / "loop").symlink_to(root)
    tree = decode_tree(root)
    assert tree.classes == ["cat", "dog", "owl"]
    assert tree.train.targets.tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert tree.test.targets.tolist() == [0, 1, 2]


def test_a_split_behind_a_link(tmp_path, files, pack):
    real = pack(tmp_path / "real", files)
    (tmp_path / "root").mkdir()
    for split in ("train", "test"):
        (tmp_path / "root" / split).symlink_to(real / split, target_is_directory=True)
    (tmp_path / "link").symlink_to("root")
    assert torch.equal(decode_tree(tmp_path / "link").train.images, decode_tree(real).train.images)


def test_one_folder_for_both_splits(tmp_path, picture, pack):
    real = pack(tmp_path / "real", {"cat/0.png": picture(0)})
    (tmp_path / "root").mkdir()
    for split in ("train", "test"):
        (tmp_path / "root" / split).symlink_to(real)
    tree = decode_tree(tmp_path / "root")
    assert torch.equal(tree.train.images, tree.test.images)


@pytest.mark.parametrize("name", ["owl", "owl.png"])
def test_a_link_that_leads_nowhere_is_named(name, tmp_path, files, pack):
    root = pack(tmp_path / "root", files)
    (root / "train" / name).symlink_to("gone")
    with pytest.raises(ValueError, match=f"train/{name} is a link that leads nowhere"):
        decode_tree(root)


def test_a_pipe_named_as_a_picture_is_not_opened(tmp_path, files, pack):
    root = pack(tmp_path / "root", files)
    os.mkfifo(root / "train" / "cat" / "9.png")
    with pytest.raises(ValueError, match=r"train/cat/9.png is no file"):
        decode_tree(root)
