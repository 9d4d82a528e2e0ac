"""How much memory the pictures of one source may take; each error that refuses more says so."""

import os
from pathlib import Path

MAX_MEMBER_BYTES = 64 * 2**20
"""The largest file in an archive or folder."""
MAX_RATIO = 1000
"""The most decoded bytes for each byte of the source. Photographs have about 10, drawings 100; a
decompression bomb has a million.
"""
MIN_DECODED_BYTES = 64 * 2**20
"""The bytes that any source may decode to, however small it is."""


class Budget:
    """Counts what a source decodes to and what is kept of it, and refuses too much before it takes
    memory.

    Args:
        path: The source, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source_bytes = 0
        self.decoded_bytes = 0
        self.kept_bytes = 0
        self.most_kept = memory_bytes() // 2

    def source(self, num_bytes: int) -> None:
        """Add the bytes of a file to what the pictures come from."""
        self.source_bytes += num_bytes

    def decode(self, num_bytes: int) -> None:
        """Count a picture that is about to be decoded.

        Raises:
            ValueError: Its source is far too small to hold it honestly.
        """
        # of all pictures together: many small bombs are one large one
        self.decoded_bytes += num_bytes
        most = max(MIN_DECODED_BYTES, MAX_RATIO * self.source_bytes)
        if self.decoded_bytes > most:
            raise ValueError(
                f"pictures of {self.source_bytes:,} bytes must decode to at most {most:,}, and "
                f"with this one it would be {self.decoded_bytes:,}: no true set of pictures is "
                "packed so tight"
            )

    def keep(self, num_bytes: int) -> None:
        """Count a picture that is about to be kept.

        Raises:
            ValueError: All of them take more than half of this machine's memory.
        """
        self.kept_bytes += num_bytes
        if self.kept_bytes > self.most_kept:
            raise ValueError(
                f"the decoded pictures of {self.path} must take at most half of this machine's "
                f"memory, {self.most_kept:,} bytes: set image_size, or take fewer pictures"
            )


def memory_bytes() -> int:
    """The bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_member(path: Path | str, name: str, num_bytes: int) -> None:
    """Raise ValueError for a file that is too large to be a picture."""
    if num_bytes > MAX_MEMBER_BYTES:
        raise ValueError(
            f"archive members must be at most {MAX_MEMBER_BYTES} bytes, and {name!r} of {path} has "
            f"{num_bytes}"
        )
