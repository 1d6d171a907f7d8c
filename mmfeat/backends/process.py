"""A backend's process: started at the first clip, asked clip by clip, ended and replaced when anything goes wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mmfeat.backends import Backend, BackendError
from mmfeat.backends import environment as environments
from mmfeat.backends.serving.wire import PROTOCOL, Message, WireError, receive, send
from mmfeat.registry import MissingBackendError
from mmfeat.supervise import Keeper
from mmfeat.track import Frame, Track

_LAST_LINES = 3
_END_SECONDS = 10
_FINISH_SECONDS_PER_FRAME = 0.2
# What would lead another Python to our packages; and one thread, as for every extractor: processes are the parallelism,
# and the last digits of sums depend on the number of threads.
_UNSET = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")
_SET = {
    "PYTHONNOUSERSITE": "1",
    "PYTHONUNBUFFERED": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",
}


def probe(backend: Backend, python: Path) -> dict[str, str]:
    """Versions of its packages, once all of them could be imported. Raises BackendError where they cannot."""
    with contextlib.closing(_Process(backend, python)) as process:
        return process.hello({}, probe=True).fields["versions"]


class Server:
    """One backend with one set of settings. Its process is started at the first clip and reused.

    `names` are the columns that are expected of it.
    """

    def __init__(self, backend: Backend, settings: dict[str, Any], names: tuple[str, ...]):
        self._backend, self._settings, self.names = backend, settings, names
        self._process: _Process | None = None

    def __call__(self, frames: Iterable[Frame]) -> Track:
        """One row per frame.

        A failure costs this clip: the process and its children are killed, and the next clip gets a new one. Raises
        BackendError with the backend's last words, MissingBackendError where it lacks something that every clip needs.
        """
        times: list[tuple[float, float]] = []
        process = None
        try:
            for frame in frames:
                if process is None:
                    process = self._started()
                    process.start_clip()
                process.frame(frame, len(times))
                times.append((frame.start, frame.end))
            if process is None:
                return Track.empty(self.names)
            values, valid = process.finish(len(times))
            return self._track(np.array(times, np.float64), values, valid)
        except BaseException:
            self.close()  # also where the frames themselves could not be decoded: it waits for more of them
            raise

    def close(self) -> None:
        if self._process:
            self._process.close()
        self._process = None

    def _started(self) -> _Process:
        if self._process is None or not self._process.is_alive():
            self.close()
            backend = self._backend
            self._process = _Process(backend, environments.interpreter(backend))
            ready = self._process.hello(self._settings)
            _check_versions(backend, ready.fields["versions"])
            if tuple(ready.fields["names"]) != self.names:
                raise BackendError(f"{backend.name} gives other columns than expected: {ready.fields['names'][:5]} …")
        return self._process

    def _track(self, times: NDArray[np.float64], values: NDArray[Any], valid: NDArray[Any]) -> Track:
        name = self._backend.name
        if values.shape != (len(times), len(self.names)) or valid.shape != (len(times),):
            raise BackendError(f"{name} gave {values.shape} values and {valid.shape} states for {len(times)} frames")
        values = np.where(valid[:, None], values, 0).astype(np.float32)
        if bad := [self.names[k] for k in np.flatnonzero(~np.isfinite(values).all(axis=0))]:
            raise BackendError(f"{name} gave numbers that are not finite in {', '.join(bad[:5])}")
        return Track(times, values, valid.astype(bool), self.names)


def _check_versions(backend: Backend, versions: dict[str, str]) -> None:
    """The pins are part of the fingerprint, so that nothing else may answer. Local parts (`+cpu`) name builds."""
    for package in backend.packages:
        pinned, found = backend.pins[package.lower()], versions.get(package, "none")
        if found.partition("+")[0] != pinned:
            raise MissingBackendError(
                f"the environment of {backend.name!r} has {package} {found}, not {pinned}: "
                f"mmfeat backends install {backend.name}"
            )


class _Process:
    """A started process, its two pipes, and the last lines of what it writes to standard error."""

    def __init__(self, backend: Backend, python: Path):
        self._backend = backend
        self._expired = ""
        inherited = {name: value for name, value in os.environ.items() if name not in _UNSET}
        pipe = subprocess.PIPE
        try:
            self._keeper = Keeper(inherited | _SET, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise BackendError(f"{backend.name} could not be started: {error}") from None
        self._process = self._keeper.process  # its pipes are the program's
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._listener = threading.Thread(target=_listen, args=(self._process.stderr, self._lines), daemon=True)
        self._listener.start()
        self._keeper.start([str(python), str(backend.script)])

    def is_alive(self) -> bool:
        return self._keeper.wait(0) is None

    def close(self) -> None:
        """End it: at once, with its children."""
        self._keeper.close()
        self._listener.join(1)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def hello(self, settings: dict[str, Any], probe: bool = False) -> Message:
        fields: dict[str, Any] = {
            "protocol": PROTOCOL,
            "settings": settings,
            "packages": self._backend.packages,
            "probe": probe,
        }
        with self._within(self._backend.start_seconds, "to start"):
            self._send("hello", **fields)
            ready = self._receive("ready", "while it started")
        if ready.fields.get("protocol") != PROTOCOL:
            raise BackendError(
                f"{self._backend.name} answers in protocol {ready.fields.get('protocol')}, not {PROTOCOL}"
            )
        return ready

    def start_clip(self) -> None:
        with self._within(self._backend.frame_seconds, "to start a clip"):
            self._send("clip")

    def frame(self, frame: Frame, index: int) -> None:
        with self._within(self._backend.frame_seconds, f"for frame {index}"):
            self._send("frame", frame.image, start=frame.start, end=frame.end)
            self._receive("seen", f"at frame {index}")

    def finish(self, frames: int) -> tuple[NDArray[Any], NDArray[Any]]:
        seconds = self._backend.frame_seconds + frames * _FINISH_SECONDS_PER_FRAME
        with self._within(seconds, f"for the rows of {frames} frames"):
            self._send("end")
            values = self._receive("values", "after the last frame").array
            valid = self._receive("valid", "after the last frame").array
        if values is None or valid is None:
            raise BackendError(f"{self._backend.name} gave no rows")
        return values, valid

    def _send(self, kind: str, array: NDArray[Any] | None = None, **fields: Any) -> None:
        assert self._process.stdin
        # Where it has ended, the answer that it may have left says why.
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            send(self._process.stdin, kind, array, **fields)  # type: ignore[arg-type]

    def _receive(self, kind: str, when: str) -> Message:
        name = self._backend.name
        try:
            message = receive(self._process.stdout)  # type: ignore[arg-type]
        except WireError as error:
            raise BackendError(f"{name} broke the protocol {when}: {error}{self._last_words()}") from None
        if self._expired:
            raise BackendError(f"{name} needed {self._expired}: killed{self._last_words()}")
        if message is None:
            raise BackendError(f"{name} {self._ending()} {when}{self._last_words()}")
        if message.kind == "missing":
            raise MissingBackendError(self._advice(str(message.fields["message"])))
        if message.kind == "failed":
            raise BackendError(f"{name} failed {when}: {message.fields['message']}")
        if message.kind != kind:
            raise BackendError(f"{name} answered {message.kind!r} instead of {kind!r} {when}")
        return message

    def _advice(self, missing: str) -> str:
        command = self._backend.weights(environments.environment(self._backend))
        return f"{missing}: {command}" if command else missing

    @contextmanager
    def _within(self, seconds: float, what: str) -> Iterator[None]:
        """Kill the process when this takes longer; reads and writes that wait for it then end by themselves."""
        timer = threading.Timer(seconds, self._expire, args=(f"more than {seconds:g} s {what}",))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _expire(self, why: str) -> None:
        self._expired = why
        self._keeper.close()

    def _ending(self) -> str:
        status = self._keeper.wait(_END_SECONDS)
        self._keeper.close()
        if status is None:
            return "closed its pipe"
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(-status).name}"
        return f"ended with status {status}"

    def _last_words(self) -> str:
        self._listener.join(1)
        return f"; it last said: {' | '.join(self._lines)}" if self._lines else ""


def _listen(stream: IO[bytes], lines: deque[str]) -> None:
    """Keep the last lines, read to the end so that nobody waits for a full pipe."""
    rest = b""
    with contextlib.suppress(ValueError, OSError):  # closed under our hands
        while chunk := stream.read(1 << 16):
            *whole, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
            lines.extend(text for line in whole if (text := _readable(line)))
            rest = rest[-1000:]
    if text := _readable(rest):
        lines.append(text)


def _readable(line: bytes) -> str:
    return " ".join(line.decode(errors="replace").split())[:300]
