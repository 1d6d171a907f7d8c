"""Decoded sound, frame by frame, to one waveform."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmfeat.track import Floats, Waveform

# Sound is placed by its timestamps. Streams jitter by less than this much; a larger jump is a real gap or overlap.
JUMP = 0.04

_GROWTH = 1 << 20
"""Samples by which a waveform grows: 4 MB."""


class Sound:
    """Collects decoded audio into one mono waveform in which each sample stands at its own time."""

    def __init__(self) -> None:
        self._samples = np.zeros(0, np.float32)
        self._count = 0
        """Of `_samples`, those that are filled."""
        self._rate = 0
        self._channels = 1
        self._decoded = self._broken = 0

    @property
    def seconds(self) -> float:
        return self._count / self._rate if self._rate else 0.0

    @property
    def broken(self) -> float:
        """Share of the decoded samples that were no finite numbers, and are silence now."""
        return self._broken / self._decoded if self._decoded else 0.0

    def add(self, frame: Any, time: float) -> None:
        mono, broken = _mono(frame)
        self._decoded += len(mono)
        self._broken += broken
        self._channels = max(self._channels, frame.layout.nb_channels)
        if not self._rate:
            self._rate = frame.sample_rate
        mono = Waveform(mono, frame.sample_rate).at(self._rate).samples  # some streams change their rate midway
        late = time - self.seconds
        if late < -JUMP or (late < 0 and not self._count):
            mono = mono[round(-late * self._rate) :]
        elif late > JUMP or (late > 0 and not self._count):
            self._append(np.zeros(round(late * self._rate), np.float32))
        self._append(mono)

    def _append(self, samples: Floats) -> None:
        end = self._count + len(samples)
        if end > len(self._samples):
            # In place where the system can: frames in a list, and then joined, would be there twice.
            self._samples.resize(max(end, len(self._samples) + _GROWTH), refcheck=False)
        self._samples[self._count : end] = samples
        self._count = end

    def cut(self, seconds: float) -> None:
        self._count = min(self._count, round(seconds * self._rate))

    def waveform(self) -> Waveform:
        return Waveform(self._samples[: self._count], self._rate or 16000, self._channels)


def _mono(frame: Any) -> tuple[Floats, int]:
    """Mean of the channels of an audio frame, shape (n,), full scale 1.0; how many of its samples are not finite.

    libswresample is not used: it mixes some layouts down with weights, and crashes on a 16-channel file.
    """
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        scaled = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        scaled = samples / np.float32(-float(np.iinfo(samples.dtype).min))
    else:
        scaled = samples
    mono = scaled.mean(axis=0, dtype=np.float32).astype(np.float32)
    broken = ~np.isfinite(mono)
    return np.where(broken, np.float32(0), mono), int(broken.sum())
