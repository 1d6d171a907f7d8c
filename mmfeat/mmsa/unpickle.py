"""A pickle reader that makes strings, numbers, plain containers and numpy arrays, and nothing else.

A pickle is a program: reading one with the standard library runs whatever it names. This reader answers the handful of
names that numpy's own pickles use with small makers of its own, and refuses every other. The makers check what they are
given before numpy sees it: a forged array can neither be larger than the bytes it brings nor hold a pointer. Nor does
the reader make room for more bytes than the pickle has left, however many it announces.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mmfeat.mmsa import MMSAError

_DEPTH, _AROUND = 50, 5
_ZIP = b"PK\x03\x04"
_TORCH = 0x1950A86A20F9469CFC6C
"""The number that a file of torch.save's began with before version 1.6 of torch."""
_PICKLE_IT = "where it was made, load it with torch.load and write its arrays, as numpy's, with pickle.dump"
_TYPE = re.compile(r"[<>=|]?(?:[?biufcSU]\d*|O8?)")
_ATOMS = (str, bytes, int, float, complex, bool, type(None))
# What a damaged pickle makes the standard library raise.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError),
    *(AssertionError, BufferError, MemoryError, NotImplementedError, RecursionError, struct.error),
)


class RefusedError(MMSAError):
    """The pickle asks for something that a feature file does not need."""


