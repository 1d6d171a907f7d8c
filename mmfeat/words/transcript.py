"""A transcript → its own words, where they stand in it, and what each may sound like.

Punctuation and emoji make no word. `2,000`, `$5`, `50%`, `3/4`, `20°C`, `don't`, `U.S`, `well-known` and an address are
one word each; every Han character and every kana is a word. What a transcriber notes of other sounds is no word:
anything in square brackets, braces, a pair of asterisks or angle brackets (`[music]`, `<unk>`), and round brackets
around nothing but names of such sounds (`(laughs)`). Other round brackets are spoken: `(umm)`, `(and so on)`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mmfeat.words.spoken import ADDRESS, APOSTROPHES, CURRENCIES, HYPHENS, SCALES, Spoken, number, ways

__all__ = ["Spoken", "Token", "is_han", "tokens"]


@dataclass(frozen=True)
class Token:
    """One word of the transcript."""

    text: str
    span: tuple[int, int]
    """`transcript[span[0]:span[1]] == text`."""
    spoken: tuple[Spoken, ...]
    """Ways to say it in English, the likeliest first; at least one, none of them empty."""


def tokens(transcript: str) -> list[Token]:
    """The words of any text at all, in order; spans rise and do not overlap."""
    # One character of `shape` per character of the transcript, so that places in both are the same.
    shape = "".join(map(_kind, transcript))
    for match in ADDRESS.finditer(transcript):
        shape = _painted(shape, match.span(), "u")
    for match in _ANNOTATION.finditer(transcript):
        if match[0][0] != "(" or _is_of_sounds(match[0]):
            shape = _painted(shape, match.span(), " ")
    found = []
    for match in _WORD.finditer(shape):
        start, end = match.span()
        text = transcript[start:end]
        found.append(Token(text, (start, end), ways(text)))
    return list(_amounts(found))


_ANNOTATION = re.compile(
    r"\[[^\[\]]{0,80}\] | \{[^{}]{0,80}\} | </?\w[^<>]{0,80}> | \*\w[^*\n]{0,40}\* | \([^()]{1,80}\)", re.VERBOSE
)
_SOUNDS = frozenset(
    """applause audience background barking beep beeping bell blank breath breathes breathing chatter cheering cheers
    chuckle chuckles chuckling clapping clears cough coughing coughs crosstalk cries crowd crying exhales foreign gasp
    gasping gasps giggle giggles giggling groan groans humming inaudible indistinct inhales laugh laughing laughs
    laughter loud loudly lightly mumbles music noise panting pause playing ringing scoffs screaming screams shouting
    sighing sighs sigh silence singing sneezes sniff sniffles sniffs snorts sobbing sobs softly speaking static throat
    unclear unintelligible whispering whispers whistles whistling yawns""".split()  # noqa: SIM905
)
_WORD = re.compile(
    r"""
      u+                                    # an address
    | H                                     # one Han character or kana
    | a/a(?!a)                              # w/o
    | a(?:\.a)+(?![adm])                    # U.S, e.g
    | (?:(?<![^ ])(?:-(?=[$]?d)|[@#](?=[ad])))?
      (?:\$?[ad]|(?<![^ $])\$?\.d)[adm]*    # with the sign or currency before it
      (?: ['&-][ad][adm]* | (?<=d)[.,:/](?=d)[adm]+ )*
      (?:(?<=d)°a?(?![adm]))?
      [%$]?
    | (?<!\S)&(?!\S)                        # & alone is said
    | (?<=d[ ])%                            # as is % after a number
    """,
    re.VERBOSE,
)


def _kind(character: str) -> str:
    """a letter, d digit, m mark, H Han or kana; the characters that join a word; a blank for the rest."""
    if character in APOSTROPHES:
        return "'"
    if character in HYPHENS:
        return "-"
    if character in ".,:%&/@#°()":
        return character
    category = unicodedata.category(character)
    if category == "Sc":
        return "$"
    if category[0] == "L":
        return "H" if is_han(character) else "a"
    return {"Nd": "d", "Nl": "a", "No": "a", "Mn": "m", "Mc": "m", "Me": "m"}.get(category, " ")


def is_han(character: str) -> bool:
    """A character that is a word by itself: Han, hiragana or katakana."""
    return unicodedata.name(character, "").startswith(("CJK ", "HIRAGANA ", "KATAKANA "))


def _painted(shape: str, span: tuple[int, int], kind: str) -> str:
    return shape[: span[0]] + kind * (span[1] - span[0]) + shape[span[1] :]


def _is_of_sounds(bracket: str) -> bool:
    """Whether a bracket holds nothing but names of sounds: (laughs), (clears throat)."""
    words = re.findall(r"[^\W\d_]+", bracket.lower())
    return bool(words) and _SOUNDS.issuperset(words)


def _amounts(found: Iterable[Token]) -> Iterable[Token]:
    """In `$5 million` the unit is said after the scale."""
    held: Token | None = None
    for token in found:
        if held is not None:
            if token.text.lower() in SCALES:
                unit = CURRENCIES[held.text[0]][0]
                held = replace(held, spoken=tuple(dict.fromkeys(number(held.text[1:]))))
                token = replace(token, spoken=((*token.spoken[0], unit),))
            yield held
            held = None
        if token.text[0] in CURRENCIES and re.fullmatch(r"[\d,]*\.?\d+", token.text[1:], re.ASCII):
            held = token
        else:
            yield token
    if held is not None:
        yield held
