"""`librosa`: each feature is what librosa's own function gives, in the columns that the names promise."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfeat.extractors import audio_librosa, find
from mmfeat.extractors.audio_librosa import FEATURES
from mmfeat.track import Waveform

HOP, N_FFT = 512, 2048
f = librosa.feature


def speechlike(seconds: float, rate: int) -> Waveform:
    """A gliding voice with harmonics, pauses and noise."""
    time = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(140 + 40 * np.sin(3 * time)) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 8)) * (np.sin(2 * np.pi * 2 * time) > -0.4)
    noise = np.random.default_rng(0).normal(0, 0.02, len(time))
    return Waveform((0.2 * voice + noise).astype(np.float32), rate)


def made(**settings):
    registered = find("librosa")
    return registered.make(registered.config(**settings))


def contrast(y: np.ndarray, sr: int) -> np.ndarray:
    return f.spectral_contrast(y=y, sr=sr, n_fft=N_FFT, hop_length=HOP, fmin=200.0 if sr > 12800 else sr / 128)


def of_spectrum(name: str, y: np.ndarray, sr: int) -> np.ndarray:
    return getattr(f, name)(y=y, sr=sr, n_fft=N_FFT, hop_length=HOP)


def octaves(sr: int) -> int:
    return 6 if sr == 8000 else 7


OWN: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "zero_crossing_rate": lambda y, sr: f.zero_crossing_rate(y, frame_length=N_FFT, hop_length=HOP),
    "rms": lambda y, sr: f.rms(y=y, frame_length=N_FFT, hop_length=HOP),
    "mfcc": lambda y, sr: f.mfcc(y=y, sr=sr, n_mfcc=20, n_fft=N_FFT, hop_length=HOP),
    "spectral_contrast": contrast,
    "spectral_flatness": lambda y, sr: f.spectral_flatness(y=y, n_fft=N_FFT, hop_length=HOP),
    "chroma_cqt": lambda y, sr: f.chroma_cqt(y=y, sr=sr, hop_length=HOP, n_octaves=octaves(sr)),
    "chroma_cens": lambda y, sr: f.chroma_cens(y=y, sr=sr, hop_length=HOP, n_octaves=octaves(sr)),
    "tonnetz": lambda y, sr: f.tonnetz(y=y, sr=sr, hop_length=HOP, n_octaves=octaves(sr)),
    "tempogram": lambda y, sr: f.tempogram(y=y, sr=sr, hop_length=HOP),
    "fourier_tempogram": lambda y, sr: np.abs(f.fourier_tempogram(y=y, sr=sr, hop_length=HOP)),
}
for _name in ("centroid", "bandwidth", "rolloff"):
    OWN[f"spectral_{_name}"] = partial(of_spectrum, f"spectral_{_name}")
for _name in ("poly_features", "melspectrogram", "chroma_stft"):
    OWN[_name] = partial(of_spectrum, _name)


def same(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Equal within 1e-4, relative for values above 1: mel power and frequencies are large."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_every_feature_but_our_own_is_compared() -> None:
    assert set(OWN) | {"f0"} == set(FEATURES)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("seconds", [0.0002, 0.05, 1.3])
def test_each_equals_librosas_own_function(rate: int, seconds: float) -> None:
    sound = speechlike(seconds, rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa warns of clips shorter than n_fft
        for sample_rate in (None, 22050):
            resampled = sound.at(sample_rate or rate)
            for name, own in OWN.items():
                track = made(sample_rate=sample_rate, features=[name])(sound)
                expected = own(resampled.samples, resampled.rate).T
                assert track.values.shape[1] == expected.shape[1], name
                assert 0 <= len(expected) - len(track) <= 1, name  # a step that begins after the end is left out
                same(track.values, expected[: len(track)], f"{name} at {sample_rate}")


def test_features_asked_for_together_are_those_asked_for_alone() -> None:
    sound = speechlike(1.0, 16000)
    together = made(features=list(FEATURES))(sound)
    assert len(set(together.names)) == len(together.names)
    alone = np.concatenate([made(features=[name])(sound).values for name in FEATURES], axis=1)
    np.testing.assert_array_equal(together.values, alone)


def test_the_sound_is_transformed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    transform = librosa.stft
    monkeypatch.setattr(librosa, "stft", lambda *args, **kwargs: calls.append(1) or transform(*args, **kwargs))
    made()(speechlike(0.5, 22050))
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore:n_fft")
@pytest.mark.parametrize("seconds", [0.05, 1.0])
def test_derivatives(seconds: float) -> None:
    features = ["mfcc", "mfcc_delta", "rms_delta2", "f0_delta"]
    extractor = made(features=features, n_mfcc=2)
    assert extractor.names == (
        *("mfcc_0", "mfcc_1", "mfcc_0_delta", "mfcc_1_delta", "rms_delta2"),
        *("f0_delta", "voicing_delta"),
    )
    sound = speechlike(seconds, 22050)
    track = extractor(sound)
    mfcc = f.mfcc(y=sound.samples, sr=22050, n_mfcc=2)
    rms = f.rms(y=sound.samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(track.values[:, 2:4], f.delta(mfcc, mode="nearest").T, "mfcc_delta")
        same(track.values[:, 4:5], f.delta(rms, order=2, mode="nearest").T, "rms_delta2")


@pytest.mark.filterwarnings("ignore:n_fft")
def test_the_33_columns_of_ch_sims() -> None:
    features = ["zero_crossing_rate", "mfcc", "chroma_cqt"]
    extractor = made(sample_rate=22050, hop_length=512, n_mfcc=20, htk=True, features=features)
    assert extractor.names == (
        "zero_crossing_rate",
        *(f"mfcc_{k}" for k in range(20)),
        *(f"chroma_cqt_{k}" for k in range(12)),
    )
    sound = speechlike(1.0, 22050)
    track = extractor(sound)
    same(track.values[:, 0:1], f.zero_crossing_rate(sound.samples).T, "zcr")
    same(track.values[:, 1:21], f.mfcc(y=sound.samples, sr=22050, htk=True).T, "mfcc")
    same(track.values[:, 21:], f.chroma_cqt(y=sound.samples, sr=22050).T, "chroma")


@given(
    samples=st.integers(1, 20_000),
    rate=st.sampled_from([8000, 16000, 22050, 44100]),
    sample_rate=st.sampled_from([None, 16000, 22050]),
    hop=st.integers(16, 3000),
)
@settings(max_examples=60, deadline=None)
def test_rows_cover_every_clip(samples: int, rate: int, sample_rate: int | None, hop: int) -> None:
    sound = Waveform(np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32), rate)
    features = ["zero_crossing_rate", "rms", "mfcc", "f0", "spectral_rolloff", "rms_delta"]
    track = made(sample_rate=sample_rate, hop_length=hop, features=features)(sound)
    if not len(track):  # one sample at a high rate is less than one at a low rate
        assert samples < 3
        return
    assert track.times[0, 0] == 0 and (track.times[1:, 0] == track.times[:-1, 1]).all()
    assert sound.seconds - hop / (sample_rate or rate) <= track.times[-1, 1] <= sound.seconds


def test_an_unknown_feature_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"no feature 'mfc'; there are: zero_crossing_rate, rms, mfcc"):
        made(features=["mfc"])
    with pytest.raises(ValueError, match="no feature 'f1_delta'"):
        made(features=["f1_delta"])


def test_a_pitch_that_the_files_own_rate_cannot_hold_is_named() -> None:
    """A frame must hold two of the longest period."""
    extractor = made(sample_rate=None, f0_min=40.0, n_fft=1024)
    assert extractor(speechlike(0.2, 16000)).valid.all()
    with pytest.raises(ValueError, match=r"F0 from 40 to 500 Hz does not lie between 2 x .* 86.1328 and 22050 Hz"):
        extractor(speechlike(0.2, 44100))
    with pytest.raises(ValueError, match="F0 from 40 to 500 Hz"):
        made(sample_rate=44100, f0_min=40.0, n_fft=1024)
    assert made(sample_rate=None, f0_min=20.0, n_fft=1024, features=["rms"])(speechlike(0.2, 44100)).valid.all()


@pytest.mark.parametrize(("rate", "least"), [(22050, 111), (8000, 128)])
def test_contrast_needs_a_bin_in_each_octave(rate: int, least: int) -> None:
    with pytest.raises(ValueError, match=f"spectral_contrast at {rate} Hz needs n_fft of at least {least}"):
        made(features=["spectral_contrast_delta"], sample_rate=rate, n_fft=least - 1)
    sound = speechlike(0.2, rate)
    assert made(features=["spectral_contrast"], sample_rate=rate, n_fft=least)(sound).valid.all()
    with pytest.raises(ValueError, match=f"needs n_fft of at least {least}"):
        made(features=["spectral_contrast"], sample_rate=None, n_fft=64)(sound)


@pytest.mark.parametrize("rate", [22050, 44100, 48000])
def test_no_row_is_lost_to_rounding(rate: int) -> None:
    """15 * 1024 / 44100 * 22050 is less than 15 * 512 in floating point."""
    for hops in (15, 16, 43):
        sound = Waveform(np.zeros(hops * 512 * rate // 22050, np.float32), rate)
        expected = 1 + len(sound.samples) * 22050 // rate // 512
        assert len(made(features=["rms"])(sound)) == expected
    assert len(made(features=["rms"])(Waveform(np.zeros(15 * 1024, np.float32), 44100))) == 16


@pytest.mark.filterwarnings("ignore:n_fft")
@pytest.mark.parametrize("samples", [1, 40_000])
def test_blocks_do_not_change_results(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Waveform(speechlike(2.0, 22050).samples[:samples], 22050)
    whole = made(features=list(FEATURES))(sound).values
    monkeypatch.setattr(audio_librosa, "_BLOCK", 7)
    same(made(features=list(FEATURES))(sound).values, whole, "in blocks")


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.02, int(seconds * 22050)).astype(np.float32)


@pytest.mark.parametrize("offset", [0.01, 0.05, 0.2])
def test_a_constant_offset_is_no_voice(offset: float) -> None:
    extractor = made(features=["f0"])
    assert not extractor(Waveform(noise(2.0) + np.float32(offset), 22050)).values[:, 0].any()
    voice = speechlike(2.0, 22050)
    before, after = (extractor(Waveform(voice.samples + np.float32(x), 22050)).values[:, 0] for x in (0, offset))
    assert np.mean((before > 0) == (after > 0)) > 0.97


def test_an_offset_that_changes_is_no_voice() -> None:
    drifting = noise(2.0) + np.linspace(-0.15, 0.15, 44100, dtype=np.float32)
    assert not made(features=["f0"])(Waveform(drifting, 22050)).values[3:-3, 0].any()


def test_what_is_much_quieter_than_the_loudest_is_not_voiced() -> None:
    """Hum 40 dB below the voice has a pitch too; `silence_db` says whether it counts."""
    time = np.arange(22050) / 22050
    hum, voice = 0.005 * np.sin(2 * np.pi * 100 * time), 0.5 * np.sin(2 * np.pi * 200 * time)
    sound = Waveform(np.concatenate([hum, voice]).astype(np.float32), 22050)
    for silence_db, heard in ((30.0, False), (50.0, True)):
        track = made(features=["f0"], silence_db=silence_db)(sound)
        middle = track.times.mean(axis=1)
        assert (track.values[(middle > 0.2) & (middle < 0.8), 0] > 0).all() == heard
        assert (track.values[(middle > 1.2) & (middle < 1.8), 0] > 0).all()


@pytest.mark.filterwarnings("ignore:n_fft")
@pytest.mark.parametrize("feature", ["chroma_cqt", "chroma_cens", "tonnetz", "chroma_stft"])
def test_tuning_moves_the_chromas(feature: str) -> None:
    sound = speechlike(1.0, 22050)
    as_it_is, higher = (made(features=[feature], tuning=tuning)(sound).values for tuning in (0.0, 0.4))
    assert np.abs(as_it_is - higher).max() > 1e-3
    if feature in ("chroma_cqt", "chroma_cens"):
        expected = getattr(f, feature)(y=sound.samples, sr=22050, hop_length=HOP, tuning=0.4).T
        same(higher, expected, feature)


def test_settings_of_features_that_are_not_asked_for_change_no_fingerprint() -> None:
    config = find("librosa").config
    others = {"poly_order": 3, "tempogram_length": 100, "tuning": 0.1, "f0_min": 80.0, "n_mels": 64, "n_mfcc": 5}
    plain = {"features": ["rms"]}
    assert config(**plain, **others).identity() == config(**plain).identity()
    assert config(**plain, hop_length=256).identity() != config(**plain).identity()
    for name, feature in {"poly_order": "poly_features", "f0_min": "f0_delta", "n_mels": "tempogram"}.items():
        asked = {"features": [feature]}
        assert config(**asked, **{name: others[name]}).identity() != config(**asked).identity()


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
@pytest.mark.parametrize("seconds", [0.004, 0.2, 61.7])
def test_a_long_clip_is_not_resampled_as_a_whole_and_has_the_same_rows(
    rate: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = speechlike(seconds, rate)
    sound = Waveform(sound.samples + np.float32(0.01), rate)
    features = (*(name for name in FEATURES if FEATURES[name].default), "melspectrogram", "tempogram")
    for extractor in (made(), made(features=features, sample_rate=None if rate != 8000 else 16000)):
        expected = extractor(sound)
        with monkeypatch.context() as patch:
            patch.setattr(audio_librosa, "_LONG", 0.0)
            patch.setattr(audio_librosa._Sound, "samples", property(lambda sound: pytest.fail("a second copy")))
            found = extractor(sound)
        np.testing.assert_array_equal(found.values, expected.values)
        np.testing.assert_array_equal(found.times, expected.times)
