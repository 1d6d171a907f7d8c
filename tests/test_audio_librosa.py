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

from mmfeat.extractors import find
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


@pytest.mark.filterwarnings("ignore:With fmin")
def test_a_pitch_that_the_files_own_rate_cannot_hold_is_named() -> None:
    extractor = made(sample_rate=None, f0_min=20.0, n_fft=1024)
    assert extractor(speechlike(0.2, 16000)).valid.all()
    with pytest.raises(ValueError, match="F0 from 20 to 500 Hz does not lie between"):
        extractor(speechlike(0.2, 44100))
    assert made(sample_rate=None, f0_min=20.0, n_fft=1024, features=["rms"])(speechlike(0.2, 44100)).valid.all()
