"""`opensmile`: openSMILE's own numbers under its names, at true times, for clips of any length and rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfeat.extractors import find
from mmfeat.track import Waveform

opensmile = pytest.importorskip("opensmile", reason="pip install 'mmfeat[opensmile]'")

EGEMAPS = (
    *("Loudness_sma3", "alphaRatio_sma3", "hammarbergIndex_sma3", "slope0-500_sma3", "slope500-1500_sma3"),
    *("spectralFlux_sma3", "mfcc1_sma3", "mfcc2_sma3", "mfcc3_sma3", "mfcc4_sma3", "F0semitoneFrom27.5Hz_sma3nz"),
    *("jitterLocal_sma3nz", "shimmerLocaldB_sma3nz", "HNRdBACF_sma3nz", "logRelF0-H1-H2_sma3nz"),
    *("logRelF0-H1-A3_sma3nz", "F1frequency_sma3nz", "F1bandwidth_sma3nz", "F1amplitudeLogRelF0_sma3nz"),
    *("F2frequency_sma3nz", "F2bandwidth_sma3nz", "F2amplitudeLogRelF0_sma3nz"),
    *("F3frequency_sma3nz", "F3bandwidth_sma3nz", "F3amplitudeLogRelF0_sma3nz"),
)


def made(**settings):
    registered = find("opensmile")
    return registered.make(registered.config(**settings))


def voice(seconds: float, rate: int = 16000, onset: float = 0.0, end: float = 99.0) -> Waveform:
    """A buzz of 200 Hz between `onset` and `end`, silence around it."""
    time = np.arange(int(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * 200 * k * time) / k for k in range(1, 8)) * ((time >= onset) & (time < end))
    return Waveform((0.2 * buzz).astype(np.float32), rate)


def test_the_25_columns_of_ch_sims_v2_in_their_order() -> None:
    assert made().names == EGEMAPS


@pytest.mark.parametrize(
    ("feature_set", "level", "columns"),
    [
        ("eGeMAPSv02", "functionals", 88),
        ("GeMAPSv01b", "lld", 18),
        ("GeMAPSv01b", "functionals", 62),
        ("ComParE_2016", "lld", 65),
        ("ComParE_2016", "functionals", 6373),
    ],
)
def test_other_sets(feature_set: str, level: str, columns: int) -> None:
    extractor = made(feature_set=feature_set, level=level)
    assert len(set(extractor.names)) == columns
    track = extractor(voice(1.0))
    assert track.values.shape == (1 if level == "functionals" else 96, columns) and track.valid.all()
    assert track.times[0, 0] == 0 and track.times[-1, 1] == 1.0


def test_values_are_opensmiles_own() -> None:
    sound = voice(1.0)
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)
    expected, track = smile.process_signal(sound.samples, 16000), made()(sound)
    np.testing.assert_array_equal(track.values, expected.to_numpy())
    for k, edge in enumerate(("start", "end")):
        np.testing.assert_allclose(track.times[:, k], expected.index.get_level_values(edge).total_seconds(), atol=1e-6)


@pytest.mark.parametrize("peak", [1.0, 1.05, 3.0])
def test_peaks_beyond_full_scale_are_clipped_not_turned_over(peak: float) -> None:
    samples = voice(0.5).samples
    loud = samples * np.float32(peak / np.abs(samples).max())
    found, clipped = (made()(Waveform(s, 16000)).values for s in (loud, np.clip(loud, -0.9999, 0.9999)))
    np.testing.assert_allclose(found, clipped, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("sample_rate", [8000, 16000, None])
def test_the_rate_that_opensmile_hears(sample_rate: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor, rates = made(sample_rate=sample_rate), []
    process = extractor._smile.process_signal
    monkeypatch.setattr(
        extractor._smile, "process_signal", lambda samples, rate: rates.append(rate) or process(samples, rate)
    )
    sound = voice(0.5, rate=44100)
    track = extractor(sound)
    assert rates == [sample_rate or 44100]
    expected = made(sample_rate=None)(sound.at(sample_rate or 44100)).values
    np.testing.assert_array_equal(track.values, expected[: len(track)])


def test_rows_stand_where_the_sound_is() -> None:
    track = made()(voice(2.0, onset=0.5, end=1.5))
    np.testing.assert_allclose(np.diff(track.times[:, 0]), 0.01, atol=1e-9)
    np.testing.assert_allclose(np.diff(track.times[:-1], axis=1), 0.02, atol=1e-9)
    column = {name: track.values[:, k] for k, name in enumerate(track.names)}
    for name, window in (("spectralFlux_sma3", 0.02), ("F0semitoneFrom27.5Hz_sma3nz", 0.06)):
        heard = np.flatnonzero(column[name] > 1e-3)
        begins, ends = track.times[heard[0], 0], track.times[heard[-1], 0] + window
        # Smoothing over three rows adds one at each side; a pitch is found in a window that the voice half fills.
        assert begins == pytest.approx(0.5 - window / 2, abs=0.021)
        assert ends == pytest.approx(1.5 + window / 2, abs=0.021)
    semitones = column["F0semitoneFrom27.5Hz_sma3nz"]
    assert np.median(semitones[semitones > 0]) == pytest.approx(12 * np.log2(200 / 27.5), abs=0.1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rate", [8000, 11025, 44100])
@pytest.mark.parametrize("sample_rate", [16000, None])
@pytest.mark.parametrize("settings", [{}, {"level": "functionals"}, {"feature_set": "ComParE_2016"}])
def test_short_clips_of_any_rate_have_rows(rate: int, sample_rate: int | None, settings: dict) -> None:
    extractor = made(sample_rate=sample_rate, **settings)
    for samples in (1, rate // 20, rate // 10):
        for loud in (0, 1):
            sound = Waveform(loud * voice(samples / rate + 1e-9, rate).samples, rate)
            track = extractor(sound)
            assert len(track) >= 1 and track.valid.all()
            assert track.times[0, 0] == 0 and track.times[-1, 1] == pytest.approx(sound.seconds, abs=1e-6)


@given(st.integers(1, 40_000), st.sampled_from([8000, 16000, 22050, 48000]), st.floats(0.1, 3), st.booleans())
@settings(max_examples=30, deadline=None)
def test_rows_cover_every_clip(samples: int, rate: int, window: float, by_window: bool) -> None:
    sound = Waveform(np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32), rate)
    track = (functionals(window) if by_window else made())(sound)  # Track refuses times that do not rise
    assert track.times[0, 0] == 0 and track.times[-1, 1] == sound.seconds
    assert (track.times[1:, 0] <= track.times[:-1, 1] + 1e-9).all()


def functionals(window: float):
    return made(level="functionals", window=window)


def test_functionals_by_window_cover_the_clip() -> None:
    extractor = made(level="functionals", window=1.0)
    for seconds, edges in ((0.4, [0, 0.4]), (2.4, [0, 1, 2.4]), (2.6, [0, 1, 2, 2.6])):
        track = extractor(voice(seconds))
        np.testing.assert_allclose(track.times, np.stack([edges[:-1], edges[1:]], axis=1), atol=1e-4)
    whole, second = made(level="functionals")(Waveform(voice(2.0).samples[16000:], 16000)), extractor(voice(2.0))
    np.testing.assert_array_equal(second.values[1], whole.values[0])


def test_a_row_that_is_not_finite_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = made()
    process = extractor._smile.process_signal

    def broken(samples: np.ndarray, rate: int):
        table = process(samples, rate)
        table.iloc[3, 7] = np.nan
        table.iloc[5, 0] = np.inf
        return table

    monkeypatch.setattr(extractor._smile, "process_signal", broken)
    track = extractor(voice(0.5))
    assert np.flatnonzero(~track.valid).tolist() == [3, 5] and not track.values[[3, 5]].any()


def test_a_window_is_for_functionals() -> None:
    with pytest.raises(ValueError, match="window is a setting of level: functionals"):
        made(window=1.0)
