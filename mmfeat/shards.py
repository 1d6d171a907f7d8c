"""One clip's results on disk: a file per part (vision, audio, text, words), written atomically.

A shard's place says what it was made from: the part and its fingerprint name the folder; the media file's size and time
of change, the cut, and the transcript where it matters name the file. So a changed audio setting leaves vision alone,
a corrected label redoes nothing, and a half-written file is never taken for a result.

    <workdir>/vision-0123456789abcdef/4f/4f…e1.npz      a result
    <workdir>/vision-0123456789abcdef/4f/4f…e1.failed   why there is none
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os.path import exists
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfeat import npz
from mmfeat.corpus import Clip
from mmfeat.files import atomic
from mmfeat.layout import canonical_json

_FORMAT = 2
"""Changes with what a shard's file holds, so that those of before are not taken for ours."""

_FOLDER = re.compile(r"[a-z]+-[0-9a-f]{16}")
"""A part and its fingerprint."""


Place = str
"""Path of a shard without its ending."""


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
    """Plain values: words, what was measured."""
    names: tuple[str, ...] = ()
    """One name per column, where columns have names; not read without the arrays."""


class ShardError(RuntimeError):
    """A stored result cannot be read; it is removed, so that the next run makes it again."""


@dataclass(frozen=True)
class Store:
    """The shards below a work folder. Holds no open file, so it can be pickled and used from any process."""

    workdir: Path

    def missing(self, clip: Clip, fingerprints: Mapping[str, str], retry_failed: bool = False) -> tuple[str, ...]:
        """Parts that are still to be extracted. What failed before counts as done, unless `retry_failed`."""
        todo = []
        for part, place in self._places(clip, fingerprints):
            done = exists(place + ".npz") or (_failure(place) and not retry_failed)  # noqa: PTH110
            if not done:
                todo.append(part)
        return tuple(todo)

    def places(self, clip: Clip, fingerprints: Mapping[str, str]) -> dict[str, Place]:
        """Part → where its result belongs, as the clip's files are now."""
        return dict(self._places(clip, fingerprints))

    def write(self, clip: Clip, part: str, fingerprint: str, shard: Shard) -> Path:
        """Store a result; a failure of an earlier try is forgotten."""
        return self.write_at(self._place(clip, part, fingerprint), clip, shard)

    def write_at(self, place: Place, clip: Clip, shard: Shard) -> Path:
        """`write`, in a place that was asked for before the clip's files were read."""
        head = {
            "id": clip.id,
            "status": shard.status,
            "reason": shard.reason,
            "seconds": shard.seconds,
            "details": shard.details,
        }
        path = Path(place + ".npz")
        with atomic(path) as temporary:
            # Names have a member of their own: they are half of a small shard, and the same in all of them.
            temporary.write_bytes(npz.archive({"head": _json(head), "names": _json(shard.names), **shard.arrays}))
        Path(place + ".failed").unlink(missing_ok=True)
        return path

    def fail(self, clip: Clip, part: str, fingerprint: str, reason: str) -> Path:
        """Store that there is no result, and why."""
        return self.fail_at(self._place(clip, part, fingerprint), clip, reason)

    def fail_at(self, place: Place, clip: Clip, reason: str) -> Path:
        """`fail`, in a place that was asked for before."""
        path = Path(place + ".failed")
        with atomic(path) as temporary:
            temporary.write_bytes(_encoded({"id": clip.id, "reason": reason}))
        return path

    def failure(self, clip: Clip, part: str, fingerprint: str) -> str:
        """Why there is no result; empty where nobody has failed, or where there is one."""
        return _failure(self._place(clip, part, fingerprint))

    def forget_failure(self, clip: Clip, part: str, fingerprint: str) -> None:
        Path(self._place(clip, part, fingerprint) + ".failed").unlink(missing_ok=True)

    def read(self, clip: Clip, part: str, fingerprint: str, arrays: bool = True) -> Shard:
        """A stored result or failure; without `arrays`, only what was said about it.

        Raises FileNotFoundError where there is neither, and ShardError for a damaged result, which it removes.
        """
        return _read(self._place(clip, part, fingerprint), clip, arrays)

    def read_all(self, clip: Clip, fingerprints: Mapping[str, str], arrays: bool = True) -> dict[str, Shard]:
        """Part → `read`, of several parts at once."""
        return {part: _read(place, clip, arrays) for part, place in self._places(clip, fingerprints)}

    def files(self) -> Iterator[Path]:
        """Everything that lies in the store, results and failures of all times, and what killed writers left."""
        for folder in sorted(self.workdir.glob("*-*")):
            if _FOLDER.fullmatch(folder.name):
                yield from (path for path in folder.rglob("*") if path.is_file())

    def expected(self, clip: Clip, fingerprints: Mapping[str, str]) -> Iterator[Path]:
        """Where a clip's results and failures lie, whether they are there or not."""
        for _, place in self._places(clip, fingerprints):
            yield Path(place + ".npz")
            yield Path(place + ".failed")

    def _place(self, clip: Clip, part: str, fingerprint: str) -> Place:
        """Where a part's shard lies, without its ending."""
        return next(self._places(clip, {part: fingerprint}))[1]

    def _places(self, clip: Clip, fingerprints: Mapping[str, str]) -> Iterator[tuple[str, Place]]:
        """(part, `_place`) of several parts; the clip's file is looked at once. Text, since 100 000 clips have as many
        places as a Path would take seconds for."""
        base: dict[str, Any] = {"format": _FORMAT, "id": clip.id}
        source: dict[str, Any] = {}
        if clip.transcriber or any(part != "text" for part in fingerprints):
            source = {"media": _stamp(clip.path) if clip.path else None, "start": clip.start, "end": clip.end}
        said = {"text": clip.text, "transcriber": clip.transcriber}
        keys: dict[tuple[bool, bool], str] = {}  # audio and vision have the same
        for part, fingerprint in fingerprints.items():
            hears, reads = part != "text" or bool(clip.transcriber), part in ("text", "words")
            if given := clip.given.get(part):
                key = _hash(base | (source if hears else {}) | (said if reads else {}) | {part: _stamp(given)})
            elif not (key := keys.get((hears, reads), "")):
                key = keys[hears, reads] = _hash(base | (source if hears else {}) | (said if reads else {}))
            yield part, f"{self.workdir}/{part}-{fingerprint}/{key[:2]}/{key}"


