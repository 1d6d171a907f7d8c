"""Packing's second pass, a block of clips at a time: their rows, each to its place in the feature file.

HDF5 writes a file from one process only. But it says where in the file an array's rows lie, and whoever knows that can
write them without it. So blocks need nothing of each other, and several processes can do one each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mmfeat import layout
from mmfeat.clip import FAILED, features, summary
from mmfeat.corpus import Clip
from mmfeat.direct import Place, Writer
from mmfeat.layout import ClipStatus
from mmfeat.moments import Moments
from mmfeat.recipe import Recipe
from mmfeat.shards import Shard, ShardError, Store
from mmfeat.track import Word

_CLASS_COLUMNS = {"label": "classification_labels"} | {f"label_{key[-1]}": key for key in layout.CLASSES.values()}

_BYTES = 8 * 2**20
"""Of rows that are written at a time, while the next ones are made."""

_BLOCK = 8
"""Times as many are a block."""


Sizes = Mapping[str, tuple[int, int]]
"""Modality → steps and columns."""


class Reader:
    """Clips' features out of the store."""

    def __init__(
        self, recipe: Recipe, store: Store, fingerprints: Mapping[str, str], aligned: bool, keep_damaged: bool
    ):
        self._recipe, self._store, self._fingerprints = recipe, store, fingerprints
        self._aligned, self._keep_damaged = aligned, keep_damaged

    def _shards(self, clip: Clip, arrays: bool) -> dict[str, Shard]:
        return self._store.read_all(clip, self._fingerprints, arrays)

    def look(self, clips: Iterable[Clip]) -> list[tuple[ClipStatus, Sizes]]:
        """What became of each clip, and its size where it is usable. Reads no features."""
        return [self._look(clip) for clip in clips]

    def _look(self, clip: Clip) -> tuple[ClipStatus, Sizes]:
        if clip.refused:
            return ClipStatus(clip.id, clip.split, FAILED, clip.refused), {}
        shards = self._shards(clip, arrays=False)
        status, reason, seconds = summary(shards)
        if "damaged" in status.split("+") and not self._keep_damaged:
            status = FAILED
        if status != FAILED and self._aligned and "no_words" in status.split("+"):
            status, reason = FAILED, f"cannot be aligned: {reason}"
        found = ClipStatus(clip.id, clip.split, status, reason, seconds)
        if status == FAILED:
            return found, {}
        details = {modality: shards[modality].details for modality in layout.MODALITIES}
        return found, {modality: (said["steps"], said["columns"]) for modality, said in details.items()}

    def damaged(self, clips: Iterable[Clip]) -> int:
        """Reads every shard; returns how many were damaged, and are removed."""
        found = 0
        for clip in clips:
            for part, fingerprint in self._fingerprints.items():
                try:
                    self._store.read(clip, part, fingerprint)
                except ShardError:
                    found += 1
                except FileNotFoundError:
                    continue
        return found

    def names(self, clip: Clip) -> dict[str, tuple[str, ...]]:
        """Modality → one name per column; any usable clip has them."""
        shards = self._shards(clip, arrays=True)
        return {modality: shards[modality].names for modality in layout.TIMED}

    def rows(self, clip: Clip) -> tuple[Mapping[str, NDArray], list[Word], str]:
        """A usable clip's rows, not padded, its words, and its transcript, which may have been heard."""
        found = features(self._shards(clip, arrays=True), self._recipe)
        return found.rows(self._aligned), found.words, found.transcript or clip.text


@dataclass(frozen=True)
class Block:
    """Clips of one split that follow each other in the file."""

    path: Path
    places: Mapping[str, Place]
    """Key of an array of steps → where the rows of these clips go."""
    clips: Sequence[Clip]
    first: int
    """Row of the first clip in its split."""
    class_names: Sequence[str]
    reader: Reader

    @property
    def split(self) -> str:
        return self.clips[0].split


@dataclass
class Filled:
    """What a block's clips leave to be written through HDF5."""

    values: list[dict[str, Any]] = field(default_factory=list)
    """Of each clip, what there is one of: its id, its labels, its lengths."""
    words: list[tuple[int, str, float, float, float, int, int]] = field(default_factory=list)
    """See `layout.write_words`."""
    moments: dict[str, Moments] = field(default_factory=lambda: {modality: Moments() for modality in layout.TIMED})
    """Of training clips' valid steps."""
    truncated: dict[str, int] = field(default_factory=lambda: dict.fromkeys(layout.TIMED, 0))
    """Modality → clips that were longer than the padded length."""


