"""Files that are either whole or not there."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write to a temporary file beside `path`, then put it in place: readers see the old file or the whole new one.

    The content is on disk (fsync) before it takes its name; the temporary file has the same ending. On an exception
    nothing is left behind; after a kill see `clear_leftovers`. Folders above `path` are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # some writers make private files; colleagues share the folder
        temporary.replace(path)
    except OSError as error:
        if error.errno and error.filename is None:  # a full disk does not say for which file
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # or it would hide what went wrong
            temporary.unlink(missing_ok=True)


def clear_leftovers(path: Path) -> None:
    """Remove the temporary files of writers of `path` that were killed. Those of other machines, and of processes that
    live, stay."""
    import psutil

    if not path.parent.is_dir():
        return
    ours = re.compile(rf"\.{re.escape(path.stem)}\.{_host()}-(\d+)-[0-9a-f]{{12}}{re.escape(path.suffix)}")
    for beside in path.parent.iterdir():
        if (found := ours.fullmatch(beside.name)) and not psutil.pid_exists(int(found[1])):
            beside.unlink(missing_ok=True)


class Target(io.FileIO):
    """A file for HDF5 to write into, on a disk that may be full.

    HDF5 cannot close a file that it cannot write: it fails again and again, in the end in Python's own cleaning up. So
    what does not fit is swallowed, and `check` raises the OSError of the first write that did not.
    """

    def __init__(self, path: Path):
        super().__init__(path, "w+")
        self._failed: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while len(left) and not self._failed:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self._failed = error
        return size

    def check(self) -> None:
        if self._failed:
            raise self._failed


def _host() -> str:
    """This machine, in a few characters that any file system takes."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def user_cache() -> Path:
    """The folder of what can be made again: `mmfeat` in the user's cache folder, as the platform has it."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "mmfeat"
