"""Feature files and MMSA's pickles, checked: keys, shapes and types, then what they hold, one block of clips at a time.

report = validate(Path("features.h5"))
[finding for finding in report.findings if finding.severity == "error"]
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmfeat import layout
from mmfeat.corpus import LABEL_RANGE
from mmfeat.moments import Moments
from mmfeat.validate import content, structure
from mmfeat.validate.findings import Finding, Findings
from mmfeat.validate.source import Source, aligned, opened, steps

__all__ = ["Finding", "Report", "validate"]

_BLOCK = 8 << 20
"""Bytes of clips in memory at a time; checks need a few times as much."""
_CLS, _SEP = 101, 102
"""[CLS] and [SEP] in the vocabularies of BERT: English, Chinese and multilingual ones agree on these."""
_WORDS = 1 << 14
"""Words in memory at a time."""
_STATS = 1e-3
"""Largest deviation of a column's stored mean and deviation, in deviations: float32 sums differ by less."""


@dataclass(frozen=True)
class Report:
    path: Path
    format: str
    """`mmfeat`, or `MMSA` for a pickle."""
    clips: dict[str, int]
    """Split → clips."""
    findings: list[Finding]
    """Errors first."""
    separator: str
    """Which token ends a transcript and how that was found; empty where it was not."""
    left_out: list[str]
    """What could not be checked, and why."""

    @property
    def errors(self) -> int:
        return sum(finding.severity == "error" for finding in self.findings)


@dataclass
class _Survey:
    """What is known of the whole file once every block has been seen."""

    ids: dict[str, list[str]] = field(default_factory=dict)
    longest: Counter[str] = field(default_factory=Counter)
    spoken: list[tuple[str, str]] = field(default_factory=list)
    """(split, id) of every clip that has a token."""
    first: list[NDArray] = field(default_factory=list)
    """Token ids that those clips begin with, per block."""
    last: list[NDArray] = field(default_factory=list)
    vectors: bool = False
    """Whether any clip has text that is not all zero."""
    moments: dict[str, Moments] = field(default_factory=lambda: {modality: Moments() for modality in layout.TIMED})


def validate(path: Path, label_range: tuple[float, float] = LABEL_RANGE) -> Report:
    """Check a feature file (.h5) or a pickle of MMSA (.pkl).

    Raises LayoutError, MMSAError or FileNotFoundError for a file that cannot be read; everything else is a finding.
    """
    with opened(path) as source:
        findings, survey = Findings(lenient=source.pickled), _Survey()
        structure.check_head(source, findings)
        usable = structure.check_splits(source, findings)
        for split, keys in usable.items():
            if "id" in keys:
                survey.ids[split] = source.strings(split, "id")
        _check_ids(survey.ids, findings)
        for split, keys in usable.items():
            _check_content(source, split, keys, label_range, survey, findings)
        if survey.spoken and not survey.vectors:
            findings.drop("all-zero", "text")
            findings.add("no-vectors", what="text")
        _check_padding(source, usable, survey, findings)
        separator = _check_separator(survey, findings)
        left_out = [] if separator else ["[SEP]: there are no token ids, or clips end with many different ones"]
        if source.pickled:
            left_out.append("masks, times, column names, statistics and the table of clips: a pickle has none")
        else:
            _check_statistics(source, survey, findings)
            _check_clip_table(source, survey.ids, findings)
            _check_words(source, usable, survey.ids, findings)
        clips = {split: len(ids) for split, ids in survey.ids.items()}
        return Report(path, "MMSA" if source.pickled else "mmfeat", clips, findings.all(), separator, left_out)


def _check_ids(ids: dict[str, list[str]], findings: Findings) -> None:
    clips: dict[str, str] = {}
    videos: dict[str, str] = {}
    for split, members in ids.items():
        for id in members:
            video, mark, clip = id.partition("$_$")
            if not (video and mark and clip) or "$_$" in clip:
                findings.add("id-form", split, clips=[id])
            if clips.get(id, split) != split:
                findings.add("id-in-two-splits", split, clips[id], clips=[id])
            elif videos.get(video, split) != split:
                findings.add("video-in-two-splits", split, videos[video], clips=[id])
            clips.setdefault(id, split)
            if mark:
                videos.setdefault(video, split)
        twice = [id for id, count in Counter(members).items() if count > 1]
        if twice:
            findings.add("id-duplicate", split, clips=twice)


