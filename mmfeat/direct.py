"""Large arrays to their places in a file, past the system's page cache where it lets us (`O_DIRECT`).

For a file of many gigabytes that nobody reads soon the cache is a detour: its memory has to be found, and is missed by
what is read meanwhile. The disk wants whole pages from page boundaries, in memory as in the file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

PAGE = 4096
"""Bytes of which disks take multiples; some would take less."""


@dataclass(frozen=True)
class Place:
    """Where the rows of an array go."""

    offset: int
    """Of the first one, in bytes of the file."""
    shape: tuple[int, ...]
    """Of one."""
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def after(self, rows: int) -> Place:
        return replace(self, offset=self.offset + rows * self.size)


class Writer:
    """Gives arrays for places of a file that exists, and writes them there while the next ones are filled.

    A context manager, which waits for the last ones. `write`, and leaving, raise OSError for a full disk.
    """

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_WRONLY)
        self._direct: int | None = None
        if flag := getattr(os, "O_DIRECT", 0):  # not on every platform
            with suppress(OSError):  # nor on every disk
                self._direct = os.open(path, os.O_WRONLY | flag)
        self._thread = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None
        self._memory = [np.empty(0, np.uint8), np.empty(0, np.uint8)]
        """For the arrays that are filled, and for those that are written. Used again: to have memory from the system
        takes as long as to fill it."""
        self._arrays: list[tuple[int, NDArray[np.uint8]]] = []
        """Those that are filled, each with its byte of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.submit(self._close)  # behind all writing, also where a Ctrl-C ends the waiting
        self._thread.shutdown()
        if not kind:
            self._wait()

    def _close(self) -> None:
        os.close(self._file)
        if self._direct is not None:
            os.close(self._direct)

    def arrays(self, places: Mapping[str, Place], rows: int) -> dict[str, NDArray[Any]]:
        """For each place an array of so many rows, to be filled. Asked for again after `write`, which writes them."""
        if self._arrays:
            raise RuntimeError("the arrays before are not written")
        most = sum(rows * place.size + 2 * PAGE for place in places.values())
        if len(self._memory[0]) < most:
            self._memory[0] = np.empty(most, np.uint8)
        memory, used, found = self._memory[0], 0, {}
        for key, place in places.items():
            # As far from a page boundary as in the file.
            first = used + -(memory.ctypes.data + used) % PAGE + place.offset % PAGE
            used = first + rows * place.size
            found[key] = memory[first:used].view(place.dtype).reshape(rows, *place.shape)
            self._arrays.append((place.offset, memory[first:used]))
        return found

    def write(self) -> None:
        """Waits for what is being written, and raises OSError for it."""
        self._wait()
        self._running = self._thread.submit(self._write_all, self._arrays)
        self._arrays = []
        self._memory.reverse()

    def _wait(self) -> None:
        if self._running:
            self._running.result()

    def _write_all(self, arrays: list[tuple[int, NDArray[np.uint8]]]) -> None:
        for offset, array in arrays:
            data = array.data
            head = min(-offset % PAGE, len(data))
            pages = (len(data) - head) // PAGE * PAGE
            _write(self._file, data[:head], offset)
            done = head + self._past_cache(data[head : head + pages], offset + head)
            _write(self._file, data[done:], offset + done)

    def _past_cache(self, data: memoryview, offset: int) -> int:
        """How many bytes of these were written; none where the system does not let us."""
        done = 0
        while self._direct is not None and done < len(data):
            try:
                count = os.pwrite(self._direct, data[done:], offset + done)
            except OSError:
                count = 0
            if not count or count % PAGE:  # the rest goes through the cache, which says what is wrong
                break
            done += count
        return done


def _write(file: int, data: memoryview, offset: int) -> None:
    while len(data):
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count
