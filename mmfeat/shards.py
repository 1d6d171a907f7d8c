"""One clip's results on disk: a file per part (vision, audio, text, words), written atomically.

A shard's place says what it was made from: the part and its fingerprint name the folder; the media file's size and time
of change, the cut, and the transcript where it matters name the file. So a changed audio setting leaves vision alone,
a corrected label redoes nothing, and a half-written file is never taken for a result.

    <workdir>/vision-0123456789abcdef/4f/4f…e1.npz      a result
    <workdir>/vision-0123456789abcdef/4f/4f…e1.failed   why there is none
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfeat.corpus import Clip
from mmfeat.files import atomic
from mmfeat.layout import canonical_json

_FOLDER = re.compile(r"[a-z]+-[0-9a-f]{16}")
"""A part and its fingerprint."""


@dataclass(frozen=True, eq=False)
class Shard:
    """What became of one part of one clip."""

    status: str
    """`ok`, a state such as `no_face`, or `failed`."""
    reason: str = ""
    seconds: float = 0.0
    """Length of the clip as far as it was decoded."""
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    """Plain values: column names, words."""


class ShardError(RuntimeError):
    """A stored result cannot be read; it is removed, so that the next run makes it again."""


@dataclass(frozen=True)
class Store:
    """The shards below a work folder. Holds no open file, so it can be pickled and used from any process."""

    workdir: Path

    def missing(self, clip: Clip, fingerprints: Mapping[str, str], retry_failed: bool = False) -> tuple[str, ...]:
        """Parts that are still to be extracted. What failed before counts as done, unless `retry_failed`."""
        source = _source(clip)
        todo = []
        for part, fingerprint in fingerprints.items():
            place = self._place(clip, part, fingerprint, source)
            if not place.with_suffix(".npz").exists() and (retry_failed or not place.with_suffix(".failed").exists()):
                todo.append(part)
        return tuple(todo)

    def write(self, clip: Clip, part: str, fingerprint: str, shard: Shard) -> Path:
        """Store a result; a failure of an earlier try is forgotten."""
        place = self._place(clip, part, fingerprint, _source(clip))
        head = {
            "id": clip.id,
            "status": shard.status,
            "reason": shard.reason,
            "seconds": shard.seconds,
            "details": shard.details,
        }
        packed = np.frombuffer(canonical_json(head).encode(), np.uint8)
        path = place.with_suffix(".npz")
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, head=packed, **shard.arrays)  # type: ignore[arg-type]
        place.with_suffix(".failed").unlink(missing_ok=True)
        return path

    def fail(self, clip: Clip, part: str, fingerprint: str, reason: str) -> Path:
        """Store that there is no result, and why."""
        path = self._place(clip, part, fingerprint, _source(clip)).with_suffix(".failed")
        with atomic(path) as temporary:
            temporary.write_text(canonical_json({"id": clip.id, "reason": reason}), encoding="utf-8")
        return path

    def failure(self, clip: Clip, part: str, fingerprint: str) -> str:
        """Why there is no result; empty where nobody has failed, or where there is one."""
        place = self._place(clip, part, fingerprint, _source(clip))
        try:
            return str(json.loads(place.with_suffix(".failed").read_text(encoding="utf-8"))["reason"])
        except FileNotFoundError:
            return ""

    def forget_failure(self, clip: Clip, part: str, fingerprint: str) -> None:
        self._place(clip, part, fingerprint, _source(clip)).with_suffix(".failed").unlink(missing_ok=True)

    def read(self, clip: Clip, part: str, fingerprint: str, arrays: bool = True) -> Shard:
        """A stored result or failure; without `arrays`, only what was said about it.

        Raises FileNotFoundError where there is neither, and ShardError for a damaged result, which it removes.
        """
        place = self._place(clip, part, fingerprint, _source(clip))
        path = place.with_suffix(".npz")
        if not path.exists():
            if reason := self.failure(clip, part, fingerprint):
                return Shard("failed", reason)
            raise FileNotFoundError(f"{path} (clip {clip.id}) is not there: extract it first")
        try:
            with np.load(path, allow_pickle=False) as stored:
                head = json.loads(stored["head"].tobytes())
                content = {key: stored[key] for key in stored.files if key != "head"} if arrays else {}
        except (zipfile.BadZipFile, EOFError, ValueError, KeyError) as error:
            path.unlink()
            raise ShardError(
                f"{path} (clip {clip.id}) was damaged ({error}) and is removed: the same command extracts it again"
            ) from None
        return Shard(head["status"], head["reason"], head["seconds"], content, head["details"])

    def files(self) -> Iterator[Path]:
        """Everything that lies in the store, results and failures of all times, and what killed writers left."""
        for folder in sorted(self.workdir.glob("*-*")):
            if _FOLDER.fullmatch(folder.name):
                yield from (path for path in folder.rglob("*") if path.is_file())

    def expected(self, clip: Clip, fingerprints: Mapping[str, str]) -> Iterator[Path]:
        """Where a clip's results and failures lie, whether they are there or not."""
        source = _source(clip)
        for part, fingerprint in fingerprints.items():
            place = self._place(clip, part, fingerprint, source)
            yield place.with_suffix(".npz")
            yield place.with_suffix(".failed")

    def _place(self, clip: Clip, part: str, fingerprint: str, source: list[Any] | None) -> Path:
        """Where a part's shard lies, without its ending."""
        made_from: dict[str, Any] = {"id": clip.id}
        if part != "text":
            made_from |= {"media": source, "start": clip.start, "end": clip.end}
        if part in ("text", "words"):
            made_from["text"] = clip.text
        if part == "words" and clip.words:
            made_from["words"] = _stamp(clip.words)
        key = hashlib.sha256(canonical_json(made_from).encode()).hexdigest()[:32]
        return self.workdir / f"{part}-{fingerprint}" / key[:2] / key


def _source(clip: Clip) -> list[Any] | None:
    """What tells one version of a media file from another without reading it; None where it is gone."""
    return _stamp(clip.path) if clip.path else None


def _stamp(path: Path) -> list[Any] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return [path.name, stat.st_size, stat.st_mtime_ns]
