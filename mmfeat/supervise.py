"""Run a program of other makers so that nothing of it outlives the time it was given, nor the process that asked.

A worker may be killed from outside at any moment, and could not clean up then. So between it and the program stands
a small process of this file: it ends the program and everything that the program started, when its own standard input
is closed, which the system does for a worker that dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_FINISH_SECONDS = 20
_TAIL = 4096
"""Bytes of what a program printed that are kept."""


@dataclass(frozen=True)
class Ended:
    status: int | None
    """Exit status, negative for a signal; None where the time was up."""
    printed: str
    """The end of what it wrote to both outputs."""


def run(
    command: Sequence[str],
    folder: Path,
    seconds: float,
    environment: Mapping[str, str] | None = None,
    stop: Sequence[str] = (),
    scratch: Path | None = None,
) -> Ended:
    """Run a command in a folder for at most so many seconds; its standard input is empty.

    When this returns or raises, its processes are gone, also those that it left behind. `stop` is a command that is
    run too where it had to be killed: for what runs elsewhere on its behalf, such as a container. `scratch` is a folder
    that the caller removes; it is removed for a caller that was killed.
    """
    order = json.dumps({"command": list(command), "stop": list(stop), "scratch": str(scratch) if scratch else None})
    with tempfile.TemporaryFile() as output:  # no pipe, which a forgotten child could hold open
        keeper = subprocess.Popen(
            [sys.executable, "-I", __file__, order],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # Ctrl-C in the terminal is for the worker to handle
        )
        status: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = keeper.wait(seconds)
        finally:
            _close(keeper)
        return Ended(_signal(status), _tail(output))


def _close(keeper: subprocess.Popen[bytes]) -> None:
    assert keeper.stdin
    keeper.stdin.close()
    try:
        keeper.wait(_FINISH_SECONDS)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()


def _signal(status: int | None) -> int | None:
    """Shells and the keeper say 128 + n for signal n."""
    return 128 - status if status is not None and 128 < status < 192 else status


def _tail(output: IO[bytes]) -> str:
    output.seek(max(0, output.seek(0, os.SEEK_END) - _TAIL))
    return output.read().decode("utf-8", errors="replace")


def _keep(order: dict[str, Any]) -> int:
    """What the process between does. Returns the program's exit status."""
    try:
        program = subprocess.Popen(order["command"], stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{order['command'][0]}: {error.strerror}", flush=True)
        return 127
    killing = threading.Event()
    watch = threading.Thread(target=_kill_at_end_of_input, args=(program, order, killing), daemon=True)
    watch.start()
    status = program.wait()
    if killing.is_set():
        watch.join()
    _kill_group(program.pid)
    return 128 - status if status < 0 else status


def _kill_at_end_of_input(program: subprocess.Popen[bytes], order: dict[str, Any], killing: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    killing.set()
    for process in _descendants(program.pid):  # also those that have left its group
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    _kill_group(program.pid)
    if order["stop"]:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(order["stop"], stdin=subprocess.DEVNULL, timeout=_FINISH_SECONDS / 2, check=False)
    if order["scratch"]:
        shutil.rmtree(order["scratch"], ignore_errors=True)


def _descendants(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    code = _keep(json.loads(sys.argv[1]))
    os._exit(code)  # the thread that waits has nothing to clean up
