"""Messages between mmfeat and a backend's process: a JSON header and at most one array, through a pipe.

A message is 16 bytes (`MMB1`, length of the header, length of the array, little endian), the header as UTF-8 JSON, and
the array's bytes in C order. Nothing in it is ever executed, as a pickle would be.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any, BinaryIO, NamedTuple

import numpy as np

PROTOCOL = 1
_MAGIC = b"MMB1"
_SIZES = struct.Struct("<IQ")
_DTYPES = ("|u1", "|b1", "<f4", "<f8")
MAX_HEADER = 1 << 20
MAX_ARRAY = 1 << 31


class WireError(Exception):
    """What arrived is no message of this protocol."""


class Message(NamedTuple):
    kind: str
    fields: dict[str, Any]
    array: np.ndarray | None


def send(stream: BinaryIO, kind: str, array: np.ndarray | None = None, **fields: Any) -> None:
    """Raises BrokenPipeError where nobody listens any more."""
    header: dict[str, Any] = {"kind": kind, **fields}
    body = memoryview(b"")
    if array is not None:
        array = np.ascontiguousarray(array)
        header |= {"dtype": array.dtype.str, "shape": list(array.shape)}
        body = memoryview(array.reshape(-1).view(np.uint8).data) if array.size else body
    text = json.dumps(header).encode()
    _write(stream, memoryview(_MAGIC + _SIZES.pack(len(text), len(body)) + text))
    _write(stream, body)


def receive(stream: BinaryIO) -> Message | None:
    """The next message; None where the other side has ended. Raises WireError for anything else."""
    magic = _read(stream, len(_MAGIC))
    if magic is None:
        return None
    if magic != _MAGIC:
        raise WireError(f"no message, but {bytes(magic)!r}")
    header_size, body_size = _SIZES.unpack(_rest(stream, _SIZES.size))
    if header_size > MAX_HEADER or body_size > MAX_ARRAY:
        raise WireError(f"a message of {header_size} and {body_size} bytes")
    text = _rest(stream, header_size)
    try:
        header = json.loads(bytes(text))
        kind = str(header.pop("kind"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WireError(f"a message has no readable header: {error}") from None
    if "dtype" not in header:
        return Message(kind, header, None)
    return Message(kind, header, _array(stream, header.pop("dtype"), header.pop("shape", None), body_size))


def _array(stream: BinaryIO, dtype: Any, shape: Any, size: int) -> np.ndarray:
    fits = isinstance(shape, list) and all(isinstance(side, int) and side >= 0 for side in shape)
    if dtype not in _DTYPES or not fits or math.prod(shape) * np.dtype(dtype).itemsize != size:
        raise WireError(f"an array of {dtype} and shape {shape} cannot have {size} bytes")
    return np.frombuffer(_rest(stream, size), dtype).reshape(shape)


def _write(stream: BinaryIO, data: memoryview) -> None:
    while data:  # an unbuffered pipe takes a part only
        data = data[stream.write(data) :]


def _rest(stream: BinaryIO, size: int) -> bytearray:
    """Exactly `size` bytes of a message that has begun."""
    data = _read(stream, size)
    if data is None:
        raise WireError("a message was cut off")
    return data


def _read(stream: BinaryIO, size: int) -> bytearray | None:
    """Exactly `size` bytes; None where the stream ends before the first of them."""
    data = bytearray(size)
    left = memoryview(data)
    while left:
        count = stream.readinto(left)  # type: ignore[attr-defined]
        if not count:
            if len(left) == size:
                return None
            raise WireError("a message was cut off")
        left = left[count:]
    return data
