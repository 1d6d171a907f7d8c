"""`glove`: one vector per word from a file of word vectors: GloVe, word2vec or fastText in text form."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from mmfeat.extractors import TextConfig, register
from mmfeat.extractors.word_vectors import VectorsError, WordVectors, open_vectors
from mmfeat.track import Floats, Wordpieces

_MARKS = "".join(c for c in map(chr, range(0x300, 0x20000)) if unicodedata.category(c) in ("Mn", "Mc"))
"""Signs that belong to the letter before them: accents, and the vowels of many scripts."""
_TOKEN = re.compile(rf"[\w{_MARKS}]+(?:['’.,-][\w{_MARKS}]+)*|[^\w\s]")
"""A word with what joins its parts (don't, well-known, U.S, 2,000), or a sign."""
_HAN = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]+")
_CLITIC = re.compile(r"(\w+?)(n['’]t|['’](?:s|re|ve|ll|d|m))$", re.IGNORECASE)
_JOINED = re.compile(r"['’.,-]")
_LONGEST = 8
"""Characters of the longest word that is looked for in scripts without blanks."""


class GloveConfig(TextConfig):
    vectors: str = Field(
        "glove.6B.300d.txt",
        description="text file of word vectors, a line each; plain, .gz or .zip; word2vec's header may lead",
    )
    member: str = Field("", description="the file in a .zip archive of several")
    lowercase: bool = Field(
        True,
        description="words are looked up in lower case, as glove.6B and 42B have them; false: as they stand, and in "
        "lower case where the file lacks that (840B, word2vec)",
    )
    unknown: Literal["zero", "mean"] = Field(
        "zero", description="row of a word that the file lacks; mean: that of all the file's vectors"
    )

    without_effect: ClassVar[frozenset[str]] = frozenset({"vectors"})

    def identity(self) -> dict[str, Any]:
        """`member` is of archives only."""
        idle = () if self.vectors.lower().endswith(".zip") else ("member",)
        return {name: value for name, value in super().identity().items() if name not in idle}


def _file(config: GloveConfig) -> tuple[str]:
    if not Path(config.vectors).expanduser().is_file():
        raise VectorsError(
            f"no file of word vectors at {config.vectors!r}; name one as `vectors` in the recipe, or get GloVe's: "
            "curl -LO https://nlp.stanford.edu/data/glove.6B.zip && unzip glove.6B.zip"
        )
    return (config.vectors,)


@register("glove", GloveConfig, version=3, models=_file)
class Glove:
    """A row per word, `dim_k`; no `[CLS]`, no `[SEP]`, and 0 as token id everywhere: there are no wordpieces.

    A word that the file lacks is looked for in parts: the way GloVe was trained (do + n't, it + 's), at its joints
    (well + known), in scripts without blanks as the longest words from the left. What is not found in parts either
    keeps its row, see `unknown`, so that rows and words stay joined. Signs have a row where the file knows them.
    """

    def __init__(self, config: GloveConfig):
        _file(config)
        self.config = config
        self._vectors: WordVectors = open_vectors(Path(config.vectors).expanduser(), config.member)
        self.names = tuple(f"dim_{k}" for k in range(self._vectors.columns))
        self._unknown = self._vectors.mean if config.unknown == "mean" else np.zeros_like(self._vectors.mean)

    def __call__(self, text: str) -> Wordpieces:
        """At most `max_wordpieces` words of `text`, values of shape (L, D)."""
        spans: list[tuple[int, int]] = []
        rows: list[Floats] = []
        for start, end in self._pieces(text):
            if len(rows) == self.config.max_wordpieces:
                break
            vector = self._get(text[start:end])
            spans.append((start, end))
            rows.append(self._unknown if vector is None else vector)
        ids = np.zeros(len(rows), np.int32)
        values = np.array(rows, np.float32).reshape(len(rows), self._vectors.columns)
        return Wordpieces(ids, ids, np.array(spans, np.int32).reshape(-1, 2), values)

    def _get(self, word: str) -> Floats | None:
        word = unicodedata.normalize("NFC", word).replace("’", "'")
        forms = (word.lower(),) if self.config.lowercase else (word, word.lower())
        return next((vector for form in forms if (vector := self._vectors.get(form)) is not None), None)

    def _pieces(self, text: str) -> Iterator[tuple[int, int]]:
        """Where what has a row stands in the text."""
        for match in _TOKEN.finditer(text):
            start, end = match.span()
            if not match[0][0].isalnum() and match[0][0] != "_":
                if self._get(match[0]) is not None:
                    yield start, end
            elif self._get(match[0]) is not None:
                yield start, end
            else:
                yield from self._parts(text, start, end)

    def _parts(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        word = text[start:end]
        if clitic := _CLITIC.fullmatch(word):
            middle = start + clitic.start(2)
            if self._get(text[middle:end]) is not None:
                yield from self._parts(text, start, middle) if self._get(clitic[1]) is None else [(start, middle)]
                yield middle, end
                return
        joints = [start, *(start + joint.end() for joint in _JOINED.finditer(word)), end + 1]
        if len(joints) > 2 and not word.replace(",", "").replace(".", "").isdigit():
            for first, after in pairwise(joints):
                yield from self._parts(text, first, after - 1)
            return
        yield from self._without_blanks(text, start, end)

    def _without_blanks(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Longest words from the left in runs of Han and kana, each character alone where none is known."""
        place = start
        for run in _HAN.finditer(text, start, end):
            if place < run.start():
                yield place, run.start()
            place = run.start()
            while place < run.end():
                ends = range(min(place + _LONGEST, run.end()), place, -1)
                after = next((stop for stop in ends if self._get(text[place:stop]) is not None), place + 1)
                yield place, after
                place = after
        if place < end:
            yield place, end
