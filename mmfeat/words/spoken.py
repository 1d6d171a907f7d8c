"""How a written word may be said in English: numbers, money, times, units, abbreviations, addresses.

Where a spelling can be read in more than one way (`1999`, `St.`, `3/4`), all of them are given; the sound decides.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import product

Spoken = tuple[str, ...]
"""Words as they are said, lower case."""

WAYS = 8
"""At most so many ways per word."""
APOSTROPHES, HYPHENS = "'’‘ʼ＇", "-‐‑"
CURRENCIES = {"$": ("dollars", "cents"), "€": ("euros", "cents"), "£": ("pounds", "pence"), "¥": ("yen", "sen")}
"""Each with its hundredth."""
SCALES = ("hundred", "thousand", "million", "billion", "trillion")
ADDRESS = re.compile(
    r"https?://[^\s<>()\[\]]*\w/?|www\.\w[\w.-]*\w(?:/[\w./-]*\w)?|[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    r"|\b[a-z0-9][a-z0-9-]*(?:\.[a-z0-9-]+)*\.(?:com|org|net|edu|gov|io|tv|co\.uk)\b(?:/[\w./-]*\w)?",
    re.ASCII,
)

_ABBREVIATIONS = {
    "&": "and", "approx": "approximately", "apr": "april", "aug": "august", "ave": "avenue", "blvd": "boulevard",
    "capt": "captain", "cm": "centimeters", "co": "company|co", "corp": "corporation", "dec": "december",
    "dept": "department", "dr": "doctor|drive", "e.g": "for example|e. g.", "etc": "et cetera", "feb": "february",
    "fri": "friday", "ft": "feet|fort", "gb": "gigabytes", "gen": "general|gen", "ghz": "gigahertz",
    "gov": "governor", "hr": "hour", "hrs": "hours", "hz": "hertz", "i.e": "that is|i. e.", "inc": "incorporated|inc",
    "jan": "january", "jr": "junior", "kb": "kilobytes", "kg": "kilograms|kilogram", "khz": "kilohertz",
    "km": "kilometers|kilometer", "kmh": "kilometers per hour", "kph": "kilometers per hour", "lb": "pounds|pound",
    "lbs": "pounds", "lt": "lieutenant", "ltd": "limited", "mb": "megabytes", "mg": "milligrams", "mhm": "mm hm",
    "mhz": "megahertz", "min": "minutes|minute|min", "ml": "milliliters", "mm": "mm|millimeters",
    "mph": "miles per hour|m. p. h.", "mr": "mister", "mt": "mount|m. t.", "no": "no|number", "nov": "november",
    "oct": "october", "oz": "ounces|ounce", "prof": "professor", "rd": "road", "sec": "seconds|second|sec",
    "sen": "senator", "sept": "september", "sgt": "sergeant", "sr": "senior", "st": "saint|street",
    "tb": "terabytes", "thu": "thursday", "thurs": "thursday", "tue": "tuesday", "tues": "tuesday",
    "vs": "versus", "wed": "wednesday|wed", "w/o": "without", "yd": "yards",
}  # fmt: skip
_AFTER_NUMBER = {
    "%": "percent", "°": "degrees", "°c": "degrees celsius|degrees", "°f": "degrees fahrenheit|degrees",
    "am": "a. m.", "b": "billion|b", "bn": "billion", "g": "grams|g", "h": "hours|h", "in": "inches|in",
    "k": "thousand|k", "m": "million|meters|m", "pm": "p. m.", "s": "seconds|s", "x": "times|x",
}  # fmt: skip
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
_ROMAN = dict(
    zip("ii iii iv vi vii viii ix xi xii xiii xiv xv xvi xvii xviii xix xx".split(),  # noqa: SIM905
        (2, 3, 4, 6, 7, 8, 9, *range(11, 21)), strict=True)
)  # fmt: skip
_SIGNS = {".": "dot", "/": "slash", "@": "at", "-": "dash", "_": "underscore", "+": "plus"}
_NUMBER = r"\d+(?:[,.:/]\d+)*|\.\d+"
_QUANTITY = re.compile(rf"([-#]?)([$€£¥]?)({_NUMBER})(°?[^\W\d_]*)([%$€£¥]?)")
_POWER = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_POWERS = {"¹": " one", "²": " squared", "³": " cubed"}
_PIECE = re.compile(rf"{_NUMBER}|[^\W\d_]+(?:'[^\W\d_]+)*|[&%@#]")


def ways(text: str) -> tuple[Spoken, ...]:
    """Ways to say a word, the likeliest first; at least one, none of them empty."""
    if ADDRESS.fullmatch(text):
        found = _address(text)
    else:
        plain = _plain(text)
        lower = plain.lower()
        if lower in _ABBREVIATIONS:
            found = _choices(_ABBREVIATIONS[lower])
        elif re.fullmatch(r"[^\W\d_](?:\.[^\W\d_])+", plain):
            found = [tuple(f"{letter}." for letter in lower.split("."))]
        elif match := _QUANTITY.fullmatch(lower):
            found = _quantity(*match.groups()) or _pieces(plain)
        else:
            found = _pieces(plain)
            if re.fullmatch(r"\d+(-\d+)+", plain):  # 555-1234
                found = [_digits(plain), _digits(plain, "oh"), *found]
    return tuple(dict.fromkeys(filter(None, found)))[:WAYS] or ((_plain(text).lower() or text,),)


def _plain(text: str) -> str:
    """Compatibility forms and accents resolved, one kind of apostrophe and hyphen, `½` as ` 1/2`, `²` as ` squared`."""
    text = _POWER.sub(lambda power: _POWERS.get(power[0]) or f" to the {power[0]}", text)
    text = "".join(f" {unicodedata.normalize('NFKD', c)}" if "VULGAR FRACTION" in _name(c) else c for c in text)
    text = unicodedata.normalize("NFKD", text.strip())
    bare = (character for character in text if not unicodedata.combining(character))
    text = "".join("'" if c in APOSTROPHES else "-" if c in HYPHENS else "/" if c == "⁄" else c for c in bare)
    return unicodedata.normalize("NFC", text)


def _name(character: str) -> str:
    return unicodedata.name(character, "")


def _choices(written: str) -> list[Spoken]:
    """`saint|street` → its ways."""
    return [tuple(way.split()) for way in written.split("|")]


def _joined(*parts: list[Spoken]) -> list[Spoken]:
    """Every way of the first part, followed by every way of the next, …"""
    return [sum(way, ()) for way in product(*(part[:WAYS] for part in parts))]


def _quantity(sign: str, symbol: str, digits: str, unit: str, after: str) -> list[Spoken]:
    """A number with what is written close to it; empty for what is no quantity (`3d`, say)."""
    currency = symbol or (after if after in CURRENCIES else "")
    if unit in ("st", "nd", "rd", "th") and digits.replace(",", "").isdecimal():
        found = [_number(digits.replace(",", ""), "ordinal")]
    elif unit == "s" and digits.isdecimal() and len(digits) in (2, 4) and digits.endswith("0"):
        found = _decade(digits)
    elif currency and not unit:
        found = _money(digits, currency)
    elif not unit:
        found = number(digits)
    elif said := _AFTER_NUMBER.get(unit) or _ABBREVIATIONS.get(unit):
        found = _joined(number(digits), _choices(said))
        if currency:
            scaled = [way for way in found if way[-1] in SCALES]
            found = [(*way, CURRENCIES[currency][0]) for way in scaled or found]
    else:
        return []
    if after == "%":
        found = [(*way, "percent") for way in found]
    if sign == "-":
        found = [(*before, *way) for before in (("minus",), (), ("negative",)) for way in found]
    if sign == "#":
        found = [("number", *way) for way in found] + found
    return found


def _pieces(plain: str) -> list[Spoken]:
    """Ways to say a word that may hold hyphens, digits and capitals."""
    found: list[Spoken] = [()]
    pieces = _PIECE.findall(plain)
    for index, piece in enumerate(pieces):
        lower = piece.lower()
        if piece[0].isdigit() or (piece[0] == "." and len(piece) > 1):
            here = number(piece)
            if index and pieces[index - 1][0].isdigit() and "/" in piece:  # 5 1/2
                here = [("and", *way) for way in [("a", "half")] * (piece == "1/2") + here]
        elif piece in "%&@#":
            here = [({"%": "percent", "&": "and", "@": "at", "#": "hashtag"}[piece],)]
        elif lower in _ROMAN and piece.isupper():
            here = [_number(str(_ROMAN[lower]), "cardinal"), ("the", _number(str(_ROMAN[lower]), "ordinal")[0])]
        elif piece.isupper() and 1 < len(piece) <= 5 and piece.isascii() and "'" not in piece:
            here = [(lower,), tuple(f"{letter}." for letter in lower)]
        elif index and pieces[index - 1][0].isdigit() and lower in _AFTER_NUMBER:
            here = _choices(_AFTER_NUMBER[lower])
        elif re.search(r"(.)\1\1", lower):  # sooo, ummmm
            here = [(re.sub(r"(.)\1\1+", r"\1", lower),), (re.sub(r"(.)\1\1+", r"\1\1", lower),)]
        else:
            here = [(lower,)]
        found = _joined(found, here)[:WAYS]
    if plain.startswith(tuple(CURRENCIES)):  # $5½
        return [(*way, CURRENCIES[plain[0]][0]) for way in found]
    return [*found, found[0][1:]] if pieces and pieces[0] in "@#" else found


def _address(text: str) -> list[Spoken]:
    """Of a web or mail address, with and without `www`; nobody says `https`."""
    bare = re.sub(r"^https?://", "", text.lower()).rstrip("/")
    found = []
    for shown in dict.fromkeys((bare, bare.removeprefix("www."))):
        said: list[str] = []
        for piece in re.findall(r"\d+|[^\W\d_]+|[./@_+-]", shown):
            if piece in _SIGNS:
                said.append(_SIGNS[piece])
            elif piece[0].isdigit():
                said += number(piece)[0]
            else:
                said += ["w."] * 3 if piece == "www" else [piece]
        found.append(tuple(said))
    return found[::-1]


def number(digits: str) -> list[Spoken]:
    """Ways to say a number, fraction, date or time of day."""
    whole = digits.replace(",", "")
    if "/" in whole:
        return _fraction([part for part in whole.split("/") if part])
    if ":" in whole:
        return _time(whole)
    if whole.count(".") > 1:
        return [_digits(whole)]
    if "." in whole:
        left, right = whole.split(".")
        said = ("point", *_digits(right))
        return [(*_number(left, "cardinal"), *said)] if left else [said, ("zero", *said)]
    found = [_number(whole, "cardinal")]
    found.append(tuple(word for word in found[0] if word != "and"))
    if len(whole) == 4 and "," not in digits and 1100 <= int(whole) <= 2099:
        found.insert(0, _number(whole, "year"))
    if len(whole) > 1 and (whole[0] == "0" or len(whole) >= 3) and "," not in digits:
        found += [_digits(whole), _digits(whole, "oh")]
    return found


def _fraction(parts: list[str]) -> list[Spoken]:
    """`3/4`, `24/7`, `9/11`; `12/25/2020`."""
    in_turn = _joined(*(number(part)[:1] for part in parts))
    if len(parts) == 3 and parts[0].isdecimal() and 1 <= int(parts[0]) <= 12 and parts[1].isdecimal():
        date = [(_MONTHS[int(parts[0]) - 1], *_number(parts[1], "ordinal"))]
        return [*_joined(date, number(parts[2])[:1]), *in_turn]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        return in_turn
    above, below = parts
    names = {"2": ["half"], "4": ["quarter", "fourth"]}.get(below) or [" ".join(_number(below, "ordinal"))]
    ending = "" if above == "1" else "s"
    said = [f"{name}{ending}".replace("halfs", "halves").split() for name in names]
    counted = [*_number(above, "cardinal")]
    fractions = [tuple(counted + name) for name in said] + [("a", *name) for name in said if above == "1"]
    over = [(*way[: len(counted)], "over", *way[len(counted) :]) for way in in_turn]
    return [*fractions, *in_turn, *over] if below.strip("0") not in ("", "1") else in_turn


def _time(written: str) -> list[Spoken]:
    """`3:05`, `8:00`, `3:45`; whatever else has colons is said part by part."""
    parts = [part for part in written.split(":") if part.strip("0.")]
    in_turn = [sum((number(part)[0] for part in parts), ())]
    if not (match := re.fullmatch(r"(\d\d?):([0-5]\d)", written)):
        return in_turn
    hour, minute = number(match[1])[0], match[2]
    if minute == "00":
        return [hour, (*hour, "o'clock"), (*hour, "hundred")]
    if minute[0] == "0":
        return [(*hour, "oh", *number(minute[1])[0]), *in_turn]
    spoken = {"15": [("quarter", "past", *hour)], "30": [("half", "past", *hour)]}.get(minute, [])
    return [*in_turn, *spoken]


def _decade(digits: str) -> list[Spoken]:
    """`1990s`, `90s`."""
    said = _number(digits, "year") if len(digits) == 4 else _number(digits, "cardinal")
    many = f"{said[-1][:-1]}ies" if said[-1].endswith("y") else f"{said[-1]}s"
    return [(*said[:-1], many)]


def _money(amount: str, symbol: str) -> list[Spoken]:
    whole = amount.replace(",", "")
    units, hundredths = CURRENCIES[symbol]
    decimal = [(*way, units if whole != "1" else units.removesuffix("s")) for way in number(amount)]
    match = re.fullmatch(r"(\d*)\.(\d\d?)", whole)
    if not match:
        return decimal
    rest = match[2].ljust(2, "0")
    small = (*_number(rest, "cardinal"), {"01": {"pence": "penny"}.get(hundredths, "cent")}.get(rest, hundredths))
    if not match[1].strip("0"):
        return [small, *decimal]
    big = _money(match[1], symbol)[:2]
    if rest == "00":
        return [*big, *decimal]
    short = [(*big[0][:-1], *small[:-1])] if rest[0] != "0" else []
    return [*((*way, *joint, *small) for joint in ((), ("and",)) for way in big), *short, *decimal]


def _digits(text: str, zero: str = "zero") -> Spoken:
    """One by one."""
    said = (word for digit in text if digit.isdigit() for word in _number(digit, "cardinal"))
    return tuple(zero if word == "zero" else word for word in said)


def _number(digits: str, to: str) -> Spoken:
    from num2words import num2words

    try:
        return _letters(num2words(int(digits), to=to))
    except (OverflowError, ValueError):  # beyond the library's largest name, or Python's limit on digits
        return tuple(word for digit in digits for word in _letters(num2words(int(digit))))


def _letters(said: str) -> Spoken:
    return tuple(re.findall(r"[a-z']+", said.lower()))
