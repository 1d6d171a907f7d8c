"""Files of word vectors, GloVe's and word2vec's text form, read once into an index that is mapped into memory.

A file of two million words takes a minute to parse and gigabytes to hold. Its index takes no time to open and no memory
but that of the vectors which are used, in however many processes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tempfile
import zipfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from mmfeat.files import user_cache
from mmfeat.registry import MissingBackendError
from mmfeat.track import Floats

_VERSION = 2
"""Of the index; an older one is made again."""


class VectorsError(MissingBackendError):
    """The file is not there or is not one of word vectors."""


class WordVectors:
    """Word → vector, and their mean."""

    def __init__(self, folder: Path):
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        shape = (about["words"], about["columns"])
        self.columns = shape[1]
        self._keys = np.load(folder / "keys.npy", mmap_mode="r")
        self._rows = np.load(folder / "rows.npy", mmap_mode="r")
        self._vectors = np.memmap(folder / "vectors.f32", np.float32, "r", shape=shape)
        self.mean: Floats = np.load(folder / "mean.npy")

    def __len__(self) -> int:
        return len(self._vectors)

    def __contains__(self, word: str) -> bool:
        return self._find(word) is not None

    def get(self, word: str) -> Floats | None:
        """Shape (D,); None for a word that the file lacks."""
        row = self._find(word)
        return None if row is None else np.array(self._vectors[row])

    def _find(self, word: str) -> int | None:
        key = _key(word.encode())
        place = int(np.searchsorted(self._keys, np.uint64(key)))
        return int(self._rows[place]) if place < len(self._keys) and int(self._keys[place]) == key else None


def open_vectors(path: Path, member: str = "") -> WordVectors:
    """The vectors of a text file, plain, gzipped or in a zip archive, of which `member` is the file meant.

    The index lies in the user's cache folder, made at the first call; processes that make it at once do not disturb
    each other. Raises VectorsError, and OSError where the file cannot be read.
    """
    stat = path.stat()
    made_from = f"{_VERSION}\n{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{member}"
    folder = user_cache() / "vectors" / hashlib.sha256(made_from.encode()).hexdigest()[:32]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
        try:
            _make_index(path, member, making)
            if not folder.is_dir():
                making.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return WordVectors(folder)


def _make_index(path: Path, member: str, folder: Path) -> None:
    keys = array("Q")
    columns, promised = 0, 0
    total: np.ndarray = np.zeros(0)
    with _opened(path, member) as file, (folder / "vectors.f32").open("wb") as vectors:
        for number, line in _lines(file, path):
            parts = _parts(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)  # a byte order mark
            if number == 1 and len(parts) == 2 and all(part.isdigit() for part in parts):
                promised, columns = map(int, parts)  # word2vec's header: words and columns
                continue
            columns = columns or len(parts) - 1
            # From the right: GloVe 840B has words with blanks in them.
            try:
                values = np.array(parts[-columns:], np.float32)
            except ValueError:
                values = np.zeros(0, np.float32)
            # The most frequent word has no blank: what is left of a header's columns there is a number too many.
            too_long = promised and not keys and len(parts) > columns + 1
            if (
                not columns
                or too_long
                or len(parts) <= columns
                or not np.isfinite(values).all()
                or len(values) != columns
            ):
                what = line[:40].decode("utf-8", "replace")
                raise VectorsError(f"{path}, line {number}: not a word and {columns} numbers: {what!r}")
            keys.append(_key(b" ".join(parts[:-columns])))
            vectors.write(values.tobytes())
            total = values.astype(np.float64) + (total if len(total) else 0.0)
    if not keys:
        raise VectorsError(f"{path} holds no word vectors")
    if promised and promised != len(keys):
        raise VectorsError(
            f"{path} has {len(keys)} words, its first line says {promised}: it is not whole, get it again"
        )
    found = np.frombuffer(keys, np.uint64)
    unique, rows = np.unique(found, return_index=True)  # of a word that stands there twice, the first
    np.save(folder / "keys.npy", unique)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "mean.npy", (total / len(keys)).astype(np.float32))
    (folder / "about.json").write_text(json.dumps({"words": len(keys), "columns": columns, "file": str(path)}))


def _lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    while True:
        try:
            line = file.readline()
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            raise VectorsError(f"{path} breaks off after line {number}: {error}") from None
        if not line:
            return
        number += 1
        if line := line.rstrip(b" \t\r\n"):
            yield number, line


def _parts(line: bytes) -> list[bytes]:
    """A line at its runs of blanks and tabs. Not `split()`: the word of a line may be empty, or a control character."""
    word, *rest = line.replace(b"\t", b" ").split(b" ")
    return [word, *filter(None, rest)]


@contextmanager
def _opened(path: Path, member: str) -> Iterator[IO[bytes]]:
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as file:
            yield file  # type: ignore[misc]
    elif path.suffix.lower() == ".zip":
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise VectorsError(f"{path} is no readable zip archive: {error}") from None
        with archive:
            names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
            chosen = [name for name in names if name == member] if member else names
            if len(chosen) != 1:
                raise VectorsError(f"{path}: choose one file in it as `member`: {', '.join(names)}")
            with archive.open(chosen[0]) as file:
                yield file
    else:
        with path.open("rb") as file:
            yield file


def _key(word: bytes) -> int:
    """64 bits that stand for a word: among millions, two share theirs with a chance of one in ten million."""
    return int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little")
