"""Feature files of the same clips → one file: every modality from the file it is to come from, joined by id.

The first file gives the clips, their order, transcripts and labels; the others must agree with it on all of these.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mmfeat import layout
from mmfeat.files import atomic
from mmfeat.layout import ClipStatus, FeatureFile
from mmfeat.mmsa import UNKNOWN
from mmfeat.moments import Moments

WORDS = "words"
PARTS = (*layout.MODALITIES, WORDS)
"""What can be taken from one file or another. Word times are a part of their own: they come from sound and transcript,
and stay what they are when another audio recipe is merged in."""
NAMED = 5
"""Clips named per complaint."""
_STATES = {
    "text": ("no_text", "cut_text"),
    "audio": ("no_audio", "silent", "clipped"),
    "vision": ("no_video", "no_face"),
    WORDS: ("no_words",),
}
"""States of a clip (`ClipStatus.status`) that follow a part; any other stays."""


class MergeError(ValueError):
    """The files cannot be merged as asked; the message names the clips or the choice to make."""


@dataclass(frozen=True)
class Source:
    path: Path
    fingerprint: str


@dataclass(frozen=True)
class Merged:
    out: Path
    sources: dict[str, Source]
    """Part → where it was taken from."""
    clips: int
    left_out: list[str]
    """Ids of clips that not every file has; empty unless `intersect`."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """The clips of one split: per file, the rows that hold them, in the order of the output."""

    split: str
    of: Mapping[Path, np.ndarray]


def merge(paths: Sequence[Path], out: Path, take: Mapping[str, Path] | None = None, intersect: bool = False) -> Merged:
    """Write `out`, reading one clip at a time.

    Args:
        paths: two files or more.
        out: the file to write; put in place when it is whole.
        take: part (`text`, `audio`, `vision`, `words`) → which of `paths` it is taken from. A part that is not named
            comes from the only file that has it, or from the first where all fingerprints of it are the same.
        intersect: keep the clips that all files have, instead of refusing files with different clips.

    Recipe, fingerprint, column names, statistics and package versions follow the part.

    Raises MergeError where it is not clear which file a part comes from, where clips, splits, transcripts or labels
    differ, and where `out` is one of `paths`; LayoutError and FileNotFoundError for a file that cannot be read.
    """
    if len(set(paths)) < max(2, len(paths)):
        raise MergeError("merging takes two different files or more")
    with ExitStack() as stack:
        files = [stack.enter_context(FeatureFile(path)) for path in paths]
        if out.exists() and any(out.samefile(path) for path in paths):
            raise MergeError(f"{out} is one of the files to merge: give the result another name")
        for other in files[1:]:
            _same_kind(files[0], other)
        sources = _choose(files, take or {})
        places = {file.path: _places(file) for file in files}
        left_out = _left_out(files, places, intersect)
        joined = _join(files, places, left_out)
        _same_content(files, joined)
        if files[0].aligned:
            _same_pieces(sources, joined)
        with atomic(out) as temporary, h5py.File(temporary, "w") as file:
            _write_head(file, files[0], sources)
            for rows in joined:
                _write_split(file, files[0], sources, rows)
            _write_statistics(file, sources, joined)
            layout.write_clips(file, _statuses(files[0], sources, left_out))
        taken = {part: Source(file.path, file.fingerprints.get(part, "")) for part, file in sources.items()}
        return Merged(out, taken, sum(len(rows.of[files[0].path]) for rows in joined), left_out)


def _same_kind(first: FeatureFile, other: FeatureFile) -> None:
    if first.aligned != other.aligned:
        raise MergeError(
            f"{first.path} is {_form(first)}, {other.path} is {_form(other)}: the steps of one are wordpieces, "
            "those of the other are times, and a file holds one kind; extract both with --aligned, or both without"
        )
    if _pooled(first) != _pooled(other):
        raise MergeError(
            f"{first.path} and {other.path} differ in how rows are made (grid_hz, pooling): "
            f"{_pooled(first)} and {_pooled(other)}; extract both in the same way"
        )
    for key in ("language", "class_names"):
        a, b = first.attrs[key], other.attrs[key]
        if a != b and UNKNOWN not in (a, b):
            raise MergeError(f"{first.path} and {other.path} differ in {key}: {a} and {b}")


def _pooled(file: FeatureFile) -> tuple[float | None, str]:
    """Ticks per second of the clock that rows are on, and how frames were pooled into rows, where they were."""
    clock = None if file.aligned else file.recipe.get("grid_hz")
    return clock, file.recipe.get("pooling", "mean") if file.aligned or clock else ""


def _form(file: FeatureFile) -> str:
    return "aligned" if file.aligned else "unaligned"


def _choose(files: Sequence[FeatureFile], take: Mapping[str, Path]) -> dict[str, FeatureFile]:
    """Part → file. Raises MergeError where that is not clear, or a file would give nothing."""
    by_path = {file.path: file for file in files}
    sources: dict[str, FeatureFile] = {}
    unclear = []
    for part in PARTS:
        holders = [file for file in files if _has(file, part)]
        if part in take:
            if take[part] not in by_path:
                raise MergeError(f"{part} cannot be taken from {take[part]}: it is not among the files to merge")
            if by_path[take[part]] not in holders:
                raise MergeError(f"{take[part]} has no {part}")
            sources[part] = by_path[take[part]]
        elif len({file.fingerprints.get(part) for file in holders}) > 1:
            unclear.append(f"{part} ({' or '.join(f'--take {part}={file.path}' for file in holders)})")
        elif holders:
            sources[part] = holders[0]
        elif part != WORDS:
            raise MergeError(f"none of the files has {part}")
    if unclear:
        raise MergeError(f"made in different ways, so say where to take it from: {', '.join(unclear)}")
    for file in files[1:]:
        if file not in sources.values():
            raise MergeError(
                f"nothing would be taken from {file.path}: what it has is in the files before it, made in the same "
                f"way, or chosen from them; take something with --take {'|'.join(PARTS)}={file.path}"
            )
    return sources


def _has(file: FeatureFile, part: str) -> bool:
    """A file without an aligner in its recipe has a table of words, an empty one."""
    made = part != WORDS or WORDS in file.fingerprints
    return made and all((split, part) in file for split in file.splits)


def _places(file: FeatureFile) -> dict[str, tuple[str, int]]:
    """Id → (split, row). Raises MergeError for an id that occurs twice."""
    found: dict[str, tuple[str, int]] = {}
    twice = []
    for split in file.splits:
        for row, id in enumerate(file.read(split, "id")):
            if id in found:
                twice.append(id)
            found[id] = split, row
    if twice:
        raise MergeError(f"{file.path} has ids more than once, so clips cannot be told apart: {_named(twice)}")
    return found


def _left_out(files: Sequence[FeatureFile], places: Mapping[Path, Mapping[str, Any]], intersect: bool) -> list[str]:
    """Ids that not every file has, in the order in which they occur. Raises MergeError unless `intersect`."""
    common = set.intersection(*(set(ids) for ids in places.values()))
    if not common:
        raise MergeError(f"no clip is in all of {', '.join(str(file.path) for file in files)}")
    if not intersect:
        said = []
        for file in files:
            why = {clip.id: f"failed there: {clip.reason}" for clip in file.clips() if clip.status == "failed"}
            absent = [
                id for id in dict.fromkeys(id for ids in places.values() for id in ids) if id not in places[file.path]
            ]
            if absent:
                said.append(f"{file.path} lacks {_named([f'{id} ({why[id]})' if id in why else id for id in absent])}")
        if said:
            raise MergeError(
                f"the files do not hold the same clips: {'; '.join(said)}. --intersect keeps the {len(common)} that "
                "all of them have"
            )
    return [id for id in dict.fromkeys(id for ids in places.values() for id in ids) if id not in common]


def _join(
    files: Sequence[FeatureFile], places: Mapping[Path, Mapping[str, tuple[str, int]]], left_out: Sequence[str]
) -> list[_Rows]:
    """Rows of the common clips, in the first file's order. Raises MergeError where a clip changes its split."""
    first = files[0]
    gone = set(left_out)
    moved: list[str] = []
    joined = []
    for split in first.splits:
        ids = [id for id in first.read(split, "id") if id not in gone]
        for file in files[1:]:
            moved += [f"{id} (now {places[file.path][id][0]})" for id in ids if places[file.path][id][0] != split]
        if ids:
            of = {file.path: np.array([places[file.path][id][1] for id in ids]) for file in files}
            joined.append(_Rows(split, of))
    if moved:
        raise MergeError(f"clips are in another split than in {first.path}: {_named(moved)}")
    return joined


