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
_PREFIX = struct.Struct("<4sIQ")
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
    _write(stream, memoryview(_PREFIX.pack(_MAGIC, len(text), len(body)) + text))
    _write(stream, body)


def receive(stream: BinaryIO) -> Message | None:
    """The next message; None where the other side has ended. Raises WireError for anything else."""
    prefix = _read(stream, _PREFIX.size)
    if prefix is None:
        return None
    magic, header_size, body_size = _PREFIX.unpack(prefix)
    if magic != _MAGIC or header_size > MAX_HEADER or body_size > MAX_ARRAY:
        raise WireError(f"no message, but {bytes(prefix)!r}")
    text = _read(stream, header_size)
    if text is None:
        raise WireError("a message was cut off")
    try:
        header = json.loads(bytes(text))
        kind = str(header.pop("kind"))
    except (ValueError, KeyError, AttributeError) as error:
        raise WireError(f"a message has no readable header: {error}") from None
    if "dtype" not in header:
        return Message(kind, header, None)
    return Message(kind, header, _array(stream, header.pop("dtype"), header.pop("shape", None), body_size))


def _array(stream: BinaryIO, dtype: Any, shape: Any, size: int) -> np.ndarray:
    fits = isinstance(shape, list) and all(isinstance(side, int) and side >= 0 for side in shape)
    if dtype not in _DTYPES or not fits or math.prod(shape) * np.dtype(dtype).itemsize != size:
        raise WireError(f"an array of {dtype} and shape {shape} cannot have {size} bytes")
    body = _read(stream, size)
    if body is None:
        raise WireError("an array was cut off")
    return np.frombuffer(body, dtype).reshape(shape)


def _write(stream: BinaryIO, data: memoryview) -> None:
    while data:  # an unbuffered pipe takes a part only
        data = data[stream.write(data) :]


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
