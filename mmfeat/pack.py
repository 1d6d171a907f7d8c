"""Shards → one feature file: streamed, statistics from the training split only, put in place at the end."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mmfeat import layout
from mmfeat.align import grid_steps
from mmfeat.clip import FAILED, features, summary
from mmfeat.corpus import Clip, Corpus
from mmfeat.files import Target, atomic, clear_leftovers
from mmfeat.layout import ClipStatus
from mmfeat.moments import Moments
from mmfeat.recipe import Recipe
from mmfeat.shards import Shard, Store
from mmfeat.track import Word

PACKAGES = (
    *("mmfeat", "numpy", "torch", "transformers", "librosa", "opensmile", "av", "opencv-python-headless"),
    "ai-edge-litert",
)
POLARITIES = ("negative", "neutral", "positive")
_CLASS_COLUMNS = {"label": "classification_labels"} | {f"label_{key[-1]}": key for key in layout.CLASSES.values()}

_BLOCK = 16 * 2**20
"""Bytes of rows that are written at once."""

_WORDS_HELD = 10_000
"""Words that wait to be written: those of 100 000 clips would be the largest part of memory."""

Report = Callable[[int, int], None]
"""Called with clips done and clips in all."""


class NothingUsableError(Exception):
    """Not one clip gave features; no file is written."""


@dataclass(frozen=True)
class PackReport:
    path: Path
    clips: list[ClipStatus]
    """One per row of label.csv."""
    truncated: dict[str, int] = field(default_factory=dict)
    """Modality → how many clips are longer than the padded length and lost their end."""

    @property
    def failed(self) -> list[ClipStatus]:
        return [clip for clip in self.clips if clip.status == FAILED]

    @property
    def ok(self) -> int:
        return len(self.clips) - len(self.failed)


def pack(
    corpus: Corpus,
    recipe: Recipe,
    store: Store,
    out: Path,
    aligned: bool = False,
    report: Report | None = None,
    keep_damaged: bool = True,
) -> PackReport:
    """Write the feature file of a corpus whose shards are all in `store`.

    With the recipe's `grid_hz` audio and vision share one clock, and their padded length; see `align.grid_rows`.

    Clips keep the order of label.csv. The padded length of audio and vision comes from the training clips only (for a
    corpus where none has the modality, from the longest clip: nothing is learnt from it then); text and aligned rows
    have the recipe's `max_wordpieces`. Longer clips lose their end. Clips of which only a part could be decoded are
    marked `damaged`, or fail where they are not to be kept.

    Raises NothingUsableError where no clip has features, and FileNotFoundError where a shard is not there.
    """
    if aligned and not recipe.words:
        raise NothingUsableError(f"recipe {recipe.name!r} finds no words, so nothing can be aligned to them")
    reader = _Reader(recipe, store, recipe.fingerprints(), aligned, keep_damaged)
    survey = _survey(corpus, recipe, reader)
    if not survey.usable:
        raise NothingUsableError(f"none of {len(corpus.clips)} clips gave features, so {out} is not written")

    pieces = getattr(recipe.config("text"), "max_wordpieces", None) or max(survey.pieces, 1)
    lengths = {"text": pieces} | {
        modality: pieces if aligned else survey.padded(modality, recipe.padding) for modality in layout.TIMED
    }
    clear_leftovers(out)  # as large as the whole file
    with atomic(out) as temporary, Target(temporary) as target, h5py.File(target, "w") as file:
        layout.write_head(
            file,
            aligned=aligned,
            language=recipe.language,
            recipe=recipe.resolved(),
            fingerprints=recipe.row_fingerprints(aligned),
            class_names=corpus.class_names or POLARITIES,
            names=reader.names(survey.usable[0]),
            versions=versions(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        shapes = {modality: (lengths[modality], survey.columns[modality]) for modality in lengths}
        say = report or (lambda done, total: None)

        def step(done: int, total: int) -> None:
            target.check()
            say(done, total)

        with ThreadPoolExecutor(1) as writer:
            truncated = _fill(file, survey.usable, corpus.class_names, reader, shapes, step, writer)
        truncated["text"] = sum("cut_text" in clip.status.split("+") for clip in survey.clips)
        layout.write_clips(file, survey.clips)
        file.attrs["truncated"] = layout.canonical_json(truncated)
        file.close()
        target.check()
    return PackReport(out, survey.clips, truncated)


def _survey(corpus: Corpus, recipe: Recipe, reader: _Reader) -> _Survey:
    survey = _Survey()
    for clip in map(recipe.locate, corpus.clips):
        survey.look(clip, *reader.status(clip), recipe.grid_hz)
    return survey


class _Survey:
    """The first pass: what became of each clip, and how long the usable ones are. Reads no features."""

    def __init__(self) -> None:
        self.clips: list[ClipStatus] = []
        self.usable: list[Clip] = []
        self.columns: dict[str, int] = {}
        self.pieces = 0
        """Of the longest text."""
        self.lengths: dict[str, list[int]] = {modality: [] for modality in layout.TIMED}
        self.training: list[bool] = []

    def look(self, clip: Clip, status: ClipStatus, shards: Mapping[str, Shard], grid_hz: float | None) -> None:
        self.clips.append(status)
        if status.status == FAILED:
            return
        self.usable.append(clip)
        self.training.append(clip.split == "train")
        self.pieces = max(self.pieces, shards["text"].details["steps"])
        self.columns["text"] = shards["text"].details["columns"]
        for modality in layout.TIMED:
            details = shards[modality].details
            self.columns[modality] = details["columns"]
            self.lengths[modality].append(grid_steps(status.seconds, grid_hz) if grid_hz else details["steps"])

    def padded(self, modality: str, rule: str) -> int:
        """The padded length; clips without the modality do not count."""
        lengths, training = np.array(self.lengths[modality]), np.array(self.training)
        seen = lengths[training & (lengths > 0)]
        if not len(seen):
            return max(int(lengths.max()), 1)
        longest = int(seen.max())
        return max(1, longest if rule == "max" else min(longest, int(seen.mean() + 3 * seen.std())))


class _Reader:
    """Clips' features out of the store."""

    def __init__(
        self, recipe: Recipe, store: Store, fingerprints: Mapping[str, str], aligned: bool, keep_damaged: bool
    ):
        self._recipe, self._store, self._fingerprints = recipe, store, fingerprints
        self._aligned, self._keep_damaged = aligned, keep_damaged

    def _shards(self, clip: Clip, arrays: bool) -> dict[str, Shard]:
        return self._store.read_all(clip, self._fingerprints, arrays)

    def status(self, clip: Clip) -> tuple[ClipStatus, Mapping[str, Shard]]:
        """What became of a clip, and what its shards say of themselves, without their arrays."""
        if clip.refused:
            return ClipStatus(clip.id, clip.split, FAILED, clip.refused), {}
        shards = self._shards(clip, arrays=False)
        status, reason, seconds = summary(shards)
        if "damaged" in status.split("+") and not self._keep_damaged:
            status = FAILED
        if status != FAILED and self._aligned and "no_words" in status.split("+"):
            status, reason = FAILED, f"cannot be aligned: {reason}"
        return ClipStatus(clip.id, clip.split, status, reason, seconds), shards

    def names(self, clip: Clip) -> dict[str, tuple[str, ...]]:
        """Modality → one name per column; any usable clip has them."""
        shards = self._shards(clip, arrays=True)
        return {modality: shards[modality].names for modality in layout.TIMED}

    def rows(self, clip: Clip) -> tuple[Mapping[str, NDArray], list[Word], str]:
        """A usable clip's rows, not padded, its words, and its transcript, which may have been heard."""
        found = features(self._shards(clip, arrays=True), self._recipe)
        return found.rows(self._aligned), found.words, found.transcript or clip.text