def _same_content(files: Sequence[FeatureFile], joined: Sequence[_Rows]) -> None:
    """Raises MergeError where a clip's transcript or label is not the first file's."""
    first = files[0]
    for other in files[1:]:
        for key in ("raw_text", *layout.LABELS):
            differing: list[str] = []
            for rows in joined:
                if not all((rows.split, key) in file for file in (first, other)):
                    continue
                a, b = (file.read(rows.split, key)[rows.of[file.path]] for file in (first, other))
                different = a != b
                if key in layout.LABELS:  # that the other file does not know a label is no contradiction
                    different &= ~(np.isnan(b) if b.dtype.kind == "f" else b < 0)
                differing += first.read(rows.split, "id")[rows.of[first.path]][different].tolist()
            if differing:
                raise MergeError(
                    f"{first.path} and {other.path} differ in {key} of {_named(differing)}: "
                    "make both from one label.csv"
                )


def _same_pieces(sources: Mapping[str, FeatureFile], joined: Sequence[_Rows]) -> None:
    """Aligned rows belong to wordpieces. Raises MergeError where files cut a transcript into different ones."""
    text = sources["text"]
    for other in {sources[modality] for modality in layout.TIMED} - {text}:
        differing = []
        for rows in joined:
            ids = text.read(rows.split, "id")
            ours, theirs = (file.dataset(rows.split, "text_bert") for file in (text, other))
            for a, b in zip(rows.of[text.path], rows.of[other.path], strict=True):
                if not np.array_equal(ours[a], theirs[b]):
                    differing.append(ids[a])
        if differing:
            raise MergeError(
                f"{text.path} and {other.path} cut transcripts into different wordpieces, to which their rows are "
                f"aligned: {_named(differing)}; merge the unaligned files"
            )


