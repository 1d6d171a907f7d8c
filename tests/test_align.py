"""Words and steps meet on the time axis: nothing shifts, weights sum to one, what was not measured stays masked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfeat.align import aligned_rows, overlaps, pool, unaligned_rows, words_of_pieces
from mmfeat.track import Track, Word, Wordpieces


def track(values: list[float], valid: list[bool] | None = None, step: float = 0.1, offset: float = 0.0) -> Track:
    starts = offset + step * np.arange(len(values))
    return Track(
        np.stack([starts, starts + step], axis=1),
        np.array(values, np.float32)[:, None],
        np.array(valid if valid is not None else [True] * len(values)),
        ("x",),
    )


def pieces(spans: list[tuple[int, int]]) -> Wordpieces:
    """`[CLS]`, the given pieces, `[SEP]`."""
    whole = [(0, 0), *spans, (0, 0)]
    count = len(whole)
    return Wordpieces(
        np.arange(count, dtype=np.int32),
        np.zeros(count, np.int32),
        np.array(whole, np.int32),
        np.ones((count, 2), np.float32),
    )


def test_mean_is_weighted_by_overlap() -> None:
    values, valid = pool(track([1.0, 2.0, 3.0]), np.array([[0.05, 0.2]]))
    assert valid.tolist() == [True]
    assert values[0, 0] == pytest.approx((0.05 * 1 + 0.1 * 2) / 0.15)


def test_a_word_in_a_gap_takes_the_nearest_step() -> None:
    gappy = Track(np.array([[0.0, 0.1], [0.5, 0.6]]), np.array([[1.0], [2.0]], np.float32), np.ones(2, bool), ("x",))
    values, valid = pool(gappy, np.array([[0.4, 0.45], [0.15, 0.2], [0.55, 0.5501]]))
    assert values[:, 0].tolist() == [2.0, 1.0, 2.0] and valid.all()


def test_a_word_without_a_measurable_face_is_masked() -> None:
    faces = track([5.0, 7.0, 9.0], [True, False, False])
    values, valid = pool(faces, np.array([[0.1, 0.3], [0.0, 0.2]]))
    assert valid.tolist() == [False, True]
    assert values[:, 0].tolist() == [0.0, 5.0]  # the valid step alone, not its mean with an unmeasured one


def test_rows_of_a_whole_clip() -> None:
    # "Oh, unbelievable!" → [CLS] oh , un ##believable ! [SEP]
    transcript = pieces([(0, 2), (2, 3), (4, 6), (6, 16), (16, 17)])
    words = [Word("Oh", 0.0, 0.2, 1.0, (0, 2)), Word("unbelievable", 0.3, 0.6, 1.0, (4, 16))]
    assert words_of_pieces(transcript, words).tolist() == [-1, 0, -1, 1, 1, -1, -1]
    rows = aligned_rows({"audio": track([1, 2, 3, 4, 5, 6])}, transcript, words)
    assert rows["audio"].shape == (7, 1) and rows["text_bert"].shape == (3, 7)
    assert rows["audio"][:, 0].tolist() == pytest.approx([0, 1.5, 0, 5, 5, 0, 0])
    assert rows["audio_mask"].tolist() == [False, True, False, True, True, False, False]
    assert rows["audio_times"][3].tolist() == pytest.approx([0.3, 0.6])
    assert rows["text_bert"][1].tolist() == [1] * 7


def test_a_clip_without_a_modality_is_masked_not_zero_and_valid() -> None:
    words = [Word("Oh", 0.0, 0.2, 1.0, (0, 2))]
    rows = aligned_rows({"vision": Track.empty(("a", "b"))}, pieces([(0, 2)]), words)
    assert rows["vision"].shape == (3, 2) and not rows["vision_mask"].any()
    assert unaligned_rows({"vision": Track.empty(("a", "b"))}, pieces([]))["vision"].shape == (0, 2)


times = st.lists(st.floats(0.01, 0.5), min_size=1, max_size=30)


@st.composite
def tracks(draw: st.DrawFn) -> Track:
    ends = np.cumsum(draw(times))
    edges = np.stack([np.concatenate([[0.0], ends[:-1]]), ends], axis=1)
    count = len(ends)
    values = draw(st.lists(st.floats(-9, 9, width=32), min_size=count, max_size=count))
    valid = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return Track(edges, np.array(values, np.float32)[:, None], np.array(valid), ("x",))


@st.composite
def spans(draw: st.DrawFn) -> np.ndarray:
    starts = draw(st.lists(st.floats(0, 5), min_size=1, max_size=10))
    lengths = draw(st.lists(st.floats(0.001, 2), min_size=len(starts), max_size=len(starts)))
    return np.array([(start, start + length) for start, length in zip(starts, lengths, strict=True)])


@given(tracks(), spans())
def test_pooled_values_are_finite_and_between_the_extremes(track: Track, spans: np.ndarray) -> None:
    values, valid = pool(track, spans)
    assert np.isfinite(values).all() and (values[~valid] == 0).all()
    if valid.any():
        seen = track.values[track.valid]
        assert values[valid].min() >= seen.min() - 1e-4 and values[valid].max() <= seen.max() + 1e-4


@given(tracks(), spans(), st.floats(-9, 9, width=32))
def test_constant_features_stay_constant(track: Track, spans: np.ndarray, constant: float) -> None:
    same = Track(track.times, np.full_like(track.values, constant), track.valid, track.names)
    values, valid = pool(same, spans)
    np.testing.assert_allclose(values[valid], constant, rtol=1e-5, atol=1e-6)


@given(tracks(), spans())
def test_nothing_shifts_in_time_by_more_than_half_a_step(track: Track, spans: np.ndarray) -> None:
    """Pool the steps' own middles: each word's must lie within half a (longest) step of the word."""
    middle = track.times.mean(axis=1).astype(np.float32)[:, None]
    every = Track(track.times, middle, np.ones(len(track), bool), track.names)
    values, _ = pool(every, spans)
    inside = spans[:, 0] < track.times[-1, 1]
    half = np.diff(track.times, axis=1).max() / 2 + 1e-4
    low, high = spans[inside, 0] - half, np.minimum(spans[inside, 1], track.times[-1, 1]) + half
    assert ((values[inside, 0] >= low) & (values[inside, 0] <= high)).all()


@given(tracks(), spans(), st.randoms())
def test_permuting_words_permutes_rows(track: Track, spans: np.ndarray, random) -> None:
    order = list(range(len(spans)))
    random.shuffle(order)
    values, valid = pool(track, spans)
    shuffled, shuffled_valid = pool(track, spans[order])
    np.testing.assert_array_equal(shuffled, values[order])
    np.testing.assert_array_equal(shuffled_valid, valid[order])


@given(tracks())
def test_steps_that_tile_a_span_overlap_all_of_it(track: Track) -> None:
    whole = np.array([[track.times[0, 0], track.times[-1, 1]]])
    assert overlaps(track.times, whole).sum() == pytest.approx(np.diff(whole)[0, 0])
