"""`opensmile`: the standard descriptor sets of affective computing, by audEERING's openSMILE.

openSMILE is free for research, teaching and private use only; commercial use needs a licence from audEERING.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mmfeat.extractors import Config, register
from mmfeat.track import Floats, Seconds, Track, Waveform

# openSMILE's longest window; for less sound than that it gives nothing.
SHORTEST = 0.06
# Seconds from one row of descriptors to the next, and what a row looks at.
HOP = 0.01
# Its Python package turns samples into 16-bit integers and does not limit them: what is louder comes out with the other
# sign. Lossy codecs, resampling and one loudness for all clips put peaks there.
LOUDEST = 32767 / 32768
WINDOWS = {"eGeMAPSv02": 0.02, "GeMAPSv01b": 0.02, "ComParE_2016": 0.06}


class OpensmileConfig(Config):
    feature_set: Literal["eGeMAPSv02", "GeMAPSv01b", "ComParE_2016"] = Field(
        "eGeMAPSv02",
        description="columns of its descriptors / functionals: eGeMAPSv02 25 / 88, GeMAPSv01b 18 / 62, ComParE_2016 "
        "65 / 6373",
    )
    level: Literal["lld", "functionals"] = Field(
        "lld", description="low-level descriptors, a row every 10 ms, or functionals: their statistics, see window"
    )
    window: float | None = Field(
        None, ge=0.1, description="seconds that each row of functionals sums up; null: one row for the whole clip"
    )
    sample_rate: int | None = Field(
        16000, ge=8000, description="the sound is resampled to this rate first, in Hz; null: the file's own rate"
    )

    @model_validator(mode="after")
    def _possible(self) -> OpensmileConfig:
        if self.window and self.level == "lld":
            raise ValueError("window is a setting of level: functionals")
        return self


@register("opensmile", OpensmileConfig, version=2)
class Opensmile:
    """Descriptors in openSMILE's order and under its names.

    Row t of the descriptors begins at 10·t ms and looks at 20 ms from there, for pitch, voice quality and formants at
    60 ms; all of ComParE_2016 counts as 60 ms. The last row lasts to the clip's end. Functionals have a row for
    each `window`; a rest of less than half a window belongs to the row before it.

    A clip shorter than 60 ms is filled up with silence; samples beyond full scale are clipped. A row in which openSMILE
    gives a number that is not finite is not valid.
    """

    def __init__(self, config: OpensmileConfig):
        import opensmile  # loads pandas

        levels = {"lld": opensmile.FeatureLevel.LowLevelDescriptors, "functionals": opensmile.FeatureLevel.Functionals}
        self.config = config
        self._smile = opensmile.Smile(opensmile.FeatureSet[config.feature_set], levels[config.level], num_workers=1)
        self.names = tuple(self._smile.feature_names)

    def __call__(self, waveform: Waveform) -> Track:
        """Rows of the whole sound, shape (T, D)."""
        if not len(waveform.samples):
            return Track.empty(self.names)
        sound = waveform.at(self.config.sample_rate or waveform.rate)
        bounds = _windows(waveform.seconds, self.config.window)
        values = np.concatenate([self._values(sound, start, end) for start, end in bounds])
        times = np.array(bounds) if self.config.level == "functionals" else self._times(len(values), waveform.seconds)
        values = values[: len(times)]
        valid = np.isfinite(values).all(axis=1)
        return Track(times, np.where(valid[:, None], values, np.float32(0)), valid, self.names)

    def _values(self, sound: Waveform, start: float, end: float) -> Floats:
        """Rows of the sound between `start` and `end` seconds."""
        samples = sound.samples[round(start * sound.rate) : round(end * sound.rate)]
        shortest = int(np.ceil(SHORTEST * sound.rate))
        samples = np.pad(samples.clip(-1, LOUDEST), (0, max(0, shortest - len(samples))))
        table: Any = self._smile.process_signal(samples, sound.rate)
        return table.to_numpy(np.float32)

    def _times(self, rows: int, seconds: float) -> Seconds:
        """Of descriptors, shape (T, 2). openSMILE's own give the last two rows of ComParE_2016 the same start."""
        starts = np.arange(rows) * HOP
        starts = starts[starts < seconds]  # the silence that fills a short clip up is no part of it
        ends = np.minimum(starts + WINDOWS[self.config.feature_set], seconds)
        ends[-1] = seconds
        return np.stack([starts, ends], axis=1)


def _windows(seconds: float, window: float | None) -> list[tuple[float, float]]:
    """Where each begins and ends; they cover the whole clip."""
    count = max(1, int(seconds / window + 0.5)) if window else 1
    starts = [k * (window or 0.0) for k in range(count)]
    return list(zip(starts, [*starts[1:], seconds], strict=True))
