"""Tracks and words → the rows of a feature file: one per time step, wordpiece, or tick of one clock. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmfeat.track import Floats, Seconds, Track, Word, Wordpieces

Method = Literal["mean", "max", "last", "interpolate"]
"""How the steps of a time span become one row; see `pool`."""
Rows = dict[str, NDArray]
"""Keys of the feature file → arrays of one clip, not padded: `text` (L, D), `text_bert` (3, L), and for audio and
vision `audio` (T, D), `audio_mask` (T,), `audio_times` (T, 2)."""
_BLOCK = 512
_ROUNDING = 1e-9


def unaligned_rows(tracks: Mapping[str, Track], pieces: Wordpieces) -> Rows:
    """Every modality at its own rate."""
    rows = _text_rows(pieces)
    for modality, track in tracks.items():
        rows[modality] = track.values
        rows[f"{modality}_mask"] = track.valid
        rows[f"{modality}_times"] = track.times.astype(np.float32)
    return rows


def grid_rows(
    tracks: Mapping[str, Track], pieces: Wordpieces, seconds: float, rate: float, method: Method = "mean"
) -> Rows:
    """Audio and vision on one clock: row k of both is what was measured from k / rate to (k + 1) / rate seconds.

    For languages and corpora without word times. All of a clip's `seconds` are on the clock in both modalities; where
    one of them was not measured, or its stream is missing or has ended, its rows are zero and masked. Text stays one
    row per wordpiece: `text` must hold what the encoder gives for `text_bert`, which no clock can hold (a wordpiece
    would be repeated or dropped, and the encoder's positions with it), and most of a clip's ticks have no word. Such a
    file is therefore unaligned in MMSA's sense, with the same T for audio and vision.
    """
    rows = _text_rows(pieces)
    cells = grid(seconds, rate)
    for modality, track in tracks.items():
        values, mask = np.zeros((len(cells), len(track.names)), np.float32), np.zeros(len(cells), bool)
        longest = float(np.diff(track.times, axis=1).max(initial=0.0))
        for first in range(0, len(cells), _BLOCK):  # a recording of an hour must not meet all of its steps at once
            block = cells[first : first + _BLOCK]
            near = slice(*np.searchsorted(track.times[:, 0], [block[0, 0] - longest, block[-1, 1]]))
            part = Track(track.times[near], track.values[near], track.valid[near], track.names)
            values[first : first + _BLOCK], mask[first : first + _BLOCK] = pool(part, block, method, nearest=False)
        rows |= {modality: values, f"{modality}_mask": mask, f"{modality}_times": cells.astype(np.float32)}
    return rows


def grid(seconds: float, rate: float) -> Seconds:
    """Start and end of each tick of a clip, shape (T, 2); the last one may reach beyond the clip's end."""
    starts = np.arange(grid_steps(seconds, rate))
    return np.stack([starts, starts + 1], axis=1) / rate


def grid_steps(seconds: float, rate: float) -> int:
    """Ticks of a clip; a last one of less than a thousandth is rounding."""
    return math.ceil(max(seconds * rate - 1e-3, 0.0))


def aligned_rows(
    tracks: Mapping[str, Track], pieces: Wordpieces, words: Sequence[Word], method: Method = "mean"
) -> Rows:
    """One row per wordpiece in every modality, T = L.

    A wordpiece takes what `pool` makes of its word's steps, or of its words', where it has several, as Chinese ones
    may. `[CLS]`, `[SEP]` and punctuation have no word: their rows are zero and masked, as are words in which nothing
    could be measured.
    """
    rows = _text_rows(pieces)
    words_of_piece = words_of_pieces(pieces, words)
    inside = words_of_piece[:, 0] >= 0
    runs, chosen = np.unique(words_of_piece[inside], axis=0, return_inverse=True)
    chosen = chosen.ravel()  # NumPy 2.0 alone gives it two axes
    edges = [(words[first].start, max(word.end for word in words[first : last + 1])) for first, last in runs]
    spans = np.array(edges, np.float64).reshape(-1, 2)
    for modality, track in tracks.items():
        by_word, valid = pool(track, spans, method)
        values = np.zeros((len(inside), len(track.names)), np.float32)
        mask, times = np.zeros(len(inside), bool), np.zeros((len(inside), 2), np.float32)
        values[inside], mask[inside], times[inside] = by_word[chosen], valid[chosen], spans[chosen]
        rows |= {modality: values, f"{modality}_mask": mask, f"{modality}_times": times}
    return rows


def words_of_pieces(pieces: Wordpieces, words: Sequence[Word]) -> NDArray[np.intp]:
    """Indices of the first and the last word that each wordpiece belongs to, shape (L, 2); -1 for special pieces and
    punctuation.

    They meet in the transcript's characters: a piece belongs to the words whose spans it overlaps.
    """
    found = np.full((len(pieces.ids), 2), -1, np.intp)
    for index, word in enumerate(words):
        start, end = word.span
        mine = (pieces.spans[:, 0] < end) & (pieces.spans[:, 1] > start)
        found[mine, 1] = index
        found[mine & (found[:, 0] < 0), 0] = index
    return found


def pool(
    track: Track, spans: Seconds, method: Method = "mean", nearest: bool = True
) -> tuple[Floats, NDArray[np.bool_]]:
    """What a track holds in each of W time spans, shape (W, D), and which of them are valid, shape (W,).

    * `mean`: of the steps that overlap the span, weighted by how long they do.
    * `max`: per column, over the steps that lie in the span: those with half of the largest overlap or more, so that a
      neighbour's edge does not count.
    * `last`: the last one of these steps.
    * `interpolate`: the value at the middle of the span, linearly between the middles of two steps.

    Invalid steps do not count; where no overlapping step is valid, the row is zero and not valid. In one person's
    columns (see `Track.people`) only the steps count in which that one is there; where `seen` is 0 they are zero. With
    `nearest`, a span that falls between two steps takes the nearest one if that is within half that step's length.
    """
    weights = overlaps(track.times, spans)
    if nearest and len(track):
        _reach(weights, track.times, spans)
    weights *= track.valid
    valid = np.asarray(weights.any(axis=1))
    values = _pooled(track.values, weights, track.times, spans, method)
    for seen, columns in track.people():
        theirs = _pooled(track.values[:, columns], weights * (track.values[:, seen] > 0), track.times, spans, method)
        values[:, columns] = np.where(values[:, [seen]] > 0, theirs, 0)
    return values, valid


def _pooled(values: Floats, weights: NDArray[np.float64], steps: Seconds, spans: Seconds, method: Method) -> Floats:
    """Shape (W, D) from values (T, D) and how much each step counts in each span, (W, T); zero where none does."""
    pooled = np.zeros((len(spans), values.shape[1]), np.float32)
    counted = weights.any(axis=1)
    if not counted.any():
        return pooled
    if method == "max":
        inside = _mostly_inside(weights)
        for row in np.flatnonzero(counted):
            pooled[row] = values[inside[row]].max(axis=0)
        return pooled
    if method == "last":
        weights = _last(weights)
    elif method == "interpolate":
        weights = _between(weights, steps, spans)
    total = weights[counted].sum(axis=1, keepdims=True)
    pooled[counted] = weights[counted] / total @ values.astype(np.float64)
    return pooled


def _reach(weights: NDArray[np.float64], steps: Seconds, spans: Seconds) -> None:
    """Weight on the nearest step for spans that overlap none, where it is near enough."""
    for row in np.flatnonzero(~weights.any(axis=1)):
        start, end = spans[row]
        gap = np.maximum(steps[:, 0] - end, start - steps[:, 1])
        index = gap.argmin()
        if gap[index] <= (steps[index, 1] - steps[index, 0]) / 2 + _ROUNDING:
            weights[row, index] = 1.0


def _mostly_inside(weights: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (weights > 0) & (weights >= weights.max(axis=1, keepdims=True, initial=0.0) / 2)


def _last(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """One at the last step inside each span."""
    inside = _mostly_inside(weights)
    chosen = np.zeros_like(weights)
    rows = np.flatnonzero(inside.any(axis=1))
    chosen[rows, inside.shape[1] - 1 - inside[rows, ::-1].argmax(axis=1)] = 1.0
    return chosen


def _between(weights: NDArray[np.float64], steps: Seconds, spans: Seconds) -> NDArray[np.float64]:
    """The two steps on either side of each span's middle, of those that count, by how near they are."""
    chosen = np.zeros_like(weights)
    middles = steps.mean(axis=1)
    for row in np.flatnonzero(weights.any(axis=1)):
        counted = np.flatnonzero(weights[row])
        place = np.interp(spans[row].mean(), middles[counted], np.arange(len(counted)))
        left = int(place)
        chosen[row, counted[left]] = 1.0 - (place - left)
        if place > left:
            chosen[row, counted[left + 1]] = place - left
    return chosen


def overlaps(steps: Seconds, spans: Seconds) -> NDArray[np.float64]:
    """Seconds that each of T steps shares with each of W spans, shape (W, T)."""
    start = np.maximum(spans[:, None, 0], steps[None, :, 0])
    end = np.minimum(spans[:, None, 1], steps[None, :, 1])
    return np.maximum(end - start, 0.0)


def _text_rows(pieces: Wordpieces) -> Rows:
    ids = pieces.ids
    return {"text": pieces.values, "text_bert": np.stack([ids, np.ones_like(ids), pieces.segments])}
