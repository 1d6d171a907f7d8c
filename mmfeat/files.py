"""Files that are either whole or not there."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write to a temporary file beside `path`, then put it in place: readers see the old file or the whole new one.

    The content is on disk (fsync) before it takes its name; the temporary file has the same ending. On an exception
    nothing is left behind. Folders above `path` are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # some writers make private files; colleagues share the folder
        temporary.replace(path)
    finally:
        with suppress(OSError):  # or it would hide what went wrong
            temporary.unlink(missing_ok=True)


def user_cache() -> Path:
    """The folder of what can be made again: `mmfeat` in the user's cache folder, as the platform has it."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "mmfeat"
