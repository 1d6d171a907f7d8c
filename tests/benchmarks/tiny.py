"""`mmfeat` with parts that need no models, so that what is measured, or killed, is the machinery and not the networks.

    python -m tests.benchmarks.tiny extract CORPUS -o features.h5 --recipe tiny.yaml

The parts register when this module is imported; Dask's worker processes import the main module of their client.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mmfeat import extractors, words
from mmfeat.extractors import TextConfig
from mmfeat.registry import Config, Entry
from mmfeat.track import Frame, Track, Waveform, Word, Wordpieces

RECIPE = """\
language: en
vision: {extractor: tiny-vision}
audio: {extractor: tiny-audio}
text: {extractor: tiny-text}
words: {aligner: tiny-words}
"""
COLUMNS = 24

for modality in ("vision", "audio", "text"):
    extractors.ENTRIES[f"tiny-{modality}"] = Entry(f"tiny-{modality}", modality, __name__, "for tests", "MIT")
words.ENTRIES["tiny-words"] = Entry("tiny-words", "words", __name__, "for tests", "MIT")


class TinyConfig(Config):
    """No settings."""


@extractors.register("tiny-vision", TinyConfig, version=1)
class TinyVision:
    """Mean brightness of each frame's columns of pixels, in `COLUMNS` blocks."""

    names = tuple(f"block{k}" for k in range(COLUMNS))

    def __init__(self, config: TinyConfig):
        self.config = config

    def __call__(self, frames: Iterable[Frame]) -> Track:
        rows = [(frame.start, frame.end, _blocks(frame.image.mean(axis=(0, 2)))) for frame in frames]
        if not rows:
            return Track.empty(self.names)
        times = np.array([row[:2] for row in rows], np.float64)
        return Track(times, np.stack([row[2] for row in rows]), np.ones(len(rows), bool), self.names)


@extractors.register("tiny-audio", TinyConfig, version=1)
class TinyAudio:
    """Loudness of every 20 ms, in `COLUMNS` blocks."""

    names = tuple(f"block{k}" for k in range(COLUMNS))

    def __init__(self, config: TinyConfig):
        self.config = config

    def __call__(self, sound: Waveform) -> Track:
        hop = sound.rate // 50
        steps = len(sound.samples) // hop
        values = np.stack([_blocks(np.abs(piece)) for piece in sound.samples[: steps * hop].reshape(steps, hop)])
        starts = np.arange(steps) / 50
        return Track(np.stack([starts, starts + 0.02], axis=1), values, np.ones(steps, bool), self.names)


@extractors.register("tiny-text", TextConfig, version=1)
class TinyText:
    """A word is a wordpiece; its vector is made of its letters."""

    names = tuple(f"letters_{k}" for k in range(COLUMNS))

    def __init__(self, config: TextConfig):
        self.config = config

    def __call__(self, text: str) -> Wordpieces:
        found = list(re.finditer(r"\S+", text))[: self.config.max_wordpieces - 2]
        spans = np.array([(0, 0), *(match.span() for match in found), (0, 0)], np.int32)
        ids = np.array([1, *(3 + sum(map(ord, match[0])) % 997 for match in found), 2], np.int32)
        values = np.sin(ids[:, None] * np.arange(1, COLUMNS + 1)).astype(np.float32)
        return Wordpieces(ids, np.zeros(len(ids), np.int32), spans, values)


@words.register("tiny-words", TinyConfig, version=1)
class TinyWords:
    """Words of the same length each."""

    def __init__(self, config: TinyConfig):
        self.config = config

    def __call__(self, sound: Waveform, text: str) -> list[Word]:
        found = list(re.finditer(r"\S+", text))
        step = sound.seconds / len(found)
        return [Word(match[0], k * step, (k + 1) * step, 1.0, match.span()) for k, match in enumerate(found)]


def _blocks(values: np.ndarray) -> np.ndarray:
    return np.array([block.mean() for block in np.array_split(values, COLUMNS)], np.float32)


def write_recipe(path: Path) -> Path:
    path.write_text(RECIPE, encoding="utf-8")
    return path


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main())
