"""Word times in the JSON of other tools, and in our own.

Read are WhisperX and Whisper (`segments` with `words`), Gentle (`words`, some of them not found), MFA (`tiers`),
PocketSphinx (`w` with `b` and `d`), and a plain list of objects with word, start and end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmfeat.words.textgrid import word_tier

Timed = tuple[str, float, float, float]
"""Text, start, end, confidence."""
Found = tuple[str | None, Any, Any, float]
"""The same as a file has it: no start and end for a word without times; no text where a segment begins or ends."""
_NAMES = ("word", "text")
_GENTLE_EXTRA = "not-found-in-transcript"  # Gentle heard it, but nobody wrote it
_CONFIDENCES = ("score", "confidence", "probability")  # WhisperX, our own and whisper-timestamped, Whisper


def from_json(text: str, tier: str | None = None) -> Iterator[Timed]:
    """The words of any dialect; raises ValueError where it is none.

    Words without times (WhisperX has them for numbers, Gentle for what it did not find) share what lies between their
    neighbours, or before the end of their segment, with confidence 0.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        # PocketSphinx writes one object a line.
        content = [json.loads(line) for line in text.splitlines() if line.strip()]
    return _timed(_words(content, tier))


def _words(content: Any, tier: str | None) -> Iterator[Found]:
    if isinstance(content, Mapping) and isinstance(content.get("tiers"), Mapping):
        yield from _mfa(content["tiers"], tier)
    elif isinstance(content, Mapping) and isinstance(content.get("segments"), list):
        for segment in content["segments"]:
            if isinstance(segment, Mapping) and isinstance(segment.get("words"), list):
                yield None, segment.get("start"), segment.get("start"), 1.0
                yield from map(_plain, segment["words"])
                yield None, segment.get("end"), segment.get("end"), 1.0
            else:
                yield _plain(segment)  # a phrase, as in a subtitle
    elif isinstance(content, Mapping) and isinstance(content.get("words"), list):
        heard = (w for w in content["words"] if not (isinstance(w, Mapping) and w.get("case") == _GENTLE_EXTRA))
        yield from map(_plain, heard)
    elif isinstance(content, Mapping) and isinstance(content.get("w"), list):
        yield from map(_pocketsphinx, content["w"])
    elif isinstance(content, list) and content and all(isinstance(o, Mapping) and "w" in o for o in content):
        for utterance in content:
            yield from _words(utterance, tier)
    elif isinstance(content, list):
        yield from map(_plain, content)
    else:
        raise ValueError("not the JSON of WhisperX, Whisper, Gentle, MFA or PocketSphinx, nor a list of words")


def _plain(word: Any) -> Found:
    if not isinstance(word, Mapping):
        raise ValueError(f"{str(word)[:40]!r} is no word with its times")
    text = next((word[name] for name in _NAMES if name in word), None)
    if not isinstance(text, str):
        raise ValueError(f"neither `word` nor `text` in {str(word)[:60]}")
    confidence = next((word[name] for name in _CONFIDENCES if word.get(name) is not None), 1.0)
    return text, word.get("start"), word.get("end"), _number(confidence)


def _mfa(tiers: Mapping[str, Any], tier: str | None) -> Iterator[Found]:
    chosen = word_tier(tiers, tier)
    entries = chosen.get("entries") if isinstance(chosen, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError("its tier of words has no entries")
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[2], str):
            raise ValueError(f"{str(entry)[:40]!r} is not start, end and word")
        yield entry[2], entry[0], entry[1], 1.0


def _pocketsphinx(word: Any) -> Found:
    if not isinstance(word, Mapping) or not isinstance(word.get("t"), str):
        raise ValueError(f"{str(word)[:40]!r} is not a word of PocketSphinx")
    start = _number(word.get("b"))
    name = re.sub(r"\(\d+\)$", "", word["t"])  # `to(3)` is the third way to say it
    return name, start, start + _number(word.get("d")), _number(word.get("p", 1.0))


def _timed(words: Iterable[Found]) -> Iterator[Timed]:
    """Words with those in between that have no times spread over the gap that their neighbours leave."""
    untimed: list[str] = []
    reached = 0.0
    for text, start, end, confidence in words:
        if start is None or end is None:
            untimed += [text] if text is not None else []
            continue
        begin, stop = _number(start), _number(end)
        yield from _spread(untimed, reached, max(begin, reached))
        if text is not None:
            yield text, begin, stop, confidence
        untimed, reached = [], stop if text is not None else max(stop, reached)
    yield from _spread(untimed, reached, reached)


def _spread(texts: list[str], start: float, end: float) -> Iterator[Timed]:
    step = (end - start) / max(len(texts), 1)
    for index, text in enumerate(texts):
        yield text, start + index * step, min(start + (index + 1) * step, end), 0.0


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{str(value)[:20]!r} is not a number")
    return float(value)
