"""`.npz` files as `numpy.savez` writes them, but as fast as the disk takes and gives them.

NumPy takes a millisecond for a few kilobytes, most of it in generic code for zip archives and text headers. With
100 000 clips of four files each that is longer than their bytes take. Here the members are walked in the order that
they were written in, so that the first is known after one read. Formats: PKWARE APPNOTE 4.3.7 to 4.3.16 and 4.5.3 (all
sizes are written as zip64), NumPy's NEP 1.
"""

from __future__ import annotations

import functools
import io
import math
import struct
import tokenize
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# signature; versions, flags, method, time, date; CRC, sizes; lengths of name and extra
_LOCAL = struct.Struct("<4s5H3I2H")
# the same, and the lengths of comment, disk and attributes; attributes; offset
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL_SIZES = struct.Struct("<2H2Q")
_CENTRAL_SIZES = struct.Struct("<2H3Q")
_END = struct.Struct("<4sQ2H2I4Q 4sIQI 4s4H2IH")
_ZIP64 = 0xFFFFFFFF
_VERSION = 45
"""Of the zip format, 4.5: the first that knows zip64."""
_DAY = 0x21
"""1 January 1980: the same arrays give the same file."""
_FIRST = 1 << 13
"""Bytes that hold a first member of ordinary size."""


def archive(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The file that holds these arrays. Raises ValueError for arrays of Python objects."""
    members, directory, place = list[bytes | memoryview](), list[bytes](), 0
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        title, header = f"{name}.npy".encode(), _written_header(array.shape, array.dtype)
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        crc, size = zlib.crc32(data, zlib.crc32(header)), len(header) + len(data)
        sizes = _LOCAL_SIZES.pack(1, 16, size, size)
        fixed = (_VERSION, 0, 0, 0, _DAY, crc, _ZIP64, _ZIP64, len(title))
        members += (_LOCAL.pack(b"PK\3\4", *fixed, len(sizes)), title, sizes, header, data)
        sizes = _CENTRAL_SIZES.pack(1, 24, size, size, place)
        directory += (_CENTRAL.pack(b"PK\1\2", _VERSION, *fixed, len(sizes), 0, 0, 0, 0, _ZIP64), title, sizes)
        place = place + _LOCAL.size + len(title) + _LOCAL_SIZES.size + size
    length, count = sum(map(len, directory)), len(arrays)
    end = _END.pack(
        *(b"PK\6\6", 44, _VERSION, _VERSION, 0, 0, count, count, length, place),
        *(b"PK\6\7", 0, place + length, 1),
        *(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, _ZIP64, _ZIP64, 0),
    )
    return b"".join([*members, *directory, end])


@functools.lru_cache(maxsize=4096)
def _written_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    file = io.BytesIO()
    said = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, said)
    return file.getvalue()


def read(path: str | Path) -> dict[str, NDArray[Any]]:
    """All arrays, not writable. Raises FileNotFoundError, and ValueError where the file is damaged."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path would cost as much as the read
        content = file.read()
    arrays, place = {}, 0
    while content.startswith(b"PK\3\4", place):
        name, arrays[name], place = _member(content, place)
    directory = content[place:]
    if directory[:4] != b"PK\1\2":
        raise ValueError("it breaks off")
    if len(arrays) != _count(directory) or any(f"{name}.npy".encode() not in directory for name in arrays):
        raise ValueError("its directory names other members")
    return arrays


def _count(directory: bytes) -> int:
    """Members that there are, as the end of the file says."""
    end = len(directory) - 22
    count = int.from_bytes(directory[end + 10 : end + 12], "little")
    return (
        int.from_bytes(directory[end - 44 : end - 36], "little") if count == 0xFFFF else count
    )  # zip64 has a longer one


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
    title = place + _LOCAL.size
    begin = title + name
    if size == _ZIP64:
        if content[begin : begin + 2] != b"\1\0" or extra < 20:
            raise ValueError("a member without a size")
        size = int.from_bytes(content[begin + 4 : begin + 12], "little")
    begin, end = begin + extra, begin + extra + size
    if end > len(content):
        raise ValueError("it breaks off")
    if zlib.crc32(memoryview(content)[begin:end]) != crc:
        raise ValueError("its checksum is wrong")
    return content[title : title + name].decode().removesuffix(".npy"), _array(content, begin, end), end


def _array(content: bytes, begin: int, end: int) -> NDArray[Any]:
    if content[begin : begin + 8] != b"\x93NUMPY\1\0":
        raise ValueError("a member is not an array")
    data = begin + 10 + int.from_bytes(content[begin + 8 : begin + 10], "little")
    shape, dtype, order, size = _header(content[begin + 8 : data])
    if data + size != end:
        raise ValueError("an array of another size than it says")
    return np.ndarray(shape, dtype, content, data, order=order)


@functools.lru_cache(maxsize=4096)
def _header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any], Literal["C", "F"], int]:
    """Shape, type, order, and bytes."""
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    except (SyntaxError, TypeError, tokenize.TokenError) as error:
        raise ValueError(f"a header that is none ({error})") from None
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, dtype, "F" if fortran else "C", math.prod(shape) * dtype.itemsize
