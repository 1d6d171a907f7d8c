"""OpenFace's CSV files, of both generations, → the rows of one face.

OpenFace 2 writes `frame, face_id, timestamp, confidence, success` and up to 709 measurements; before it there was no
`face_id`, and neither eye landmarks nor gaze angles. What spreadsheets make of such a file (semicolons, decimal
commas, a byte order mark) is read too.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmfeat.extractors.openface_columns import COLUMNS
from mmfeat.media import MediaError

Person = Literal["largest", "longest"]
_NEEDED = ("frame", "timestamp", "confidence", "success")
_NOT_FINITE = re.compile(r"[+-]?(nan(\(\w*\))?|inf(inity)?|1\.#\w+)", re.IGNORECASE)
"""Ways in which C libraries write what is no number: nan, -nan(ind), inf, -1.#IND."""
_VECTORS, _ANGLES = COLUMNS["gaze"][:6], COLUMNS["gaze"][6:]
_MOST_GAPS = 1000
"""Frames without a row that are believed for each row that there is."""
_NAMED = 3


class CsvError(MediaError):
    """A file is not a complete CSV of OpenFace; the message names the file, the line and the cause."""


@dataclass(frozen=True, eq=False)
class FaceRows:
    """One face in every frame from the first of the video to the last that has a row, T in all."""

    timestamps: NDArray[np.float64]
    """Shape (T,): OpenFace's own, the frame's index over the frame rate; interpolated for frames without a row."""
    values: NDArray[np.float32]
    """Shape (T, D); zero where not valid."""
    valid: NDArray[np.bool_]
    """Shape (T,): the face was found, with the confidence asked for, and every value is finite."""
    gaps: bool
    """Whether some frame has no row at all, as where only found faces are written."""


def read(
    path: Path, names: Sequence[str], confidence: float = 0.0, person: Person = "largest", most: int | None = None
) -> FaceRows:
    """The columns `names` of one face, of `most` frames at most. Raises CsvError.

    Of several faces (`face_id`), the one that is largest over the whole file or seen longest is taken; in frames where
    it is not valid, the next in this order. Of two valid rows for one face and frame, the first counts.
    """
    try:
        table = _Table.of(path, names)
    except UnicodeDecodeError:
        raise CsvError(f"{path} is no text file") from None
    except OSError as error:
        raise CsvError(f"{path} cannot be read ({error.strerror})") from None
    except csv.Error as error:
        raise CsvError(f"{path}: {error}") from None
    first = min(1, int(table.frames[0]))  # OpenFace counts from 1
    count = int(table.frames[-1]) - first + 1
    if most is not None and count > most:
        raise CsvError(f"{path} ends with frame {table.frames[-1]}, more than there can be")
    if count > _MOST_GAPS * len(table.frames):
        raise CsvError(f"{path} ends with frame {table.frames[-1]}, but has {len(table.frames)} rows")
    with np.errstate(invalid="ignore", over="ignore"):
        values = table.values.astype(np.float32)
        valid = (table.success == 1) & (table.confidence >= confidence) & np.isfinite(values).all(axis=1)
    rows, found = np.zeros((count, len(names)), np.float32), np.zeros(count, bool)
    for face in _ranked(table, valid, person):  # the one to take comes last
        own = np.flatnonzero(valid & (table.faces == face))[::-1]
        places = table.frames[own] - first
        rows[places], found[places] = values[own], True
    seen, at = np.unique(table.frames, return_index=True)
    timestamps = _timestamps(np.arange(first, first + count), seen, table.timestamps[at])
    return FaceRows(timestamps, rows, found, gaps=len(seen) < count)


