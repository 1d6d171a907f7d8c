"""Many independent tasks on a Dask cluster, a bounded number of them at a time, each costing at most
itself."""

from __future__ import annotations

import copy
import math
import pickle
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import length_hint
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mmfeat.dask_client import SchedulerError

if TYPE_CHECKING:
    from distributed import Client, Future, as_completed

Item = TypeVar("Item")
Result = TypeVar("Result")

WINDOW = 2
"""Tasks that every worker thread has at least: one that runs and one that waits, so that none is idle between two."""
TOGETHER = 2
"""Tasks that are submitted at a time, or one for every second thread: the scheduler works as long for one as for a
few. It never holds more than these and the window."""
LOOKS = 5.0
"""Seconds between two looks at how many workers there are: on a cluster they come one by one."""
TASK_SECONDS, MOST_ITEMS = 2.0, 16
"""A task is so many items as take this long: Dask works as long for a short task as for a long one."""
_WAITS = 0.1
"""Seconds between two looks at whether the user wants to stop."""


@dataclass(frozen=True)
class Crashed:
    """The worker process died of this task, every time."""

    times: int

    def __str__(self) -> str:
        return f"crashed the worker process {self.times} times"


@dataclass
class Stop:
    """Set by Ctrl-C: nothing new is begun, what runs is finished."""

    requested: bool = False


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: its result, the exception its task raised, or that it killed its worker."""

    item: Item
    result: Result | None = None
    error: BaseException | None = None
    crashed: Crashed | None = None


class _NotBegun:
    """In place of a result, after `stop` was requested."""


@dataclass(frozen=True)
class _Raised:
    """In place of a result."""

    error: Exception


_stopped: set[str] = set()
"""On a worker: the runs of which it begins nothing more."""


def _stop_here(run: str) -> None:
    _stopped.add(run)


def _do(run: str, task: Callable[[Item], Result], items: Sequence[Item]) -> _Done[Result]:
    """Runs on a worker, which alone knows what has begun."""
    results: list[Result | _NotBegun | _Raised] = []
    began = time.monotonic()
    for item in items:
        if run in _stopped:
            results.append(_NotBegun())
            continue
        try:
            results.append(task(item))
        except Exception as error:  # noqa: BLE001 - it is the client's to judge
            results.append(_Raised(_fit_to_travel(error)))
    return _Done(results, time.monotonic() - began)


def _fit_to_travel(error: Exception) -> Exception:
    """The error, or what it says of itself where it cannot be pickled: that would hold up all that travels with it."""
    try:
        pickle.dumps(error)
        copy.copy(error)  # is made anew as from a pickle
    except Exception:  # noqa: BLE001 - anything may be in it
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@dataclass(frozen=True)
class _Done(Generic[Result]):
    """What a worker says of one task."""

    results: list[Result | _NotBegun | _Raised]
    """One per item."""
    seconds: float


def run_each(
    client: Client,
    task: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    stop: Stop | None = None,
    resources: Mapping[str, float] | None = None,
    waiting: Callable[[int], None] = lambda threads: None,
) -> Iterator[Outcome[Item, Result]]:
    """Run `task` on every item; yield outcomes as they come, so in no particular order.

    Items that take little time are sent several at a time. `task` must see for itself what was done before: when a
    worker dies, all that it held is begun again elsewhere. Those that were held at too many deaths are tried again at
    the end, one at a time with nothing else running, so that only the guilty ones are given up. Where `stop` is
    requested, items that were not yet begun have no outcome. `resources` are what each task needs of its worker, by
    Dask's names. `waiting` is told every few seconds how many threads all workers have.

    Raises SchedulerError where the scheduler goes.
    """
    from distributed import as_completed

    stop = stop or Stop()
    items = iter(items)
    running: dict[Future, Sequence[Item]] = {}
    suspects: list[Item] = []
    done, seconds = 0.0, 0.0
    link = _Link(client, stop, waiting)
    do = partial(_do, link.run, task)

    def submit(tasks: Sequence[Sequence[Item]]) -> list[Future]:
        """In one message to the scheduler, whatever their number."""
        needs = dict(resources) if resources else None
        started = client.map(do, tasks, key=task.__name__, pure=False, resources=needs)
        running.update(zip(started, tasks, strict=True))
        return started

    def submit_next() -> list[Future]:
        """As many as there is room for."""
        together = max(TOGETHER, link.threads // 2)
        most = WINDOW * max(1, link.threads) + together
        room = most - len(running)
        if stop.requested or room < together:
            return []
        pace = int(TASK_SECONDS * done / max(seconds, 1e-9))
        # Towards the end, no worker is to be busy with many while others have none.
        share = length_hint(items, MOST_ITEMS * 2 * most) // (2 * most)
        several = max(1, min(MOST_ITEMS, pace, share))
        tasks = (tuple(islice(items, several)) for _ in range(room))
        return submit([some for some in tasks if some])

    def outcomes(batch: list[tuple[Future, Any]]) -> Iterator[Outcome[Item, Result]]:
        nonlocal done, seconds
        for future, result in batch:
            some = running.pop(future)
            if future.status == "finished":
                done, seconds = done / 2 + len(some), seconds / 2 + result.seconds  # what comes is like the latest
                for item, found in zip(some, result.results, strict=True):
                    if isinstance(found, _Raised):
                        yield Outcome(item, error=found.error)
                    elif not isinstance(found, _NotBegun):
                        yield Outcome(item, result=found)
            elif len(some) > 1:
                suspects.extend(some)
            else:
                yield _failure(future, some[0])
            future.release()

    link.look()
    # Results come along with the news that they are there; asking for each costs a millisecond.
    completed = as_completed(submit_next(), with_results=True, raise_errors=False)
    for batch in link.arrivals(completed):
        found = list(outcomes(batch))
        completed.update(submit_next())
        suspects += [outcome.item for outcome in found if outcome.crashed]
        yield from (outcome for outcome in found if not outcome.crashed)

    for item in suspects:
        if stop.requested:
            return
        for batch in link.arrivals(as_completed(submit([[item]]), with_results=True, raise_errors=False)):
            yield from outcomes(batch)


class _Link:
    """What the client sees of the scheduler and its workers, and tells them, during one run."""

    def __init__(self, client: Client, stop: Stop, waiting: Callable[[int], None]):
        self.run = uuid.uuid4().hex
        self.threads = 1
        self._client, self._stop, self._waiting = client, stop, waiting
        self._address = client.scheduler_info()["address"]
        self._looked, self._told = -math.inf, False

    def arrivals(self, completed: as_completed) -> Iterator[list[tuple[Future, Any]]]:
        """What is done, as it comes; in between, the rest is looked after."""
        while not completed.is_empty():
            self.look()
            if self._stop.requested and not self.threads:
                return  # nobody is there to finish anything
            if not completed.has_ready():
                with completed.thread_condition:
                    completed.thread_condition.wait(_WAITS)
            batch = completed.next_batch(block=False)
            if self._client.status == "closed" or any(future.cancelled() for future, _ in batch):
                raise SchedulerError(f"the scheduler at {self._address} is gone; the same command continues")
            if batch:
                yield batch

    def look(self) -> None:
        """How many workers there are, now and then; where `stop` was requested they are told."""
        if self._client.status != "running":
            return
        if time.monotonic() - self._looked > LOOKS:
            self._looked, self._told = time.monotonic(), False  # there may be new ones
            self.threads = sum(self._client.nthreads().values())
            self._waiting(self.threads)
        if self._stop.requested and not self._told:
            self._told = True
            # Not waited for: a worker whose library holds the interpreter answers no one.
            threading.Thread(target=self._tell, daemon=True).start()

    def _tell(self) -> None:
        with suppress(Exception):  # a run may end meanwhile
            self._client.run(_stop_here, self.run, on_error="ignore")


def _failure(future: Future, item: Any) -> Outcome[Any, Any]:
    """What became of a task of one item that has no result."""
    from distributed import KilledWorker

    error = future.exception()
    if isinstance(error, KilledWorker):
        return Outcome(item, crashed=Crashed(error.allowed_failures + 1))
    return Outcome(item, error=error)


@contextmanager
def stop_on_interrupt(announce: Callable[[], None] = lambda: None) -> Iterator[Stop]:
    """The first Ctrl-C asks to stop when what runs is finished, and calls `announce`; the second raises
    KeyboardInterrupt."""
    stop = Stop()

    def interrupted(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        announce()

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
