"""`librosa`: its feature functions by name, one row per hop, all from one short-time Fourier transform."""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import librosa
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from mmfeat.extractors import Config, register
from mmfeat.track import Floats, Track, Waveform

Rows = NDArray[np.floating]
"""Shape (columns, steps), as librosa has it."""


@dataclass(frozen=True)
class _Feature:
    compute: Callable[[_Sound], Rows]
    columns: Callable[[LibrosaConfig], int] | tuple[str, ...] = ()
    """How many, which are then numbered, or their names; none: one column that is called as the feature is."""
    default: bool = False


FEATURES: dict[str, _Feature] = {
    "zero_crossing_rate": _Feature(
        lambda s: librosa.feature.zero_crossing_rate(
            s.samples, frame_length=s.config.n_fft, hop_length=s.config.hop_length
        ),
        default=True,
    ),
    "rms": _Feature(
        lambda s: librosa.feature.rms(y=s.samples, frame_length=s.config.n_fft, hop_length=s.config.hop_length),
        default=True,
    ),
    "mfcc": _Feature(
        lambda s: librosa.feature.mfcc(S=s.mel_db, n_mfcc=s.config.n_mfcc), lambda config: config.n_mfcc, default=True
    ),
    "f0": _Feature(lambda s: s.f0(), ("f0", "voicing"), default=True),
    "spectral_centroid": _Feature(lambda s: librosa.feature.spectral_centroid(**s.spectrum), default=True),
    "spectral_bandwidth": _Feature(lambda s: librosa.feature.spectral_bandwidth(**s.spectrum), default=True),
    "spectral_rolloff": _Feature(lambda s: librosa.feature.spectral_rolloff(**s.spectrum), default=True),
    "spectral_flatness": _Feature(lambda s: librosa.feature.spectral_flatness(S=s.magnitude), default=True),
    "spectral_contrast": _Feature(
        # Six octaves from 200 Hz do not fit below half of a low rate; then they begin as high as they can.
        lambda s: librosa.feature.spectral_contrast(**s.spectrum, fmin=200.0 if s.rate > 12800 else s.rate / 128),
        lambda _: 7,
    ),
    "poly_features": _Feature(
        lambda s: librosa.feature.poly_features(**s.spectrum, order=s.config.poly_order),
        lambda config: config.poly_order + 1,
    ),
    "melspectrogram": _Feature(lambda s: s.mel, lambda config: config.n_mels),
    "chroma_stft": _Feature(
        lambda s: librosa.feature.chroma_stft(**{**s.spectrum, "S": s.magnitude**2}, tuning=s.config.tuning),
        lambda _: 12,
    ),
    "chroma_cqt": _Feature(lambda s: s.chroma, lambda _: 12),
    "chroma_cens": _Feature(lambda s: librosa.feature.chroma_cens(C=s.constant_q, sr=s.rate), lambda _: 12),
    "tonnetz": _Feature(lambda s: librosa.feature.tonnetz(chroma=s.chroma, sr=s.rate), lambda _: 6),
    "tempogram": _Feature(
        lambda s: librosa.feature.tempogram(**s.onsets, win_length=s.config.tempogram_length),
        lambda config: config.tempogram_length,
    ),
    "fourier_tempogram": _Feature(
        lambda s: np.abs(librosa.feature.fourier_tempogram(**s.onsets, win_length=s.config.tempogram_length)),
        lambda config: config.tempogram_length // 2 + 1,
    ),
}
"""All that can be asked for, in the order of the default ones."""

# First and second derivative over time of any feature.
_DERIVATIVE = re.compile(r"(?P<feature>.+)_delta(?P<order>2?)")