def _timestamps(
    frames: NDArray[np.int64], seen: NDArray[np.int64], timestamps: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Those of all frames from those that have a row; before the first, at the file's own rate."""
    all_of_them = np.interp(frames, seen, timestamps)
    if missing := int(seen[0] - frames[0]):
        step = (timestamps[-1] - timestamps[0]) / max(1, seen[-1] - seen[0])
        all_of_them[:missing] = np.round(timestamps[0] - step * np.arange(missing, 0, -1), 9)
    return all_of_them


@dataclass(frozen=True, eq=False)
class _Table:
    """What the file says, N rows."""

    frames: NDArray[np.int64]
    """Not falling."""
    faces: NDArray[np.float64]
    timestamps: NDArray[np.float64]
    confidence: NDArray[np.float64]
    success: NDArray[np.float64]
    sizes: NDArray[np.float64]
    """Of the face in the image; NaN where the file does not say."""
    values: NDArray[np.float64]

    @classmethod
    def of(cls, path: Path, names: Sequence[str]) -> _Table:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = max(",;\t", key=header.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            columns = [name.strip() for name in next(reader, [])]
            while columns and not columns[-1]:
                columns.pop()
            computed = _ANGLES if set(_VECTORS) <= set(columns) and not set(_ANGLES) <= set(columns) else ()
            _check(path, columns, [name for name in names if name not in computed])
            helpers = [name for name in ("face_id", *_SIZED_BY, *(_VECTORS if computed else ())) if name in columns]
            others = {*helpers, *(name for name in names if name not in computed)}
            wanted = [*_NEEDED, *sorted(others, key=columns.index)]
            lines = _rows(path, reader, columns, wanted, decimal_comma=delimiter != ",")
            table = np.array(list(lines), np.float64).reshape(-1, len(wanted))
        if not len(table):
            raise CsvError(f"{path} has a header but no rows")
        column = dict(zip(wanted, table.T, strict=True))
        if computed:
            column |= dict(
                zip(_ANGLES, _gaze_angles(np.stack([column[name] for name in _VECTORS], axis=1)), strict=True)
            )
        return cls(
            column["frame"].astype(np.int64),
            column.get("face_id", np.zeros(len(table))),
            column["timestamp"],
            column["confidence"],
            column["success"],
            _sizes(column),
            np.stack([column[name] for name in names], axis=1),
        )


def _check(path: Path, columns: Sequence[str], names: Sequence[str]) -> None:
    if missing := [name for name in _NEEDED if name not in columns]:
        raise CsvError(f"{path} is no CSV of OpenFace's FeatureExtraction: it lacks the column {', '.join(missing)}")
    if twice := [name for name in set(columns) if columns.count(name) > 1]:
        raise CsvError(f"{path} has the column {twice[0]} more than once")
    if missing := [name for name in names if name not in columns]:
        groups = [group for group, members in COLUMNS.items() if set(members) & set(missing)]
        there = [group for group, members in COLUMNS.items() if set(members) - set(_ANGLES) <= set(columns)]
        more = ", …" if len(missing) > _NAMED else ""
        raise CsvError(
            f"{path} lacks {len(missing)} columns ({', '.join(missing[:_NAMED])}{more}) of {', '.join(groups)}; "
            f"`columns` can be {', '.join(there) or 'none'}"
        )


def _rows(
    path: Path, reader: Iterator[list[str]], columns: Sequence[str], wanted: Sequence[str], decimal_comma: bool
) -> Iterator[NDArray[np.float64]]:
    """The wanted cells of each line as numbers; frames are whole and do not fall."""
    pick = itemgetter(*(columns.index(name) for name in wanted))
    last = -1.0
    for line, (cells, is_last) in enumerate(_with_last(reader), 2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) < len(columns):
            end = "is cut off: its last line" if is_last else f"is damaged: line {line}"
            raise CsvError(f"{path} {end} has {len(cells)} of {len(columns)} values")
        if any(cell.strip() for cell in cells[len(columns) :]):
            raise CsvError(f"{path}, line {line}: {len(cells)} values under {len(columns)} names")
        chosen = pick(cells)
        if decimal_comma:
            chosen = [cell.replace(",", ".") for cell in chosen]
        try:
            if "_" in "".join(chosen):
                raise ValueError("Python's way to group digits")
            numbers = list(map(float, chosen))
        except ValueError:
            numbers = [_number(cell, path, line, name) for cell, name in zip(chosen, wanted, strict=True)]
        frame = numbers[0]
        if not (frame.is_integer() and 0 <= frame < 2**53):
            raise CsvError(f"{path}, line {line}: frame is {chosen[0].strip()!r}, not a number of a frame")
        if frame < last:
            raise CsvError(f"{path}, line {line}: frame {frame:.0f} comes after frame {last:.0f}")
        last = frame
        yield np.array(numbers)


def _with_last(lines: Iterator[list[str]]) -> Iterator[tuple[list[str], bool]]:
    """Each line and whether it is the last."""
    before: list[str] | None = None
    for line in lines:
        if before is not None:
            yield before, False
        before = line
    if before is not None:
        yield before, True


def _number(cell: str, path: Path, line: int, name: str) -> float:
    try:
        return float(cell.replace("_", "no"))
    except ValueError:
        if _NOT_FINITE.fullmatch(cell.strip()):
            return np.nan
        raise CsvError(f"{path}, line {line}: {name} is {cell.strip()[:40]!r}, not a number") from None


def _gaze_angles(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shape (2, N) from both eyes' vectors (N, 6), as OpenFace 2 makes them."""
    x, y, z = (vectors[:, :3] + vectors[:, 3:]).T
    return np.stack([np.arctan2(x, -z), np.arctan2(y, -z)])


_SIZED_BY = ("p_scale", "pose_Tz", "x_0", "y_0", "x_16", "y_16")


def _sizes(column: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Something that grows with the face's area in the image, by the first of its measures that the file has."""
    if "p_scale" in column:
        return column["p_scale"] ** 2
    if {"x_0", "y_0", "x_16", "y_16"} <= set(column):  # both ends of the jaw
        return (column["x_16"] - column["x_0"]) ** 2 + (column["y_16"] - column["y_0"]) ** 2
    if "pose_Tz" in column:
        with np.errstate(divide="ignore"):
            return column["pose_Tz"] ** -2.0
    return np.full(len(column["frame"]), np.nan)


def _ranked(table: _Table, valid: NDArray[np.bool_], person: Person) -> list[float]:
    """The faces, the one to take last. Without any measure of size, that is the one seen longest."""
    sizes = np.where(valid & np.isfinite(table.sizes), table.sizes, 0.0)
    by_size = person == "largest" and sizes.any()
    weights = sizes if by_size else valid.astype(float)
    faces = np.unique(table.faces)[::-1]  # of equals, the one of the lowest number
    return sorted(faces, key=lambda face: weights[table.faces == face].sum())
