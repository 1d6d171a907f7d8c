"""A transcript → its own words, where they stand in it, and what each may sound like.

Punctuation and emoji make no word. `2,000`, `$5`, `50%`, `don't`, `U.S` and `well-known` are one word each; every Han
character and every kana is a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace

Spoken = tuple[str, ...]
"""Words as they are said, lower case."""


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
    found = []
    for match in _WORD.finditer(shape):
        start, end = match.span()
        text = transcript[start:end]
        found.append(Token(text, (start, end), _ways(text)))
    return list(_amounts(found))


_APOSTROPHES, _HYPHENS = "'’‘ʼ＇", "-‐‑"
_WORD = re.compile(
    r"""
      H                                     # one Han character or kana
    | a(?:\.a)+(?![adm])                    # U.S, e.g
    | \$?[ad][adm]*                         # with the currency before it
      (?: ['&-][ad][adm]* | (?<=d)[.,:](?=d)[adm]+ )*
      [%$]?
    | (?<!\S)&(?!\S)                        # & alone is said
    """,
    re.VERBOSE,
)


def _kind(character: str) -> str:
    """a letter, d digit, m mark, H Han or kana; the characters that join a word; a blank for the rest."""
    if character in _APOSTROPHES:
        return "'"
    if character in _HYPHENS:
        return "-"
    if character in ".,:%&":
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


_CURRENCIES = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY"}
_UNITS = {"$": "dollars", "€": "euros", "£": "pounds", "¥": "yen"}
_SCALES = {"hundred", "thousand", "million", "billion", "trillion"}
_SAID = {
    "&": ("and",), "vs": ("versus",), "etc": ("et", "cetera"), "e.g": ("for", "example"), "i.e": ("that", "is"),
    "dr": ("doctor",), "ummm": ("um",), "uhhh": ("uh",), "mhm": ("mm", "hm"), "hmmm": ("hmm",),
}  # fmt: skip
_NUMBER = re.compile(r"\d+(?:[,.:]\d+)*")
_ORDINAL = re.compile(r"(\d[\d,]*)(?:st|nd|rd|th)")
_PIECE = re.compile(r"\d+(?:[,.:]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)*|&|%")


def _ways(text: str) -> tuple[Spoken, ...]:
    plain = _plain(text)
    ways: list[Spoken] = []
    lower = plain.lower()
    if lower in _SAID:
        ways.append(_SAID[lower])
    elif match := _ORDINAL.fullmatch(lower):
        ways.append(_number(match[1].replace(",", ""), "ordinal"))
    elif text[0] in _CURRENCIES and _NUMBER.fullmatch(lower.lstrip("$€£¥")):
        ways += _money(lower.lstrip("$€£¥"), text[0])
    elif re.fullmatch(r"[^\W\d_](?:\.[^\W\d_])+", plain):
        ways.append(tuple(f"{letter}." for letter in lower.split(".")))
    else:
        ways += _pieces(plain)
    ways = [way for way in ways if way]
    return tuple(dict.fromkeys(ways)) or ((lower or text,),)


def _plain(text: str) -> str:
    """Compatibility forms and accents resolved, one kind of apostrophe and hyphen."""
    text = unicodedata.normalize("NFKD", text)
    bare = (character for character in text if not unicodedata.combining(character))
    text = "".join("'" if c in _APOSTROPHES else "-" if c in _HYPHENS else c for c in bare)
    return unicodedata.normalize("NFC", text)


def _pieces(plain: str) -> list[Spoken]:
    """Ways to say a word that may hold hyphens, digits and capitals."""
    ways: list[Spoken] = [()]
    for piece in _PIECE.findall(plain):
        lower = piece.lower()
        if piece[0].isdigit():
            here = _said_number(piece)
        elif lower in ("%", "&"):
            here = [("percent",) if lower == "%" else ("and",)]
        elif piece.isupper() and 1 < len(piece) <= 5 and piece.isascii() and "'" not in piece:
            here = [(lower,), tuple(f"{letter}." for letter in lower)]
        else:
            here = [(lower,)]
        ways = [before + way for before in ways for way in here][:6]
    return ways


def _said_number(digits: str) -> list[Spoken]:
    whole = digits.replace(",", "")
    if ":" in whole:
        parts = [part for part in whole.split(":") if part.strip("0.")]  # 8:00 is eight
        return [sum((_said_number(part)[0] for part in parts), ())]
    if whole.count(".") > 1:
        return [_digits(whole)]
    if "." in whole:
        left, right = whole.split(".")
        return [(*_number(left, "cardinal"), "point", *_digits(right))]
    ways = [_number(whole, "cardinal")]
    ways.append(tuple(word for word in ways[0] if word != "and"))
    if len(whole) == 4 and "," not in digits and 1100 <= int(whole) <= 2099:
        ways.insert(0, _number(whole, "year"))
    if len(whole) > 1 and (whole[0] == "0" or len(whole) >= 3) and "," not in digits:
        ways.append(_digits(whole))
    return ways


def _digits(text: str) -> Spoken:
    return sum((_number(digit, "cardinal") for digit in text if digit.isdigit()), ())


def _money(amount: str, symbol: str) -> list[Spoken]:
    whole = amount.replace(",", "")
    if not re.fullmatch(r"\d+(\.\d+)?", whole):
        return [_digits(whole)]
    from num2words import num2words

    try:
        if "." in whole:
            said = _letters(num2words(round(float(whole), 2), to="currency", currency=_CURRENCIES[symbol]))
            return [tuple(word for word in said if word != "sterling")]
        unit = _UNITS[symbol] if int(whole) != 1 else _UNITS[symbol].removesuffix("s")
        return [(*_number(whole, "cardinal"), unit)]
    except (OverflowError, NotImplementedError):
        return [_digits(whole)]


def _number(digits: str, to: str) -> Spoken:
    from num2words import num2words

    try:
        return _letters(num2words(int(digits), to=to))
    except (OverflowError, ValueError):  # beyond the library's largest name, or Python's limit on digits
        return tuple(word for digit in digits for word in _letters(num2words(int(digit))))


def _letters(said: str) -> Spoken:
    return tuple(re.findall(r"[a-z']+", said.lower()))


def _amounts(found: Iterable[Token]) -> Iterable[Token]:
    """In `$5 million` the unit is said after the scale."""
    held: Token | None = None
    for token in found:
        if held is not None:
            unit = held.spoken[0][-1]
            if token.text.lower() in _SCALES:
                held = replace(held, spoken=(held.spoken[0][:-1],))
                token = replace(token, spoken=((*token.spoken[0], unit if unit.endswith(("s", "n")) else f"{unit}s"),))
            yield held
            held = None
        if token.text[0] in _CURRENCIES and len(token.spoken[0]) > 1:
            held = token
        else:
            yield token
    if held is not None:
        yield held
