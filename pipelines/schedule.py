"""Many independent tasks on a Dask cluster, a bounded number of them at a time, each costing at most
itself."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from distributed import Client, Future

Item = TypeVar("Item")
Result = TypeVar("Result")

WINDOW = 2
"""Tasks that every worker thread has at least: one that runs and one that waits, so that none is idle between two."""
TOGETHER = 2
"""Tasks that are submitted at a time, or one for every second thread: the scheduler works as long for one as for a
few. It never holds more than these and the window."""
LOOKS = 5.0
"""Seconds between two looks at how many workers there are: on a cluster they come one by one."""


@dataclass(frozen=True)
class Crashed:
    """The worker process died of this task, every time."""

    times: int

    def __str__(self) -> str:
        return f"crashed the worker process {self.times} times"


@dataclass
class Stop:
    """Set by Ctrl-C: nothing new is started, what runs is finished."""

    requested: bool = False


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: its result, the exception its task raised, or that it killed its worker."""

    item: Item
    result: Result | None = None
    error: BaseException | None = None
    crashed: Crashed | None = None


def run_each(
    client: Client,
    task: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    stop: Stop | None = None,
    resources: Mapping[str, float] | None = None,
) -> Iterator[Outcome[Item, Result]]:
    """Run `task` on every item; yield outcomes as they come, so in no particular order.

    When a worker dies, Dask suspects every task that it held. Those that were present at too many deaths are
    tried again at the end, one at a time with nothing else running, so that only the guilty ones are given
    up. Where `stop` is requested, items that were not yet started have no outcome. `resources` are what each task
    needs of its worker, by Dask's names.
    """
    from distributed import KilledWorker, as_completed

    stop = stop or Stop()
    waiting = iter(items)
    running: dict[Future, Item] = {}
    suspects: list[Item] = []

    def submit(these: list[Item]) -> list[Future]:
        """In one message to the scheduler, whatever their number."""
        return client.map(task, these, pure=False, resources=dict(resources) if resources else None)

    looked, threads = -math.inf, 1

    def submit_next() -> list[Future]:
        """As many as there is room for."""
        nonlocal looked, threads
        if time.monotonic() - looked > LOOKS:
            looked, threads = time.monotonic(), max(1, sum(client.nthreads().values()))
        together = max(TOGETHER, threads // 2)
        room = WINDOW * threads + together - len(running)
        if stop.requested or room < together:
            return []
        these = list(islice(waiting, room))
        started = submit(these)
        running.update(zip(started, these, strict=True))
        return started

    # Results come along with the news that they are there; asking for each costs a millisecond.
    completed = as_completed(submit_next(), with_results=True, raise_errors=False)
    for batch in completed.batches():
        outcomes = [_outcome(future, running.pop(future), KilledWorker, result) for future, result in batch]
        for future, _ in batch:
            future.release()
        completed.update(submit_next())
        suspects += [outcome.item for outcome in outcomes if outcome.crashed]
        yield from (outcome for outcome in outcomes if not outcome.crashed)

    for item in suspects:
        if stop.requested:
            return
        [future] = submit([item])
        error = future.exception()
        yield _outcome(future, item, KilledWorker, None if error else future.result())


def _outcome(future: Future, item: Any, killed: type[BaseException], result: Any) -> Outcome[Any, Any]:
    """What became of a future that is done; `result` means nothing where it failed."""
    if future.status == "finished":
        return Outcome(item, result=result)
    error = future.exception()
    if isinstance(error, killed):
        return Outcome(item, crashed=Crashed(error.allowed_failures + 1))  # type: ignore[attr-defined]
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