def _fill(
    file: h5py.File,
    clips: list[Clip],
    class_names: Sequence[str],
    reader: _Reader,
    shapes: Mapping[str, tuple[int, int]],
    report: Report,
    writer: ThreadPoolExecutor,
) -> dict[str, int]:
    """The second pass: write every usable clip's rows; returns how many were cut per modality."""
    truncated = dict.fromkeys(layout.TIMED, 0)
    moments = {modality: Moments() for modality in layout.TIMED}
    done = 0
    for split in layout.SPLITS:
        members = [clip for clip in clips if clip.split == split]
        if not members:
            continue
        group = layout.create_split(file, split, len(members), shapes)
        if class_names:
            layout.create_unimodal_classes(group)
        rows_of = _Rows(group, moments if split == "train" else {}, writer)
        for clip in members:
            rows_of.next()
            rows, found, said = reader.rows(clip)
            _write_labels(rows_of, replace(clip, text=said), class_names)
            _write_text(rows_of, rows, shapes["text"][0])
            for modality in layout.TIMED:
                kept = _write_track(rows_of, modality, rows, shapes[modality][0])
                truncated[modality] += len(rows[modality]) > kept
            rows_of.put_words(found)
            done += 1
            report(done, len(clips))
        rows_of.finish()
    for modality, seen in moments.items():
        layout.write_train_stats(file, modality, *seen.result(shapes[modality][1]))
    return truncated