def _hash(made_from: Mapping[str, Any]) -> str:
    return hashlib.sha256(_encoded(made_from)).hexdigest()[:32]


def _json(value: Any) -> NDArray[np.uint8]:
    return np.frombuffer(_encoded(value), np.uint8)


def _encoded(value: Any) -> bytes:
    """As JSON; the bytes of a file name that are no UTF-8 come as what Python makes of them."""
    return canonical_json(value).encode(errors="surrogatepass")


def _decoded(content: bytes) -> Any:
    return json.loads(content.decode(errors="surrogatepass"))


@functools.lru_cache(maxsize=64)
def _names(packed: bytes) -> tuple[str, ...]:
    return tuple(_decoded(packed))


def _read(place: str, clip: Clip, arrays: bool) -> Shard:
    path = place + ".npz"
    try:
        content = npz.read(path) if arrays else {"head": npz.first(path)}
        head = _decoded(content.pop("head").tobytes())
        names = _names(content.pop("names").tobytes()) if arrays else ()
    except FileNotFoundError:
        if reason := _failure(place):
            return Shard("failed", reason)
        raise FileNotFoundError(f"{path} (clip {clip.id}) is not there: extract it first") from None
    except (ValueError, KeyError) as error:
        Path(path).unlink(missing_ok=True)
        raise ShardError(
            f"{path} (clip {clip.id}) was damaged ({error}) and is removed: the same command extracts it again"
        ) from None
    return Shard(head["status"], head["reason"], head["seconds"], content, head["details"], names)


def _failure(place: Place) -> str:
    """Why there is no result; a file that does not say so is removed."""
    path = Path(place + ".failed")
    try:
        return str(_decoded(path.read_bytes())["reason"]) or "failed"
    except FileNotFoundError:
        return ""
    except (ValueError, KeyError, TypeError):
        path.unlink(missing_ok=True)
        return ""


def _stamp(path: Path) -> list[Any] | None:
    """What tells one version of a file from another without reading it; None where it is gone."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [path.name, stat.st_size, stat.st_mtime_ns]
