"""How good a recording is, and one loudness for all: measured on a clip's sound before anything else hears it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmfeat.track import Floats, Waveform

SILENCE = 1e-3
"""RMS of a frame that counts as silent, full scale 1: -60 dBFS."""
_FRAME = 0.02  # seconds
# Clipped tops are flat at full scale. Lossy codecs make them wavy: of speech that is not clipped, one sample in ten
# thousand lies in such runs; of speech that was clipped for 1 % of its samples and went through AAC, one in 400.
_FULL, _RUN = 0.95, 3
CLIPPED = (0.1, 0.03, 0.01, 0.005, 0.002)
"""Shares of samples that are reported, as few steps, so that clips can be counted by their reason."""


@dataclass(frozen=True)
class Quality:
    """Of a clip's sound as recorded, its channels mixed: what only one channel clips may not show."""

    loudness: float | None
    """Integrated loudness in LUFS (ITU-R BS.1770-4); None where all of it is below the gate of -70."""
    peak: float
    """Largest sample, full scale 1; lossy codecs go a little beyond."""
    silent: float
    """Share of frames of 20 ms below -60 dBFS (RMS)."""
    clipped: float
    """Share of samples in runs of at least three at full scale (above 0.95)."""

    @property
    def status(self) -> str:
        """`ok`, `silent` or `clipped`: worth knowing, no failure."""
        if self.silent == 1:
            return "silent"
        return "clipped" if self.clipped > CLIPPED[-1] else "ok"

    @property
    def reason(self) -> str:
        if self.status == "silent":
            return "the sound is below -60 dBFS throughout"
        step = next((share for share in CLIPPED if self.clipped > share), None)
        return f"more than {step:.1%} of the sound's samples are clipped" if step else ""

    def __str__(self) -> str:
        loudness = "no loudness" if self.loudness is None else f"{self.loudness:.1f} LUFS"
        return f"{loudness}, peak {self.peak:.2f}, {self.silent:.0%} silent, {self.clipped:.2%} clipped"


def measure(sound: Waveform) -> Quality:
    """The quality of at least one sample."""
    samples = sound.samples
    width = min(max(1, round(_FRAME * sound.rate)), len(samples))
    frames = samples[: len(samples) // width * width].reshape(-1, width)
    silent = float(np.mean(np.sqrt((frames**2).mean(axis=1)) < SILENCE))
    edges = np.flatnonzero(np.diff(np.abs(samples) > _FULL, prepend=False, append=False))
    runs = edges[1::2] - edges[::2]
    clipped = float(runs[runs >= _RUN].sum() / len(samples))
    return Quality(loudness(sound), float(np.abs(samples).max()), silent, clipped)


def loudness(sound: Waveform) -> float | None:
    """Integrated loudness of one channel in LUFS (ITU-R BS.1770-4), None where no block of 400 ms is above -70.

    A clip shorter than one block is one.
    """
    from scipy.signal import lfilter

    sound = sound.at(max(sound.rate, 8000))  # the weighting reaches to 2 kHz
    weighted = sound.samples.astype(np.float64)
    for numerator, denominator in _k_weighting(sound.rate):
        weighted = lfilter(numerator, denominator, weighted)
    step = round(0.1 * sound.rate)
    sums = np.concatenate([[0.0], np.cumsum(weighted**2)])
    starts = np.arange(0, max(len(weighted) - 4 * step, 0) + 1, step)
    ends = np.minimum(starts + 4 * step, len(weighted))
    power = (sums[ends] - sums[starts]) / (ends - starts)
    heard = power[power > _power(-70.0)]
    if not len(heard):
        return None
    heard = heard[heard > 0.1 * heard.mean()]  # -10 LU
    return float(-0.691 + 10 * np.log10(heard.mean()))


def at_loudness(sound: Waveform, target: float) -> Waveform:
    """The sound brought to `target` LUFS, also where peaks then pass full scale; without a loudness, as it was."""
    found = loudness(sound)
    if found is None:
        return sound
    gain: Floats = np.float32(10 ** ((target - found) / 20)) * sound.samples
    return Waveform(gain, sound.rate)


def _power(lufs: float) -> float:
    return 10 ** ((lufs + 0.691) / 10)


def _k_weighting(rate: int) -> list[tuple[list[float], list[float]]]:
    """BS.1770's two filters, the head's shelf and a high-pass, for any rate: the standard lists those at 48 kHz."""
    # The analogue filters that the standard's coefficients are the bilinear transform of.
    k, q = np.tan(np.pi * 1681.974450955533 / rate), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    middle = high**0.4996667741545416
    norm = 1 + k / q + k * k
    shelf = (
        [(high + middle * k / q + k * k) / norm, 2 * (k * k - high) / norm, (high - middle * k / q + k * k) / norm],
        [1.0, 2 * (k * k - 1) / norm, (1 - k / q + k * k) / norm],
    )
    k, q = np.tan(np.pi * 38.13547087602444 / rate), 0.5003270373238773
    norm = 1 + k / q + k * k
    return [shelf, ([1.0, -2.0, 1.0], [1.0, 2 * (k * k - 1) / norm, (1 - k / q + k * k) / norm])]