class LibrosaConfig(Config):
    sample_rate: int | None = Field(
        22050, ge=2000, description="the sound is resampled to this rate first, in Hz; null: the file's own rate"
    )
    hop_length: int = Field(512, ge=16, description="samples from one step to the next")
    n_fft: int = Field(2048, ge=64, description="samples a spectrum is made from")
    features: tuple[str, ...] = Field(
        tuple(name for name, feature in FEATURES.items() if feature.default),
        min_length=1,
        description=f"which, in the order of their columns: {', '.join(FEATURES)}; with _delta or _delta2 at the end, "
        "the first or second derivative over time",
    )
    n_mfcc: int = Field(20, ge=1, description="number of cepstral coefficients")
    htk: bool = Field(False, description="HTK's mel scale instead of Slaney's")
    n_mels: int = Field(128, ge=1, description="mel bands, for `mfcc`, `melspectrogram` and the tempograms")
    tuning: float | None = Field(
        None, ge=-0.5, le=0.5, description="of the chromas, in bins; null: estimated for each clip, as librosa does"
    )
    poly_order: int = Field(1, ge=0, description="of the polynomial of `poly_features`; highest coefficient first")
    tempogram_length: int = Field(384, ge=2, description="steps that a tempogram looks at")
    f0_min: float = Field(65.0, gt=0, description="lowest pitch looked for, in Hz")
    f0_max: float = Field(500.0, gt=0, description="highest pitch looked for, in Hz")
    voicing_threshold: float = Field(0.5, ge=0, le=1, description="below this voicing, F0 is 0")
    silence_db: float = Field(
        30.0, gt=0, description="steps this much quieter than the clip's loudest are not voiced: hum has a pitch too"
    )

    @field_validator("features")
    @classmethod
    def _known(cls, features: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in features if _base(name)[0] not in FEATURES]:
            known = ", ".join(FEATURES)
            raise ValueError(f"no feature {unknown[0]!r}; there are: {known}, each also with _delta, _delta2")
        if len(set(features)) < len(features):
            raise ValueError("a feature is named twice")
        return features

    @model_validator(mode="after")
    def _possible(self) -> LibrosaConfig:
        if self.n_mfcc > self.n_mels:
            raise ValueError(f"n_mfcc {self.n_mfcc} is more than n_mels {self.n_mels}")
        if self.sample_rate:
            self.check_pitch(self.sample_rate)
        return self

    def check_pitch(self, rate: int) -> None:
        """Raises ValueError where the pitches looked for cannot be found at this rate."""
        asked = any(_base(name)[0] == "f0" for name in self.features)
        if asked and not rate / self.n_fft < self.f0_min < self.f0_max < rate / 2:
            raise ValueError(
                f"F0 from {self.f0_min:g} to {self.f0_max:g} Hz does not lie between sample_rate / n_fft and "
                f"sample_rate / 2, {rate / self.n_fft:g} and {rate / 2:g} Hz"
            )


def _base(name: str) -> tuple[str, int]:
    """A feature and which derivative of it is asked for: `mfcc_delta2` → (mfcc, 2)."""
    if found := _DERIVATIVE.fullmatch(name):
        return found["feature"], 2 if found["order"] else 1
    return name, 0


def _columns(config: LibrosaConfig, name: str) -> tuple[str, ...]:
    feature, _ = _base(name)
    columns = FEATURES[feature].columns or (feature,)
    if callable(columns):
        columns = tuple(f"{feature}_{k}" for k in range(columns(config)))
    return tuple(column + name.removeprefix(feature) for column in columns)


@register("librosa", LibrosaConfig, version=2)
class Librosa:
    """One row per hop, centred: step t stands for the time from (t - ½) to (t + ½) hops.

    Every feature is what `librosa.feature.<name>` gives for the same sound and settings. Numbered columns are named
    `<name>_k`. `f0` is our own: Hz by YIN, 0 where unvoiced, with `voicing` (0 to 1: normalised autocorrelation at the
    period found). Of `fourier_tempogram` the magnitude is taken. Derivatives are `librosa.feature.delta` over 9
    steps, the first and last step repeated beyond the ends, so that clips of any length have them.
    """

    def __init__(self, config: LibrosaConfig):
        self.config = config
        self.names = tuple(column for name in config.features for column in _columns(config, name))

    def __call__(self, waveform: Waveform) -> Track:
        """Features of the whole sound, shape (1 + n // hop_length, D). Raises ValueError for an impossible pitch."""
        config = self.config
        rate = config.sample_rate or waveform.rate
        config.check_pitch(rate)
        sound = _Sound(waveform.at(rate), config)
        if not len(sound.samples):
            return Track.empty(self.names)
        # Resampling rounds the length up; a step that would begin after the sound's true end is left out.
        steps = 1 + int(waveform.seconds * rate) // config.hop_length
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "n_fft=|Trying to estimate tuning")  # both mean a short or silent clip
            rows = np.concatenate([sound.rows(name)[:, :steps] for name in config.features])
        middle = np.arange(steps) * config.hop_length
        edges = np.stack([middle - config.hop_length / 2, middle + config.hop_length / 2], axis=1)
        times = np.clip(edges / rate, 0, waveform.seconds)
        return Track(times, np.ascontiguousarray(rows.T, np.float32), np.ones(steps, bool), self.names)


