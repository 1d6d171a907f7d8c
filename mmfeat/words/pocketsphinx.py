"""Forced alignment of English with PocketSphinx 5 and the acoustic model that comes in its wheel.

One pass over the sound finds the words, the ways they are said and the pauses between them in a grammar of the
transcript. Nothing is pruned: a beam saves little time where a grammar is a single line, and loses the right way where
speech that the transcript lacks, or noise, comes first. A word in another script is as many sounds as it has letters.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmfeat.track import Waveform, Word
from mmfeat.words import AlignmentError, Config, register
from mmfeat.words.pronounce import arpabet
from mmfeat.words.transcript import Spoken, tokens

Ways = tuple[Spoken, ...]
Samples = NDArray[np.int16]

RATE = 16000
_FRAME = 0.010
_OFFSET = 0.008
"""A frame's window is 25.6 ms long and starts at the frame's time: a change between two frames lies between the middles
of their windows, this much after the second one's start."""
_NATS = 1024.0
"""PocketSphinx tells a segment's log-likelihood divided by 1024, as a power of e."""
_SILENCE = 1e-4  # a peak below this is no recording of speech
_FRAMES_PER_PHONE = 3  # a phone has three states and each takes a frame
_KEPT_SILENCE = 0.75
"""Seconds of a long silence that stay on each side of it."""
_BYTES, _MOST_BYTES = 230, 6e9
"""Memory per word and frame where nothing is pruned, measured; the most that one clip may take."""
_WIDE_BEAM = 1e-300
"""For recordings that would take more."""
_ANY = "*"
"""The word that is any one sound: each is a way to pronounce it."""
_SOUNDS = (
    *("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"),
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH", "T", "TH", "V"),
    *("W", "Y", "Z", "ZH"),
)


class PocketsphinxConfig(Config):
    """Forced alignment of English; the model is part of the package."""

    beam: float = Field(
        0.0,
        description="ways less likely than this, compared with the best, are dropped at each moment; 0 drops none, but "
        "in recordings that would take over 6 GB of memory (about 500 s) those below 1e-300",
        ge=0,
        lt=1,
        allow_inf_nan=False,
    )
    confidence_middle: float = Field(
        7.0, description="nats below the best sound that give a confidence of one half", allow_inf_nan=False
    )
    confidence_scale: float = Field(0.8, description="nats over which confidence rises", gt=0, allow_inf_nan=False)


@dataclass(frozen=True)
class _Segment:
    """A said word, pause or noise; frames."""

    word: str
    start: int
    end: int
    score: float = 0.0
    """Nats below the best of all sounds, summed over the frames; 0 is best."""

    @property
    def base(self) -> str:
        """The word without the number of its pronunciation, `read(2)`."""
        return self.word.partition("(")[0]

    @property
    def is_filler(self) -> bool:
        return self.word.startswith(("<", "["))


@dataclass(frozen=True)
class _Found:
    """A word of the transcript in the sound; frames."""

    start: int
    end: int
    confidence: float


