"""Forced alignment of English with PocketSphinx 5 and the acoustic model that comes in its wheel.

Two passes over the sound, as PocketSphinx' authors advise: the first finds the words, the ways they are said and the
pauses between them in a grammar of the transcript; the second finds exact boundaries with every sound's context known.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmfeat.track import Waveform, Word
from mmfeat.words import AlignmentError, Config, register
from mmfeat.words.pronounce import arpabet
from mmfeat.words.transcript import Spoken, Token, tokens

Ways = tuple[Spoken, ...]

RATE = 16000
_FRAME = 0.010
_PAUSE_EDGE = 0.5
_OFFSET = 0.008
"""A frame's window is 25.6 ms long and starts at the frame's time: a change between two frames lies between the middles
of their windows, this much after the second one's start."""
_NATS = 1024 * math.log(1.0001)
"""PocketSphinx counts log-likelihoods in steps of 1024 in base 1.0001."""
_SILENCE = 1e-4  # a peak below this is no recording of speech
_FRAMES_PER_PHONE = 3  # a phone has three states and each takes a frame


class PocketsphinxConfig(Config):
    """Forced alignment of English; the model is part of the package."""

    beams: tuple[float, ...] = Field(
        (1e-64, 1e-120, 1e-300),
        description="pruning widths, each tried where the one before lost all paths",
        min_length=1,
    )
    confidence_middle: float = Field(7.0, description="nats below the best sound that give a confidence of one half")
    confidence_scale: float = Field(0.8, description="nats over which confidence rises", gt=0)
    piece_seconds: float = Field(
        60.0,
        description="longer recordings have their boundaries refined in pieces, cut at pauses: memory grows with the "
        "square of a piece",
        gt=5,
    )


@dataclass(frozen=True)
class _Segment:
    """A word, pause or noise of one decoding pass; frames."""

    word: str
    start: int
    end: int
    score: float = 0.0
    """Sum over its phones of the mean nats per frame below the best of all sounds; 0 is best."""
    phones: int = 1

    @property
    def base(self) -> str:
        """The word without the number of its pronunciation, `read(2)`."""
        return self.word.partition("(")[0]

    @property
    def is_filler(self) -> bool:
        return self.word.startswith(("<", "["))


