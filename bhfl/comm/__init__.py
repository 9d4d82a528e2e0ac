"""What travels between server and clients: models as payloads, whose size is measured."""

from bhfl.comm.payload import Tensors, decode, encode, encoded_bytes, header_bytes
from bhfl.comm.wire import PayloadError
from bhfl.quant.codes import float_tensors

__all__ = [
    "PayloadError",
    "Tensors",
    "decode",
    "encode",
    "encoded_bytes",
    "float_tensors",
    "header_bytes",
]