class _Sound:
    """One clip's sound and what several features are made from, each computed once and only when asked for."""

    def __init__(self, waveform: Waveform, config: LibrosaConfig):
        self.samples: Floats = waveform.samples
        self.rate: int = waveform.rate
        self.config: LibrosaConfig = config
        self._known: dict[str, Rows] = {}

    def rows(self, name: str) -> Rows:
        """A feature or a derivative of one."""
        feature, order = _base(name)
        if feature not in self._known:
            self._known[feature] = FEATURES[feature].compute(self)
        if not order:
            return self._known[feature]
        return librosa.feature.delta(self._known[feature], order=order, mode="nearest")

    @functools.cached_property
    def magnitude(self) -> Rows:
        return np.abs(librosa.stft(self.samples, n_fft=self.config.n_fft, hop_length=self.config.hop_length))

    @property
    def spectrum(self) -> dict[str, Any]:
        """Arguments of librosa's functions that take a spectrum."""
        shape = {"n_fft": self.config.n_fft, "hop_length": self.config.hop_length}
        return {"S": self.magnitude, "sr": self.rate, **shape}

    @functools.cached_property
    def mel(self) -> Rows:
        return librosa.feature.melspectrogram(
            S=self.magnitude**2, sr=self.rate, n_fft=self.config.n_fft, n_mels=self.config.n_mels, htk=self.config.htk
        )

    @functools.cached_property
    def mel_db(self) -> Rows:
        return librosa.power_to_db(self.mel)

    @functools.cached_property
    def onsets(self) -> dict[str, Any]:
        """Arguments of the tempograms: how much louder each step is than the one before, in any band."""
        shape: dict[str, Any] = {"sr": self.rate, "hop_length": self.config.hop_length}
        strength = librosa.onset.onset_strength(S=self.mel_db, n_fft=self.config.n_fft, **shape)
        return {"onset_envelope": strength, **shape}

    @functools.cached_property
    def constant_q(self) -> Rows:
        """Magnitude of the constant-Q transform from C1, 36 bins an octave: seven octaves, fewer at low rates."""
        lowest = float(librosa.note_to_hz("C1"))
        octaves = min(7, int(math.log2(self.rate / 2 / lowest)))
        shape: dict[str, Any] = {"sr": self.rate, "hop_length": self.config.hop_length, "tuning": self.config.tuning}
        return np.abs(librosa.cqt(self.samples, fmin=lowest, n_bins=36 * octaves, bins_per_octave=36, **shape))

    @functools.cached_property
    def chroma(self) -> Rows:
        return librosa.feature.chroma_cqt(C=self.constant_q, sr=self.rate)

    def f0(self) -> Rows:
        """F0 by YIN (de Cheveigné & Kawahara 2002) and voicing, shape (2, steps).

        YIN always names a period. How far to believe it is the normalised autocorrelation of the frame at that
        period, which is 1 for a periodic sound and near 0 for noise; silence gives 0.
        """
        config = self.config
        # A clip shorter than one frame is filled up with silence; the caller cuts off the steps that this adds.
        samples = np.pad(self.samples, (0, max(0, config.n_fft - len(self.samples))))
        f0 = librosa.yin(
            samples,
            fmin=config.f0_min,
            fmax=config.f0_max,
            sr=self.rate,
            frame_length=config.n_fft,
            hop_length=config.hop_length,
        )
        padded = np.pad(samples, config.n_fft // 2)
        frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop_length]
        steps = min(len(f0), len(frames))
        window = config.n_fft // 2
        period = np.rint(self.rate / f0[:steps]).astype(int).clip(1, window)
        here = frames[:steps, :window]
        later = np.take_along_axis(frames[:steps], period[:, None] + np.arange(window), axis=1)
        energy = np.sqrt((here**2).sum(1) * (later**2).sum(1))
        # `energy` is a power: 10 dB are a factor of 10.
        heard = energy > max(1e-8, energy.max() * 10 ** (-config.silence_db / 10))
        # At the edge of what was looked for there is no period, only the end of the search.
        heard &= (f0[:steps] > 1.02 * config.f0_min) & (f0[:steps] < 0.98 * config.f0_max)
        voicing = np.divide((here * later).sum(1), energy, out=np.zeros(steps, np.float32), where=heard).clip(0, 1)
        return np.stack([np.where(voicing >= config.voicing_threshold, f0[:steps], 0.0), voicing])