@register("pocketsphinx", PocketsphinxConfig, version=3)
class PocketsphinxAligner:
    """Word times of English speech.

    A word's confidence is a logistic function of how far its acoustic score lies below that of the sounds which fit
    best at each moment, in nats, averaged over its frames: near 1 where nothing fits much better, near 0 where other
    sounds were spoken.
    """

    def __init__(self, config: PocketsphinxConfig):
        import pocketsphinx

        self.config = config
        self._decoder = pocketsphinx.Decoder(
            lm=None,
            loglevel="FATAL",
            bestpath=False,
            compallsen=True,  # scores are then relative to the best of all sounds
            cmn="batch",
        )
        for number, sound in enumerate(_SOUNDS, 1):
            self._decoder.add_word(_ANY if number == 1 else f"{_ANY}({number})", sound, False)

    def __call__(self, waveform: Waveform, text: str) -> list[Word]:
        """The words of `text` in `waveform`. Raises AlignmentError."""
        words = tokens(text)
        if not words:
            return []
        foreign = [token.text for token in words if not _is_latin(token.text)]
        if len(foreign) > len(words) / 2:
            raise AlignmentError(
                f"pocketsphinx knows English only and the transcript has {' '.join(foreign[:5])!r}: "
                "choose an aligner for its language"
            )
        samples = _prepare(waveform)
        kept = _without_silence(samples)
        ways = [token.spoken if _is_latin(token.text) else ((_ANY,) * len(token.text),) for token in words]
        self._learn(ways)
        found = self._align(np.concatenate([samples[start:end] for start, end in kept]), ways)
        starts = _whole_times([word.start for word in found], kept, "right")
        ends = _whole_times([word.end for word in found], kept, "left")
        return [
            Word(token.text, min(start, waveform.seconds), min(end, waveform.seconds), word.confidence, token.span)
            for token, word, start, end in zip(words, found, starts, ends, strict=True)
        ]

    def _learn(self, words: list[Ways]) -> None:
        """Enter words that the dictionary lacks, as espeak-ng says them."""
        said = {word for ways in words for way in ways for word in way}
        unknown = sorted(word for word in said if self._decoder.lookup_word(word) is None)
        if not unknown:
            return
        for word, phones in zip(unknown, arpabet(unknown), strict=True):
            if not phones:
                raise AlignmentError(f"no pronunciation is known for {word!r}")
            self._decoder.add_word(word, phones, False)

    def _align(self, samples: Samples, words: list[Ways]) -> list[_Found]:
        """Where the words are."""
        least = sum(min(map(self._phones, ways)) for ways in words) * _FRAMES_PER_PHONE
        frames = int(len(samples) / RATE / _FRAME)
        if least > frames:
            raise AlignmentError(
                f"{len(words)} word{' needs' if len(words) == 1 else 's need'} at least {least * _FRAME:.2f} s, "
                f"the sound without its silence is {frames * _FRAME:.2f} s long"
            )
        too_long = frames * len(words) * _BYTES > _MOST_BYTES
        beam = self.config.beam or (_WIDE_BEAM if too_long else 0.0)
        for name in ("beam", "wbeam", "pbeam"):
            self._decoder.config[name] = beam
        edges, final = _grammar(words)
        self._decoder.add_fsg("transcript", self._decoder.create_fsg("transcript", 0, final, edges))
        self._decoder.activate_search("transcript")
        said = self._decode(samples)
        counts = _path([segment.base for segment in said], words)
        if counts is None:
            hint = f": a beam of {beam:g} loses all ways through it" * (beam > 0)
            raise AlignmentError(f"the sound does not follow the transcript{hint}")
        return list(self._join(said, counts))

    def _decode(self, samples: Samples) -> list[_Segment]:
        """The words said on the best path; empty or not to the end where beams lost it."""
        # Features start anew: adapted means and filter memory of the sound before would change the result.
        self._decoder.reinit_feat()
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = (
            _Segment(s.word, s.start_frame, s.end_frame + 1, _NATS * math.log(s.ascore) if s.ascore > 0 else -math.inf)
            for s in self._decoder.seg() or ()
        )
        return [segment for segment in found if not segment.is_filler]

    def _join(self, said: list[_Segment], counts: list[int]) -> Iterator[_Found]:
        """Words of the transcript from the words said, of which each has `counts`."""
        place = 0
        for count in counts:
            mine = said[place : place + count]
            place += count
            frames = sum(segment.end - segment.start for segment in mine)
            score = sum(segment.score for segment in mine) / frames
            known = mine[0].base != _ANY  # any sound fits, which tells nothing about the word
            yield _Found(mine[0].start, mine[-1].end, self._confidence(score) if known else 0.0)

    def _confidence(self, score: float) -> float:
        below = -(score + self.config.confidence_middle) / self.config.confidence_scale
        return 1 / (1 + math.exp(min(below, 700.0)))

    def _phones(self, way: Spoken) -> int:
        return sum(len(self._decoder.lookup_word(word).split()) for word in way)


