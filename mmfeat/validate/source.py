"""A feature file or an MMSA pickle as splits of arrays that can be read in blocks of clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from mmfeat import layout
from mmfeat.layout import FeatureFile, LayoutError
from mmfeat.mmsa import is_pickle


class Array(Protocol):
    """An HDF5 dataset or a numpy array."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Source:
    path: Path
    file: FeatureFile | None
    """None for a pickle, which has no masks, times, statistics or table of clips."""
    splits: Mapping[str, Mapping[str, Array]]

    @property
    def pickled(self) -> bool:
        return self.file is None

    def strings(self, split: str, key: str) -> list[str]:
        """Ids of a pickle are in our form, `video$_$clip`, whatever it holds."""
        values = self.splits[split][key][:]
        return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values]

    def read(self, split: str, key: str, rows: slice) -> NDArray[Any]:
        """Raises LayoutError, naming the rows, where the file is damaged there."""
        try:
            return self.splits[split][key][rows]
        except OSError as error:
            raise LayoutError(
                f"{self.path}: rows {rows.start} to {rows.stop} of {split}/{key} cannot be read: {error}"
            ) from None


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Raises LayoutError, MMSAError or FileNotFoundError for a file that cannot be read at all."""
    if is_pickle(path):
        yield Source(path, None, _pickled(path))
        return
    with FeatureFile(path) as file:
        yield Source(path, file, {split: _Datasets(file, split) for split in file.splits})


class _Datasets(Mapping[str, Array]):
    def __init__(self, file: FeatureFile, split: str):
        self._file, self._split = file, split
        self._keys = [key for key in file.keys(split) if isinstance(file.dataset(split, key), h5py.Dataset)]

    def __getitem__(self, key: str) -> Array:
        if key not in self._keys:
            raise KeyError(key)
        return self._file.dataset(self._split, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def _pickled(path: Path) -> dict[str, dict[str, Array]]:
    from mmfeat.mmsa.read import load_splits
    from mmfeat.mmsa.rows import clip_id

    _, splits = load_splits(path)
    found: dict[str, dict[str, Array]] = {}
    for name, split in splits.items():
        found[name] = {str(key): _array(value) for key, value in split.items()}
        ids = split.get("id")
        if isinstance(ids, list | tuple) or (isinstance(ids, np.ndarray) and ids.ndim):
            found[name]["id"] = np.array([clip_id(value) for value in ids], object)
        else:
            found[name].pop("id", None)  # one value names no clips
    return found


def _array(value: Any) -> Array:
    """One array of a list; what cannot be one is an array of objects, which no check takes for numbers."""
    try:
        return np.asarray(value)
    except ValueError:  # parts of different shapes
        array = np.empty(len(value), object)
        array[:] = list(value)
        return array


def is_text(array: Array) -> bool:
    return bool(h5py.check_string_dtype(array.dtype)) or array.dtype.kind in "SUO"


def steps(source: Source, split: str, modality: str) -> int:
    """Padded length; 1 for a pickle of one vector per clip."""
    shape = source.splits[split][modality].shape
    return shape[1] if len(shape) == 3 else 1


def aligned(source: Source, split: str, usable: set[str]) -> bool:
    """Whether audio and vision have a row per wordpiece: a pickle does not say, but its shapes and lengths do."""
    if source.file is not None:
        return source.file.attrs.get("aligned") is True
    if not usable.issuperset(layout.MODALITIES):
        return False
    lengths = {steps(source, split, modality) for modality in layout.MODALITIES}
    if len(lengths) > 1 or lengths == {1}:
        return False
    arrays = source.splits[split]
    stated = [arrays[key][:].reshape(-1) for key in (f"{m}_lengths" for m in layout.TIMED) if key in usable]
    if not stated:
        return True
    return "text_bert" in usable and all(((arrays["text_bert"][:, 1] > 0).sum(1) == given).all() for given in stated)