class _Rows:
    """The datasets of one split, filled clip by clip.

    Arrays go to the file a block of clips at a time, which costs a tenth of `dataset[row] = values` for each, while
    `writer`, a pool of one thread, still has the block before. What is one value per clip is kept until the end.
    `moments` get the valid steps of their modality.
    """

    def __init__(self, group: h5py.Group, moments: Mapping[str, Moments], writer: ThreadPoolExecutor):
        self._group, self._moments, self._writer = group, moments, writer
        datasets = dict(group.items())
        self._arrays = {key: d for key, d in datasets.items() if d.ndim > 1 and d.size}
        self._held = max(1, _BLOCK // sum(d.nbytes // len(d) for d in self._arrays.values()))
        self._block, self._spare = self._empty_block(), self._empty_block()
        self._writing: Future[None] | None = None
        self._first, self._row = 0, -1
        self._values: dict[str, Any] = {
            key: [""] * len(d) if key in layout.STRINGS else d[:] for key, d in datasets.items() if d.ndim == 1
        }
        self._words: list[tuple[int, str, float, float, float, int, int]] = []

    def _empty_block(self) -> dict[str, NDArray]:
        return {key: np.zeros((min(self._held, len(d)), *d.shape[1:]), d.dtype) for key, d in self._arrays.items()}

    def next(self) -> None:
        """On to the next clip."""
        self._row += 1
        if self._row == self._first + self._held:
            self._hand_over()

    def put(self, key: str, value: str | float) -> None:
        self._values[key][self._row] = value

    def put_steps(self, key: str, values: NDArray) -> None:
        """Values of fewer steps than there is room for; steps are the first axis, in `text_bert` the last."""
        if key in self._block:  # or it has no columns, so that there is nothing to write
            self._block[key][self._row - self._first][tuple(map(slice, values.shape))] = values

    def put_words(self, words: Iterable[Word]) -> None:
        self._words += [(self._row, w.text, w.start, w.end, w.confidence, *w.span) for w in words]

    def finish(self) -> None:
        self._row += 1
        self._hand_over()
        self._wait()
        for key, values in self._values.items():
            self._group[key][:] = values
        layout.write_words(self._group, self._words)

    def _hand_over(self) -> None:
        self._wait()
        words, self._words = (self._words, []) if len(self._words) >= _WORDS_HELD else ([], self._words)
        self._writing = self._writer.submit(self._write, self._block, slice(self._first, self._row), words)
        self._block, self._spare, self._first = self._spare, self._block, self._row

    def _wait(self) -> None:
        if self._writing:
            self._writing.result()

    def _write(self, block: Mapping[str, NDArray], rows: slice, words: Sequence[Any]) -> None:
        for modality in self._moments.keys() & block.keys():
            self._moments[modality].add(block[modality][block[f"{modality}_mask"]])
        for key, values in block.items():
            self._arrays[key].write_direct(values, np.s_[: rows.stop - rows.start], rows)
            values.fill(0)
        if words:
            layout.write_words(self._group, words)


def _write_labels(rows: _Rows, clip: Clip, class_names: Sequence[str]) -> None:
    for key, text in (("id", clip.id), ("raw_text", clip.text), ("annotations", clip.annotation)):
        rows.put(key, text.replace("\0", ""))  # HDF5 strings end at a NUL
    if class_names:
        for column, key in _CLASS_COLUMNS.items():
            if column in clip.classes:
                rows.put(key, class_names.index(clip.classes[column]))
        return
    rows.put(layout.REGRESSION, clip.label)
    rows.put("classification_labels", layout.polarity(np.array([clip.label]))[0])
    for key, label in zip(layout.UNIMODAL.values(), (clip.label_T, clip.label_A, clip.label_V), strict=True):
        rows.put(key, label)


def _write_text(target: _Rows, rows: Mapping[str, NDArray], length: int) -> None:
    """The extractor has cut the transcript to `length` with `[SEP]` kept, so that these vectors are exactly what the
    encoder gives for these ids."""
    pieces = rows["text_bert"].shape[1]
    if pieces > length:
        raise ValueError(f"{pieces} wordpieces do not fit into {length}")
    target.put_steps("text_bert", rows["text_bert"])
    target.put_steps("text", rows["text"])
    target.put("text_lengths", pieces)


def _write_track(target: _Rows, modality: str, rows: Mapping[str, NDArray], length: int) -> int:
    kept = min(len(rows[modality]), length)
    target.put(f"{modality}_lengths", kept)
    if kept:
        for key in (modality, f"{modality}_mask", f"{modality}_times"):
            target.put_steps(key, rows[key][:kept])
    return kept


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Package → installed version; those that are not installed are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
