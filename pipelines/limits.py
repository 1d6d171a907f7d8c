"""What one clip may cost a worker. A decoder that hangs, or a file that eats memory, costs itself and nothing else.

Nothing in Python can stop a library that hangs, so the worker process is ended: a watchdog first writes down why the
clip failed, then kills its own process. Dask starts another one; the clip's task, tried again there, finds the
failure in the store and is done.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

LOOKS = 0.2
"""Seconds between two looks of the watchdog."""
CHILDREN_LOOKS = 1.0
"""Seconds between two looks at what its children hold: every process of the machine is asked whose child it is."""
LEAST_BYTES = 500
"""Bytes per second below which no media file is believed: a length that is claimed may be a lie."""
HEADROOM = 0.9
"""Share of a worker's memory at which a clip is given up: before Dask ends the worker without knowing why."""
_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """Limits of one clip; each None or positive."""

    seconds: float = 120.0
    """Wall seconds that any clip may take, models loading included."""
    factor: float | None = 60.0
    """More wall seconds for each second of the clip. The default recipe needs about 0.1; None: no time limit."""
    memory: int | None = None
    """Bytes that the worker and its children may hold during a clip; None: `HEADROOM` of the worker's limit."""

    def time(self, length: float) -> float | None:
        """Wall seconds for a clip of `length` seconds."""
        return None if self.factor is None else self.seconds + self.factor * length


DEFAULT = Limits()


def believable_length(path: Path | None, start: float | None, end: float | None) -> float:
    """Seconds that a clip can have: by its row, or as the file claims, but no more than its size allows.

    0 where the file cannot be read; reading it will say why.
    """
    if end is not None:
        return end - (start or 0.0)
    if path is None:
        return 0.0
    import av
    import av.error

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            claimed = (container.duration or 0) / av.time_base
        return min(claimed, path.stat().st_size / LEAST_BYTES)
    except (av.error.FFmpegError, OSError, ValueError):
        return 0.0


@contextmanager
def watched(limits: Limits, give_up: Callable[[str], None]) -> Iterator[Callable[[float], None]]:
    """End this process when what runs inside takes too long or too much memory, after `give_up(reason)`.

    Gives a function that is to be told the clip's length once it is known.
    """
    watch = _Watch(limits, give_up)
    _DOG.add(watch)
    try:
        yield watch.allow
    finally:
        faulthandler.cancel_dump_traceback_later()
        _DOG.remove(watch)


class _Dog:
    """Looks at what is watched in this process, in one thread for its whole life: to start one for each clip would take
    half a millisecond of CPU."""

    def __init__(self) -> None:
        self._watches: list[_Watch] = []
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, watch: _Watch) -> None:
        with self._changing:
            self._watches.append(watch)
            if not self._thread:
                self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)
                self._thread.start()

    def remove(self, watch: _Watch) -> None:
        """Waits for a look that has begun: what is over is not given up."""
        with self._changing:
            self._watches.remove(watch)

    def _look(self) -> None:
        while True:
            time.sleep(LOOKS)
            with self._changing:
                for watch in self._watches:
                    try:
                        reason = watch.exceeded()
                    except Exception:  # noqa: BLE001 - what cannot be seen now can be in a moment
                        reason = ""
                    if reason:
                        try:
                            watch.give_up(reason)
                        finally:  # with a store that is full too
                            os.kill(os.getpid(), signal.SIGKILL)


_DOG = _Dog()


class _Watch:
    """One clip's limits, from now on."""

    def __init__(self, limits: Limits, give_up: Callable[[str], None]):
        self._limits, self.give_up = limits, give_up
        self._began = time.monotonic()
        self._memory = limits.memory or _share_of_worker()
        self._children, self._looked = 0, float("-inf")
        self.allow(0.0)

    def allow(self, length: float) -> None:
        """The clip is `length` seconds long."""
        self._seconds = self._limits.time(length)
        if self._seconds is not None:
            # The thread below cannot run while a library hangs without letting go of the interpreter. This one can.
            faulthandler.dump_traceback_later(2 * self._seconds, exit=True)

    def _of_children(self) -> int:
        if (now := time.monotonic()) - self._looked >= CHILDREN_LOOKS:
            self._children, self._looked = children_bytes(), now
        return self._children

    def exceeded(self) -> str:
        """What it has too much of; empty while it has not."""
        if self._seconds is not None and time.monotonic() - self._began > self._seconds:
            return f"took longer than {self._seconds:.0f} s (--time-limit)"
        if self._memory and (held := resident_bytes() + self._of_children()) > self._memory:
            return (
                f"needs more memory than a worker has: {held // _MEBIBYTE} of {self._memory // _MEBIBYTE} MiB "
                "(fewer --workers, or --memory-limit)"
            )
        return ""


def resident_bytes() -> int:
    """Memory that this process holds, without its children."""
    import psutil

    return psutil.Process().memory_info().rss


def children_bytes() -> int:
    """Memory that programs hold which this process has started, at any depth. What they share counts for each."""
    import psutil

    if not _has_children():
        return 0
    held = 0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            held += child.memory_info().rss
    return held


def _has_children() -> bool:
    """Free, where to ask every process whose child it is costs a millisecond, and thirty on a busy node."""
    if not hasattr(os, "waitid"):
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _share_of_worker() -> int | None:
    """The Dask worker's own limit, less some headroom; None outside of a worker and where it has none."""
    from distributed import get_worker

    try:
        limit = get_worker().memory_manager.memory_limit
    except ValueError:
        return None
    return int(HEADROOM * limit) if limit else None
