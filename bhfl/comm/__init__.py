"""What travels: models as payloads of measured size."""

from bhfl.comm.payload import Tensors, decode, encode, encoded_bytes, float_tensors, header_bytes
from bhfl.comm.wire import PayloadError

__all__ = [
    "PayloadError",
    "Tensors",
    "decode",
    "encode",
    "encoded_bytes",
    "float_tensors",
    "header_bytes",
]
