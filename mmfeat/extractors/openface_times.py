"""When the rows of OpenFace are shown: out of a CSV made earlier, during a cut, at another rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmfeat.corpus import Clip
from mmfeat.extractors.openface_csv import CsvError, FaceRows
from mmfeat.media import SHORT
from mmfeat.track import Track

Spans = NDArray[np.float64]
FASTER = 4
"""Rows that there may be for each picture: a file may have been converted to a higher rate. And so many times as long
may be what the timestamps say, of as many rows as there are pictures: they suppose a constant rate, at times a wrong
one."""


def spans_of(file: Path, found: FaceRows, shown: Sequence[float], media: str) -> Spans:
    """Start and end of a CSV's rows in the media file, shape (T, 2): also of pictures at its end without a face, where
    only faces are written.

    Its timestamps suppose a constant frame rate. Where it has as many rows as the file has pictures, these say when
    they are shown; otherwise, as where the file was converted first, the timestamps count.
    """
    starts, rows = found.timestamps, len(found.valid)
    before = np.concatenate([[-1e-9], starts[:-1]])
    if wrong := np.flatnonzero(~(np.isfinite(starts) & (starts > before))).tolist():
        raise CsvError(f"{file}: timestamps do not rise, at frame {wrong[0] + 1}")
    step = float(np.median(np.diff(starts))) if rows > 1 else 1 / 30
    if not shown:
        return _until_next(starts, step)
    end = 2 * shown[-1] - shown[-2] if len(shown) > 1 else shown[0] + step
    as_numbered = found.gaps and rows < len(shown) and abs(starts[-1] - shown[rows - 1]) <= SHORT
    if rows == len(shown) or as_numbered:
        if starts[-1] > FASTER * end + SHORT:
            raise CsvError(f"{file} goes on to {starts[-1]:.2f} s, but {media} is {end:.2f} s long")
        starts = np.array(shown)
    else:
        if starts[-1] > end + step:
            raise CsvError(f"{file} goes on to {starts[-1]:.2f} s, but {media} is {end:.2f} s long")
        if starts[-1] < shown[-1] - SHORT and not found.gaps:
            raise CsvError(f"{file} ends at {starts[-1]:.2f} s, but {media} is {shown[-1]:.2f} s long")
        if found.gaps:
            starts = np.append(starts, np.arange(starts[-1] + step, end - step / 2, step))
    return _until_next(starts, float(np.median(np.diff(starts))) if len(starts) > 1 else step)


def _until_next(starts: NDArray[np.float64], step: float) -> Spans:
    return np.stack([starts, np.append(starts[1:], starts[-1] + step)], axis=1)


def cut(track: Track, clip: Clip) -> Track:
    """The rows during a clip, timed from its start; as for pictures, a row belongs to where it starts."""
    start, end = clip.start or 0.0, np.inf if clip.end is None else clip.end
    inside = (track.times[:, 1] > start) & (track.times[:, 0] < end)
    times = np.clip(track.times[inside], start, end) - start
    return Track(times, track.values[inside], track.valid[inside], track.names, track.note)


def at_rate(track: Track, rate: float) -> Track:
    """So many rows per second: each is the row whose time holds its start."""
    if not len(track):
        return track
    begin, end = track.times[0, 0], track.times[-1, 1]
    # By a hundredth of a step, so that times that were rounded make neither a step more nor choose the row before.
    starts = begin + np.arange(max(1, np.ceil((end - begin) * rate - 0.01))) / rate
    rows = np.searchsorted(track.times[:, 0], starts + 0.01 / rate, side="right") - 1
    times = np.stack([starts, np.minimum(starts + 1 / rate, end)], axis=1)
    return Track(times, track.values[rows], track.valid[rows], track.names, track.note)


def averaged(track: Track, count: int) -> Track:
    """Each `count` rows become one: the mean of the valid ones among them, invalid where there is none."""
    if count == 1 or not len(track):
        return track
    firsts = np.arange(0, len(track), count)
    numbers = np.add.reduceat(track.valid, firsts, dtype=np.int64)
    sums = np.add.reduceat(track.values, firsts, dtype=np.float64)  # rows that are not valid are zero
    values = (sums / np.maximum(numbers, 1)[:, None]).astype(np.float32)
    lasts = np.append(firsts[1:], len(track)) - 1
    times = np.stack([track.times[firsts, 0], track.times[lasts, 1]], axis=1)
    return Track(times, values, numbers > 0, track.names, track.note)
