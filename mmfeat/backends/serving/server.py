"""Serves one backend to the mmfeat process that started this one: clip after clip, frame after frame.

A request is answered before the next one comes: `hello` by `ready`, each `frame` of a `clip` by `seen`, `end` by
`values` and `valid`. Any error is answered by `failed` and ends the process, so that no clip inherits another's damage.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib.metadata import version
from typing import Any, BinaryIO, Protocol

import numpy as np
from wire import PROTOCOL, Message, WireError, receive, send


class MissingError(Exception):
    """Something that every clip needs is not there, weights say; the message holds the command that gets it."""


class Backend(Protocol):
    """Made from the extractor's settings; raises MissingError where weights are not there."""

    names: tuple[str, ...]

    def __init__(self, settings: dict[str, Any]) -> None: ...

    @staticmethod
    def load() -> None:
        """Import what is served, so that a broken installation shows."""

    def start(self) -> None:
        """A new clip: forget everything of the last one."""

    def frame(self, image: np.ndarray, start: float, end: float) -> None:
        """One RGB picture (height, width, 3) and when it is shown, in seconds."""

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Values (T, D) of the clip's T frames, and where they are valid (T,)."""


def serve(backend: type[Backend]) -> None:
    requests, answers = _take_pipes()
    try:
        _serve(backend, requests, answers)
    except (BrokenPipeError, WireError):
        sys.exit(1)  # mmfeat has gone
    except Exception as error:  # noqa: BLE001 - whatever it is, mmfeat shall be told
        traceback.print_exc()
        kind = "missing" if isinstance(error, MissingError) else "failed"
        said = str(error) if kind == "missing" else f"{type(error).__name__}: {error}"
        send(answers, kind, message=said)
        sys.exit(1)


def _serve(backend: type[Backend], requests: BinaryIO, answers: BinaryIO) -> None:
    hello = receive(requests)
    if hello is None:
        return
    if hello.kind != "hello" or hello.fields.get("protocol") != PROTOCOL:
        raise ValueError(f"asked in protocol {hello.fields.get('protocol')}, this is {PROTOCOL}")
    backend.load()
    versions = {package: version(package) for package in hello.fields["packages"]}
    if hello.fields["probe"]:
        send(answers, "ready", protocol=PROTOCOL, versions=versions, names=[])
        return
    serving = backend(hello.fields["settings"])
    send(answers, "ready", protocol=PROTOCOL, versions=versions, names=list(serving.names))
    while (request := receive(requests)) is not None:
        _answer(serving, request, answers)


def _answer(serving: Backend, request: Message, answers: BinaryIO) -> None:
    if request.kind == "clip":
        serving.start()
    elif request.kind == "frame" and request.array is not None:
        serving.frame(request.array, request.fields["start"], request.fields["end"])
        send(answers, "seen")
    elif request.kind == "end":
        values, valid = serving.finish()
        send(answers, "values", np.asarray(values, np.float32))
        send(answers, "valid", np.asarray(valid, bool))
    else:
        raise ValueError(f"no request {request.kind!r}")


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for the protocol alone.

    Whatever the backend prints, in Python or in C, goes to standard error, and its children inherit neither pipe.
    """
    requests, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers
