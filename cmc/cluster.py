"""Where independent trainings run: in this process, in processes of this machine, or on a Dask cluster.

Each is a `concurrent.futures.Executor` with the number of trainings that it runs at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple, TypeVar

from mmfeat.dask_client import local, remote

T = TypeVar("T")
_one_at_a_time = Lock()


class Pool(NamedTuple):
    executor: Executor
    slots: int


@contextmanager
def pool(workers: int = 1, scheduler: str | None = None) -> Iterator[Pool]:
    """This process for one worker, `workers` new processes, or those of the Dask scheduler at address `scheduler`.

    What still runs when the block is left is given up. Raises SchedulerError where no scheduler answers.
    """
    if scheduler is None and workers == 1:
        yield Pool(_Here(), 1)
        return
    with remote(scheduler) if scheduler else local(workers) as client:
        executor = client.get_executor(pure=False)
        try:
            yield Pool(executor, sum(client.nthreads().values()))
        finally:
            executor.shutdown(wait=False)


@contextmanager
def alone(threads: int, device: str = "cpu") -> Iterator[str]:
    """One training at a time in this process, with so many threads of torch: random states and thread counts are a
    process's, and a cluster's worker may have many threads. Gives the device that it is to use, see `own_device`."""
    import torch

    with _one_at_a_time:
        torch.set_num_threads(threads)
        yield own_device(device)


def own_device(device: str) -> str:
    """Where this process is to compute: of `cuda`, the GPU whose turn it is among the workers of `pool`.

    Any other name stays as it is. So does `cuda` in this process, and on a cluster that others have set up: which GPU a
    worker sees is theirs to say (CUDA_VISIBLE_DEVICES).
    """
    import torch
    from distributed import get_worker

    try:
        worker = get_worker().name
    except ValueError:  # this process is none
        return device
    gpus = torch.cuda.device_count()
    # Workers of this machine are numbered; those of others have their addresses for names, or what was chosen.
    return f"cuda:{worker % gpus}" if device == "cuda" and gpus and isinstance(worker, int) else device


class _Here(Executor):
    """Runs a call when it is submitted, and raises there and then what it raises."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future
