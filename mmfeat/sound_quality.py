"""How good a recording is, and one loudness for all: measured on a clip's sound before anything else hears it.

`silent` says that there is nothing to hear, not that nobody speaks: a room's noise above -60 dBFS and a door that slams
are sounds. A click that is shorter than any syllable is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmfeat.track import Floats, Waveform

SILENCE = 1e-3
"""RMS of a frame, less its mean, that counts as silent, full scale 1: -60 dBFS. A constant offset is not heard."""
_FRAME = 0.02  # seconds
CLICK = 0.1
"""Seconds: where all that is louder, taken together, is shorter and less than a tenth of the clip, nobody was heard.
Muted microphones, cuts and broken files leave such; a vowel lasts longer, and so does a slamming door with its echo."""
# Clipped tops are flat at full scale. Lossy codecs make them wavy: of speech that is not clipped, one sample in ten
# thousand lies in such runs; of speech that was clipped for 1 % of its samples and went through AAC, one in 400.
_FULL, _RUN = 0.95, 3
VERSION = 2
"""Raised when `at_loudness` may give another sound; part of the fingerprint."""
CLIPPED = (0.1, 0.03, 0.01, 0.005, 0.002)
"""Shares of samples that are reported, as few steps, so that clips can be counted by their reason."""
_BLOCK = 10.0
"""Seconds that are looked at together: beside an hour of sound, copies of it would fill gigabytes."""


@dataclass(frozen=True)
class Quality:
    """Of a clip's sound as recorded, its channels mixed: what only one channel clips may not show."""

    loudness: float | None
    """Integrated loudness in LUFS (ITU-R BS.1770-4); None where all of it is below the gate of -70."""
    peak: float
    """Largest sample, full scale 1; lossy codecs go a little beyond."""
    silent: float
    """Share of frames of 20 ms below -60 dBFS (RMS without a constant offset)."""
    clipped: float
    """Share of samples in runs of at least three at full scale (above 0.95)."""
    channels: int = 1
    """How many were mixed."""
    heard: float = math.inf
    """Seconds that are not silent."""

    @property
    def status(self) -> str:
        """`ok`, `silent` or `clipped`: worth knowing, no failure."""
        if _is_silent(self.silent, self.heard):
            return "silent"
        return "clipped" if self.clipped > CLIPPED[-1] else "ok"

    @property
    def reason(self) -> str:
        if self.status == "silent":
            what = f"the mix of the sound's {self.channels} channels" if self.channels > 1 else "the sound"
            return f"{what} is below -60 dBFS {'throughout' if self.silent == 1 else f'but for {self.heard:.2f} s'}"
        step = next((share for share in CLIPPED if self.clipped > share), None)
        return f"more than {step:.1%} of the sound's samples are clipped" if step else ""

    def __str__(self) -> str:
        loudness = "no loudness" if self.loudness is None else f"{self.loudness:.1f} LUFS"
        mix = f", mix of {self.channels} channels" if self.channels > 1 else ""
        return f"{loudness}, peak {self.peak:.2f}, {self.silent:.0%} silent, {self.clipped:.2%} clipped{mix}"


def measure(sound: Waveform) -> Quality:
    """The quality of at least one sample."""
    samples = sound.samples
    peak = max(float(samples.max()), -float(samples.min()))
    silent, heard = _silent(sound)
    return Quality(loudness(sound), peak, silent, _clipped(sound), sound.channels, heard)


def is_silent(sound: Waveform) -> bool:
    """Whether there is nothing to hear; of no sample there is not."""
    return not len(sound.samples) or _is_silent(*_silent(sound))


def _is_silent(share: float, heard: float) -> bool:
    return share == 1 or (share > 0.9 and heard < CLICK)


def _silent(sound: Waveform) -> tuple[float, float]:
    """Share of silent frames, and seconds of the others.

    The last frame reaches back to be a whole one, where there is so much sound: of a few samples the mean, which is
    taken off, would be most of the sound.
    """
    samples, width = sound.samples, max(1, round(_FRAME * sound.rate))
    silent = 0
    for block in _blocks(sound, width):
        frames = block[: len(block) // width * width].reshape(-1, width)
        silent += int((frames.std(axis=1) < SILENCE).sum())
    if len(samples) % width:
        silent += int(samples[-width:].std() < SILENCE)
    count = math.ceil(len(samples) / width)
    return silent / count, (count - silent) * _FRAME


def _clipped(sound: Waveform) -> float:
    """Share of samples in runs at full scale."""
    samples, width, clipped = sound.samples, max(1, round(_BLOCK * sound.rate)), 0
    for start in range(0, len(samples), width):
        # With the neighbours that tell whether a run at the block's edge is long enough.
        first, end = max(start - _RUN + 1, 0), min(start + width, len(samples))
        loud = np.abs(samples[first : end + _RUN - 1]) > _FULL
        edges = first + np.flatnonzero(np.diff(loud, prepend=False, append=False))
        long = edges[1::2] - edges[::2] >= _RUN
        runs = edges.reshape(-1, 2)[long].clip(start, end)
        clipped += int((runs[:, 1] - runs[:, 0]).sum())
    return clipped / len(samples)


def _blocks(sound: Waveform, width: int) -> Iterator[Floats]:
    """The samples in blocks of about `_BLOCK` seconds, each a multiple of `width` but for the last."""
    size = width * max(1, round(_BLOCK * sound.rate / width))
    for start in range(0, len(sound.samples), size):
        yield sound.samples[start : start + size]


def loudness(sound: Waveform) -> float | None:
    """Integrated loudness of one channel in LUFS (ITU-R BS.1770-4), None where no block of 400 ms is above -70.

    A clip shorter than one block is one.
    """
    from scipy.signal import sosfilt

    sound = sound.at(max(sound.rate, 8000))  # the weighting reaches to 2 kHz
    filters = np.array([[*numerator, *denominator] for numerator, denominator in _k_weighting(sound.rate)])
    state = np.zeros((len(filters), 2))
    step = round(0.1 * sound.rate)
    sums: list[NDArray[np.float64]] = []
    for block in _blocks(sound, step):
        weighted, state = sosfilt(filters, block.astype(np.float64), zi=state)
        sums.append(np.add.reduceat(weighted**2, np.arange(0, len(weighted), step)))
    energy = np.concatenate(sums)  # of each 100 ms
    if len(sound.samples) < 4 * step:
        power = np.array([energy.sum() / len(sound.samples)])
    else:
        steps = energy[: len(sound.samples) // step]  # whole ones
        power = np.lib.stride_tricks.sliding_window_view(steps, 4).sum(axis=1) / (4 * step)
    heard = power[power > _power(-70.0)]
    if not len(heard):
        return None
    heard = heard[heard > 0.1 * heard.mean()]  # -10 LU
    return float(-0.691 + 10 * np.log10(heard.mean()))


def at_loudness(sound: Waveform, target: float) -> Waveform:
    """The sound brought to `target` LUFS, also where peaks then pass full scale.

    What is silent stays as it was: its noise would become as loud as speech.
    """
    if is_silent(sound) or (found := loudness(sound)) is None:
        return sound
    return replace(sound, samples=np.float32(10 ** ((target - found) / 20)) * sound.samples)


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
