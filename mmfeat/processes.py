"""What all our pools of processes need."""

from __future__ import annotations

import multiprocessing
import os
import threading


def depend_on_parent() -> None:
    """To be called in a child that `multiprocessing` started: when the parent dies, however it dies, this process does.
    It would wait for work for ever."""

    def outlive_nobody() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=outlive_nobody, daemon=True).start()