def blocks(
    path: Path, group: h5py.Group, clips: Sequence[Clip], class_names: Sequence[str], reader: Reader
) -> Iterator[Block]:
    """A split's clips; `group` has its datasets, which were created with `placed`."""
    places = {
        key: Place(dataset.id.get_offset(), dataset.shape[1:], dataset.dtype)
        for key, dataset in group.items()
        if dataset.ndim > 1 and dataset.size
    }
    held = _BLOCK * _together(places)
    for first, end in pairwise([*range(0, len(clips), held), len(clips)]):
        theirs = {key: place.after(first) for key, place in places.items()}
        yield Block(path, theirs, clips[first:end], first, class_names, reader)


def _together(places: Mapping[str, Place]) -> int:
    """Clips that are written at a time."""
    return max(1, _BYTES // sum(place.size for place in places.values()))


def fill(block: Block) -> Filled:
    """Write a block's arrays.

    Raises FileNotFoundError where a shard is not there, ShardError where it is damaged, and OSError for a full disk.
    """
    filled, together = Filled(), _together(block.places)
    with Writer(block.path) as file:
        for first in range(0, len(block.clips), together):
            clips = block.clips[first : first + together]
            places = {key: place.after(first) for key, place in block.places.items()}
            arrays = file.arrays(places, len(clips))
            for row, clip in enumerate(clips):
                target = {key: array[row] for key, array in arrays.items()}
                _fill_row(target, clip, block.first + first + row, block, filled)
            file.write()
    return filled


def _fill_row(target: Mapping[str, NDArray], clip: Clip, number: int, block: Block, filled: Filled) -> None:
    rows, words, said = block.reader.rows(clip)
    values = _labels(replace(clip, text=said), block.class_names)
    values["text_lengths"] = _put_text(target, rows)
    for modality in layout.TIMED:
        kept = values[f"{modality}_lengths"] = _put_track(target, modality, rows)
        filled.truncated[modality] += len(rows[modality]) > kept
        if clip.split == "train":
            filled.moments[modality].add(rows[modality][:kept][rows[f"{modality}_mask"][:kept]])
    filled.values.append(values)
    filled.words += [(number, w.text, w.start, w.end, w.confidence, *w.span) for w in words]


def _labels(clip: Clip, class_names: Sequence[str]) -> dict[str, Any]:
    texts = (("id", clip.id), ("raw_text", clip.text), ("annotations", clip.annotation))
    values: dict[str, Any] = {key: layout.storable(text) for key, text in texts}
    if class_names:
        return values | {
            key: class_names.index(clip.classes[column])
            for column, key in _CLASS_COLUMNS.items()
            if column in clip.classes
        }
    values[layout.REGRESSION] = clip.label
    values["classification_labels"] = layout.polarity(np.array([clip.label]))[0]
    return values | dict(zip(layout.UNIMODAL.values(), (clip.label_T, clip.label_A, clip.label_V), strict=True))


def _put_text(target: Mapping[str, NDArray], rows: Mapping[str, NDArray]) -> int:
    """The extractor has cut the transcript to the padded length with `[SEP]` kept, so that these vectors are exactly
    what the encoder gives for these ids."""
    pieces, length = rows["text_bert"].shape[1], target["text_bert"].shape[1]
    if pieces > length:
        raise ValueError(f"{pieces} wordpieces do not fit into {length}")
    _put(target, "text", rows["text"])
    target["text_bert"][:, :pieces], target["text_bert"][:, pieces:] = rows["text_bert"], 0
    return pieces


def _put_track(target: Mapping[str, NDArray], modality: str, rows: Mapping[str, NDArray]) -> int:
    """Returns how many steps are kept."""
    kept = min(len(rows[modality]), len(target[f"{modality}_mask"]))
    for key in (modality, f"{modality}_mask", f"{modality}_times"):
        _put(target, key, rows[key][:kept])
    return kept


def _put(target: Mapping[str, NDArray], key: str, values: NDArray) -> None:
    """Steps, and zeros after them."""
    if key in target:  # or it has no columns, so that there is nothing to write
        target[key][: len(values)], target[key][len(values) :] = values, 0
