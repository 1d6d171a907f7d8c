"""What of a pickle the feature file's arrays do not give back exactly, kept beside them, so that nothing is lost.

Every number array of the pickle that is a cast of the feature file's own is written as such: its dtype and shape. Any
other number array (float64 that is no float32, a key that the layout does not have) is kept as bytes, and all the rest,
lists and strings, in one small pickle, which is read back by the same restricted reader.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mmfeat.layout import FeatureFile
from mmfeat.mmsa.unpickle import loads

GROUP = "meta/mmsa"
_REST = "rest"
_ROWS = 64  # are compared at once, so that no second copy of an array is made
_NUMBERS = "biufc"


class Original:
    """Collects a pickle's values and writes them into an open HDF5 file."""

    def __init__(self, file: h5py.File):
        self._group = file.create_group(GROUP)
        self._rest: dict[Any, Any] = {}

    def add(self, name: Any, value: Any) -> None:
        """Something of the pickle that is no split."""
        self._rest[name] = ("value", value)

    def add_split(self, name: str, split: Mapping[Any, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """A split, and the arrays that the feature file has of it."""
        self._rest[name] = ("split", {key: self._entry(value, arrays.get(key)) for key, value in split.items()})

    def _entry(self, value: Any, array: NDArray[Any] | None) -> tuple[Any, ...]:
        if not isinstance(value, np.ndarray) or value.dtype.kind not in _NUMBERS:
            return ("value", value)
        if array is not None and _is_cast(array, value):
            return ("array", value.dtype.str, value.shape)
        name = str(len(self._group))
        self._group.create_dataset(name, data=np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        return ("bytes", value.dtype.str, value.shape, name)

    def close(self) -> None:
        """Write what was collected."""
        self._group.create_dataset(_REST, data=np.frombuffer(pickle.dumps(self._rest, protocol=4), np.uint8))


def restore(file: FeatureFile) -> dict[Any, Any]:
    """The pickle that the file was made of, bit for bit. The file must have come from one (`came_from_pickle`)."""
    rest = loads(file.meta(f"{GROUP}/{_REST}")[:].tobytes(), f"{file.path}, /{GROUP}")

    def value(split: str, key: Any, entry: tuple[Any, ...]) -> Any:
        if entry[0] == "value":
            return entry[1]
        kind, dtype, shape = entry[:3]
        if kind == "bytes":
            data = file.meta(f"{GROUP}/{entry[3]}")[:]
            return (data.view(dtype) if data.size else np.empty(0, dtype)).reshape(shape)
        return _cast(file.read(split, key).reshape(shape), dtype)

    return {
        name: {key: value(name, key, entry) for key, entry in content.items()} if kind == "split" else content
        for name, (kind, content) in rest.items()
    }


def came_from_pickle(file: FeatureFile) -> bool:
    return file.meta(GROUP) is not None


def _is_cast(array: NDArray[Any], value: NDArray[Any]) -> bool:
    """Whether the array, cast to the value's dtype and in its shape, is the value, bit for bit."""
    if array.dtype.hasobject or array.size != value.size or not value.ndim:
        return False
    array = array.reshape(value.shape)
    parts = [slice(k, k + _ROWS) for k in range(0, len(value), _ROWS)]
    return all(_cast(array[part], value.dtype.str).tobytes() == value[part].tobytes() for part in parts)


def _cast(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype, copy=False)
