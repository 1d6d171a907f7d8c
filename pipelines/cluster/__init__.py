"""Where clips are worked on: processes of this machine, a Dask scheduler that is already running, or jobs of a batch
system."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mmfeat.dask_client import SETTINGS, check_workers, local, remote, silence

if TYPE_CHECKING:
    from distributed import Client, Worker

    from pipelines.cluster.jobs import ClusterFile

_LOG_VARIABLE = "MMFEAT_WORKER_LOG"


@contextmanager
def connect(
    workers: int, scheduler: str | None = None, log: Path | None = None, jobs: ClusterFile | None = None
) -> Iterator[Client]:
    """A client of `scheduler` (an address such as tcp://host:8786), of a batch system's `jobs`, or of `workers` new
    processes here.

    What the new processes write to standard error goes to the file `log`: decoders and model runtimes print there as
    they like, right across the progress bar. Where bokeh is installed, the address of Dask's dashboard is said.

    Raises SchedulerError.
    """
    with _batch(jobs) if jobs else remote(scheduler) if scheduler else _local(workers, log) as client:
        if find_spec("bokeh"):  # without it the page is there, and empty
            print(f"Dask's dashboard: {client.dashboard_link}", file=sys.stderr)
        yield client


@contextmanager
def _local(workers: int, log: Path | None) -> Iterator[Client]:
    environment = {}
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        environment[_LOG_VARIABLE] = str(log.resolve())
    with local(workers, environment, preload=__name__) as client:
        yield client


def dask_setup(worker: Worker) -> None:
    """Called by Dask in every worker process that `_local` starts, because this module is its preload."""
    if log := os.environ.get(_LOG_VARIABLE):
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(file, sys.stderr.fileno())
        os.close(file)
        faulthandler.enable()  # a crash leaves the line of Python that it happened in


@contextmanager
def _batch(file: ClusterFile) -> Iterator[Client]:
    import dask.config
    from distributed import Client

    from pipelines.cluster.jobs import start

    silence()
    with dask.config.set(SETTINGS), start(file) as cluster, Client(cluster) as client:
        print(f"{file.jobs} jobs are submitted; clips start with the first that runs", file=sys.stderr)
        client.wait_for_workers(1)
        check_workers(client)
        yield client
