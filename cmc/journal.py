"""What training writes down after every epoch, so that a run that was killed goes on to the very same weights.

A stage's state lies in `unfinished/<stage>.pt` of the run folder: live and averaged weights, Adam's moments, label
states, what is kept as best, and every generator. It is read without unpickling code and replaced whole, so there is
always one that is good. The folder is there only as long as the run is not finished.
"""

from __future__ import annotations

import fcntl
import pickle
import random
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from cmc.board import Board
from cmc.run import RunError
from mmfeat.files import atomic

FOLDER = "unfinished"
SHARE = 0.05
"""Of the time, at most, that goes into writing: a state of gigabytes (a finetuned encoder's) skips short epochs."""

State = dict[str, Any]
"""Tensors and plain values in dicts, lists and tuples. `history` is a list with a row of figures per epoch."""


class Journal:
    """Keeps nothing: for training whose interruption costs little."""

    def restore(self, stage: str) -> State | None:
        """The stage's state after the last epoch that was written, on the CPU; generators are as they were then."""
        return None

    def write(self, stage: str, row: Mapping[str, float], state: Callable[[], State], last: bool) -> None:
        """To be called after every epoch, with its row of the history. `last` says that none follows."""


class RunJournal(Journal):
    """Journal of the run in `folder`, which it holds against other processes. Use as a context manager.

    Args:
        folder: of the run.
        conditions: what the weights depend on: `config`, `features`, and more by name. A state that was written under
            others is not gone on from.
        resume: go on from what is there; otherwise it is removed.
        board: where each epoch's figures go too.

    Raises RunError where conditions differ, a state is damaged, or another process trains this run.
    """

    def __init__(self, folder: Path, conditions: Mapping[str, Any], resume: bool, board: Board | None = None):
        self.folder, self.conditions = folder / FOLDER, dict(conditions)
        self.resume, self.board = resume, board
        self.seconds = 0.0
        """Of training before this process."""
        self._started = self._written = time.monotonic()
        self._cost = 0.0

    def __enter__(self) -> Self:
        self._made = not self.folder.parent.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise RunError(f"another process is training {self.folder.parent}") from None
        for path in self.folder.glob("*.pt"):
            # What a kill left half written starts with a dot.
            if not self.resume or path.name.startswith("."):
                path.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not any(self.folder.glob("*.pt")):
            self.remove()
        if self._made:
            with suppress(OSError):  # of a training that was refused nothing stays
                self.folder.parent.rmdir()
        self._lock.close()

    def remove(self) -> None:
        """The run is finished."""
        forget(self.folder.parent)

    def restore(self, stage: str) -> State | None:
        path = self.folder / f"{stage}.pt"
        if not path.is_file():
            return None
        saved = read(path)
        self._check(saved["conditions"])
        self.seconds = saved["seconds"]
        set_generators(saved["generators"])
        if self.board:
            for row in saved["state"]["history"]:
                self.board.row(stage, row)
        return saved["state"]

    def write(self, stage: str, row: Mapping[str, float], state: Callable[[], State], last: bool) -> None:
        if self.board:
            self.board.row(stage, row)
        started = time.monotonic()
        if not last and started - self._written < self._cost / SHARE:
            return
        with atomic(self.folder / f"{stage}.pt") as path:
            saved = {
                "conditions": self.conditions,
                "seconds": self.seconds + started - self._started,
                "generators": generators(),
                "state": state(),
            }
            torch.save(saved, path)
        self._written = time.monotonic()
        self._cost = self._written - started

    def _check(self, before: Mapping[str, Any]) -> None:
        """Raises RunError, saying what is other than when a state was written."""
        run, now = self.folder.parent, self.conditions
        anew = f"the unfinished run in {run} cannot go on: start anew with --overwrite, or"
        if before["config"] != now["config"]:
            ours, theirs = now["config"], before["config"]
            names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
            told = ", ".join(f"{name} {theirs.get(name)} there and {ours.get(name)} here" for name in names)
            raise RunError(f"{anew} give its own config ({told})")
        if before["features"] != now["features"]:
            raise RunError(f"{anew} give the feature file that it was training on; this one's content differs")
        for name in now:
            if before.get(name) != now[name]:
                raise RunError(f"{anew} use {name} {before.get(name)}: with {now[name]} the weights would differ")


def is_unfinished(folder: Path) -> bool:
    """Whether a run folder holds a state to go on from."""
    return any(not path.name.startswith(".") for path in (folder / FOLDER).glob("*.pt"))


def forget(folder: Path) -> None:
    """Remove the state of a run folder."""
    for path in (*(folder / FOLDER).glob("*.pt"), folder / FOLDER / "lock"):
        path.unlink(missing_ok=True)
    if (folder / FOLDER).is_dir():
        (folder / FOLDER).rmdir()


def read(path: Path) -> dict[str, Any]:
    """What `RunJournal.write` wrote. Raises RunError where the file is damaged, saying from where one can go on."""
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch does not compare the checksums that it writes
                raise zipfile.BadZipFile(f"checksum of {damaged}")
        return torch.load(path, weights_only=True, map_location="cpu")
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"{path} is damaged ({reason}): without that file, --resume goes on from the stage before, "
            "or from the start where there was none"
        ) from None


def generators() -> dict[str, Any]:
    """The state of every generator that a model may draw from."""
    legacy = np.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    numpy = legacy | {"state": legacy["state"] | {"key": torch.from_numpy(legacy["state"]["key"].astype(np.int64))}}
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": random.getstate(),
        "numpy": numpy,
    }


def set_generators(states: Mapping[str, Any]) -> None:
    """Put generators back to what `generators` gave."""
    torch.set_rng_state(states["torch"])
    for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):  # there may be fewer GPUs than then
        torch.cuda.set_rng_state(state, device)
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy = states["numpy"]
    np.random.set_state(numpy | {"state": numpy["state"] | {"key": numpy["state"]["key"].numpy().astype(np.uint32)}})
