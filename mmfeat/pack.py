"""Shards → one feature file: streamed, statistics from the training split only, put in place at the end."""

from __future__ import annotations

import datetime
import importlib.metadata
import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mmfeat import layout
from mmfeat.align import grid_steps
from mmfeat.clip import FAILED
from mmfeat.corpus import Clip, Corpus
from mmfeat.dask_client import interrupts_held_back
from mmfeat.files import Target, atomic, clear_leftovers
from mmfeat.layout import ClipStatus
from mmfeat.moments import Moments
from mmfeat.pack_block import Block, Filled, Reader, Sizes, blocks, fill
from mmfeat.processes import pool
from mmfeat.recipe import Recipe
from mmfeat.shards import ShardError, Store

PACKAGES = (
    *("mmfeat", "numpy", "torch", "transformers", "librosa", "opensmile", "av", "opencv-python-headless"),
    "ai-edge-litert",
)
POLARITIES = ("negative", "neutral", "positive")

_CLIPS = 1000
"""For which it pays to start a process, which takes half a second."""

_PROCESSES = 8
"""Most that are started: they write as fast as disks do."""

_TOGETHER = 250
"""Clips that are looked at in one go."""

_WORDS_HELD = 10_000
"""Words that wait to be written: those of 100 000 clips would be the largest part of memory."""

Report = Callable[[int, int], None]
"""Called with clips done and clips in all."""

Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""As `map`."""


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
    workers: int = 1,
) -> PackReport:
    """Write the feature file of a corpus whose shards are all in `store`.

    With more than one worker, processes are started where there is enough to do for them; the file is the same, but a
    script that calls this then needs `if __name__ == "__main__":`.

    With the recipe's `grid_hz` audio and vision share one clock, and their padded length; see `align.grid_rows`.

    Clips keep the order of label.csv. The padded length of audio and vision comes from the training clips only (for a
    corpus where none has the modality, from the longest clip: nothing is learnt from it then); text and aligned rows
    have the recipe's `max_wordpieces`. Longer clips lose their end. Clips of which only a part could be decoded are
    marked `damaged`, or fail where they are not to be kept.

    Raises NothingUsableError where no clip has features, FileNotFoundError where a shard is not there, and ShardError
    where some are damaged; those are removed, all of them.
    """
    if aligned and not recipe.words:
        raise NothingUsableError(f"recipe {recipe.name!r} finds no words, so nothing can be aligned to them")
    with _mapping(min(workers, len(corpus.clips) // _CLIPS, _PROCESSES)) as each:
        reader = Reader(recipe, store, recipe.fingerprints(), aligned, keep_damaged)
        try:
            return _pack(corpus, recipe, reader, out, aligned, report or (lambda done, total: None), each)
        except ShardError as error:
            more = sum(each(reader.damaged, _some([recipe.locate(clip) for clip in corpus.usable])))
            raise ShardError(f"{error}, and {more} more" if more else str(error)) from None


def _pack(
    corpus: Corpus, recipe: Recipe, reader: Reader, out: Path, aligned: bool, report: Report, each: Each
) -> PackReport:
    survey = _survey(corpus, recipe, reader, each)
    if not survey.usable:
        raise NothingUsableError(f"none of {len(corpus.clips)} clips gave features, so {out} is not written")

    pieces = getattr(recipe.config("text"), "max_wordpieces", None) or max(survey.pieces, 1)
    lengths = {"text": pieces} | {
        modality: pieces if aligned else survey.padded(modality, recipe.padding) for modality in layout.TIMED
    }
    clear_leftovers(out)  # as large as the whole file
    with atomic(out) as temporary, Target(temporary) as target, _named(target), h5py.File(target, "w") as file:
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

        def step(done: int, total: int) -> None:
            target.check()
            report(done, total)

        truncated = _fill(file, temporary, survey.usable, corpus.class_names, reader, shapes, step, each)
        truncated["text"] = sum("cut_text" in clip.status.split("+") for clip in survey.clips)
        layout.write_clips(file, survey.clips)
        file.attrs["truncated"] = layout.canonical_json(truncated)
        file.close()
        target.check()
    return PackReport(out, survey.clips, truncated)


@contextmanager
def _named(target: Target) -> Iterator[None]:
    """On a full disk HDF5 stumbles over what was not written; the reason is the disk."""
    try:
        yield
    except Exception:
        target.check()
        raise


def _survey(corpus: Corpus, recipe: Recipe, reader: Reader, each: Each = map) -> _Survey:
    survey = _Survey()
    clips = [recipe.locate(clip) for clip in corpus.clips]
    for clip, (status, sizes) in zip(clips, chain.from_iterable(each(reader.look, _some(clips))), strict=True):
        survey.add(clip, status, sizes, recipe.grid_hz)
    return survey


def _some(clips: list[Clip]) -> list[list[Clip]]:
    return [clips[first : first + _TOGETHER] for first in range(0, len(clips), _TOGETHER)]


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

    def add(self, clip: Clip, status: ClipStatus, sizes: Sizes, grid_hz: float | None) -> None:
        self.clips.append(status)
        if status.status == FAILED:
            return
        self.usable.append(clip)
        self.training.append(clip.split == "train")
        self.columns = {modality: columns for modality, (_, columns) in sizes.items()}
        self.pieces = max(self.pieces, sizes["text"][0])
        for modality in layout.TIMED:
            self.lengths[modality].append(grid_steps(status.seconds, grid_hz) if grid_hz else sizes[modality][0])

    def padded(self, modality: str, rule: str) -> int:
        """The padded length; clips without the modality do not count."""
        lengths, training = np.array(self.lengths[modality]), np.array(self.training)
        seen = lengths[training & (lengths > 0)]
        if not len(seen):
            return max(int(lengths.max()), 1)
        longest = int(seen.max())
        return max(1, longest if rule == "max" else min(longest, int(seen.mean() + 3 * seen.std())))


def _fill(
    file: h5py.File,
    path: Path,
    clips: list[Clip],
    class_names: Sequence[str],
    reader: Reader,
    shapes: Mapping[str, tuple[int, int]],
    report: Report,
    each: Each,
) -> dict[str, int]:
    """The second pass: write every usable clip's rows; returns how many were cut per modality."""
    groups = {}
    todo: list[Block] = []
    for split in layout.SPLITS:
        if members := [clip for clip in clips if clip.split == split]:
            group = groups[split] = layout.create_split(file, split, len(members), shapes, placed=True)
            if class_names:
                layout.create_unimodal_classes(group)
            todo += blocks(path, group, members, class_names, reader)
    truncated = Counter(dict.fromkeys(layout.TIMED, 0))
    moments = {modality: Moments() for modality in layout.TIMED}
    columns = {split: _Columns(group) for split, group in groups.items()}
    done = 0
    for block, found in zip(todo, each(fill, todo), strict=True):
        columns[block.split].add(found)
        truncated.update(found.truncated)
        for modality, seen in found.moments.items():
            moments[modality].merge(seen)
        done += len(block.clips)
        report(done, len(clips))
    for column in columns.values():
        column.write()
    for modality, seen in moments.items():
        layout.write_train_stats(file, modality, *seen.result(shapes[modality][1]))
    return dict(truncated)


@contextmanager
def _mapping(workers: int) -> Iterator[Each]:
    """A `map` that calls here, or in so many processes of their own; what it gives is in order, whoever is first."""
    if workers < 2:
        yield map
        return
    ours = set[BaseProcess]()
    processes = pool(workers)

    def each(compute: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Where one of the processes is killed, this one does the rest: nothing is lost but time."""

        def started(item: Any) -> Future[Any] | None:
            others = set(multiprocessing.active_children())
            try:
                with interrupts_held_back():  # from processes that this may start: Ctrl-C is this one's to answer
                    return processes.submit(compute, item)
            except BrokenProcessPool:
                return None
            finally:
                ours.update(set(multiprocessing.active_children()) - others)

        def finished(item: Any, future: Future[Any] | None) -> Any:
            try:
                return future.result() if future else compute(item)
            except BrokenProcessPool:
                return compute(item)

        running: deque[tuple[Any, Future[Any] | None]] = deque()
        for item in items:
            running.append((item, started(item)))
            if len(running) > 2 * workers:  # what waits is memory
                yield finished(*running.popleft())
        while running:
            yield finished(*running.popleft())

    try:
        yield each
    finally:
        # What they were to do is done, or in vain. Asked to end they might not: one that is killed from outside takes
        # along the lock behind which the others wait for work.
        for child in ours:
            child.kill()
        processes.shutdown(cancel_futures=True)


class _Columns:
    """What there is one of for each clip of a split, and the words. Kept until the end: HDF5 takes a tenth of a
    millisecond for each write."""

    def __init__(self, group: h5py.Group):
        self._group = group
        self._values: dict[str, Any] = {
            key: [""] * len(d) if key in layout.STRINGS else d[:] for key, d in group.items() if d.ndim == 1
        }
        self._row = 0
        self._words: list[Any] = []

    def add(self, filled: Filled) -> None:
        for values in filled.values:
            for key, value in values.items():
                self._values[key][self._row] = value
            self._row += 1
        self._words += filled.words
        if len(self._words) >= _WORDS_HELD:
            self._write_words()

    def write(self) -> None:
        for key, values in self._values.items():
            self._group[key][:] = values
        self._write_words()

    def _write_words(self) -> None:
        layout.write_words(self._group, self._words)
        self._words = []


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Package → installed version; those that are not installed are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
