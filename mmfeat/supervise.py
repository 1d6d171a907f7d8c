"""Run a program of other makers so that nothing of it outlives the time it was given, nor the process that asked.

A worker may be killed from outside at any moment, and could not clean up then. So between it and the program stands
a small process, the keeper: see `keeper`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from mmfeat import keeper

_FINISH_SECONDS = 30
_LONGEST = 2e6
"""Seconds that can be waited for at once."""
_TAIL = 4096
"""Bytes of what a program printed that are kept."""


@dataclass(frozen=True)
class Ended:
    status: int | None
    """Exit status, negative for a signal; None where the time was up."""
    printed: str
    """The end of what it wrote to both outputs."""


class Keeper:
    """Starts one program, and ends it and all that it started: at its own end, at ours, and when it is closed.

    A context manager. With a `prefix` it owns a temporary folder from the beginning, so that what is put there before
    the program starts goes too if we are killed. `streams` are the program's, as `subprocess.Popen` takes them.
    """

    def __init__(self, environment: Mapping[str, str], prefix: str = "", **streams: Any):
        self.scratch = Path(tempfile.mkdtemp(prefix=prefix)) if prefix else None
        self._line, theirs = socket.socketpair()
        self._answer: int | None = None
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", keeper.__file__, str(theirs.fileno()), str(self.scratch or "")],
                    env=environment,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C in the terminal is for the worker to handle
                    **streams,
                )
        except BaseException:
            self._line.close()
            if self.scratch:
                self.scratch.rmdir()
            raise
        weakref.finalize(self, _end, self._line, self.process, self.scratch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """When this returns, the program and its processes are gone, and the scratch folder. Any thread may call it."""
        _end(self._line, self.process, self.scratch)

    def start(self, command: Sequence[str], folder: Path | None = None, stop: Sequence[str] = ()) -> None:
        """`stop` is a command that is run where the program had to be killed: for what runs elsewhere on its behalf,
        such as a container."""
        order = {"command": list(command), "folder": str(folder) if folder else None, "stop": list(stop)}
        with contextlib.suppress(OSError):  # a keeper that has gone is seen by `wait`
            self._line.sendall(json.dumps(order).encode() + b"\n")

    def wait(self, seconds: float) -> int | None:
        """The program's exit status, negative for a signal, its processes gone; None where the time was up."""
        if self._answer is None:
            try:
                self._line.settimeout(min(max(seconds, 1e-3), _LONGEST))
                said = self._line.recv(64)
            except TimeoutError:
                return None
            except OSError:
                said = b""
            self._answer = int(said) if said else -signal.SIGKILL  # the keeper was ended, and the program with it
        return self._answer

    def run(self, command: Sequence[str], folder: Path, seconds: float, stop: Sequence[str] = ()) -> Ended:
        """Run a command for at most so many seconds; then, or where this raises, its processes are gone."""
        tail = _Tail(self.process.stdout)
        try:
            self.start(command, folder, stop)
            status = self.wait(seconds)
        except BaseException:
            self.close()
            raise
        if status is None:
            self.close()
        return Ended(status, tail.text())


def keeper_of(environment: Mapping[str, str] | None = None, prefix: str = "") -> Keeper:
    """A keeper for `run`: the program's input is empty, and of its output only the end is kept."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return Keeper({**os.environ, **(environment or {})}, prefix, **streams)


def run(
    command: Sequence[str],
    folder: Path,
    seconds: float,
    environment: Mapping[str, str] | None = None,
    stop: Sequence[str] = (),
) -> Ended:
    """Run a command in a folder for at most so many seconds. When this returns or raises, its processes are gone."""
    with keeper_of(environment) as keeper:
        return keeper.run(command, folder, seconds, stop)


def _end(line: socket.socket, process: subprocess.Popen[bytes], scratch: Path | None) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_WR)  # not closed: another thread may be waiting for the answer
    try:
        process.wait(_FINISH_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)  # where the keeper itself was killed


class _Tail:
    """The end of what comes out of a pipe, all of which is read so that nobody waits for a full one."""

    def __init__(self, pipe: IO[bytes] | None):
        assert pipe
        self._kept = b""
        self._reader = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._reader.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            while said := os.read(pipe.fileno(), 1 << 16):
                self._kept = (self._kept + said)[-_TAIL:]

    def text(self) -> str:
        self._reader.join(1)  # whoever may hold the pipe still, on a system where orphans cannot be found
        return self._kept.decode("utf-8", errors="replace")
