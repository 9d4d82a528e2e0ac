"""Bytes as Flower carries them: an array of them, which travels in pieces of any number."""

from flwr.app import Array, ArrayRecord, RecordDict

KIND = "bhfl.payload/1"


def wrapped(data: bytes) -> RecordDict:
    """The content of a message."""
    return RecordDict({"bytes": ArrayRecord({"bytes": Array("uint8", (len(data),), KIND, data)})})


def unwrapped(content: RecordDict) -> bytes:
    """What `wrapped` wrapped; nothing where anybody else made the content."""
    record = content.get("bytes")
    array = record.get("bytes") if isinstance(record, ArrayRecord) else None
    return array.data if array is not None and array.stype == KIND else b""
