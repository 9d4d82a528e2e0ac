"""The files in a .tar or .zip archive, read one after the other, from the first byte to the last.

Python's tarfile takes an archive that is cut, or whose headers are damaged, for one that ends
there. Here each must end as the format says, and its checksums must agree.
"""

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from bhfl.data.limits import MAX_RATIO, MIN_DECODED_BYTES, check_member

_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"]\0\0": lzma.open,
}
"""How to open a compressed archive, by its first bytes."""
_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
MAX_EXTENSION_BYTES = 2**20
"""The largest header that only tells more of the next member, such as a long name: tarfile keeps it
in memory.
"""
_ZIP = (b"PK\3\4", b"PK\5\6")
# zipfile says by a RuntimeError that a member is encrypted
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
)


def members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The name and the content of each file whose name is `wanted`, in the archive's order.

    Raises:
        ValueError: The archive is damaged, cut or encrypted, holds a link, a device or too large a
            file, or unpacks to far more than it could honestly hold.
    """
    try:
        with open(path, "rb") as file:
            # as long as the longest mark, that of xz
            first = file.read(6)
        # by its first bytes: zipfile.is_zipfile looks at the end, where a tar may hold a zip
        if first.startswith(_ZIP):
            yield from _zip_members(path, wanted)
        else:
            yield from _tar_members(path, first, wanted)
    except _DAMAGE as error:
        raise ValueError(
            f"archive must be a whole, unencrypted .tar, .tar.gz or .zip, got {path}: {error}"
        ) from error


class _StrictTarInfo(tarfile.TarInfo):
    """Refuses a large member at its header, before tarfile loads it, and a header that is cut or
    damaged.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictTarInfo":
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the mark of the end
            raise
        # tarfile itself would end the archive here, in silence
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(
                f"it is cut or damaged at the header of a member ({error})"
            ) from error
        check_member("a tar archive", member.name, member.size)
        if member.type in _EXTENSIONS and member.size > MAX_EXTENSION_BYTES:
            raise tarfile.ReadError(
                f"an extended header has {member.size} bytes, more than {MAX_EXTENSION_BYTES}"
            )
        return member


def _tar_members(
    path: Path, first: bytes, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    opener = next((opener for magic, opener in _OPENERS.items() if first.startswith(magic)), open)
    most = max(MIN_DECODED_BYTES, MAX_RATIO * path.stat().st_size)
    with (
        opener(path, "rb") as stream,
        # "r|" never goes back, so that nothing is unpacked twice
        tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictTarInfo) as archive,
    ):
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all that it has read
            archive.pax_headers = {}
            if not (member.isfile() or member.isdir()):
                raise ValueError(
                    f"archive must hold files and folders only, and {member.name!r} of {path} is a "
                    "link or a device"
                )
            # what is passed over is unpacked too, and takes time without end
            if archive.offset > most:
                raise ValueError(
                    f"archive must unpack to at most {most:,} bytes, and {path} has more"
                )
            if member.isfile() and wanted(member.name):
                # again, because an extended header can change the size
                check_member(path, member.name, member.size)
                content = archive.extractfile(member)
                yield member.name, content.read() if content else b""
        # only zeros may follow the mark of the end, and reading to the end of a compressed stream
        # verifies its checksum
        rest = cast("IO[bytes]", archive.fileobj)
        while chunk := rest.read(2**16):
            if chunk.strip(b"\0"):
                raise tarfile.ReadError("there is more after the mark of its end")


def _zip_members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            # opened whether wanted or not: this compares the name with that in the directory
            with archive.open(member) as stream:
                if wanted(member.filename) and not member.is_dir():
                    # zipfile reads no more than the size that is checked here
                    check_member(path, member.filename, member.file_size)
                    yield member.filename, stream.read()
