"""Paths as users give them, files that are written whole, and locks. It needs no torch."""

from bhfl.files.locks import claim, queue
from bhfl.files.paths import matching, read_limited, user_folder, user_option, user_path, walk
from bhfl.files.table import TableFile
from bhfl.files.writing import (
    RoundsFile,
    durable,
    naming,
    replacing,
    settle_all,
    temporary_beside,
    write_json,
    write_rows,
    write_text,
)

__all__ = [
    "RoundsFile",
    "TableFile",
    "claim",
    "durable",
    "matching",
    "naming",
    "queue",
    "read_limited",
    "replacing",
    "settle_all",
    "temporary_beside",
    "user_folder",
    "user_option",
    "user_path",
    "walk",
    "write_json",
    "write_rows",
    "write_text",
]
