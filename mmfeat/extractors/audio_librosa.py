"""`librosa`: low-level descriptors per hop, all from one short-time Fourier transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import librosa
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mmfeat.extractors import Config, register
from mmfeat.track import Floats, Track, Waveform

Feature = Literal[
    "zero_crossing_rate",
    "rms",
    "mfcc",
    "f0",
    "spectral_centroid",
    "spectral_bandwidth",
    "spectral_rolloff",
    "spectral_flatness",
    "spectral_contrast",
    "chroma_cqt",
    "chroma_stft",
    "mel",
]


class LibrosaConfig(Config):
    sample_rate: int = Field(22050, ge=2000, description="the sound is resampled to this rate first, in Hz")
    hop_length: int = Field(512, ge=16, description="samples from one step to the next")
    n_fft: int = Field(2048, ge=64, description="samples a spectrum is made from")
    features: tuple[Feature, ...] = Field(
        (
            "zero_crossing_rate",
            "rms",
            "mfcc",
            "f0",
            "spectral_centroid",
            "spectral_bandwidth",
            "spectral_rolloff",
            "spectral_flatness",
        ),
        min_length=1,
        description="which descriptors, in the order of their columns",
    )
    n_mfcc: int = Field(20, ge=1, description="number of cepstral coefficients")
    htk: bool = Field(False, description="HTK's mel scale instead of Slaney's")
    n_mels: int = Field(128, ge=1, description="mel bands, for `mfcc` and `mel`")
    f0_min: float = Field(65.0, gt=0, description="lowest pitch looked for, in Hz")
    f0_max: float = Field(500.0, gt=0, description="highest pitch looked for, in Hz")
    voicing_threshold: float = Field(0.5, ge=0, le=1, description="below this voicing, F0 is 0")
    silence_db: float = Field(
        30.0, gt=0, description="steps this much quieter than the clip's loudest are not voiced: hum has a pitch too"
    )

    @model_validator(mode="after")
    def _possible(self) -> LibrosaConfig:
        if self.n_mfcc > self.n_mels:
            raise ValueError(f"n_mfcc {self.n_mfcc} is more than n_mels {self.n_mels}")
        if len(set(self.features)) < len(self.features):
            raise ValueError("a feature is named twice")
        if not self.sample_rate / self.n_fft < self.f0_min < self.f0_max < self.sample_rate / 2:
            raise ValueError("F0 must lie between sample_rate / n_fft and sample_rate / 2")
        return self


def _columns(config: LibrosaConfig, feature: Feature) -> tuple[str, ...]:
    counts = {"mfcc": config.n_mfcc, "mel": config.n_mels, "chroma_cqt": 12, "chroma_stft": 12, "spectral_contrast": 7}
    if feature == "f0":
        return ("f0", "voicing")
    if feature in counts:
        return tuple(f"{feature}_{k}" for k in range(counts[feature]))
    return (feature,)


@register("librosa", LibrosaConfig, version=1)
class Librosa:
    """One row per hop, centred: step t stands for the time from (t - ½) to (t + ½) hops.

    Columns: `zero_crossing_rate` (share of samples), `rms` (full scale 1), `mfcc_k` (of the power mel spectrum in
    dB), `f0` (Hz, YIN; 0 where unvoiced) with `voicing` (0 to 1: normalised autocorrelation at the period found),
    `spectral_centroid`, `spectral_bandwidth`, `spectral_rolloff` (Hz), `spectral_flatness` (0 to 1), and on request
    `spectral_contrast_k` (dB), `chroma_cqt_k`, `chroma_stft_k` (0 to 1, C first) and `mel_k` (power).
    """

    def __init__(self, config: LibrosaConfig):
        self.config = config
        self.names = tuple(name for feature in config.features for name in _columns(config, feature))

    def __call__(self, waveform: Waveform) -> Track:
        """Features of the whole sound, shape (1 + n // hop_length, D)."""
        config = self.config
        sound = waveform.at(config.sample_rate)
        if not len(sound.samples):
            return Track.empty(self.names)
        # Resampling rounds the length up; a step that would begin after the sound's true end is left out.
        steps = 1 + int(waveform.seconds * config.sample_rate) // config.hop_length
        spectra = _Spectra(sound.samples, config)
        rows = np.concatenate([spectra.compute(feature)[:, :steps] for feature in config.features])
        middle = np.arange(steps) * config.hop_length
        edges = np.stack([middle - config.hop_length / 2, middle + config.hop_length / 2], axis=1)
        times = np.clip(edges / config.sample_rate, 0, waveform.seconds)
        return Track(times, np.ascontiguousarray(rows.T, np.float32), np.ones(steps, bool), self.names)


class _Spectra:
    """The sound and its one STFT, shared by every descriptor."""

    def __init__(self, samples: Floats, config: LibrosaConfig):
        self.config = config
        # A clip shorter than one spectrum is filled up with silence; the extra steps are cut off by the caller.
        self.samples = np.pad(samples, (0, max(0, config.n_fft - len(samples))))
        self.magnitude = np.abs(librosa.stft(self.samples, n_fft=config.n_fft, hop_length=config.hop_length))
        self.mel = librosa.feature.melspectrogram(
            S=self.magnitude**2, sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.n_mels, htk=config.htk
        )

    def compute(self, feature: Feature) -> NDArray[np.floating]:
        """One descriptor, shape (columns, steps)."""
        config, rate = self.config, self.config.sample_rate
        shape: dict[str, Any] = {
            "S": self.magnitude,
            "sr": rate,
            "n_fft": config.n_fft,
            "hop_length": config.hop_length,
        }
        frame: dict[str, Any] = {"frame_length": config.n_fft, "hop_length": config.hop_length}
        ways: dict[Feature, Callable[[], NDArray[np.floating]]] = {
            "zero_crossing_rate": lambda: librosa.feature.zero_crossing_rate(self.samples, **frame),
            "rms": lambda: librosa.feature.rms(y=self.samples, **frame),
            "mfcc": lambda: librosa.feature.mfcc(S=librosa.power_to_db(self.mel), n_mfcc=config.n_mfcc),
            "f0": self._f0,
            "spectral_centroid": lambda: librosa.feature.spectral_centroid(**shape),
            "spectral_bandwidth": lambda: librosa.feature.spectral_bandwidth(**shape),
            "spectral_rolloff": lambda: librosa.feature.spectral_rolloff(**shape),
            "spectral_flatness": lambda: librosa.feature.spectral_flatness(S=self.magnitude),
            "spectral_contrast": lambda: librosa.feature.spectral_contrast(**shape, fmin=min(200.0, rate / 256)),
            "chroma_stft": lambda: librosa.feature.chroma_stft(**{**shape, "S": self.magnitude**2}, tuning=0.0),
            "chroma_cqt": self._chroma_cqt,
            "mel": lambda: self.mel,
        }
        return ways[feature]()

    def _chroma_cqt(self) -> NDArray[np.floating]:
        """Chroma from the constant-Q transform, shape (12, steps); its lowest filters are longer than many clips."""
        filled = np.pad(self.samples, (0, max(0, 4 * self.config.sample_rate - len(self.samples))))
        return librosa.feature.chroma_cqt(
            y=filled, sr=self.config.sample_rate, hop_length=self.config.hop_length, tuning=0.0
        )

    def _f0(self) -> NDArray[np.floating]:
        """F0 by YIN (de Cheveigné & Kawahara 2002) and voicing, shape (2, steps).

        YIN always names a period. How far to believe it is the normalised autocorrelation of the frame at that
        period, which is 1 for a periodic sound and near 0 for noise; silence gives 0.
        """
        config = self.config
        f0 = librosa.yin(
            self.samples,
            fmin=config.f0_min,
            fmax=config.f0_max,
            sr=config.sample_rate,
            frame_length=config.n_fft,
            hop_length=config.hop_length,
        )
        padded = np.pad(self.samples, config.n_fft // 2)
        frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop_length]
        steps = min(len(f0), len(frames))
        window = config.n_fft // 2
        period = np.rint(config.sample_rate / f0[:steps]).astype(int).clip(1, window)
        here = frames[:steps, :window]
        later = np.take_along_axis(frames[:steps], period[:, None] + np.arange(window), axis=1)
        energy = np.sqrt((here**2).sum(1) * (later**2).sum(1))
        # `energy` is a power: 10 dB are a factor of 10.
        heard = energy > max(1e-8, energy.max() * 10 ** (-config.silence_db / 10))
        # At the edge of what was looked for there is no period, only the end of the search.
        heard &= (f0[:steps] > 1.02 * config.f0_min) & (f0[:steps] < 0.98 * config.f0_max)
        voicing = np.divide((here * later).sum(1), energy, out=np.zeros(steps, np.float32), where=heard).clip(0, 1)
        return np.stack([np.where(voicing >= config.voicing_threshold, f0[:steps], 0.0), voicing])
