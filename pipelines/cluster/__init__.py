"""Where clips are worked on: processes of this machine, a Dask scheduler that is already running, or jobs of a batch
system."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client, Worker

    from pipelines.cluster.jobs import ClusterFile

ALLOWED_FAILURES = 2
"""A task that was running on this many workers when they died may be innocent; on one more, it is given
up."""

WORKER_ENVIRONMENT = {
    # One process per core is the parallelism; libraries that start a thread per core on top only get in each
    # other's way. Set before a worker starts, because most of them read it once, when they are loaded.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # A worker that a clip has killed is restarted and the clip accounted for; Dask's own lines about it would
    # only tear the progress bar.
    "DASK_LOGGING__DISTRIBUTED": "critical",
}

CONNECT_SECONDS = 10
_LOG_VARIABLE = "MMFEAT_WORKER_LOG"

SETTINGS = {
    "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
    # A worker deep in one long clip may hold the interpreter for minutes without a heartbeat. It is not dead.
    "distributed.scheduler.worker-ttl": "2 hours",
    # Clips leave nothing in Dask's memory, so there is nothing to spill, and a paused worker would never be
    # woken.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
}


class SchedulerError(RuntimeError):
    """No Dask scheduler answers at the address given, or it has no workers."""


def default_workers() -> int:
    """One per core that this process may use (affinity and container limits counted)."""
    from dask.system import CPU_COUNT

    return CPU_COUNT


@contextmanager
def connect(
    workers: int, scheduler: str | None = None, log: Path | None = None, jobs: ClusterFile | None = None
) -> Iterator[Client]:
    """A client of `scheduler` (an address such as tcp://host:8786), of a batch system's `jobs`, or of `workers` new
    processes here.

    What the new processes write to standard error goes to the file `log`: decoders and model runtimes print there as
    they like, right across the progress bar.

    Raises SchedulerError.
    """
    with _batch(jobs) if jobs else _remote(scheduler) if scheduler else _local(workers, log) as client:
        yield client


@contextmanager
def _local(workers: int, log: Path | None) -> Iterator[Client]:
    import logging

    import dask.config
    from distributed import Client, LocalCluster

    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # here; WORKER_ENVIRONMENT does it in the workers
    environment = dict(WORKER_ENVIRONMENT)
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        environment[_LOG_VARIABLE] = str(log.resolve())
    # The environment is not given as the cluster's `env`: Dask sets that only after the new process has loaded numpy.
    settings = {"distributed.nanny.pre-spawn-environ": environment, "distributed.worker.preload": [__name__]}
    with (
        dask.config.set(SETTINGS | settings),
        _interrupts_held_back(),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
        _interrupts_let_through(),
    ):
        yield client


def dask_setup(worker: Worker) -> None:
    """Called by Dask in every worker process that `_local` starts, because this module is its preload."""
    if log := os.environ.get(_LOG_VARIABLE):
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(file, sys.stderr.fileno())
        os.close(file)
        faulthandler.enable()  # a crash leaves the line of Python that it happened in


@contextmanager
def _remote(address: str) -> Iterator[Client]:
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise SchedulerError(f"no Dask scheduler answers at {address}: {error}") from None
    with client:
        if not thread_count(client):
            raise SchedulerError(f"the scheduler at {address} has no workers; start some: dask worker {address}")
        _check_workers(client)
        yield client


@contextmanager
def _batch(file: ClusterFile) -> Iterator[Client]:
    import dask.config
    from distributed import Client

    from pipelines.cluster.jobs import start

    with dask.config.set(SETTINGS), start(file) as cluster, Client(cluster) as client:
        print(f"{file.jobs} jobs are submitted; clips start with the first that runs", file=sys.stderr)
        client.wait_for_workers(1)
        _check_workers(client)
        yield client


def _check_workers(client: Client) -> None:
    """Refuse workers that would make other features than this process, or none."""
    try:
        found = client.run(_mmfeat_version)
    except (ImportError, RuntimeError) as error:
        raise SchedulerError(f"workers cannot load mmfeat {_mmfeat_version()}: {error}") from None
    if differing := {worker: version for worker, version in found.items() if version != _mmfeat_version()}:
        raise SchedulerError(f"mmfeat is {_mmfeat_version()} here, but on workers: {differing}")


def _mmfeat_version() -> str:
    from mmfeat import __version__

    return __version__


def thread_count(client: Client) -> int:
    """Clips that can be worked on at the same time."""
    return sum(client.nthreads().values())


# Ctrl-C in a terminal goes to every process of the group. Workers must not see it, or the clips that the
# client waits for never end. A blocked signal stays blocked in the threads and processes started meanwhile,
# also in those that the cluster's thread starts later in place of a dead worker; a handler set inside a
# worker would come too late for its first second.


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    # Starting multiprocessing's resource tracker unblocks SIGINT as a side effect, so it must be running
    # before.
    resource_tracker.ensure_running()
    with _signal_mask(signal.SIG_BLOCK):
        yield


@contextmanager
def _interrupts_let_through() -> Iterator[None]:
    with _signal_mask(signal.SIG_UNBLOCK):
        yield


@contextmanager
def _signal_mask(how: int) -> Iterator[None]:
    before = signal.pthread_sigmask(how, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
