import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from bhfl.data import archive
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
    tree = decode_tree(pack(tmp_path / "a.zip", {f"{split}/a/0.png": stream.getvalue() for split in ("train", "test")}))
    assert tree.train.images[0, 0].flatten().tolist() == list(range(0, 256, 4))


def test_image_size_resizes(tmp_path, files, picture, pack):
    files["train/dog/9.png"] = picture(9, size=(9, 9))
    path = pack(tmp_path / "a.tar", files)
    with pytest.raises(
        ValueError, match=r"image_size must be set .*'train/dog/9.png' of .* is 9x9, those before it 5x6"
    ):
        decode_tree(path)
    assert decode_tree(path, 4).train.images.shape == (7, 3, 4, 4)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip", "folder"])
def test_pictures_in_other_formats_are_refused_not_passed_over(name, tmp_path, files, pack):
    path = pack(tmp_path / name, files | {"train/bird/0.TIF": b"", "train/bird/._1.tif": b""})
    with pytest.raises(ValueError, match=r"pictures must be .bmp, .*, and 'train/bird/0.TIF' of .* is not"):
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


def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, files, pack, monkeypatch):
    monkeypatch.setattr(archive, "MAX_PIXELS", 29)
    with pytest.raises(ValueError, match=r"cannot be read: it has 6 x 5 pixels, more than 29"):
        decode_tree(pack(tmp_path / "a.tar", files))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip", "folder"])
def test_large_members_are_refused(name, tmp_path, files, pack, monkeypatch):
    path = pack(tmp_path / name, files)
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 100)
    with pytest.raises(ValueError, match=r"archive members must be at most 100 bytes, and .* has 1\d\d"):
        decode_tree(path)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_announces_much_is_refused_unread(kind, tmp_path):
    member = tarfile.TarInfo("train/cat/0.png")
    member.type, member.size = kind, 2**40
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)
    with pytest.raises(ValueError, match=f"archive members must be at most .* has {2**40}"):
        decode_tree(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as stream:
        member = tarfile.TarInfo("train/cat/0.png")
        member.type, member.linkname = kind, "/etc/passwd"
        stream.addfile(member)
    with pytest.raises(ValueError, match=r"files and folders only, and 'train/cat/0.png' of .* is a link or a device"):
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
        ({"cat/0.png": None}, r"pictures must lie in train/<class>/ or test/<class>/, and 'cat/0.png'"),
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
    with pytest.raises(ValueError, match=r"archive must be a .tar, .tar.gz or .zip file, or root a folder, and .* not"):
        decode_tree(tmp_path / "none.tar")
