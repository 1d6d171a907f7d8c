"""Praat's TextGrid, long and short form: intervals of a tier ↔ text.

Praat itself reads only what stands free in such a file, numbers, "quoted text" and <flags>, and skips the rest
(`xmin =`, `intervals [1]:`), which is why one reader does for both forms.
https://www.fon.hum.uva.nl/praat/manual/TextGrid_file_formats.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

WORD_TIERS = ("words", "word", "ort-mau", "ort", "orthography", "orthographic", "transcript", "transcription", "text")
"""Names under which word tiers go, likeliest first; `speaker - words` counts as `words`."""

Interval = tuple[float, float, str]
"""Start and end in seconds, label."""

_FREE = re.compile(
    r'"((?:[^"]|"")*)"(?=\s|$)|<(\w+)>(?=\s|$)|([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)%?(?=\s|$)|\S+'
)


class ChoiceError(ValueError):
    """Words of several speakers; the message names those that there are."""

    def __init__(self, kind: str, choices: Sequence[str]):
        self.choices = tuple(choices)
        said = ", ".join(map(repr, choices))
        super().__init__(f"there are {len(choices)} {kind} of words, {said}: choose one with `tier`")


def parse(text: str, tier: str | None = None) -> list[Interval]:
    """The intervals of the named tier, or of the one that holds words. Raises ValueError saying what is wrong."""
    return word_tier(dict(_tiers(_values(text))), tier)


def word_tier(tiers: Mapping[str, T], name: str | None) -> T:
    """The tier `name`, or without one that of the words.

    Raises ChoiceError where several speakers have one, ValueError naming those that there are where nobody has.
    """
    plain: dict[str, list[str]] = {}
    for known in tiers:
        plain.setdefault(known.strip().lower().rpartition(" - ")[2], []).append(known)
    likely = next((plain[known] for known in WORD_TIERS if known in plain), list(tiers) if len(tiers) == 1 else [])
    if name is None and len(likely) > 1:
        raise ChoiceError("tiers", likely)
    chosen = name if name is not None else next(iter(likely), None)
    if chosen is None or chosen not in tiers:
        which = f"no tier {name!r}" if name is not None else "no tier is called `words`; choose one with `tier`"
        raise ValueError(f"{which}; there are: {', '.join(tiers) or 'none'}")
    return tiers[chosen]


def _values(text: str) -> Iterator[str | float | bool]:
    """Strings, numbers and flags (`<exists>` is True) in their order."""
    for match in _FREE.finditer(text):
        quoted, flag, number = match.groups()
        if quoted is not None:
            yield quoted.replace('""', '"')
        elif flag is not None:
            yield flag == "exists"
        elif number is not None:
            yield float(number)


def _tiers(values: Iterator[str | float | bool]) -> Iterator[tuple[str, list[Interval]]]:
    """Name and intervals of each interval tier; tiers of points hold no words."""

    def number() -> float:
        found = next(values, None)
        if not isinstance(found, float):
            raise ValueError(f"a number is missing before {found!r}" if found is not None else "it ends too early")
        return found

    def string() -> str:
        found = next(values, None)
        if not isinstance(found, str):
            raise ValueError(f"a text is missing before {found!r}" if found is not None else "it ends too early")
        return found

    if next(values, None) != "ooTextFile" or next(values, None) != "TextGrid":
        raise ValueError("it does not begin as a TextGrid in text form does")
    number(), number()
    if next(values, None) is not True:
        return
    for _ in range(int(number())):
        kind, name = string(), string()
        number(), number()
        size = int(number())
        if kind == "IntervalTier":
            yield name, [(number(), number(), string()) for _ in range(size)]
        elif kind == "TextTier":
            for _ in range(size):
                number(), string()
        else:
            raise ValueError(f"a tier is of class {kind!r}")


def write(intervals: Sequence[Interval], seconds: float) -> str:
    """The long form with one tier `words`; empty intervals stand for pauses. Raises ValueError where words overlap."""
    filled = list(_filled(intervals, seconds))
    end = f"{filled[-1][1] if filled else seconds}"
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end}"]
    lines += ["tiers? <exists>", "size = 1", "item []:", "    item [1]:", '        class = "IntervalTier"']
    lines += ['        name = "words"', "        xmin = 0", f"        xmax = {end}"]
    lines.append(f"        intervals: size = {len(filled)}")
    for index, (start, stop, label) in enumerate(filled, 1):
        quoted = label.replace('"', '""')
        lines += [f"        intervals [{index}]:", f"            xmin = {start}", f"            xmax = {stop}"]
        lines.append(f'            text = "{quoted}"')
    return "\n".join(lines) + "\n"


def _filled(intervals: Iterable[Interval], seconds: float) -> Iterator[Interval]:
    """The intervals with empty ones between them, so that all time up to `seconds` is covered."""
    reached = 0.0
    for start, end, label in intervals:
        if start < reached:
            raise ValueError(
                f"{label!r} begins at {start:g} s, before the word before it ends; a TextGrid cannot say so"
            )
        if start > reached:
            yield reached, start, ""
        yield start, end, label
        reached = end
    if reached < seconds:
        yield reached, seconds, ""
