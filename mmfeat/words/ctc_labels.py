"""A transcript's words → the letters of a CTC model's alphabet."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmfeat.words import MissingBackendError
from mmfeat.words.transcript import Token

STAR = -1
"""The label of any sound: what the alphabet cannot write."""
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ＇", "'"))


@dataclass(frozen=True)
class Spelled:
    labels: tuple[int, ...]
    """At least one."""
    optional: tuple[bool, ...]
    """Which of them may be left out: delimiters in a word that is said as several. No two are neighbours."""


@dataclass(frozen=True)
class Alphabet:
    """What a model can write, and how words are written with it."""

    ids: Mapping[str, int]
    """Single characters and their labels."""
    blank: int
    delimiter: int | None
    """Between words; None where the model writes none."""
    language: str
    """ISO 639-1: in it numbers are said."""
    romanise: Callable[[str], str] | None = None

    @classmethod
    def of(cls, tokenizer: Any, language: str, romanise: bool) -> Alphabet:
        """The alphabet of a transformers tokenizer, whose padding is the blank.

        Raises MissingBackendError where it is not one of letters.
        """
        if "Phoneme" in type(tokenizer).__name__:
            raise MissingBackendError("the model writes phonemes, not letters: choose another")
        vocabulary, blank = tokenizer.get_vocab(), tokenizer.pad_token_id
        if blank is None:
            raise MissingBackendError("the model's tokenizer names no padding, which stands for CTC's blank")
        delimiter = vocabulary.get(getattr(tokenizer, "word_delimiter_token", None) or "|")
        ids = {name: label for name, label in vocabulary.items() if len(name) == 1 and label not in (blank, delimiter)}
        return cls(ids, blank, delimiter, language, _romaniser() if romanise else None)

    def spell(self, token: Token) -> Spelled:
        """A word's labels, from the first way of writing it that the alphabet has all letters for.

        Where it has none, letters that it lacks become STAR, neighbouring ones together.
        """
        ways = [self._labels(way) for way in self._ways(token)]
        way = next((way for way in ways if way and not any(STAR in part for part in way)), ways[0]) or [[STAR]]
        labels: list[int] = []
        optional: list[bool] = []
        for part in way:
            if labels and self.delimiter is not None:
                labels.append(self.delimiter)
                optional.append(True)
            labels += part
            optional += [False] * len(part)
        return Spelled(tuple(labels), tuple(optional))

    def _ways(self, token: Token) -> Iterator[str]:
        """A word as it stands, and as its numbers and signs are said."""
        yield token.text
        if token.text.isalpha():
            return
        if self.language == "en":
            yield from map(" ".join, token.spoken)
        elif said := _number(token.text, self.language):
            yield said

    def _labels(self, text: str) -> list[list[int]]:
        """Labels of each blank-separated part of a text."""
        if self.romanise:
            text = self.romanise(text)
        parts = []
        for part in unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).split():
            labels: list[int] = []
            for character in part:
                labels += [label for label in self._letter(character) if label != STAR or labels[-1:] != [STAR]]
            if labels:
                parts.append(labels)
        return parts

    def _letter(self, character: str) -> list[int]:
        """A character's labels: in either case, taken apart, or without its accents; none for what has no sound."""
        apart = unicodedata.normalize("NFD", character)
        bare = "".join(c for c in apart if not unicodedata.combining(c))
        for written in (character, apart, bare):
            for cased in (written, written.upper(), written.lower(), written.casefold()):
                if cased and all(c in self.ids for c in cased):
                    return [self.ids[c] for c in cased]
        is_said = unicodedata.category(character)[0] in "LN" or unicodedata.category(character) == "Sc"
        return [STAR] if is_said or character in "&%" else []


_WHOLE = re.compile(r"\d+|\d{1,3}(?:[.,]\d{3})+")


def _number(text: str, language: str) -> str | None:
    """A whole number in words, where num2words knows the language."""
    from num2words import CONVERTER_CLASSES, num2words

    if language not in CONVERTER_CLASSES or not _WHOLE.fullmatch(text):
        return None
    try:
        return num2words(int(re.sub("[.,]", "", text)), lang=language).replace("-", " ")
    except (OverflowError, NotImplementedError, ValueError):
        return None


def _romaniser() -> Callable[[str], str]:
    try:
        from uroman import Uroman
    except ImportError:
        raise MissingBackendError("romanisation needs uroman: pip install uroman") from None
    romanise = Uroman().romanize_string
    return lambda text: romanise(text).lower()
