"""One split of an MMSA pickle as the feature file has it: every array with N rows, and what was measured.

A step of audio or vision counts as measured where

* it lies within the clip's length: `audio_lengths` and `vision_lengths` where the file has them; in files that are
  aligned to wordpieces and have none, the text's; elsewhere the last row that is not all zero, for MMSA pads the end;
* all its columns are finite: the array keeps −inf and NaN as they are, but nothing was measured there;
* not all its columns are zero: that is what frames without a face and words without frames look like in these files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfeat import layout
from mmfeat.mmsa import MMSAError

Split = Mapping[Any, Any]
_KINDS = "biuf"
_MOST_CLASSES = 1000


def columns(splits: Mapping[str, Split], path: str) -> dict[str, int]:
    """Modality → columns, 1 where no split has it. Raises MMSAError where splits differ."""
    found = {}
    for modality in layout.MODALITIES:
        arrays = {name: _as_array(split[modality]) for name, split in splits.items() if modality in split}
        widths = {name: array.shape[-1] for name, array in arrays.items() if array.ndim > 1}
        if len(set(widths.values())) > 1:
            raise MMSAError(f"{path}: the splits differ in columns of {modality!r}: {widths}")
        found[modality] = max(1, *widths.values(), 1)
    return found


class Rows:
    """The arrays of one split, by key.

    Raises MMSAError, naming split and key, where a key has not one row per id, or not what MMSA would load.
    """

    def __init__(self, split: Split, where: str, columns: Mapping[str, int]):
        if split and "id" not in split:
            raise MMSAError(f"{where}: no 'id'; there are: {', '.join(map(str, split))}")
        self.split, self.where, self.columns = split, where, columns
        ids = [clip_id(value) for value in self._listed("id")] if split else []
        self.clips = len(ids)
        self.arrays: dict[str, NDArray[Any]] = {"id": np.array(ids, object)}
        for key in ("raw_text", "annotations"):
            texts = [as_text(value) for value in self._listed(key)] if self.has(key) else [""] * self.clips
            self.arrays[key] = np.array(self._fits(key, texts), object)
        for modality in layout.MODALITIES:
            self.arrays[modality] = self._series(modality)
        self._tokens()
        for modality in layout.TIMED:
            self._mask(modality)
        self._labels()

    def has(self, key: str) -> bool:
        """Whether there is something under the key. In a split without clips the arrays may have any shape."""
        return self.clips > 0 and key in self.split

    @property
    def aligned(self) -> bool:
        """Whether audio and vision have a row per wordpiece."""
        steps = {self.arrays[modality].shape[1] for modality in layout.MODALITIES}
        lengths = [self.arrays[f"{modality}_lengths"] for modality in layout.MODALITIES]
        return len(steps) == 1 and steps != {1} and all((length == lengths[0]).all() for length in lengths)

    @property
    def labelled(self) -> bool:
        return bool(np.isfinite(self.arrays[layout.REGRESSION]).any())

    def _listed(self, key: str) -> Any:
        values = self.split[key]
        if not isinstance(values, list | tuple) and not (isinstance(values, np.ndarray) and values.ndim):
            raise MMSAError(f"{self.where}: {key!r} holds a {type(values).__name__}, not a value per clip")
        return values

    def _fits(self, key: str, values: Any) -> Any:
        if len(values) != self.clips:
            raise MMSAError(f"{self.where}: {len(values)} rows of {key!r} for {self.clips} ids")
        return values

    def _numbers(self, key: str) -> NDArray[Any]:
        array = _as_array(self.split[key])
        if array.dtype.kind not in _KINDS or not array.ndim:
            raise MMSAError(
                f"{self.where}: {key!r} does not hold one array of numbers, but {array.dtype} {array.shape}"
            )
        return self._fits(key, array)

    def _series(self, modality: str) -> NDArray[np.float32]:
        """(N, T, D); where the modality is not there, one step that was not measured."""
        if not self.has(modality):
            return np.zeros((self.clips, 1, self.columns[modality]), np.float32)
        array = self._numbers(modality)
        if array.ndim == 2:
            array = array[:, None]  # one vector per clip
        if array.ndim != 3 or not all(array.shape[1:]):
            raise MMSAError(f"{self.where}: {modality!r} has shape {array.shape}, not (clips, steps, columns)")
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(np.float32, copy=False)

    def _tokens(self) -> None:
        """`text_bert`; without it only the attention mask is known, and all token ids are 0."""
        if self.has("text_bert"):
            tokens = self._numbers("text_bert")
            if tokens.ndim != 3 or tokens.shape[1] != 3 or not tokens.shape[2]:
                raise MMSAError(f"{self.where}: 'text_bert' has shape {tokens.shape}, not (clips, 3, wordpieces)")
            with np.errstate(invalid="ignore"):
                whole = tokens.astype(np.int32)
            if not (whole == tokens).all():
                raise MMSAError(f"{self.where}: 'text_bert' holds numbers that are no token ids")
            if not self.has("text"):
                self.arrays["text"] = np.zeros((self.clips, tokens.shape[2], self.columns["text"]), np.float32)
            lengths = (whole[:, 1] > 0).sum(1)
        else:
            said = (self.arrays["text"] != 0).any(2)
            whole = np.zeros((self.clips, 3, said.shape[1]), np.int32)
            whole[:, 1], lengths = said, _last(said)
        steps = self.arrays["text"].shape[1]
        if steps != whole.shape[2]:
            raise MMSAError(f"{self.where}: {steps} steps of 'text' for {whole.shape[2]} wordpieces of 'text_bert'")
        self.arrays["text_bert"], self.arrays["text_lengths"] = whole, lengths.astype(np.int32)

    def _mask(self, modality: str) -> None:
        values, key = self.arrays[modality], f"{modality}_lengths"
        measured = np.isfinite(values).all(2) & (values != 0).any(2)
        if self.has(key):
            stated = self._numbers(key)
            if stated.size != self.clips:
                raise MMSAError(f"{self.where}: {key!r} has shape {stated.shape}, not one number per clip")
            lengths = np.clip(np.nan_to_num(stated.reshape(self.clips)), 0, values.shape[1])
        elif len({self.arrays[modality].shape[1] for modality in layout.MODALITIES}) == 1:
            lengths = self.arrays["text_lengths"]
        else:
            lengths = _last((values != 0).any(2))
        lengths = lengths.astype(np.int32)
        self.arrays[key] = lengths
        self.arrays[f"{modality}_mask"] = measured & (np.arange(values.shape[1]) < lengths[:, None])

    def _labels(self) -> None:
        for key in (layout.REGRESSION, *layout.UNIMODAL.values()):
            with np.errstate(over="ignore"):
                self.arrays[key] = self._one_each(key).astype(np.float32)
        classes = layout.polarity(self.arrays[layout.REGRESSION])
        if not self.labelled:
            given = self._one_each("classification_labels")
            is_class = (given >= 0) & (given < _MOST_CLASSES) & (given == np.round(given))
            classes = np.where(is_class, given, -1).astype(np.int64)
        self.arrays["classification_labels"] = classes

    def _one_each(self, key: str) -> NDArray[Any]:
        """One number per clip, NaN where there are none."""
        if not self.has(key):
            return np.full(self.clips, np.nan)
        given = self._numbers(key)
        if given.size != self.clips:
            raise MMSAError(f"{self.where}: {key!r} has shape {given.shape}, not one number per clip")
        return given.reshape(self.clips)


def _as_array(value: Any) -> NDArray[Any]:
    """0-d and of objects where the value is none, as lists of different lengths are not."""
    try:
        return np.asarray(value)
    except (ValueError, OverflowError):
        return np.empty((), object)


def _last(there: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Shape (N,): steps up to the last that is there, of (N, T)."""
    return (there * np.arange(1, there.shape[1] + 1)).max(1, initial=0)


def clip_id(value: Any) -> str:
    """`video$_$clip` of any form of id: text, bytes, an array or list of one, or [video, start, end]."""
    if not isinstance(value, np.ndarray | list | tuple):
        return as_text(value)
    parts = [as_text(part) for part in np.asarray(value, object).ravel()]
    return "$_$".join([parts[0], "_".join(parts[1:])] if len(parts) > 1 else parts)


def as_text(value: Any) -> str:
    """A string that HDF5 can hold: UTF-8 without NUL."""
    if isinstance(value, np.ndarray | list | tuple) and len(value) == 1:
        value = value[0]
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.replace("\0", "").encode("utf-8", "replace").decode()
