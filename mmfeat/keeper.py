"""Stands between a process of ours and a program of other makers, so that nothing of the program stays behind.

`supervise` runs this file as a script, with the standard library alone: once a program runs, ending it must not depend
on what can be imported. Both hold an end of a line, a socket. Ours sends one order, a line of JSON; the answer is the
program's exit status. The system closes our end when our process dies, however it dies; then the program is ended with
everything that it started, and the scratch folder is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

if sys.platform != "linux":
    import psutil  # here, before a program runs: Linux tells who is whose child by files

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_END_SECONDS = 10
"""For the processes to be gone, and for the command that stops what runs elsewhere."""


def main(line: int, scratch: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as where the line is closed
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # whoever is left by its parents, as daemons are, becomes our child
    try:
        if order := _order(line):
            status = _keep(order, line)
            if status is not None:
                os.write(line, str(status).encode())
            while os.read(line, 1024):  # the caller may need the scratch folder
                pass
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _order(line: int) -> Any:
    """None where our process ended before it gave one."""
    said = b""
    while not said.endswith(b"\n"):
        if not (more := os.read(line, 1 << 16)):
            return None
        said += more
    return json.loads(said)


def _keep(order: dict[str, Any], line: int) -> int | None:
    """Run the program to its end, or to that of the line. Returns its exit status, negative for a signal."""
    woken = _child_ends()
    try:
        program = subprocess.Popen(
            order["command"],
            cwd=order["folder"],
            start_new_session=True,
            preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # where this process itself is killed
        )
    except OSError as error:
        print(f"{order['command'][0]}: {error.strerror}", file=sys.stderr, flush=True)
        return 127
    status = None
    try:
        _leave_streams()
        status = _wait(program.pid, line, woken)
        return status
    finally:
        try:
            _end_all(program.pid)
        finally:
            if status is None and order["stop"]:
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    subprocess.run(order["stop"], cwd=order["folder"], timeout=_END_SECONDS, check=False)


def _child_ends() -> int:
    """A file descriptor that can be read whenever a child of ours has ended."""
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return woken


def _leave_streams() -> None:
    """They are the program's: whoever reads or writes their other ends shall see that it has gone."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)


def _wait(program: int, line: int, woken: int) -> int | None:
    """The program's exit status; None where the line was closed first."""
    while True:
        ready = select.select([line, woken], [], [])[0]
        if line in ready and not os.read(line, 1024):
            return None
        if woken in ready:
            os.read(woken, 1024)
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == program:
                return os.waitstatus_to_exitcode(ended[1])


def _end_all(group: int) -> None:
    """Kill every process that descends from this one, again and again until there is none, and the program's group."""
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
        for process in _descendants(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _descendants(ancestor: int) -> set[int]:
    parents, found = _parents(), {ancestor}
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {ancestor}


def _parents() -> dict[int, int]:
    """Process → its parent, of all processes."""
    if sys.platform != "linux":
        return {process.pid: process.info["ppid"] for process in psutil.process_iter(["ppid"])}
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_bytes()
                found[int(entry.name)] = int(stat.rpartition(b")")[2].split()[1])  # its name may hold anything
    return found


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