def _prepare(waveform: Waveform) -> Samples:
    """16 kHz, 16 bits, at one level. Raises AlignmentError where there is no sound."""
    if not len(waveform.samples):
        raise AlignmentError("there is no sound")
    if not np.isfinite(waveform.samples).all():
        raise AlignmentError("the sound has samples that are not finite numbers")
    if waveform.seconds < _FRAME:
        raise AlignmentError(f"the sound is {waveform.seconds * 1000:.2g} ms long, less than a frame")
    samples = waveform.at(RATE).samples.astype(np.float64)
    samples -= samples.mean()
    peak = np.abs(samples).max()
    if not peak > _SILENCE:
        raise AlignmentError("the sound is silent")
    # Faint noise, always the same, in place of digital zeros, whose logarithm the model has never seen.
    noise = np.random.default_rng(0).standard_normal(len(samples))
    return np.round(samples * (16000 / peak) + noise).astype(np.int16)


def _without_silence(samples: Samples) -> list[tuple[int, int]]:
    """The parts of a recording that are aligned: all of it, but of long silences only the edges.

    Minutes of silence would shift the mean that features are normalised by, and let words wander into it. Silence is
    what lies in the lowest quarter between the noise floor and the loudest moment, in decibels; a recording whose noise
    is within 20 dB of its loudest moment has none. Differences of samples, so that hum and rumble do not count.
    """
    step = RATE // 50
    count = len(samples) // step
    power = (np.diff(samples[: count * step].astype(np.float64), prepend=0.0) ** 2).reshape(count, step).mean(axis=1)
    level = 10 * np.log10(power + 1.0)
    if not count or level.max() - np.percentile(level, 10) < 20:
        return [(0, len(samples))]
    floor = np.percentile(level, 10)
    loud = np.flatnonzero(level >= floor + 0.25 * (level.max() - floor))
    edge = round(_KEPT_SILENCE * RATE)
    parts: list[tuple[int, int]] = []
    for place in loud:
        start, end = max(int(place) * step - edge, 0), min(int(place + 1) * step + edge, len(samples))
        if parts and start <= parts[-1][1]:
            start = parts.pop()[0]
        parts.append((start, end))
    return parts


def _whole_times(frames: Iterable[int], parts: list[tuple[int, int]], side: Literal["left", "right"]) -> list[float]:
    """Seconds of the whole recording from frames of its `parts` put together.

    Where two parts meet, `left` means the end of the one, `right` the start of the other.
    """
    before = np.cumsum([0, *(end - start for start, end in parts)]) / RATE
    found = []
    for frame in frames:
        time = max(frame * _FRAME + _OFFSET, 0.0)
        part = min(max(int(np.searchsorted(before, time, side)) - 1, 0), len(parts) - 1)
        found.append(parts[part][0] / RATE + time - float(before[part]))
    return found


def _is_latin(text: str) -> bool:
    letters = [c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c)[0] == "L"]
    return all(unicodedata.name(c, "").startswith(("LATIN ", "MODIFIER LETTER ")) for c in letters)


def _grammar(words: Sequence[Ways]) -> tuple[list[tuple[int, int, float, str]], int]:
    """Edges (from, to, probability, word) that say the words one after the other in any of their ways; final state."""
    edges, state = [], 0
    for ways in words:
        final = state + 1 + sum(len(way) - 1 for way in ways)
        inner = state + 1
        for way in ways:
            places = [state, *range(inner, inner + len(way) - 1), final]
            inner += len(way) - 1
            for index, word in enumerate(way):
                edges.append((places[index], places[index + 1], 1 / len(ways) if index == 0 else 1.0, word))
        state = final
    return edges, state


def _path(said: list[str], words: Sequence[Ways]) -> list[int] | None:
    """How many of the said words belong to each word of the transcript; None where they do not spell it out."""
    reached: list[dict[int, int]] = [{0: 0}]  # per word of the transcript: place in `said` → place before it
    for ways in words:
        after: dict[int, int] = {}
        for place in reached[-1]:
            for way in ways:
                if tuple(said[place : place + len(way)]) == way:
                    after.setdefault(place + len(way), place)
        reached.append(after)
    place, counts = len(said), []
    for step in reversed(reached[1:]):
        if place not in step:
            return None
        counts.append(place - step[place])
        place = step[place]
    return counts[::-1] if place == 0 else None
