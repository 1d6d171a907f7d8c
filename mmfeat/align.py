"""Tracks and words → the rows of a feature file: one per time step, or one per wordpiece. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mmfeat.track import Floats, Seconds, Track, Word, Wordpieces

Rows = dict[str, NDArray]
"""Keys of the feature file → arrays of one clip, not padded: `text` (L, D), `text_bert` (3, L), and for audio and
vision `audio` (T, D), `audio_mask` (T,), `audio_times` (T, 2)."""


def unaligned_rows(tracks: Mapping[str, Track], pieces: Wordpieces) -> Rows:
    """Every modality at its own rate."""
    rows = _text_rows(pieces)
    for modality, track in tracks.items():
        rows[modality] = track.values
        rows[f"{modality}_mask"] = track.valid
        rows[f"{modality}_times"] = track.times.astype(np.float32)
    return rows


def aligned_rows(tracks: Mapping[str, Track], pieces: Wordpieces, words: Sequence[Word]) -> Rows:
    """One row per wordpiece in every modality, T = L.

    A wordpiece takes the weighted mean over its word's steps. `[CLS]`, `[SEP]` and punctuation have no word: their
    rows are zero and masked, as are words in which nothing could be measured.
    """
    rows = _text_rows(pieces)
    word_of_piece = words_of_pieces(pieces, words)
    spans = np.array([(word.start, word.end) for word in words], np.float64).reshape(-1, 2)
    inside = word_of_piece >= 0
    chosen = word_of_piece[inside]
    for modality, track in tracks.items():
        by_word, valid = pool(track, spans)
        values = np.zeros((len(inside), len(track.names)), np.float32)
        mask, times = np.zeros(len(inside), bool), np.zeros((len(inside), 2), np.float32)
        values[inside], mask[inside], times[inside] = by_word[chosen], valid[chosen], spans[chosen]
        rows |= {modality: values, f"{modality}_mask": mask, f"{modality}_times": times}
    return rows


def words_of_pieces(pieces: Wordpieces, words: Sequence[Word]) -> NDArray[np.intp]:
    """Index of the word that each wordpiece belongs to, shape (L,); -1 for special pieces and punctuation.

    They meet in the transcript's characters: a piece belongs to the word whose span it overlaps.
    """
    found = np.full(len(pieces.ids), -1, np.intp)
    for index, word in enumerate(words):
        start, end = word.span
        found[(pieces.spans[:, 0] < end) & (pieces.spans[:, 1] > start)] = index
    return found


def pool(track: Track, spans: Seconds) -> tuple[Floats, NDArray[np.bool_]]:
    """Mean of a track over each of W time spans, shape (W, D), and which of them are valid, shape (W,).

    Steps are weighted by how long they overlap the span. A span that falls between two steps takes the nearest one.
    Invalid steps do not count; where no overlapping step is valid, the row is zero and not valid.
    """
    weights = overlaps(track.times, spans)
    if len(track):
        middle, wanted = track.times.mean(axis=1), spans.mean(axis=1)
        for row in np.flatnonzero(weights.sum(axis=1) == 0):
            weights[row, np.abs(middle - wanted[row]).argmin()] = 1.0
    weights *= track.valid
    total = weights.sum(axis=1)
    valid = total > 0
    weights[valid] /= total[valid, None]
    return (weights @ track.values.astype(np.float64)).astype(np.float32), valid


def overlaps(steps: Seconds, spans: Seconds) -> NDArray[np.float64]:
    """Seconds that each of T steps shares with each of W spans, shape (W, T)."""
    start = np.maximum(spans[:, None, 0], steps[None, :, 0])
    end = np.minimum(spans[:, None, 1], steps[None, :, 1])
    return np.maximum(end - start, 0.0)


def _text_rows(pieces: Wordpieces) -> Rows:
    ids = pieces.ids
    return {"text": pieces.values, "text_bert": np.stack([ids, np.ones_like(ids), pieces.segments])}
