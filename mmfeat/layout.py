"""The feature file: HDF5 in MMSA's layout, plus masks, times, names, and how it was made.

`f["train"]["audio"][i]` is what MMSA's `data["train"]["audio"][i]` would be. This module is all that training knows of
feature extraction; the full layout is described in data/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

FORMAT = "mmfeat"
FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")
TIMED = ("audio", "vision")
"""Modalities with a row per time step, a mask and times. Text has a row per wordpiece; its mask is in `text_bert`."""
MODALITIES = ("text", *TIMED)
REGRESSION = "regression_labels"
UNIMODAL = {"text": "regression_labels_T", "audio": "regression_labels_A", "vision": "regression_labels_V"}
CLASSES = {"text": "classification_labels_T", "audio": "classification_labels_A", "vision": "classification_labels_V"}
"""In files of named classes; elsewhere the sign of the regression label is the class."""
LABELS = (REGRESSION, *UNIMODAL.values(), "classification_labels", *CLASSES.values())
"""All that a file may have; those of single modalities only where annotated."""
STRINGS = ("id", "raw_text", "annotations")

_text = h5py.string_dtype("utf-8")
_words = np.dtype(
    [
        ("clip", "i4"),  # row in the split
        ("word", _text),
        ("start", "f4"),
        ("end", "f4"),
        ("confidence", "f4"),
        ("span_start", "i4"),  # characters of raw_text
        ("span_end", "i4"),
    ]
)
_clips = np.dtype([("id", _text), ("split", _text), ("status", _text), ("reason", _text), ("seconds", "f4")])


@dataclass(frozen=True)
class ClipStatus:
    """What became of one row of label.csv."""

    id: str
    split: str
    status: str
    """`ok`; `no_face`, `no_video`, `no_audio` (kept, that modality masked), `silent`, `clipped` and others (kept as
    they are), several joined by `+`; `failed`."""
    reason: str = ""
    seconds: float = 0.0
    """Length of the clip, 0 where unknown."""


def polarity(labels: NDArray[np.floating]) -> NDArray[np.int64]:
    """Classes of regression labels, shape (N,): 0 negative (y < 0), 1 neutral (y == 0), 2 positive (y > 0).

    NaN (not annotated) gives -1.
    """
    classes = np.sign(np.nan_to_num(labels)).astype(np.int64) + 1
    classes[np.isnan(labels)] = -1
    return classes


class LayoutError(ValueError):
    """The file is not a feature file of ours, or not one that this version reads."""


class FeatureFile:
    """A feature file opened for reading; use as a context manager. Not shared between processes: open it in each.

    Raises LayoutError, naming what is missing, and FileNotFoundError.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no feature file at {self.path}")
        try:
            self._file = h5py.File(self.path, "r")
        except OSError as error:
            raise LayoutError(f"{self.path} is not a readable HDF5 file: {error}") from None
        kind, version = self._file.attrs.get("format"), self._file.attrs.get("format_version")
        if kind != FORMAT or version != FORMAT_VERSION:
            self._file.close()
            raise LayoutError(
                f"{self.path} is not a feature file of version {FORMAT_VERSION}: format {kind}, version {version}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @property
    def attrs(self) -> dict[str, Any]:
        """The file's attributes as plain Python values."""
        found = self._file.attrs.items()
        return {key: value.item() if isinstance(value, np.generic) else value for key, value in found}

    @property
    def aligned(self) -> bool:
        return bool(self._file.attrs["aligned"])

    @property
    def recipe(self) -> dict[str, Any]:
        """How the features were made; `mmfeat.recipe.Recipe.model_validate` takes it."""
        return json.loads(self._file.attrs["recipe"])

    @property
    def fingerprints(self) -> dict[str, str]:
        """Modality (`vision`, `audio`, `text`, `words`) → hash of everything that its output depends on."""
        return json.loads(self._file.attrs["fingerprints"])

    @property
    def splits(self) -> list[str]:
        return [split for split in SPLITS if split in self._file]

    def __len__(self) -> int:
        return sum(len(self._file[split]["id"]) for split in self.splits)

    def keys(self, split: str) -> list[str]:
        return list(self._group(split))

    def __contains__(self, key: tuple[str, str]) -> bool:
        split, name = key
        return split in self._file and name in self._file[split]

    def dataset(self, split: str, key: str) -> h5py.Dataset:
        """The HDF5 dataset itself, to read rows one at a time."""
        group = self._group(split)
        if key not in group:
            raise LayoutError(f"{self.path}: no {key!r} in split {split!r}; there are: {', '.join(group)}")
        return group[key]

    def read(self, split: str, key: str) -> NDArray[Any]:
        """A whole array into memory; strings come as an object array of str."""
        dataset = self.dataset(split, key)
        return dataset.asstr()[:] if h5py.check_string_dtype(dataset.dtype) else dataset[:]

    def meta(self, path: str) -> Any:
        """The HDF5 group or dataset at a path of the file, None where there is none."""
        return self._file.get(path)

    def _group(self, split: str) -> h5py.Group:
        if split not in self._file:
            raise LayoutError(f"{self.path}: no split {split!r}; there are: {', '.join(self.splits)}")
        return self._file[split]

    def feature_names(self, modality: str) -> list[str]:
        """One name per column of `audio` or `vision`."""
        return list(self._file["meta/feature_names"][modality].asstr()[:])

    def train_stats(self, modality: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation per column, each of shape (D,), over the training split's valid steps only."""
        group = self._file["meta/train_stats"][modality]
        return group["mean"][:], group["std"][:]

    def clips(self) -> list[ClipStatus]:
        """What became of every row of label.csv, in its order."""
        return [
            ClipStatus(
                row["id"].decode(),
                row["split"].decode(),
                row["status"].decode(),
                row["reason"].decode(),
                float(row["seconds"]),
            )
            for row in self._file["meta/clips"][:]
        ]

    def words(self, split: str) -> list[list[tuple[str, float, float, float]]]:
        """Per clip the words that alignment found: (word, start, end, confidence), seconds."""
        found: list[list[tuple[str, float, float, float]]] = [[] for _ in range(len(self._group(split)["id"]))]
        for row in self._group(split)["words"][:]:
            found[row["clip"]].append(
                (row["word"].decode(), float(row["start"]), float(row["end"]), float(row["confidence"]))
            )
        return found


def write_head(
    file: h5py.File,
    *,
    aligned: bool,
    language: str,
    recipe: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    class_names: Sequence[str],
    names: Mapping[str, Sequence[str]],
    versions: Mapping[str, str],
    created: str,
) -> None:
    """Attributes and column names of a new feature file."""
    file.attrs.update(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "aligned": aligned,
            "language": language,
            "recipe": canonical_json(recipe),
            "fingerprints": canonical_json(fingerprints),
            "class_names": canonical_json(list(class_names)),
            "versions": canonical_json(versions),
            "created": created,
        }
    )
    for modality, columns in names.items():
        file.create_dataset(f"meta/feature_names/{modality}", data=list(columns), dtype=_text)


def create_split(
    file: h5py.File, split: str, clips: int, shapes: Mapping[str, tuple[int, int]], placed: bool = False
) -> h5py.Group:
    """Empty datasets for `clips` clips; `shapes` gives (steps, columns) of text, audio and vision.

    Clips lie one behind the other, in no chunks: a training step reads whole rows in random order, each with one read.
    With `placed`, arrays of steps have their place in the file at once (`dataset.id.get_offset()`), and whoever writes
    there writes all of it: nothing says what lies where nobody wrote.
    """
    storage = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    storage.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY if placed else h5py.h5d.ALLOC_TIME_DEFAULT)

    def create(key: str, kind: str, *shape: int) -> None:
        group.create_dataset(key, (clips, *shape), kind, dcpl=storage)

    group = file.create_group(split)
    for key in STRINGS:
        group.create_dataset(key, (clips,), _text)
    steps = shapes["text"][0]
    create("text_bert", "i4", 3, steps)
    for modality, shape in shapes.items():
        create(modality, "f4", *shape)
        group.create_dataset(f"{modality}_lengths", (clips,), "i4")
    for modality in TIMED:
        create(f"{modality}_mask", "?", shapes[modality][0])
        create(f"{modality}_times", "f4", shapes[modality][0], 2)
    for key in (REGRESSION, *UNIMODAL.values()):
        group.create_dataset(key, (clips,), "f4", fillvalue=np.nan)
    group.create_dataset("classification_labels", (clips,), "i8", fillvalue=-1)
    return group


