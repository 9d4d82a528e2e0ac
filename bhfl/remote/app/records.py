"""Bytes as Flower carries them: a short message as one object, for each of which it makes requests
of its own, a long one as an array, which travels in pieces.
"""

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

KIND = "bhfl.payload/1"
_ONE_OBJECT = 2**20
"""Bytes that travel as one object: a piece of an array may be longer."""


def wrapped(data: bytes) -> RecordDict:
    """The content of a message."""
    if len(data) <= _ONE_OBJECT:
        return RecordDict({"bytes": ConfigRecord({KIND: data})})
    return RecordDict({"bytes": ArrayRecord({KIND: Array("uint8", (len(data),), KIND, data)})})


def unwrapped(content: RecordDict) -> bytes:
    """What `wrapped` wrapped; nothing where anybody else made the content."""
    record = content.get("bytes", ConfigRecord())
    value = record.get(KIND)
    data = value.data if isinstance(value, Array) else value
    return data if isinstance(data, bytes) else b""