def _write_head(file: h5py.File, first: FeatureFile, sources: Mapping[str, FeatureFile]) -> None:
    recipe = first.recipe | {part: sources[part].recipe.get(part) if part in sources else None for part in PARTS}
    languages = [source.attrs["language"] for source in (first, *sources.values())]
    language = next((spoken for spoken in languages if spoken != UNKNOWN), UNKNOWN)
    layout.write_head(
        file,
        aligned=first.aligned,
        language=language,
        recipe=recipe | {"name": "merged", "language": language},
        fingerprints={p: source.fingerprints[p] for p, source in sources.items() if p in source.fingerprints},
        class_names=json.loads(first.attrs["class_names"]),
        names={modality: sources[modality].feature_names(modality) for modality in layout.TIMED},
        versions=_versions(sources),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    made = {part: {"file": s.path.name, "created": s.attrs["created"]} for part, s in sources.items()}
    file.attrs["merged"] = layout.canonical_json(made)


def _versions(sources: Mapping[str, FeatureFile]) -> dict[str, str]:
    """Package → version, with the parts it made where that is not the same for all: `2.5 (text), 2.6 (audio)`."""
    packages: dict[str, dict[str, list[str]]] = {}
    for part, source in sources.items():
        for package, version in json.loads(source.attrs["versions"]).items():
            packages.setdefault(package, {}).setdefault(version, []).append(part)
    return {
        package: next(iter(by_version))
        if len(by_version) == 1
        else ", ".join(f"{version} ({', '.join(parts)})" for version, parts in by_version.items())
        for package, by_version in packages.items()
    }


def _write_split(file: h5py.File, first: FeatureFile, sources: Mapping[str, FeatureFile], rows: _Rows) -> None:
    split, own = rows.split, rows.of[first.path]
    shapes: dict[str, tuple[int, int]] = {m: sources[m].dataset(split, m).shape[1:] for m in layout.MODALITIES}
    group = layout.create_split(file, split, len(own), shapes)
    for key in first.keys(split):
        values = first.dataset(split, key)
        if key in (*layout.STRINGS, *layout.LABELS) and key in group:
            group[key][:] = values[:][own]
        elif key not in (*group, WORDS) and values.shape == (len(first.dataset(split, "id")),):
            group.create_dataset(key, data=values[:][own], dtype=values.dtype)  # such as labels of another task
    for modality in layout.MODALITIES:
        source = sources[modality]
        theirs = rows.of[source.path]
        keys = (f"{modality}_mask", f"{modality}_times") if modality in layout.TIMED else ("text_bert",)
        group[f"{modality}_lengths"][:] = source.read(split, f"{modality}_lengths")[theirs]
        for key in (modality, *keys):
            values = source.dataset(split, key)
            for to, row in enumerate(theirs):
                group[key][to] = values[row]
    if WORDS in sources:
        table = sources[WORDS].dataset(split, WORDS)[:]
        theirs = rows.of[sources[WORDS].path]
        place = {row: to for to, row in enumerate(theirs.tolist())}
        table = table[np.isin(table["clip"], theirs)]
        table["clip"] = [place[row] for row in table["clip"].tolist()]
        group.create_dataset(WORDS, data=table[np.argsort(table["clip"], kind="stable")])
    else:
        layout.write_words(group, [])


def _write_statistics(file: h5py.File, sources: Mapping[str, FeatureFile], joined: Sequence[_Rows]) -> None:
    """Those of the modality's file where every training clip of it is kept, bit for bit; else they are taken anew."""
    kept = sum(len(next(iter(rows.of.values()))) for rows in joined if rows.split == "train")
    truncated = {}
    for modality in layout.MODALITIES:
        source = sources[modality]
        whole = all(len(rows.of[source.path]) == len(source.dataset(rows.split, "id")) for rows in joined)
        if whole and modality in (cut := json.loads(source.attrs.get("truncated", "{}"))):
            truncated[modality] = cut[modality]
        if modality not in layout.TIMED:
            continue
        if "train" not in source.splits or kept == len(source.dataset("train", "id")):
            mean, std = source.train_stats(modality)
        else:
            moments, columns = Moments(), len(source.feature_names(modality))
            for row in range(kept):
                moments.add(file[f"train/{modality}"][row][file[f"train/{modality}_mask"][row]])
            mean, std = moments.result(columns)
        layout.write_train_stats(file, modality, mean, std)
    file.attrs["truncated"] = layout.canonical_json(truncated)


def _statuses(first: FeatureFile, sources: Mapping[str, FeatureFile], left_out: Iterable[str]) -> list[ClipStatus]:
    """The first file's rows of label.csv; each state of a clip is that of the file its part comes from."""
    by_file = {source.path: {clip.id: clip for clip in source.clips()} for source in sources.values()}
    gone = set(left_out)
    statuses = []
    for clip in first.clips():
        if clip.status == "failed":
            statuses.append(clip)
            continue
        if clip.id in gone:
            statuses.append(
                ClipStatus(clip.id, clip.split, "failed", "not in every file that was merged", clip.seconds)
            )
            continue
        found: dict[str, str] = {}
        for part, source in sources.items():
            theirs = by_file[source.path].get(clip.id, clip)
            elsewhere = {state for other, states in _STATES.items() if other != part for state in states}
            for state in theirs.status.split("+"):
                if state not in elsewhere | {"ok"}:
                    found[state] = theirs.reason
        reasons = dict.fromkeys(reason for reason in found.values() if reason)
        statuses.append(ClipStatus(clip.id, clip.split, "+".join(found) or "ok", "; ".join(reasons), clip.seconds))
    return statuses


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return f"{', '.join(ids[:NAMED])}{more}"