def create_unimodal_classes(group: h5py.Group) -> None:
    """The datasets that a split of a file of named classes has besides."""
    for key in CLASSES.values():
        group.create_dataset(key, (len(group["id"]),), "i8", fillvalue=-1)


def write_words(group: h5py.Group, rows: Iterable[tuple[int, str, float, float, float, int, int]]) -> None:
    """(row in the split, word, start, end, confidence, first and last character) per word; a second call adds more."""
    added = np.array(list(rows), _words)
    if "words" not in group:
        group.create_dataset("words", data=added, chunks=(256,), maxshape=(None,))
        return
    words = group["words"]
    words.resize(len(words) + len(added), axis=0)
    words[len(words) - len(added) :] = added


def write_clips(file: h5py.File, clips: Iterable[ClipStatus]) -> None:
    rows = [(storable(clip.id), clip.split, clip.status, storable(clip.reason), clip.seconds) for clip in clips]
    file.create_dataset("meta/clips", data=np.array(rows, _clips))


def storable(text: str) -> str:
    """What HDF5 takes as a string: one without NUL, at which it would end, and bytes of file names that are no UTF-8
    spelt out."""
    return text.replace("\0", "").encode(errors="backslashreplace").decode()


def write_train_stats(file: h5py.File, modality: str, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
    group = file.create_group(f"meta/train_stats/{modality}")
    group["mean"], group["std"] = mean, std


def canonical_json(value: Any) -> str:
    """The same value always gives the same text: sorted keys, no blanks. What fingerprints are made from."""
    return _canonical.encode(value)


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
