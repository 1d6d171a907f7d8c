"""Many trainings whose results are compared: each result is a file, and is read back instead of being made again."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cmc.cluster import Pool
from cmc.config import DivergedError, UsageError
from cmc.training import Report, silent
from mmfeat.files import atomic

Result = dict[str, Any]
"""What cmc.trial.trial returns."""
Progress = Callable[[str], AbstractContextManager[Report]]
"""Called with a label for every training that runs in this process."""


@dataclass(frozen=True)
class Training:
    """One training of a comparison."""

    row: str
    """Of the table; it has as many trainings as there are seeds."""
    seed: int
    what: Mapping[str, Any]
    """All that the result depends on, as JSON; it is stored with the result."""
    train: Callable[[Report], Result]
    """Runs it. Picklable where workers are to run it. Raises KeyboardInterrupt on Ctrl-C."""

    @property
    def file(self) -> str:
        """Name of the result's file."""
        return f"{self.row.replace(' ', '_').replace(',', '').replace('%', 'pc')}-{self.seed}.json"


class Results(NamedTuple):
    results: dict[str, list[Result]]
    """Row of the table → one result per seed."""
    left_out: dict[str, str]
    """Row of the table → why there is none."""


def nothing_shown(label: str) -> AbstractContextManager[Report]:
    return nullcontext(silent)


def gather(
    trainings: Iterable[Training], folder: Path, progress: Progress = nothing_shown, workers: Pool | None = None
) -> Results:
    """Results of all `trainings`, out of `folder` or made now and stored there.

    A row that cannot be trained is left out; so is one that diverges with any seed: a mean over the others would
    flatter it. With `workers`, as many trainings as it has slots run at a time, and a line says when one is done.
    Ctrl-C drops what runs, and keeps what is done.
    """
    folder.mkdir(parents=True, exist_ok=True)  # what is wrong with it is said before anything is trained
    todo = list(trainings)
    found = {training.file: stored for training in todo if (stored := _stored(folder, training)) is not None}
    left_out: dict[str, str] = {}
    missing = [training for training in todo if training.file not in found]
    made = _here(missing, progress, left_out) if workers is None else _there(missing, workers, left_out)
    for training, result in made:
        found[training.file] = dict(training.what) | result
        with atomic(folder / training.file) as path:
            path.write_text(json.dumps(found[training.file], indent=1), encoding="utf-8")
    rows: dict[str, list[Result]] = {}
    for training in todo:
        if training.row not in left_out:
            rows.setdefault(training.row, []).append(found[training.file])
    return Results(rows, left_out)


def _here(missing: list[Training], progress: Progress, left_out: dict[str, str]) -> Iterable[tuple[Training, Result]]:
    for training in missing:
        if training.row in left_out:
            continue
        try:
            with progress(f"{training.row}, seed {training.seed}: ") as report:
                result = training.train(report)
        except UsageError as error:
            left_out[training.row] = _why(training, error)
            continue
        yield training, result


def _there(missing: list[Training], workers: Pool, left_out: dict[str, str]) -> Iterable[tuple[Training, Result]]:
    began = time.monotonic()
    waiting = iter(missing)
    running: dict[Future[Result], Training] = {}

    def submit(count: int) -> None:
        for training in waiting:
            if training.row in left_out:
                continue
            running[workers.executor.submit(functools.partial(training.train, silent))] = training
            if len(running) >= count:
                return

    submit(workers.slots)
    done = 0
    while running:
        future = next(as_completed(running))
        training = running.pop(future)
        submit(workers.slots)
        done += 1
        left = (time.monotonic() - began) / done * (len(missing) - done)
        print(f"{done} of {len(missing)}: {training.row}, seed {training.seed}; {left:.0f} s left", file=sys.stderr)
        try:
            result = future.result()
        except UsageError as error:
            left_out[training.row] = _why(training, error)
            continue
        yield training, result


def _why(training: Training, error: UsageError) -> str:
    return f"seed {training.seed}: {error}" if isinstance(error, DivergedError) else str(error)


def digest(path: Path | None) -> str | None:
    """sha256 of a file's content. Raises FileNotFoundError."""
    if path is None:
        return None
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stored(folder: Path, training: Training) -> Result | None:
    """The training's result, if its file is whole, and of the same config and files."""
    path = folder / training.file
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not {"clips", "cmc", "majority", "recovered"} <= result.keys():
            raise ValueError("parts are missing")
    except (ValueError, AttributeError) as error:  # of JSON and of UTF-8 are ValueErrors
        print(f"{path} is damaged ({error}): trained again", file=sys.stderr)
        return None
    return result if all(result.get(key) == value for key, value in training.what.items()) else None
