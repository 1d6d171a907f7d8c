"""What every run on a work folder did: `journal.jsonl`, one JSON object a line, only ever added to.

A run writes `start` (corpus, recipe, where the result goes), one `clip` per clip that it has done, and `end`. A run
that was killed has no `end`. Results are not read from here: shards alone say what is done.
"""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

NAME = "journal.jsonl"


class Journal:
    """The journal of a work folder, open for writing; a context manager. `echo` gets the same lines."""

    def __init__(self, workdir: Path, echo: TextIO | None = None):
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / NAME
        torn = _is_torn(path)
        self._file = path.open("a", encoding="utf-8")
        if torn:
            self._file.write("\n")  # or our first line would be part of one that a crash has cut short
        self._echo = echo
        self._run = uuid.uuid4().hex[:8]  # two machines may work into one folder at a time

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, event: str, **values: Any) -> None:
        """Add an event; it is in the file's hands (not yet on disk) when this returns."""
        line = _line({"event": event, "time": round(time.time(), 3), "run": self._run} | values)
        for stream in filter(None, (self._file, self._echo)):
            print(line, file=stream, flush=True)


def _line(event: Mapping[str, Any]) -> str:
    """As people can read it; escaped where a path has bytes that are not UTF-8, so that it is read back the same."""
    line = json.dumps(event, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(event)
    return line


def _is_torn(path: Path) -> bool:
    """Whether the last line has no end."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


@dataclass(eq=False)
class Run:
    """One run as the journal tells it; of its clips only what tells how fast it is."""

    start: Mapping[str, Any]
    end: Mapping[str, Any] | None = None
    clips: int = 0
    first_clip: float = 0.0
    """When the first clip was done."""
    last_event: float = 0.0

    def take(self, event: Mapping[str, Any]) -> None:
        self.last_event = event["time"]
        if event["event"] == "clip":
            self.clips += 1
            self.first_clip = self.first_clip or event["time"]
        elif event["event"] == "end":
            self.end = event

    @property
    def is_running(self) -> bool:
        """Whether its process lives, as far as this machine can know."""
        if self.end is not None or self.start["host"] != platform.node():
            return False
        try:
            os.kill(int(self.start["pid"]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is of another machine and has not ended; it may have been killed there."""
        return self.end is None and self.start["host"] != platform.node()

    @property
    def clips_per_second(self) -> float:
        """Since the first one was done, whose time is mostly that of loading models; 0 where unknown."""
        seconds = self.last_event - self.first_clip
        return (self.clips - 1) / seconds if self.clips > 1 and seconds > 0 else 0.0


def who() -> dict[str, Any]:
    """What tells this process from others."""
    return {"pid": os.getpid(), "host": platform.node()}


def runs(workdir: Path) -> list[Run]:
    """All runs on a work folder, the oldest first. A line that was cut short by a crash is passed over."""
    return list(dict.fromkeys(run for run, _ in events(workdir)))


def events(workdir: Path) -> Iterator[tuple[Run, Mapping[str, Any]]]:
    """Every event with its run, as far as that is told by then: a journal may be longer than memory."""
    known: dict[str, Run] = {}
    latest: Run | None = None
    for event in _events(workdir / NAME):
        name = event.get("run", "")
        if event["event"] == "start":
            latest = known[name] = Run(event)
        if latest:
            run = known.get(name, latest)
            run.take(event)
            yield run, event


def _events(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(event, dict) and {"event", "time"} <= event.keys():
                yield event