@register("pocketsphinx", PocketsphinxConfig, version=1)
class PocketsphinxAligner:
    """Word times of English speech.

    A word's confidence is a logistic function of how far its sounds' acoustic score lies below that of the sounds which
    fit best at each moment, in nats per frame, averaged over its phones: near 1 where nothing fits much better, near 0
    where other sounds were spoken.
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

    def __call__(self, waveform: Waveform, text: str) -> list[Word]:
        """The words of `text` in `waveform`. Raises AlignmentError."""
        words = tokens(text)
        if not words:
            return []
        foreign = [token.text for token in words if not _is_latin(token.text)]
        if foreign:
            raise AlignmentError(
                f"pocketsphinx knows English only and the transcript has {' '.join(foreign[:5])!r}: "
                "choose an aligner for its language"
            )
        samples = _prepare(waveform)
        self._learn(words)
        segments = self._align(samples, [token.spoken for token in words])
        return list(_join(words, segments, waveform.seconds, self._confidence))

    def _confidence(self, score: float) -> float:
        return 1 / (1 + math.exp(-(score + self.config.confidence_middle) / self.config.confidence_scale))

    def _learn(self, words: list[Token]) -> None:
        """Enter words that the dictionary lacks, as espeak-ng says them."""
        said = {word for token in words for way in token.spoken for word in way}
        unknown = sorted(word for word in said if self._decoder.lookup_word(word) is None)
        if not unknown:
            return
        for word, phones in zip(unknown, arpabet(unknown), strict=True):
            if not phones:
                raise AlignmentError(f"no pronunciation is known for {word!r}")
            self._decoder.add_word(word, phones, False)

    def _align(self, samples: NDArray[np.int16], words: list[Ways], whole: bool = False) -> list[_Segment]:
        """Words and pauses with exact boundaries; beams are widened until a way through the transcript is found.

        A long recording is cut into pieces, each of which is then taken `whole`.
        """
        least = sum(min(map(self._phones, ways)) for ways in words) * _FRAMES_PER_PHONE * _FRAME
        seconds = len(samples) / RATE
        if least > seconds:
            raise AlignmentError(f"{len(words)} words take at least {least:.1f} s, the sound is {seconds:.1f} s long")
        for beam in self.config.beams:
            try:
                found = self._first_pass(samples, words, beam)
                if whole or seconds <= self.config.piece_seconds:
                    return self._second_pass(samples)
                break
            except RuntimeError:  # PocketSphinx' "failed to reach final state", in either pass
                continue
        else:
            raise AlignmentError("the sound does not follow the transcript: even wide beams lose all ways through it")
        refined = []
        for piece in _cut(found, self.config.piece_seconds):
            start, end = piece[0].start, piece[-1].end
            spoken: list[Ways] = [((segment.base,),) for segment in piece if not segment.is_filler]
            if not spoken:
                continue
            part = samples[round(start * _FRAME * RATE) : round((end + 2) * _FRAME * RATE)]
            for segment in self._align(part, spoken, whole=True):
                refined.append(replace(segment, start=segment.start + start, end=segment.end + start))
        return refined

    def _phones(self, way: Spoken) -> int:
        return sum(len(self._decoder.lookup_word(word).split()) for word in way)

    def _first_pass(self, samples: NDArray[np.int16], words: list[Ways], beam: float) -> list[_Segment]:
        for name in ("beam", "wbeam", "pbeam"):
            self._decoder.config[name] = beam
        edges, final = _grammar(words)
        self._decoder.add_fsg("transcript", self._decoder.create_fsg("transcript", 0, final, edges))
        self._decoder.activate_search("transcript")
        self._decode(samples)
        found = [_Segment(s.word, s.start_frame, s.end_frame + 1) for s in self._decoder.seg() or ()]
        if _path([segment.base for segment in found if not segment.is_filler], words) is None:
            raise RuntimeError("final state not reached")
        return found

    def _second_pass(self, samples: NDArray[np.int16]) -> list[_Segment]:
        self._decoder.set_alignment()
        self._decode(samples)
        found = []
        for word in self._decoder.get_alignment():
            scores = [phone.score * _NATS / phone.duration for phone in word]
            found.append(_Segment(word.name, word.start, word.start + word.duration, sum(scores), len(scores)))
        return found

    def _decode(self, samples: NDArray[np.int16]) -> None:
        # Features start anew: adapted means and filter memory of the sound before would change the result.
        self._decoder.reinit_feat()
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), full_utt=True)
        self._decoder.end_utt()


def _prepare(waveform: Waveform) -> NDArray[np.int16]:
    """16 kHz, 16 bits, at one level. Raises AlignmentError where there is no sound."""
    if not len(waveform.samples):
        raise AlignmentError("there is no sound")
    samples = waveform.at(RATE).samples.astype(np.float64)
    samples -= samples.mean()
    peak = np.abs(samples).max()
    if not peak > _SILENCE:
        raise AlignmentError("the sound is silent")
    # Faint noise, always the same, in place of digital zeros, whose logarithm the model has never seen.
    noise = np.random.default_rng(0).standard_normal(len(samples))
    return np.round(samples * (16000 / peak) + noise).astype(np.int16)


def _is_latin(text: str) -> bool:
    letters = [c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c)[0] == "L"]
    return all(unicodedata.name(c, "").startswith(("LATIN ", "MODIFIER LETTER ")) for c in letters)


def _grammar(words: list[Ways]) -> tuple[list[tuple[int, int, float, str]], int]:
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


def _path(said: list[str], words: list[Ways]) -> list[int] | None:
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


def _cut(segments: list[_Segment], seconds: float) -> Iterator[list[_Segment]]:
    """Pieces of at most about `seconds`, cut inside the longest pause that reaches into each piece's later half.

    Of a long pause only its edges are kept: there is nothing to align in its middle.
    """
    longest, edge = round(seconds / _FRAME), round(_PAUSE_EDGE / _FRAME)
    while segments and segments[-1].end - segments[0].start > longest:
        early, late = segments[0].start + longest // 2, segments[0].start + longest
        near = [i for i, segment in enumerate(segments) if segment.end >= early and segment.start <= late]
        pauses = [i for i in near if segments[i].is_filler]
        if pauses:
            at = max(pauses, key=lambda i: segments[i].end - segments[i].start)
            pause = segments[at]
            kept = min(edge, (pause.end - pause.start) // 2)
            yield [*segments[:at], replace(pause, end=pause.start + kept)]
            segments = [replace(pause, start=pause.end - kept), *segments[at + 1 :]]
        else:
            at = min(near[-1] + 1, len(segments) - 1) if near else len(segments) - 1
            if at == 0:
                break
            yield segments[:at]
            segments = segments[at:]
    yield segments


def _join(
    words: list[Token], segments: list[_Segment], seconds: float, confidence: Callable[[float], float]
) -> Iterator[Word]:
    """The transcript's own words from the said ones."""
    said = [segment for segment in segments if not segment.is_filler]
    counts = _path([segment.base for segment in said], [token.spoken for token in words])
    assert counts is not None
    place = 0
    for token, count in zip(words, counts, strict=True):
        mine = said[place : place + count]
        place += count
        start, end = (min(max(frame * _FRAME + _OFFSET, 0.0), seconds) for frame in (mine[0].start, mine[-1].end))
        score = sum(s.score for s in mine) / sum(s.phones for s in mine)
        yield Word(token.text, start, end, confidence(score), token.span)
