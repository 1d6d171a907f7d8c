"""Where work is done in parallel: new processes of this machine, or those of a Dask scheduler that is already running.

What both extraction and tuning need of Dask; which tasks there are is theirs to say.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

ALLOWED_FAILURES = 2
"""A task that was running on this many workers when they died may be innocent; on one more, it is given up."""

WORKER_ENVIRONMENT = {
    # One process per core is the parallelism; libraries that start a thread per core on top only get in each
    # other's way. Set before a worker starts, because most of them read it once, when they are loaded.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # A worker that its task has killed is restarted and the task accounted for; Dask's own lines about it would only
    # tear the progress bar.
    "DASK_LOGGING__DISTRIBUTED": "critical",
}

SETTINGS = {
    "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
    # A worker deep in one long task may hold the interpreter for minutes without a heartbeat. It is not dead.
    "distributed.scheduler.worker-ttl": "2 hours",
    # Tasks leave nothing in Dask's memory, so there is nothing to spill, and a paused worker would never be woken.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    # Nobody looks at the stacks that Dask samples a hundred times a second; a millisecond of CPU per clip.
    "distributed.worker.profile.enabled": False,
    # Nor do they need to know fifty times a second whether an event loop is late. Memory is looked at as often as our
    # own watchdog does, which sees nothing while a library holds the interpreter.
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.worker.memory.monitor-interval": "200ms",
}

CONNECT_SECONDS = 10
STARTS = 3
"""Attempts to start the processes of this machine."""


class SchedulerError(RuntimeError):
    """No Dask scheduler answers at the address given, or its workers cannot do the work."""


def default_workers() -> int:
    """One per core that this process may use (affinity and container limits counted)."""
    from dask.system import CPU_COUNT

    return CPU_COUNT


@contextmanager
def local(workers: int, environment: Mapping[str, str] | None = None, preload: str | None = None) -> Iterator[Client]:
    """A client of `workers` new processes, one thread each, which end with the block.

    Args:
        workers: processes to start.
        environment: more environment variables of theirs.
        preload: module whose `dask_setup` each process calls when it starts.

    Raises SchedulerError.
    """
    import dask.config
    from distributed import Client

    for name in environment or ():
        os.environ.pop(name, None)  # Dask leaves them here, and would prefer those of the cluster before
    silence()  # here; WORKER_ENVIRONMENT does it in the workers
    settings: dict[str, Any] = {
        **SETTINGS,
        # Not given as the cluster's `env`: Dask sets that only after the new process has loaded numpy.
        "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT | dict(environment or {}),
        "distributed.worker.preload": [preload] if preload else [],
    }
    with (
        dask.config.set(settings),
        interrupts_held_back(),
        _started(workers) as cluster,
        Client(cluster) as client,
        interrupts_let_through(),
    ):
        yield client


def _started(workers: int) -> LocalCluster:
    """Dask replaces a process that dies, but not one that dies while the first ones start: then all are started again.

    Raises SchedulerError when that happens every time.
    """
    from distributed import LocalCluster

    def start() -> LocalCluster:
        return LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0")

    for _ in range(STARTS - 1):
        with suppress(RuntimeError):
            return start()
    try:
        return start()
    except RuntimeError as error:
        raise SchedulerError(f"{workers} worker processes cannot be started: {error}") from error


@contextmanager
def remote(address: str) -> Iterator[Client]:
    """A client of the Dask scheduler at `address`. Raises SchedulerError where none answers, or it has no workers."""
    from distributed import Client

    silence()
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise SchedulerError(f"no Dask scheduler answers at {address}: {error}") from None
    with client:
        if not client.nthreads():
            raise SchedulerError(no_workers(address))
        check_workers(client)
        yield client


def no_workers(address: str) -> str:
    return f"the scheduler at {address} has no workers; start some: dask worker {address} --nthreads 1"


def silence() -> None:
    """Dask's own lines about what goes wrong: it is said in one line, or mended."""
    import logging

    # The last one is the event loop's: a connection that is closed while somebody listens is an error to it.
    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def check_workers(client: Client) -> None:
    """Raises SchedulerError for workers without this package, or with another version of it."""
    try:
        found = client.run(_version)
    except (ImportError, RuntimeError) as error:
        raise SchedulerError(f"workers cannot load mmfeat {_version()}: {error}") from None
    if differing := {worker: version for worker, version in found.items() if version != _version()}:
        raise SchedulerError(f"mmfeat is {_version()} here, but on workers: {differing}")


def _version() -> str:
    from mmfeat import __version__

    return __version__


# Ctrl-C in a terminal goes to every process of the group. Workers must not see it, or the tasks that the client waits
# for never end. A blocked signal stays blocked in the threads and processes started meanwhile, also in those that the
# cluster's thread starts later in place of a dead worker; a handler set inside a worker would come too late for its
# first second.


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Processes that are started inside do not see Ctrl-C, ever; this one does when it comes out."""
    # Starting multiprocessing's resource tracker unblocks SIGINT as a side effect, so it must be running before.
    resource_tracker.ensure_running()
    with _signal_mask(signal.SIG_BLOCK):
        yield


@contextmanager
def interrupts_let_through() -> Iterator[None]:
    with _signal_mask(signal.SIG_UNBLOCK):
        yield


@contextmanager
def _signal_mask(how: int) -> Iterator[None]:
    before = signal.pthread_sigmask(how, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
