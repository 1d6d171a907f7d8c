"""Where independent trainings run: in this process, in processes of this machine, or on a Dask cluster.

Each is a `concurrent.futures.Executor` with the number of trainings that it runs at a time.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, NamedTuple, TypeVar

from cmc.config import UsageError

T = TypeVar("T")
_CONNECT_SECONDS = 10


class Pool(NamedTuple):
    executor: Executor
    slots: int


@contextmanager
def pool(workers: int = 1, scheduler: str | None = None) -> Iterator[Pool]:
    """This process for one worker, `workers` new processes, or those of the Dask scheduler at address `scheduler`.

    What still runs when the block is left is given up. Raises UsageError where no scheduler answers.
    """
    if scheduler is None and workers == 1:
        yield Pool(_Here(), 1)
        return
    with _cluster(scheduler) if scheduler else _processes(workers) as client:
        executor = client.get_executor(pure=False)
        try:
            yield Pool(executor, sum(client.nthreads().values()))
        finally:
            executor.shutdown(wait=False)


class _Here(Executor):
    """Runs a call when it is submitted, and raises there and then what it raises."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def _processes(workers: int) -> Iterator[Any]:
    import dask.config
    from distributed import Client, LocalCluster

    settings = {
        "distributed.worker.memory.target": False,  # a training leaves nothing in Dask's memory to spill
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
    }
    # Ctrl-C in a terminal goes to every process of the group; workers are ended by this one. Starting the resource
    # tracker would unblock the signal, so it must be running before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with (
            dask.config.set(settings),
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield client
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    from distributed import Client

    try:
        client = Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Dask scheduler answers at {address}: {error}") from None
    with client:
        if not client.nthreads():
            raise UsageError(f"the scheduler at {address} has no workers; start some: dask worker {address}")
        if missing := [worker for worker, found in client.run(_has_cmc).items() if not found]:
            raise UsageError(f"this package is not installed on the workers {', '.join(missing)}")
        yield client


def _has_cmc() -> bool:
    import importlib.util

    return importlib.util.find_spec("cmc") is not None