def _check_content(
    source: Source,
    split: str,
    keys: set[str],
    label_range: tuple[float, float],
    survey: _Survey,
    findings: Findings,
) -> None:
    arrays = {key: source.splits[split][key] for key in keys - set(layout.STRINGS)}
    clips = source.splits[split]["id"].shape[0]
    row = sum(array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in arrays.values())
    size = max(1, _BLOCK // max(row, 1))
    ids = survey.ids.get(split) or [f"row {row}" for row in range(clips)]
    per_word = aligned(source, split, keys)
    for start in range(0, clips if arrays else 0, size):
        rows = slice(start, min(start + size, clips))
        read = {key: source.read(split, key, rows) for key in arrays}
        block = content.Block(read, source.pickled, per_word, label_range, _classes(source))
        for check, what, detail, flags in content.check(block):
            if flags.any():
                findings.add(check, split, what, detail, (ids[start + row] for row in np.flatnonzero(flags)))
        _note(block, split, ids[rows], survey)


def _note(block: content.Block, split: str, ids: list[str], survey: _Survey) -> None:
    """Keep what can only be judged once the whole file has been seen: a few numbers per clip."""
    for modality in layout.TIMED:
        values, lengths = block.values(modality), block.lengths(modality)
        if values is None:
            continue
        longest = values.shape[1] if lengths is None else int(lengths.max())
        survey.longest[modality] = max(survey.longest[modality], longest)
        if split == "train" and not block.pickled and f"{modality}_mask" in block.arrays:
            survey.moments[modality].add(values[block.arrays[f"{modality}_mask"]])
    text, tokens = block.values("text"), block.tokens
    survey.vectors = survey.vectors or (text is not None and bool(text.any()))
    if tokens is not None:
        attended = tokens[:, 1] > 0
        there = np.flatnonzero(attended.any(1))
        survey.first.append(tokens[there, 0, attended[there].argmax(1)])
        survey.last.append(tokens[there, 0, attended.shape[1] - 1 - attended[there, ::-1].argmax(1)])
        survey.spoken += [(split, ids[row]) for row in there]


def _classes(source: Source) -> int:
    """How many classes the file names."""
    try:
        return len(json.loads(source.file.attrs["class_names"])) if source.file else 0
    except (KeyError, TypeError, ValueError):  # a finding of its own
        return 0


def _check_padding(source: Source, usable: dict[str, set[str]], survey: _Survey, findings: Findings) -> None:
    """Aligned files and text have the length that the recipe sets, not that of the longest clip."""
    if any(aligned(source, split, keys) for split, keys in usable.items()):
        return
    for modality in layout.TIMED:
        padded = [steps(source, split, modality) for split, keys in usable.items() if modality in keys]
        longest = survey.longest[modality]
        if padded and longest and max(padded) > longest:
            findings.add("padded-length", what=modality, detail=f"{max(padded)} steps, the longest clip has {longest}")


def _check_separator(survey: _Survey, findings: Findings) -> str:
    """Find the separator, and the clips that do not end with it. Returns which it is and how that was found."""
    if not survey.spoken:
        return ""
    first, last = np.concatenate(survey.first), np.concatenate(survey.last)
    token, count = Counter(last.tolist()).most_common(1)[0]
    if (first == _CLS).all():
        token, how = _SEP, f"every clip begins with {_CLS}, [CLS] of BERT"
    elif count * 2 > len(last):
        how = f"{count} of {len(last)} clips end with it"
    else:
        return ""
    for (split, id), ends in zip(survey.spoken, last != token, strict=True):
        if ends:
            findings.add("no-separator", split, "text_bert", f"{token:.0f}: {how}", [id])
    return f"{token:.0f}: {how}"


def _check_statistics(source: Source, survey: _Survey, findings: Findings) -> None:
    assert source.file is not None
    for modality, moments in survey.moments.items():
        stored = structure.stored(partial(source.file.train_stats, modality), f"/meta/train_stats/{modality}", findings)
        if stored is None or not moments.count:
            continue
        found = moments.result(source.splits["train"][modality].shape[-1])
        if any(a.shape != b.shape or a.dtype.kind != "f" for a, b in zip(stored, found, strict=True)):
            findings.add("train-stats", what=modality, detail="not one number per column")
            continue
        # A column that does not change has a deviation of 0: its own size then is the measure.
        scale = np.maximum(found[1], 1e-3 * np.abs(found[0])) + 1e-12
        with np.errstate(invalid="ignore", over="ignore"):
            agree = [
                (np.abs(a - b) <= _STATS * scale) | (np.isnan(a) & np.isnan(b))
                for a, b in zip(stored, found, strict=True)
            ]
        if len(wrong := np.flatnonzero(~(agree[0] & agree[1]))):
            findings.add("train-stats", what=modality, detail=f"column {', '.join(map(str, wrong[:5]))}")


def _check_clip_table(source: Source, ids: dict[str, list[str]], findings: Findings) -> None:
    assert source.file is not None
    rows = structure.stored(source.file.clips, "/meta/clips", findings)
    if rows is None:
        return
    table = {clip.id: clip for clip in rows}
    for split, members in ids.items():
        for id in members:
            if id not in table or table[id].status == "failed":
                findings.add("clip-table", split, detail="clips that the table has not, or as failed", clips=[id])
            elif table[id].split != split:
                findings.add("clip-table", split, detail="another split in the table", clips=[id])
    there = {id for members in ids.values() for id in members}
    for id, clip in table.items():
        unknown = clip.split in source.splits and clip.split not in ids  # a finding of its own
        if clip.status != "failed" and id not in there and not unknown:
            findings.add("clip-table", clip.split, detail="clips of the table that no split has", clips=[id])


def _check_words(source: Source, usable: dict[str, set[str]], ids: dict[str, list[str]], findings: Findings) -> None:
    for split, keys in usable.items():
        if "words" not in source.splits[split] or split not in ids:
            continue
        columns = source.splits[split]["words"].dtype.names or ()
        if lacking := {"clip", "word", "start", "end", "confidence", "span_start", "span_end"} - set(columns):
            findings.add("shape", split, "words", f"there is no column {', '.join(sorted(lacking))}")
            continue
        clips, rows = len(ids[split]), source.splits[split]["words"].shape[0]
        ends = np.full(clips, np.iinfo(np.int32).max)
        if "raw_text" in keys:
            ends = np.array([len(text) for text in source.strings(split, "raw_text")])
        for start in range(0, rows, _WORDS):
            words = source.read(split, "words", slice(start, min(start + _WORDS, rows)))
            clip = words["clip"]
            inside = (clip >= 0) & (clip < clips)
            good = inside & (words["start"] >= 0) & (words["end"] >= words["start"]) & (words["span_start"] >= 0)
            good &= words["span_end"] <= ends[np.where(inside, clip, 0)]
            wrong = dict.fromkeys(ids[split][row] if 0 <= row < clips else f"row {row}" for row in clip[~good])
            if wrong:
                findings.add("words", split, "words", clips=wrong)
