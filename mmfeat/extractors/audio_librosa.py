"""`librosa`: its feature functions by name, one row per hop, all from one short-time Fourier transform."""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any, Literal

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
    compute: Callable[[Any], Rows]
    """From a `_Spectrum` of some steps where `local`, otherwise from the `_Sound`."""
    columns: Callable[[LibrosaConfig], int] | tuple[str, ...] = ()
    """How many, which are then numbered, or their names; none: one column that is called as the feature is."""
    default: bool = False
    local: bool = False
    """Whether each step follows from its own spectrum alone."""


FEATURES: dict[str, _Feature] = {
    "zero_crossing_rate": _Feature(lambda s: s.zero_crossings(), default=True),
    "rms": _Feature(lambda s: s.rms(), default=True),
    "mfcc": _Feature(lambda s: s.mfcc(), lambda config: config.n_mfcc, default=True),
    "f0": _Feature(lambda s: s.f0(), ("f0", "voicing"), default=True),
    "spectral_centroid": _Feature(lambda s: librosa.feature.spectral_centroid(**s.spectrum), default=True, local=True),
    "spectral_bandwidth": _Feature(
        lambda s: librosa.feature.spectral_bandwidth(**s.spectrum), default=True, local=True
    ),
    "spectral_rolloff": _Feature(lambda s: librosa.feature.spectral_rolloff(**s.spectrum), default=True, local=True),
    "spectral_flatness": _Feature(lambda s: librosa.feature.spectral_flatness(S=s.magnitude), default=True, local=True),
    "spectral_contrast": _Feature(
        lambda s: librosa.feature.spectral_contrast(**s.whole.spectrum, fmin=_lowest_octave(s.rate)), lambda _: 7
    ),
    "poly_features": _Feature(
        lambda s: librosa.feature.poly_features(**s.spectrum, order=s.config.poly_order),
        lambda config: config.poly_order + 1,
        local=True,
    ),
    "melspectrogram": _Feature(lambda s: s.mel(), lambda config: config.n_mels, local=True),
    "chroma_stft": _Feature(
        lambda s: librosa.feature.chroma_stft(
            **{**s.whole.spectrum, "S": s.whole.magnitude**2}, tuning=s.config.tuning
        ),
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

_OF_MEL = {"mfcc", "melspectrogram", "tempogram", "fourier_tempogram"}
_CHROMAS = {"chroma_stft", "chroma_cqt", "chroma_cens", "tonnetz"}
_SETTINGS_OF: dict[str, Set[str]] = {
    "n_mfcc": {"mfcc"},
    "htk": _OF_MEL,
    "n_mels": _OF_MEL,
    "tuning": _CHROMAS,
    "poly_order": {"poly_features"},
    "tempogram_length": {"tempogram", "fourier_tempogram"},
    **dict.fromkeys(("f0_min", "f0_max", "voicing_threshold", "silence_db"), frozenset({"f0"})),
}
"""Setting → the features that it is for; other settings are for all."""
_BLOCK = 2048
"""Steps whose frames are held at once: those of an hour would fill gigabytes."""
_LONG = 120.0
"""Seconds from which the resampled sound is not kept but made anew for each pass over it."""

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
            self.check_rate(self.sample_rate)
        return self

    @property
    def asked(self) -> set[str]:
        """The features, also those of which only a derivative is asked for."""
        return {_base(name)[0] for name in self.features}

    def identity(self) -> dict[str, Any]:
        """Settings of features that are not asked for change nothing."""
        idle = {setting for setting, features in _SETTINGS_OF.items() if not self.asked & features}
        return {setting: value for setting, value in super().identity().items() if setting not in idle}

    def check_rate(self, rate: int) -> None:
        """Raises ValueError where a feature cannot be had at this rate.

        With `sample_rate: null` that is said of the clip. A longer spectrum for such clips alone would be another
        feature under the same name.
        """
        asked = self.asked
        if "f0" in asked and not 2 * rate / self.n_fft < self.f0_min < self.f0_max < rate / 2:
            raise ValueError(
                f"F0 from {self.f0_min:g} to {self.f0_max:g} Hz does not lie between 2 x sample_rate / n_fft (two "
                f"periods) and sample_rate / 2, {2 * rate / self.n_fft:g} and {rate / 2:g} Hz: change n_fft, f0_min, "
                "f0_max or sample_rate"
            )
        if "spectral_contrast" in asked and rate / self.n_fft > _lowest_octave(rate):
            raise ValueError(
                f"spectral_contrast at {rate} Hz needs n_fft of at least {math.ceil(rate / _lowest_octave(rate))}"
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


@register("librosa", LibrosaConfig, version=3)
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
        """Features of the whole sound, shape (1 + n // hop_length, D). Raises ValueError for an impossible rate."""
        config = self.config
        rate = config.sample_rate or waveform.rate
        config.check_rate(rate)
        sound = _Sound(waveform, rate, config)
        if not sound.count:
            return Track.empty(self.names)
        # Resampling rounds the length up; a step that would begin after the sound's true end is left out. In integers:
        # seconds times rate may come out a hair below the number of samples.
        steps = 1 + len(waveform.samples) * rate // waveform.rate // config.hop_length
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "n_fft=|Trying to estimate tuning")  # both mean a short or silent clip
            rows = np.concatenate([sound.rows(name)[:, :steps] for name in config.features])
        middle = np.arange(steps) * config.hop_length
        edges = np.stack([middle - config.hop_length / 2, middle + config.hop_length / 2], axis=1)
        times = np.clip(edges / rate, 0, waveform.seconds)
        return Track(times, np.ascontiguousarray(rows.T, np.float32), np.ones(steps, bool), self.names)


@dataclass(frozen=True)
class _Spectrum:
    """Magnitudes of some steps of the short-time Fourier transform."""

    magnitude: Rows
    rate: int
    config: LibrosaConfig

    @property
    def spectrum(self) -> dict[str, Any]:
        """Arguments of librosa's functions that take a spectrum."""
        shape = {"n_fft": self.config.n_fft, "hop_length": self.config.hop_length}
        return {"S": self.magnitude, "sr": self.rate, **shape}

    def mel(self) -> Rows:
        config = self.config
        return librosa.feature.melspectrogram(
            S=self.magnitude**2, sr=self.rate, n_fft=config.n_fft, n_mels=config.n_mels, htk=config.htk
        )


class _Sound:
    """One clip's sound and what several features are made from, each computed once and only when asked for."""

    def __init__(self, waveform: Waveform, rate: int, config: LibrosaConfig):
        self.rate: int = rate
        self.config: LibrosaConfig = config
        self._source = waveform
        self._is_long = waveform.seconds > _LONG
        self._frames: dict[str, Any] = {"frame_length": config.n_fft, "hop_length": config.hop_length, "center": False}
        self._known: dict[str, Rows] = {}

    def rows(self, name: str) -> Rows:
        """A feature or a derivative of one."""
        feature, order = _base(name)
        if feature not in self._known:
            entry = FEATURES[feature]
            self._known[feature] = self._local[feature] if entry.local else entry.compute(self)
        if not order:
            return self._known[feature]
        return librosa.feature.delta(self._known[feature], order=order, mode="nearest")

    @functools.cached_property
    def samples(self) -> Floats:
        """All of the sound at once."""
        return self._source.at(self.rate).samples

    def _pieces(self) -> Iterator[Floats]:
        """The same in order."""
        return self._source.pieces(self.rate) if self._is_long else iter([self.samples])

    @functools.cached_property
    def _totals(self) -> tuple[int, float]:
        """How many samples, and their sum."""
        lengths, sums = zip(*((len(piece), piece.sum(dtype=np.float64)) for piece in self._pieces()), strict=True)
        return sum(lengths), float(sum(sums))

    @property
    def count(self) -> int:
        return self._totals[0]

    def _blocks(self, edge: Literal["constant", "edge"] = "constant", level: float = 0.0) -> Iterator[Floats]:
        """The sound, less its `level`, cut so that each block holds `_BLOCK` whole frames, centred on their hops.

        Beyond the clip's ends there is silence, or with "edge" the end's own sample.
        """
        size, hop = self.config.n_fft, self.config.hop_length
        left, whole, pieces = 1 + self.count // hop, (_BLOCK - 1) * hop + size, self._pieces()
        waiting, before = next(pieces) - np.float32(level), size // 2
        waiting = np.pad(waiting, (before, 0), edge)
        for piece in pieces:
            waiting = np.concatenate([waiting, piece - np.float32(level)])
            while len(waiting) > whole:
                yield waiting[:whole]
                waiting, left = waiting[_BLOCK * hop :], left - _BLOCK
        waiting = np.pad(waiting, (0, size - before), edge)
        for first in range(0, left, _BLOCK):
            yield waiting[first * hop : (min(first + _BLOCK, left) - 1) * hop + size]

    def zero_crossings(self) -> Rows:
        crossings = librosa.feature.zero_crossing_rate
        return np.concatenate([crossings(block, **self._frames) for block in self._blocks("edge")], axis=1)

    def rms(self) -> Rows:
        return np.concatenate([librosa.feature.rms(y=block, **self._frames) for block in self._blocks()], axis=1)

    def _spectra(self) -> Iterator[_Spectrum]:
        """The sound's spectrum, block by block."""
        size, hop = self.config.n_fft, self.config.hop_length
        for block in self._blocks():
            magnitude = np.abs(librosa.stft(block, n_fft=size, hop_length=hop, center=False))
            yield _Spectrum(magnitude, self.rate, self.config)

    @functools.cached_property
    def _local(self) -> dict[str, Rows]:
        """Rows of each local feature that is needed, all from one transform."""
        asked = self.config.asked
        if asked & _OF_MEL:
            asked = asked | {"melspectrogram"}
        names = [name for name in FEATURES if name in asked and FEATURES[name].local]
        blocks = [{name: FEATURES[name].compute(spectrum) for name in names} for spectrum in self._spectra()]
        return {name: np.concatenate([block[name] for block in blocks], axis=1) for name in names}

    @functools.cached_property
    def whole(self) -> _Spectrum:
        """All steps at once: 0.6 GB for an hour by the defaults."""
        magnitude = np.concatenate([spectrum.magnitude for spectrum in self._spectra()], axis=1)
        return _Spectrum(magnitude, self.rate, self.config)

    @functools.cached_property
    def mel_db(self) -> Rows:
        """Decibels, at most 80 below the clip's largest; takes the place of the powers where nobody asked for them."""
        mel = self._local["melspectrogram"]
        db = mel.copy() if "melspectrogram" in self.config.asked else mel
        for block in _of_steps(db):
            block[:] = librosa.power_to_db(block, top_db=None)
        return np.maximum(db, db.max() - 80.0, out=db)

    def mfcc(self) -> Rows:
        blocks = [librosa.feature.mfcc(S=block, n_mfcc=self.config.n_mfcc) for block in _of_steps(self.mel_db)]
        return np.concatenate(blocks, axis=1)

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
        period, which is 1 for a periodic sound and near 0 for noise; silence gives 0. A constant offset has every
        period, so the clip is taken without its mean, and each frame without its own.
        """
        config = self.config
        count, total = self._totals
        blocks = self._blocks(level=total / count)
        f0, energy, product = np.concatenate([self._periods(block) for block in blocks], axis=1)
        # `energy` is a power: 10 dB are a factor of 10.
        heard = energy > max(1e-8, energy.max() * 10 ** (-config.silence_db / 10))
        # At the edge of what was looked for there is no period, only the end of the search.
        heard &= (f0 > 1.02 * config.f0_min) & (f0 < 0.98 * config.f0_max)
        voicing = np.divide(product, energy, out=np.zeros(len(f0), np.float32), where=heard).clip(0, 1)
        return np.stack([np.where(voicing >= config.voicing_threshold, f0, 0.0), voicing])

    def _periods(self, samples: Floats) -> Rows:
        """Of each frame F0, energy, and its product with itself a period later, shape (3, steps)."""
        size, hop, window = self.config.n_fft, self.config.hop_length, self.config.n_fft // 2
        f0 = librosa.yin(samples, fmin=self.config.f0_min, fmax=self.config.f0_max, sr=self.rate, **self._frames)
        frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
        frames = frames - frames.mean(axis=1, keepdims=True)
        period = np.rint(self.rate / f0).astype(int).clip(1, window)
        here = frames[:, :window]
        later = np.take_along_axis(frames, period[:, None] + np.arange(window), axis=1)
        energy = np.sqrt((here**2).sum(1) * (later**2).sum(1))
        return np.stack([f0, energy, (here * later).sum(1)])


def _of_steps(rows: Rows) -> Iterator[Rows]:
    """Views of `_BLOCK` steps of them."""
    for start in range(0, rows.shape[1], _BLOCK):
        yield rows[:, start : start + _BLOCK]


def _lowest_octave(rate: int) -> float:
    """Where the spectral contrast begins: its six octaves from 200 Hz do not fit below half of a low rate."""
    return 200.0 if rate > 12800 else rate / 128
