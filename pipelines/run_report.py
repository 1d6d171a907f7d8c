"""What a run did, on one page of HTML that needs nothing else, with pictures of a sample of clips.

The numbers come from the feature file and from the work folder's journal; the pictures are made for it by
`pipelines.pictures`.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfeat.clip import FAILED
from mmfeat.files import atomic, clear_leftovers
from mmfeat.layout import ClipStatus, FeatureFile
from mmfeat.recipe import Recipe
from pipelines.extract import WORKER_LOG
from pipelines.journal import Run, events
from pipelines.pictures import Picture, pictures
from pipelines.progress import duration

if TYPE_CHECKING:
    from mmfeat.corpus import Clip, Corpus

SAMPLE = 12
"""Clips with a picture."""
_BLOCK = 4096
"""Clips whose masks are looked at at once."""
_EXTRACTION = ("language", "vision", "audio", "text", "words", "transcribe", "loudness")
"""Of a recipe: what its clips' times depend on."""
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse } td:nth-child(3) { min-width: 14rem }
td, th { padding: .15rem .9rem .15rem 0; text-align: left; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.bar { display: flex; height: 1.4rem; border-radius: 3px; overflow: hidden }
.key span { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 1rem; border-radius: 2px }
.clips { display: flex; flex-wrap: wrap; gap: .8rem; align-items: end } figure { margin: 0; width: 230px }
figure img, .none { max-width: 230px; border-radius: 3px; display: block }
.none { background: #eee; color: #777; padding: 3rem 0; text-align: center }
figcaption { font-size: .8rem; overflow-wrap: anywhere } .bad { color: #b00020 } .quiet { color: #777 }
"""


def write_report(corpus: Corpus, recipe: Recipe, features: Path, workdir: Path, out: Path) -> Path:
    """Write the page for the feature file of a corpus; returns `out`."""
    with FeatureFile(features) as file:
        clips = file.clips()
        coverage = _coverage(file)
    body = [
        f"<h1>{escape(corpus.root.name)}</h1>",
        f"<p>{_summary(clips)}<br><span class=quiet>{escape(str(features.resolve()))}, recipe "
        f"{escape(recipe.name)}, {time.strftime('%Y-%m-%d %H:%M')}</span></p>",
        "<h2>What became of the clips</h2>",
        _table(("clips", "status", "reason", "which"), _by_reason(clips), numbers=(0,)),
        "<h2>What could be measured</h2>",
        _table(("modality", "clips that have it", "steps measured, of those they have"), coverage, numbers=(1, 2)),
        "<h2>Where the time went</h2>",
        _times(corpus, recipe, workdir),
        "<h2>A sample of clips</h2>",
        f"<div class=clips>{''.join(_figures(corpus, clips, recipe, workdir))}</div>",
    ]
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(corpus.root.name)}: mmfeat</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style><body>{''.join(body)}</body></html>"
    )
    clear_leftovers(out)
    with atomic(out) as path:
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return out


def _summary(clips: Sequence[ClipStatus]) -> str:
    failed = sum(clip.status == FAILED for clip in clips)
    footage = sum(clip.seconds for clip in clips)
    said = f"<b>{len(clips) - failed} of {len(clips)} clips</b> are in the feature file, {duration(footage)} of footage"
    return f"{said}; <b class=bad>{failed} failed</b>" if failed else said


def _by_reason(clips: Sequence[ClipStatus]) -> Iterable[tuple[str, ...]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for clip in clips:
        groups.setdefault((clip.status, clip.reason), []).append(clip.id)
    for (status, reason), ids in sorted(groups.items(), key=lambda item: -len(item[1])):
        which = "" if status == "ok" else ", ".join(ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
        yield str(len(ids)), status, reason, which


def _coverage(file: FeatureFile) -> Iterable[tuple[str, ...]]:
    """Per modality: clips in which anything was measured, and the share of steps that was."""
    rows = []
    for modality in ("vision", "audio"):
        present = measured = steps = total = 0
        for split in file.splits:
            masks = file.dataset(split, f"{modality}_mask")
            for begin in range(0, len(masks), _BLOCK):
                mask = masks[begin : begin + _BLOCK]
                present, measured = present + int(mask.any(1).sum()), measured + int(mask.sum())
            total, steps = total + len(masks), steps + int(file.read(split, f"{modality}_lengths").sum())
        rows.append((modality, f"{present} of {total}", f"{measured / max(steps, 1):.1%}"))
    return rows


class _Spent:
    """Seconds by kind of work of every clip's last try, in a few bytes each."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._footage = array("d")
        self._kinds: dict[str, array[float]] = {}

    def take(self, clip: Mapping[str, Any]) -> None:
        """A clip of the journal. What was done in an earlier try, and not in this, counts too."""
        row = self._rows.setdefault(clip["id"], len(self._rows))
        if row == len(self._footage):
            for column in (self._footage, *self._kinds.values()):
                column.append(0.0)
        self._footage[row] = clip.get("seconds", 0.0)
        for kind, seconds in clip.get("timings", {}).items():
            if kind not in self._kinds:
                self._kinds[kind] = array("d", [0.0]) * len(self._rows)
            self._kinds[kind][row] = seconds

    def sums(self) -> tuple[int, float, Counter[str]]:
        """Clips, their footage, and the time spent on them by kind."""
        return len(self._rows), sum(self._footage), Counter({kind: sum(column) for kind, column in self._kinds.items()})


def _times(corpus: Corpus, recipe: Recipe, workdir: Path) -> str:
    """Of what this recipe took on this corpus, by whichever run: this page may be made by one that had nothing to do.

    Of a clip that was done again the last time counts. Runs with other recipes on the same work folder do not.
    """
    ours: set[Run] = set()
    tries = _Spent()
    extracted, root = _what_is_extracted(recipe.model_dump(mode="json")), str(corpus.root.resolve())
    for run, event in events(workdir):
        if event["event"] == "start":
            if event.get("corpus") == root and _what_is_extracted(event.get("recipe", {})) == extracted:
                ours.add(run)
        elif event["event"] == "clip" and run in ours:
            tries.take(event)
    clips, footage, spent = tries.sums()
    total = sum(spent.values())
    if not total:
        return "<p class=quiet>The journal of the work folder tells of no clip that was extracted with this recipe.</p>"
    kinds = [(kind, seconds, colour) for (kind, seconds), colour in zip(spent.most_common(), itertools.cycle(_COLOURS))]
    bar = "".join(f"<div style='flex:{s / total:.4f};background:{c}' title='{escape(k)}'></div>" for k, s, c in kinds)
    key = "".join(f"<span style='background:{c}'></span>{escape(k)} {s / total:.0%}" for k, s, c in kinds)
    return (
        f"<div class=bar>{bar}</div><p class=key>{key}</p><p>{duration(total)} of work for {clips} clips and "
        f"{duration(footage)} of footage, summed over workers: {footage / total:.1f} times real time on one.</p>"
    )


def _what_is_extracted(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {part: recipe.get(part) for part in _EXTRACTION}


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    kinds = [" class=n" if k in numbers else "" for k in range(len(columns))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, columns, strict=True))
    lines = ["".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _sample(corpus: Corpus, statuses: Sequence[ClipStatus]) -> list[tuple[Clip, ClipStatus]]:
    """Clips with a file, as many kinds of status as fit, then others; the same ones every time."""
    known = {clip.id: clip for clip in corpus.usable}
    clips = sorted(
        (status for status in statuses if status.id in known),
        key=lambda status: hashlib.sha256(status.id.encode("utf-8", "surrogateescape")).digest(),
    )
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, int, ClipStatus]] = []
    for status in clips:
        ranked.append((seen[status.status], len(ranked), status))  # one of each kind, then a second of each, …
        seen[status.status] += 1
    return [(known[status.id], status) for _, _, status in sorted(ranked, key=lambda row: row[:2])[:SAMPLE]]


def _figures(corpus: Corpus, clips: Sequence[ClipStatus], recipe: Recipe, workdir: Path) -> Iterable[str]:
    sample = _sample(corpus, clips)
    made = pictures([(clip, status.seconds) for clip, status in sample], recipe, workdir / WORKER_LOG)
    return (_figure(clip, status, picture) for (clip, status), picture in zip(sample, made, strict=True))


def _figure(clip: Clip, status: ClipStatus, picture: Picture) -> str:
    name = f"{escape(clip.id)}<br><span class='{'bad' if status.status == FAILED else 'quiet'}'>{escape(status.status)}"
    caption = f"<figcaption>{name}{escape(f': {status.reason}' if status.reason else '')}</span></figcaption>"
    said = f"<figcaption class=quiet>{escape(picture.why)}</figcaption>" if picture.why else ""
    if picture.jpeg is None:
        return f"<figure><div class=none>no picture</div>{caption}{said}</figure>"
    encoded = base64.b64encode(picture.jpeg).decode()
    return f"<figure><img alt='' src='data:image/jpeg;base64,{encoded}'>{caption}{said}</figure>"
