"""Reading the `.npz` files that `numpy.savez` writes, as fast as the disk gives them.

`numpy.load` takes a millisecond for a shard of a few kilobytes, most of it in generic code for zip archives and text
headers. With 100 000 clips of four shards each that is longer than reading them. Here the members are walked in the
order that they were written in, so that the first is known after one read. Formats: PKWARE APPNOTE 4.3.7 (local file
header) and 4.5.3 (zip64), NumPy's NEP 1.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LOCAL = struct.Struct(
    "<4s5H3I2H"
)  # signature, versions, flags, method, time, date, CRC, sizes, lengths of name and extra
_ZIP64 = 0xFFFFFFFF
_FIRST = 1 << 15
"""Bytes that hold a first member of ordinary size."""


def read(path: str | Path) -> dict[str, NDArray[Any]]:
    """All arrays, not writable. Raises FileNotFoundError, and ValueError where the file is damaged."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path would cost as much as the read
        content = file.read()
    arrays, place = {}, 0
    while content[place : place + 4] == b"PK\3\4":
        name, array, place = _member(content, place)
        arrays[name] = array
    if content[place : place + 4] != b"PK\1\2":  # the directory, which comes last
        raise ValueError("it breaks off")
    if any(f"{name}.npy".encode() not in content[place:] for name in arrays):
        raise ValueError("its directory names other members")
    return arrays


def first(path: str | Path) -> NDArray[Any]:
    """The array that was written first; no more is read, or known to be whole. Raises as `read` does."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        content = file.read(_FIRST)
        try:
            return _member(content, 0)[1]
        except ValueError:
            if len(content) < _FIRST:
                raise
        return _member(content + file.read(), 0)[1]


def _member(content: bytes, place: int) -> tuple[str, NDArray[Any], int]:
    """Name, array, and where the next one begins."""
    try:
        signature, _, flags, method, _, _, crc, size, _, name, extra = _LOCAL.unpack_from(content, place)
    except struct.error:
        raise ValueError("it breaks off") from None
    if signature != b"PK\3\4" or method or flags & 8:
        raise ValueError("not an archive that numpy.savez wrote")
    begin = place + _LOCAL.size + name
    if size == _ZIP64:
        if content[begin : begin + 2] != b"\1\0" or extra < 20:
            raise ValueError("a member without a size")
        size = int.from_bytes(content[begin + 4 : begin + 12], "little")
    begin, end = begin + extra, begin + extra + size
    data = content[begin:end]
    if len(data) != size:
        raise ValueError("it breaks off")
    if zlib.crc32(data) != crc:
        raise ValueError("its checksum is wrong")
    title = content[place + _LOCAL.size : place + _LOCAL.size + name].decode().removesuffix(".npy")
    return title, _array(data), end


def _array(data: bytes) -> NDArray[Any]:
    if data[:8] != b"\x93NUMPY\1\0":
        raise ValueError("a member is not an array")
    begin = 10 + int.from_bytes(data[8:10], "little")
    shape, dtype, fortran = _header(data[8:begin])
    return np.frombuffer(data, dtype, offset=begin).reshape(shape, order="F" if fortran else "C")


@functools.lru_cache(maxsize=4096)
def _header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, dtype, fortran
