"""Words and steps meet on the time axis: nothing shifts, weights sum to one, what was not measured stays masked."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfeat.align import Method, aligned_rows, grid, grid_rows, overlaps, pool, unaligned_rows, words_of_pieces
from mmfeat.corpus import Clip, Corpus
from mmfeat.layout import FeatureFile
from mmfeat.pack import pack
from mmfeat.recipe import RecipeError, load_recipe
from mmfeat.shards import Shard, Store
from mmfeat.track import Track, Word, Wordpieces

METHODS: tuple[Method, ...] = get_args(Method)
methods = st.sampled_from(METHODS)


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


@pytest.mark.parametrize("method", get_args(Method))
def test_who_is_not_there_does_not_count(method: Method) -> None:
    """Of two people the second comes late and is not smiling less for it."""
    names = ("face0_seen", "face0_smile", "face1_seen", "face1_smile", "light")
    values = np.array([[1, 2, 0, 0, 5]] * 3 + [[1, 2, 1, 4, 5]] + [[1, 2, 0, 0, 5]] * 4, np.float32)
    times = np.column_stack([np.arange(8), np.arange(1, 9)]) / 10
    both = Track(times, values, np.ones(8, bool), names)
    rows, valid = pool(both, np.array([[0, 0.4], [0.4, 0.8]]), method)
    assert valid.all() and np.allclose(rows[:, [0, 1, 4]], [[1, 2, 5]] * 2)
    seen, smile = rows[:, 2], rows[:, 3]
    assert seen[1] == 0 and smile[1] == 0
    if method == "mean":
        assert seen[0] == pytest.approx(0.25)
    if method != "interpolate":  # between two steps in which that one was not there yet
        assert smile[0] == pytest.approx(4)


def test_other_ways_to_pool() -> None:
    steps = track([1.0, 5.0, 3.0, 4.0, 9.0])
    word = np.array([[0.08, 0.42]])  # the edges of the first and the last step, and three whole ones
    assert pool(steps, word, "max")[0].tolist() == [[5.0]]
    assert pool(steps, word, "last")[0].tolist() == [[4.0]]
    assert pool(steps, word, "interpolate")[0][0, 0] == pytest.approx(3.0)
    assert pool(steps, np.array([[0.1, 0.3]]), "interpolate")[0][0, 0] == pytest.approx(4.0)
    for method in METHODS:  # shorter than a step
        assert pool(steps, np.array([[0.11, 0.13]]), method)[0].tolist() == [[5.0]]
        assert not pool(Track.empty(("x",)), word, method)[1].any()


def test_a_word_in_a_gap_takes_the_nearest_step_that_is_near() -> None:
    gappy = Track(np.array([[0.0, 0.1], [0.5, 0.6]]), np.array([[1.0], [2.0]], np.float32), np.ones(2, bool), ("x",))
    values, valid = pool(gappy, np.array([[0.4, 0.45], [0.15, 0.2], [0.55, 0.5501], [0.2, 0.4], [2.0, 2.2]]))
    assert values[:, 0].tolist() == [2.0, 1.0, 2.0, 0.0, 0.0] and valid.tolist() == [True, True, True, False, False]


def test_a_word_without_a_measurable_face_is_masked() -> None:
    faces = track([5.0, 7.0, 9.0], [True, False, False])
    values, valid = pool(faces, np.array([[0.1, 0.3], [0.0, 0.2]]))
    assert valid.tolist() == [False, True]
    assert values[:, 0].tolist() == [0.0, 5.0]  # the valid step alone, not its mean with an unmeasured one


def test_rows_of_a_whole_clip() -> None:
    # "Oh, unbelievable!" → [CLS] oh , un ##believable ! [SEP]
    transcript = pieces([(0, 2), (2, 3), (4, 6), (6, 16), (16, 17)])
    words = [Word("Oh", 0.0, 0.2, 1.0, (0, 2)), Word("unbelievable", 0.3, 0.6, 1.0, (4, 16))]
    expected = [-1, 0, -1, 1, 1, -1, -1]
    assert words_of_pieces(transcript, words).tolist() == [[word, word] for word in expected]
    rows = aligned_rows({"audio": track([1, 2, 3, 4, 5, 6])}, transcript, words)
    assert rows["audio"].shape == (7, 1) and rows["text_bert"].shape == (3, 7)
    assert rows["audio"][:, 0].tolist() == pytest.approx([0, 1.5, 0, 5, 5, 0, 0])
    assert rows["audio_mask"].tolist() == [False, True, False, True, True, False, False]
    assert rows["audio_times"][3].tolist() == pytest.approx([0.3, 0.6])
    assert rows["text_bert"][1].tolist() == [1] * 7


def test_a_piece_of_several_words_takes_the_steps_of_all() -> None:
    # 你好 吗: one piece for the first two characters, which are a word each
    transcript = pieces([(0, 2), (3, 4)])
    words = [Word("你", 0.0, 0.2, 1.0, (0, 1)), Word("好", 0.2, 0.4, 1.0, (1, 2)), Word("吗", 0.5, 0.6, 1.0, (3, 4))]
    assert words_of_pieces(transcript, words).tolist() == [[-1, -1], [0, 1], [2, 2], [-1, -1]]
    rows = aligned_rows({"audio": track([1, 2, 3, 4, 5, 6])}, transcript, words)
    assert rows["audio"][:, 0].tolist() == pytest.approx([0, 2.5, 6, 0])
    assert rows["audio_times"][1].tolist() == pytest.approx([0.0, 0.4])
    assert not aligned_rows({"audio": track([1, 2])}, transcript, [])["audio_mask"].any()


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


@given(tracks(), spans(), methods)
def test_pooled_values_are_finite_and_between_the_extremes(track: Track, spans: np.ndarray, method: Method) -> None:
    values, valid = pool(track, spans, method)
    assert np.isfinite(values).all() and (values[~valid] == 0).all()
    if valid.any():
        seen = track.values[track.valid]
        assert values[valid].min() >= seen.min() - 1e-4 and values[valid].max() <= seen.max() + 1e-4


@given(tracks(), spans(), methods, st.floats(-9, 9, width=32))
def test_constant_features_stay_constant(track: Track, spans: np.ndarray, method: Method, constant: float) -> None:
    """In other words: weights sum to one."""
    same = Track(track.times, np.full_like(track.values, constant), track.valid, track.names)
    values, valid = pool(same, spans, method)
    np.testing.assert_allclose(values[valid], constant, rtol=1e-5, atol=1e-6)


@given(tracks(), spans(), methods, st.floats(-(2.0**99), 2.0**99, width=32))
def test_what_a_masked_step_holds_changes_nothing(track: Track, spans: np.ndarray, method: Method, junk: float) -> None:
    spoilt = np.where(track.valid[:, None], track.values, np.float32(junk))
    values, valid = pool(track, spans, method)
    again, same = pool(Track(track.times, spoilt, track.valid, track.names), spans, method)
    np.testing.assert_array_equal(valid, same)
    np.testing.assert_array_equal(values, again)


@given(tracks(), spans(), methods)
def test_nothing_shifts_in_time_by_more_than_half_a_step(track: Track, spans: np.ndarray, method: Method) -> None:
    """Pool the steps' own middles: each word's must lie within half a (longest) step of the word."""
    middle = track.times.mean(axis=1).astype(np.float32)[:, None]
    every = Track(track.times, middle, np.ones(len(track), bool), track.names)
    values, valid = pool(every, spans, method)
    assert valid[spans[:, 0] < track.times[-1, 1]].all()
    half = np.diff(track.times, axis=1).max() / 2
    reach = np.where(spans[:, 0] < track.times[-1, 1], half, 2 * half) + 1e-4  # beyond the last step: its own half too
    assert (values[valid, 0] >= spans[valid, 0] - reach[valid]).all()
    assert (values[valid, 0] <= spans[valid, 1] + reach[valid]).all()


@given(tracks(), spans(), methods, st.randoms())
def test_permuting_words_permutes_rows(track: Track, spans: np.ndarray, method: Method, random) -> None:
    order = list(range(len(spans)))
    random.shuffle(order)
    values, valid = pool(track, spans, method)
    shuffled, shuffled_valid = pool(track, spans[order], method)
    np.testing.assert_array_equal(shuffled, values[order])
    np.testing.assert_array_equal(shuffled_valid, valid[order])


@given(tracks(), st.sampled_from([0.5, 3.0, 10.0, 25.0]), methods, st.floats(0.1, 20))
def test_on_one_clock(track: Track, rate: float, method: Method, seconds: float) -> None:
    """Both modalities have the clip's ticks, each holds what `pool` gives for it, and nothing is carried into a tick
    in which nothing was measured."""
    other = Track.empty(("a", "b"))
    rows = grid_rows({"audio": track, "vision": other}, pieces([(0, 2)]), seconds, rate, method)
    ticks = grid(seconds, rate)
    assert len(rows["audio"]) == len(rows["vision"]) == len(ticks) and not rows["vision_mask"].any()
    assert ticks[-1, 0] < seconds <= ticks[-1, 1] + 1e-3 / rate
    values, valid = pool(track, ticks, method, nearest=False)
    np.testing.assert_array_equal(rows["audio_mask"], valid)
    np.testing.assert_allclose(rows["audio"], values, rtol=1e-5, atol=1e-5)
    covered = overlaps(track.times[track.valid], ticks).any(axis=1)
    np.testing.assert_array_equal(valid, covered)
    assert rows["text_bert"].shape == (3, 3)


def test_an_hour_on_one_clock_is_cut_into_blocks() -> None:
    long = track([float(k % 7) for k in range(36000)])
    rows = grid_rows({"audio": long}, pieces([]), 3600.0, 10.0)
    np.testing.assert_allclose(rows["audio"], long.values, atol=1e-3)
    assert rows["audio_mask"].all()


@given(tracks())
def test_steps_that_tile_a_span_overlap_all_of_it(track: Track) -> None:
    whole = np.array([[track.times[0, 0], track.times[-1, 1]]])
    assert overlaps(track.times, whole).sum() == pytest.approx(np.diff(whole)[0, 0])


def test_how_rows_were_pooled_is_part_of_what_a_file_says() -> None:
    recipe = load_recipe("default")
    plain = recipe.fingerprints()
    assert recipe.row_fingerprints(False) == recipe.row_fingerprints(True) == plain
    highest, clock = recipe.changed(pooling="max"), recipe.changed(grid_hz=10)
    assert highest.fingerprints() == clock.fingerprints() == plain  # the same shards
    assert highest.row_fingerprints(False) == clock.row_fingerprints(True) == plain
    others = [highest.row_fingerprints(True), clock.row_fingerprints(False), recipe.changed(grid_hz=5)]
    others[2] = others[2].row_fingerprints(False)
    assert len({one["audio"] for one in (plain, *others)}) == 4
    assert all(one["text"] == plain["text"] for one in others)
    with pytest.raises(RecipeError, match="pooling"):
        recipe.changed(pooling="median")
    with pytest.raises(RecipeError, match="grid_hz"):
        recipe.changed(grid_hz=0)


def test_a_corpus_on_one_clock_packs(tmp_path: Path) -> None:
    """Audio and vision share their ticks and their padded length; text keeps its wordpieces."""
    clips = [Clip("v", name, "train", tmp_path / f"{name}.wav", "hello", 1.0) for name in "ab"]
    recipe = load_recipe("default").changed(words=None, grid_hz=10, pooling="max")
    store = Store(tmp_path / "work")
    lengths = (0.95, 1.7)
    for clip, seconds in zip(clips, lengths, strict=True):
        clip.path.write_bytes(b"")
        sound = track(list(np.arange(round(seconds * 100), dtype=float)), step=0.01)
        sight = Track.empty(("y",))
        shown = pieces([(0, 5)])
        parts = {
            "audio": ({"times": sound.times, "values": sound.values, "valid": sound.valid}, ("x",)),
            "vision": ({"times": sight.times, "values": sight.values, "valid": sight.valid}, ("y",)),
            "text": ({k: getattr(shown, k) for k in ("ids", "segments", "spans", "values")}, ()),
        }
        for part, (arrays, names) in parts.items():
            details = {"steps": len(arrays.get("valid", ())), "columns": len(names) or 2}
            store.write(clip, part, recipe.fingerprints()[part], Shard("ok", "", seconds, arrays, details, names))
    corpus = Corpus(tmp_path, clips, [])
    pack(corpus, recipe, store, tmp_path / "f.h5")
    with FeatureFile(tmp_path / "f.h5") as file:
        assert not file.aligned and file.recipe["grid_hz"] == 10 and file.recipe["pooling"] == "max"
        assert file.fingerprints == recipe.row_fingerprints(False)
        assert file.read("train", "audio_lengths").tolist() == file.read("train", "vision_lengths").tolist() == [10, 17]
        assert file.dataset("train", "audio").shape[:2] == file.dataset("train", "vision").shape[:2] == (2, 17)
        assert file.read("train", "audio")[0, :10, 0].tolist() == [9, 19, 29, 39, 49, 59, 69, 79, 89, 94]
        assert not file.read("train", "vision_mask").any()
        np.testing.assert_array_equal(file.read("train", "audio_times"), file.read("train", "vision_times"))