def load(path: str | Path) -> Any:
    """What a pickle holds. Its arrays use the bytes as they were read: there is no second copy, and most are read-only.

    Raises RefusedError with the name of anything else that it asks for, MMSAError where it is damaged, no pickle or
    torch's, and FileNotFoundError. Nothing that it names is ever imported or called.
    """
    with Path(path).open("rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            raise MMSAError(f"{path} is a zip archive, as torch.save writes it, and no pickle: {_PICKLE_IT}")
        value = _load(file, str(path))
    if isinstance(value, int) and value == _TORCH:
        raise MMSAError(f"{path} is a file of torch.save's, and no pickle of features: {_PICKLE_IT}")
    return value


def loads(data: bytes, where: str) -> Any:
    """The same for values of a pickle, pickled again within other containers; `where` names it in errors."""
    return _load(io.BytesIO(data), where, depth=-_AROUND)


def _load(file: IO[bytes], where: str, depth: int = 0) -> Any:
    try:
        return _finish(_Unpickler(file).load(), {}, depth)
    except RefusedError as error:
        raise RefusedError(f"{where} is refused: {error}") from None
    except _DAMAGE as error:
        raise MMSAError(f"{where} is no pickle, or a damaged one ({type(error).__name__}: {error})") from None


class _Type:
    """An array's dtype as a pickle describes it: a code, then its byte order."""

    def __init__(self, code: Any, *_: Any):
        if not isinstance(code, str) or not _TYPE.fullmatch(code):
            raise RefusedError(f"it holds an array of type {code!r}; only numbers and strings are read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _, order, *fields = state[:5]
        if order not in ("<", ">", "=", "|") or any(field is not None for field in fields):
            raise RefusedError("it holds an array with fields; only numbers and strings are read")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array as a pickle describes it; `make` turns it into one when the whole pickle is read."""

    def __init__(self, shape: Any = None, dtype: Any = None, data: Any = None, order: Any = "C", axes: Any = None):
        self.shape, self.type, self.data, self.order, self.axes = shape, dtype, data, order, axes

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.__init__(shape, dtype, data, "F" if fortran else "C")  # type: ignore[misc]

    def make(self, finish: Callable[[Any], Any]) -> NDArray[Any]:
        shape, data = self.shape, self.data
        if not (isinstance(self.type, _Type) and isinstance(shape, tuple) and all(type(n) is int for n in shape)):
            raise RefusedError("it holds an array without a proper type and shape")
        dtype, size = self.type.dtype, math.prod(shape)
        if dtype.hasobject:
            if not isinstance(data, list) or len(data) != size:
                raise RefusedError("it holds an array of objects without its objects")
            array = np.empty(size, object)
            for k, item in enumerate(data):
                array[k] = finish(item)
        else:
            if not isinstance(data, bytes | bytearray) or len(data) != size * dtype.itemsize or (size and not data):
                raise RefusedError("it holds an array whose content does not fit its shape")
            array = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
        if self.order != "K":
            return array.reshape(shape, order=self.order)
        return array.reshape(shape).transpose(self.axes)


def _new_array(*_: Any) -> _Array:
    return _Array()  # what comes next in the pickle describes it


def _from_shape(shape: Any, dtype: Any, data: Any, offset: Any = 0, strides: Any = None, order: Any = "C") -> _Array:
    if offset or strides is not None:
        raise RefusedError("it holds an array that is a part of another")
    return _Array(shape, dtype, data, order)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    return _Array(shape, dtype, data, order, axes)


def _scalar(kind: Any, data: Any) -> Any:
    if not isinstance(kind, _Type) or kind.dtype.hasobject or not isinstance(data, bytes):
        raise RefusedError("it holds a number that is none")
    if kind.dtype.kind in "SU" and not data:
        return kind.dtype.type()
    if len(data) != kind.dtype.itemsize:
        raise RefusedError("it holds a number whose content does not fit its type")
    return np.frombuffer(data, kind.dtype)[0]


def _encode(text: Any, encoding: Any = "") -> bytes:
    if encoding != "latin1":
        raise RefusedError(f"it asks for _codecs.encode with {encoding!r}")
    return str.encode(text, "latin1")


def _bytes(data: Any = b"") -> bytes:
    if not isinstance(data, bytes):
        raise RefusedError("it makes bytes of something else than bytes")  # of a number: that many zeros
    return data


def _keys(items: Any = ()) -> Any:
    """Items that are about to be hashed. A tuple of a tuple of … would overflow the stack of the interpreter itself."""
    for item in items:
        if not isinstance(item, (*_ATOMS, np.generic)):
            raise RefusedError(f"it holds a {type(item).__name__} as a key; only strings and numbers are read as keys")
    return items


_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _from_shape,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,  # bytes in protocols 0 to 2
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _NAMES[f"{_core}.multiarray", "_reconstruct"] = _new_array
    _NAMES[f"{_core}.multiarray", "scalar"] = _scalar
    _NAMES[f"{_core}.numeric", "_frombuffer"] = _from_buffer
for _module in ("__builtin__", "builtins"):
    _NAMES[_module, "bytes"] = _bytes
    _NAMES[_module, "bytearray"] = lambda data=b"": bytearray(_bytes(data))
    _NAMES[_module, "complex"] = complex
    _NAMES[_module, "set"] = lambda items=(): set(_keys(items))
    _NAMES[_module, "frozenset"] = lambda items=(): frozenset(_keys(items))


class _Maker:
    """What a name in the pickle becomes: it can be called, but nothing can be set on it."""

    __slots__ = ("_make", "_name")

    def __init__(self, name: str, make: Callable[..., Any]):
        self._name, self._make = name, make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise RefusedError(f"it alters {self._name}")


def _guarded(opcode: bytes, keys: slice) -> Callable[[Any], None]:
    handler = pickle._Unpickler.dispatch[opcode[0]]

    def guarded(reader: Any) -> None:
        _keys(reader.stack[keys])
        handler(reader)

    return guarded


# Which of the objects on the reader's stack an opcode hashes.
_HASHED = {
    pickle.SETITEM: slice(-2, -1),
    pickle.SETITEMS: slice(None, None, 2),
    pickle.DICT: slice(None, None, 2),
    pickle.ADDITEMS: slice(None),
    pickle.FROZENSET: slice(None),
}


def _bytearray(reader: Any) -> None:
    """BYTEARRAY8. The standard library's handler fills as many bytes as are announced before it reads any."""
    (size,) = struct.unpack("<Q", reader.read(8))
    reader.append(bytearray(reader.read(size)))


class _Source:
    """A file whose reads are checked against what is left of it: reading n bytes makes room for n."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._left = file.seek(0, io.SEEK_END)
        file.seek(0)

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise EOFError(f"{size} bytes are announced where {self._left} are left")
        self._left -= size
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


class _Unpickler(pickle._Unpickler):
    """The reader in Python: the one in C makes its memo as large as a pickle of ten bytes says, up to all memory."""

    dispatch = (
        pickle._Unpickler.dispatch
        | {opcode[0]: _guarded(opcode, keys) for opcode, keys in _HASHED.items()}
        | {pickle.BYTEARRAY8[0]: _bytearray}
    )

    def __init__(self, file: IO[bytes]):
        super().__init__(_Source(file))

    def find_class(self, module: str, name: str) -> Any:
        if make := _NAMES.get((module, name)):
            return _Maker(f"{module}.{name}", make)
        raise RefusedError(f"it asks for {module}.{name}; nothing but numpy arrays and plain containers is read")


_OPEN = object()


def _finish(value: Any, done: dict[int, Any], depth: int) -> Any:
    """The value with its arrays made. What is shared is made once; what contains itself is refused."""
    if type(value) in _ATOMS or isinstance(value, np.generic):
        return value
    if (known := done.get(id(value))) is not None:
        if known[1] is _OPEN:
            raise RefusedError("it holds a container that contains itself")
        return known[1]
    if depth > _DEPTH:
        raise RefusedError(f"its containers are nested more than {_DEPTH} deep")
    done[id(value)] = (value, _OPEN)  # the value is kept, so that its id stays its own

    def finish(part: Any) -> Any:
        return _finish(part, done, depth + 1)

    made: Any
    if isinstance(value, _Array):
        made = value.make(finish)
    elif type(value) is dict:
        made = {key: finish(item) for key, item in value.items()}
    elif type(value) in (list, tuple):
        made = type(value)(finish(item) for item in value)
    elif type(value) in (set, frozenset):
        made = value
    else:
        raise RefusedError(f"it holds a {type(value).__name__.lstrip('_')} where a value should be")
    done[id(value)] = (value, made)
    return made
