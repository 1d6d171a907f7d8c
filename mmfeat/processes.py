"""Work in processes of this machine that need no Dask."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor


def pool(workers: int) -> ProcessPoolExecutor:
    """Processes that are started anew, since a copy of this one would have its locks, held or not, but no threads to
    let go of them. When this one dies, however it dies, they do: they would wait for work for ever."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_depend_on_parent)


def _depend_on_parent() -> None:
    def outlive_nobody() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=outlive_nobody, daemon=True).start()
