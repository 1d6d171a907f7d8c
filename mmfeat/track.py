"""What extractors take in and give back: Frame and Waveform in, Track and Wordpieces out; Words on the time axis.

Every time is in seconds from the start of the clip.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Seconds = NDArray[np.float64]
_SEEN = re.compile(r"(face\d+_)seen")


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded picture, upright (rotation applied)."""

    image: NDArray[np.uint8]
    """RGB, shape (height, width, 3), C-contiguous."""
    start: float
    """When the frame appears, in seconds from the start of the clip: its timestamp, not index / fps."""
    end: float
    """When the next frame takes its place."""


_PIECE = 10.0
"""Seconds that are resampled at once where all of the sound would fill the memory."""


@dataclass(frozen=True, eq=False)
class Waveform:
    """A clip's sound: mean of its channels at the file's own sample rate."""

    samples: Floats
    """Shape (n,), full scale is 1.0."""
    rate: int
    """Samples per second."""
    channels: int = 1
    """How many were mixed."""

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def at(self, rate: int) -> Waveform:
        """The same sound resampled to `rate` samples per second (soxr, high quality)."""
        if rate == self.rate:
            return self
        if not len(self.samples):
            return replace(self, rate=rate)
        import soxr

        samples = soxr.resample(self.samples, self.rate, rate).astype(np.float32, copy=False)
        return replace(self, samples=samples, rate=rate)

    def pieces(self, rate: int) -> Iterator[Floats]:
        """The samples of `at(rate)`, bit for bit, some seconds after the other: without a second copy of an hour."""
        size = max(1, round(_PIECE * self.rate))
        slices = (self.samples[start : start + size] for start in range(0, len(self.samples), size))
        if rate == self.rate:
            yield from slices
            return
        import soxr

        stream = soxr.ResampleStream(self.rate, rate, 1, dtype="float32")
        count = 0
        for piece in slices:
            count += len(piece)
            yield stream.resample_chunk(piece, last=count == len(self.samples))


@dataclass(frozen=True, eq=False)
class Track:
    """One modality of one clip along time: what every vision and audio extractor returns.

    Raises ValueError when the shapes do not belong together or the times do not rise.
    """

    times: Seconds
    """Shape (T, 2): start and end of each step; starts rise strictly."""
    values: Floats
    """Shape (T, D). Finite everywhere; where `valid` is false the row is zero and means nothing."""
    valid: NDArray[np.bool_]
    """Shape (T,): false where there was nothing to measure (no face in the frame, say)."""
    names: tuple[str, ...]
    """One name per column."""
    note: str = ""
    """What the user should know of how it was made; becomes the clip's reason."""

    def __post_init__(self) -> None:
        steps = len(self.values)
        if self.values.shape != (steps, len(self.names)):
            raise ValueError(f"values have shape {self.values.shape} but there are {len(self.names)} names")
        if self.times.shape != (steps, 2) or self.valid.shape != (steps,):
            raise ValueError(f"{steps} rows, but times {self.times.shape} and valid {self.valid.shape}")
        if self.values.dtype != np.float32 or self.times.dtype != np.float64 or self.valid.dtype != np.bool_:
            raise ValueError("values must be float32, times float64 and valid bool")
        if not np.isfinite(self.values).all():
            raise ValueError(f"non-finite values in {self.bad_columns()}")
        starts, ends = self.times.T
        if (np.diff(starts) <= 0).any() or (ends < starts).any():
            raise ValueError("times do not rise")

    def bad_columns(self) -> list[str]:
        bad = ~np.isfinite(self.values).all(axis=0)
        return [self.names[k] for k in np.flatnonzero(bad)]

    def __len__(self) -> int:
        return len(self.values)

    def people(self) -> list[tuple[int, list[int]]]:
        """Of tracks that show several people: of each the column `face0_seen`, which is above 0 where that one is
        there, and the other columns, `face0_…`, which are zero and mean nothing elsewhere."""
        found = []
        for seen, name in enumerate(self.names):
            if match := _SEEN.fullmatch(name):
                theirs = [k for k, other in enumerate(self.names) if other.startswith(match[1]) and k != seen]
                found.append((seen, theirs))
        return found

    @classmethod
    def empty(cls, names: tuple[str, ...]) -> Track:
        """No steps at all: the modality is missing from the clip."""
        return cls(np.zeros((0, 2)), np.zeros((0, len(names)), np.float32), np.zeros(0, bool), names)


@dataclass(frozen=True, eq=False)
class Wordpieces:
    """A transcript as its encoder sees it, `[CLS]` first and `[SEP]` last, L pieces in all.

    Raises ValueError when the arrays do not belong together, a value is not finite, or a span ends before it starts.
    """

    ids: NDArray[np.int32]
    """Shape (L,): token ids."""
    segments: NDArray[np.int32]
    """Shape (L,): token type ids."""
    spans: NDArray[np.int32]
    """Shape (L, 2): start and end of each piece in the transcript's characters; (0, 0) for special pieces."""
    values: Floats
    """Shape (L, D): the encoder's output."""

    def __post_init__(self) -> None:
        pieces = len(self.ids)
        shapes = (self.ids.shape, self.segments.shape, self.spans.shape, self.values.shape[:1])
        if shapes != ((pieces,), (pieces,), (pieces, 2), (pieces,)) or self.values.ndim != 2:
            raise ValueError(f"ids, segments, spans and values have shapes {shapes[:3]} and {self.values.shape}")
        if self.values.dtype != np.float32 or any(
            array.dtype != np.int32 for array in (self.ids, self.segments, self.spans)
        ):
            raise ValueError("values must be float32, ids, segments and spans int32")
        if not np.isfinite(self.values).all():
            raise ValueError("non-finite values")
        if (self.spans < 0).any() or (self.spans[:, 1] < self.spans[:, 0]).any():
            raise ValueError("a span ends before it starts")


@dataclass(frozen=True)
class Word:
    """One word of the transcript, found in the sound."""

    text: str
    """As it stands in the transcript, without the punctuation around it."""
    start: float
    end: float
    confidence: float
    """0 to 1; what it means is stated by the aligner."""
    span: tuple[int, int]
    """Start and end in the transcript's characters."""
