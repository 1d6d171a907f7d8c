"""A small labelled corpus of real mp4 files, made on the spot."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmfeat.demo.plan import PlannedClip, plan
from mmfeat.espeak import Spoken
from mmfeat.files import atomic
from mmfeat.processes import pool

VERSION = 3
"""Raised whenever the same arguments give other clips."""
_ANNOTATION = {-1: "Negative", 0: "Neutral", 1: "Positive"}
_COLUMNS = ("video_id", "clip_id", "text", "label", "label_T", "label_A", "label_V", "annotation", "mode")


class DemoError(RuntimeError):
    """The folder holds something other than the demo corpus that was asked for."""


@dataclass(frozen=True)
class Demo:
    """Where a demo corpus lies."""

    folder: Path
    """label.csv and Raw/<video_id>/<clip_id>.mp4: all that training may see."""
    truth: Path
    """planted.csv (true label_T, label_A, label_V, and label, their consensus), true_words.json (word times) and
    demo.json (how the corpus was made)."""
    clips: int
    made: int
    """How many of them this call made; the others were there."""


def make_demo(
    folder: str | Path,
    clips: int = 120,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> Demo:
    """Make the corpus in `folder`, its truth in `<folder>.truth`; a call that was cut short is continued.

    `report` is called with (clips done, clips in all). `workers` processes share the work, by default one per core. The
    same `clips` and `seed` give the same files, whatever the workers. Raises DemoError where the folder holds another
    corpus, ValueError for fewer than 3 clips.
    """
    folder = Path(folder)
    truth = folder.with_name(folder.name + ".truth")
    planned = plan(clips, seed)
    _claim(folder, truth, {"version": VERSION, "clips": clips, "seed": seed})
    todo = [clip for clip in planned if not _is_made(clip, folder, truth)]
    done = clips - len(todo)
    if report:
        report(done, clips)
    for _ in _make_all(todo, folder, truth, workers):
        done += 1
        if report:
            report(done, clips)
    words = {clip.id: json.loads(_words_path(clip, truth).read_text("utf-8")) for clip in planned}
    _write_text(truth / "true_words.json", json.dumps(words, ensure_ascii=False, indent=1))
    _write_csv(
        truth / "planted.csv",
        ("video_id", "clip_id", "mode", "label_T", "label_A", "label_V", "label"),
        [(c.video_id, c.clip_id, c.split, c.T, c.A, c.V, c.M) for c in planned],
    )
    # Last: a folder with a label.csv is a whole corpus.
    _write_csv(
        folder / "label.csv",
        _COLUMNS,
        [(c.video_id, c.clip_id, c.text, c.M, "", "", "", _ANNOTATION[c.M], c.split) for c in planned],
    )
    return Demo(folder, truth, clips, len(todo))


def _claim(folder: Path, truth: Path, arguments: dict[str, int]) -> None:
    manifest = truth / "demo.json"
    if manifest.is_file():
        found = json.loads(manifest.read_text("utf-8"))
        if found != arguments:
            raise DemoError(
                f"{folder} holds a demo corpus made with {found}, not {arguments}: choose another folder, or remove "
                f"{folder} and {truth}"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise DemoError(f"{folder} is not empty and not a demo corpus (there is no {manifest}): choose another folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        truth.mkdir(parents=True, exist_ok=True)
        _write_text(manifest, json.dumps(arguments))


def _clip_path(clip: PlannedClip, folder: Path) -> Path:
    return folder / "Raw" / clip.video_id / f"{clip.clip_id}.mp4"


def _words_path(clip: PlannedClip, truth: Path) -> Path:
    return truth / "words" / f"{clip.video_id}_{clip.clip_id}.json"


def _is_made(clip: PlannedClip, folder: Path, truth: Path) -> bool:
    return _clip_path(clip, folder).is_file() and _words_path(clip, truth).is_file()


def _make_all(todo: list[PlannedClip], folder: Path, truth: Path, workers: int | None) -> Iterator[None]:
    workers = min(workers or len(os.sched_getaffinity(0)), len(todo))
    if workers <= 1:
        for clip in todo:
            _make(clip, folder, truth)
            yield
        return
    with pool(workers) as processes:
        futures = [processes.submit(_make, clip, folder, truth) for clip in todo]
        for future in futures:
            future.result()
            yield


def _make(clip: PlannedClip, folder: Path, truth: Path) -> None:
    from mmfeat.demo.film import make_clip

    words: list[Spoken] = make_clip(clip, _clip_path(clip, folder))
    rows = [{"word": w.text, "start": round(w.start, 4), "end": round(w.end, 4)} for w in words]
    _write_text(_words_path(clip, truth), json.dumps(rows, ensure_ascii=False))


def _write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, "utf-8")


def _write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
