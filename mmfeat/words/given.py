"""`given`: word times that the user already has, in a file for each clip or in one for many.

The file's words must be the transcript's: letters and digits are compared, case and punctuation are not. So
"well-known" is found in `well known`, "2,000" in `2000` or `two thousand`, and both characters of 你好 in one interval
你好, whose time they share. A phrase, such as a subtitle, is spread over its characters.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import pairwise, product
from pathlib import Path

from pydantic import Field, field_validator

from mmfeat.corpus import Clip
from mmfeat.given_files import checked_folder, checked_pattern, given_file
from mmfeat.track import Waveform, Word
from mmfeat.words import AlignmentError, Config, register
from mmfeat.words.formats import READERS, SpeakersError, Stretch, read
from mmfeat.words.transcript import Token, tokens

OUTSIDE = 0.5
"""Seconds by which words may leave the clip, for then its ends or theirs were rounded; they are cut off there."""
_ROUNDED = 0.01
"""Seconds by which a word may miss the clip altogether."""
_NEAR = 1.0
"""Seconds around a clip cut out of a recording in which its words are looked for."""
_PAUSES = {"sil", "sp", "spn", "eps", "silence", "pause", "noise"}
_UNKNOWN = "\ufffd"
"""Stands for the label <unk>: a word of which the file says only when it is said."""
_NAMED = 3
"""Differences from the transcript that a message names."""
_LARGEST = 2500
"""Words of the transcript times words of the file that are compared closely where they differ."""


class GivenConfig(Config):
    """Word times from files."""

    folder: str | None = Field(None, description="where the files lie in the corpus; null: beside each media file")
    pattern: str = Field(
        "{media}",
        description="a file's name below the folder, with {video_id}, {clip_id} and {media}, the media file's name "
        f"without its ending; where it has no ending, these are looked for: {', '.join(READERS)}",
    )
    tier: str | None = Field(
        None,
        description="tier of a TextGrid or of MFA's JSON, channel of a CTM; null: the one called `words`, of the "
        "speaker who says the transcript",
    )

    _folder = field_validator("folder")(checked_folder)
    _pattern = field_validator("pattern")(checked_pattern)


def word_file(config: GivenConfig, clip: Clip) -> Path:
    """The file of a clip's word times, absolute; it may not exist."""
    path = given_file(config.folder, config.pattern, clip)
    if path.suffix.lower() in READERS:
        return path
    named = (path.with_name(path.name + ending) for ending in (".TextGrid", *READERS))
    return next((candidate for candidate in named if candidate.is_file()), path)


@register("given", GivenConfig, version=1, given_file=word_file)
class GivenAligner:
    """Word times out of files; the confidence is the file's, or 1 where it has none."""

    def __init__(self, config: GivenConfig):
        self.config = config

    def __call__(self, waveform: Waveform, text: str, clip: Clip) -> list[Word]:
        """The words of `text` in `clip`, which is given their file. Raises AlignmentError.

        A file's times count from the start of the media file, also where the clip is cut out of it.
        """
        words = tokens(text)
        if not words:
            return []
        file, who = clip.given.get("words"), f"clip {clip.id}: " if clip.video_id else ""
        if file is None or not file.is_file():
            endings = "" if file is None or file.suffix.lower() in READERS else f" ({', '.join(READERS)})"
            raise AlignmentError(f"{who}there is no file of word times {file}{endings}")
        try:
            stretches, found = self._find(words, file, self.config.tier, clip, waveform.seconds)
        except SpeakersError as error:
            tried = (self._find(words, file, choice, clip, waveform.seconds)[1] for choice in error.choices)
            matching = [found for found in tried if found is not None]
            if len(matching) != 1:
                raise AlignmentError(f"{who}{error}") from None
            found = matching[0]
        if found is None:
            is_cut = _is_cut(clip)
            difference = _difference(words, stretches, ends=not is_cut) if stretches else "there are none in it"
            at = " at that time" if is_cut and not stretches else ""
            raise AlignmentError(f"{who}{file} does not have the transcript's words: {difference}{at}")
        return list(_inside(words, found, waveform.seconds, f"{who}{file}"))

    def _find(
        self, words: Sequence[Token], file: Path, tier: str | None, clip: Clip, seconds: float
    ) -> tuple[list[Stretch], list[tuple[float, float, float]] | None]:
        """What the file says during the clip, and start, end and confidence of each word; None where it has others."""
        spoken = {_letters(token.text) for token in words}
        stretches = [s for s in read(file, _names(clip), tier) if not _is_pause(s.text, spoken)]
        start, is_cut = clip.start or 0.0, _is_cut(clip)
        near = _Characters.of(stretches, start, (-_NEAR, seconds + _NEAR) if is_cut else None)
        inside = [s for s in stretches if not is_cut or 0 <= (s.start + s.end) / 2 - start <= seconds]
        return inside, near.find([_forms(token) for token in words], seconds, anywhere=is_cut)


def _is_cut(clip: Clip) -> bool:
    return clip.start is not None or clip.end is not None


def _names(clip: Clip) -> tuple[str, ...]:
    """How a file of several recordings may call the clip or the video that it is cut from."""
    video, part = clip.video_id, clip.clip_id
    stem = clip.path.stem if clip.path else part
    own = (clip.id, f"{video}[{part}]", f"{video}_{part}", f"{video}/{part}")
    return tuple(name for name in dict.fromkeys((*own, stem, part, video)) if name)


def _letters(text: str) -> str:
    """What is compared: letters and digits without case; & alone is a word too."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("ß", "ss")
    kept = (c for c in folded if c == "&" or (unicodedata.category(c)[0] in "LNM" and c != "\ufe0f"))
    return "".join(kept)


def _forms(token: Token) -> tuple[str, ...]:
    """What may stand for a word: its letters, or those of a way to say it."""
    said = ("".join(map(_letters, way)) for way in token.spoken)
    return tuple(form for form in dict.fromkeys((_letters(token.text), *said, _UNKNOWN)) if form)


def _is_pause(label: str, spoken: set[str]) -> bool:
    plain = label.strip()
    letters = _letters(plain)
    if letters in spoken or _is_unknown(plain):
        return False
    bracketed = len(plain) > 1 and plain[0] + plain[-1] in ("<>", "[]", "{}") and not re.search(r".[<\[{]", plain)
    return not letters or letters in _PAUSES or bracketed


def _is_unknown(label: str) -> bool:
    return label.strip().lower() in ("<unk>", "[unk]")


@dataclass(frozen=True)
class _Characters:
    """The letters of a file's words, one after the other, each with the time and the confidence that it has there."""

    text: str
    times: list[tuple[float, float]] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    """Where a word begins."""

    @classmethod
    def of(cls, stretches: Sequence[Stretch], origin: float, window: tuple[float, float] | None) -> _Characters:
        """Seconds count from `origin`; words whose middle is outside of `window` are left out."""
        text: list[str] = []
        found = cls("")
        for stretch in stretches:
            label = stretch.text.strip()
            words = (_letters(token.text) for token in tokens(label))
            parts = [_UNKNOWN] if _is_unknown(label) else [word for word in words if word]
            count, place = sum(map(len, parts)), 0
            length = stretch.end - stretch.start
            edges = [stretch.start - origin + length * (index / count) for index in range(count)] if count else []
            edges.append(stretch.end - origin)
            for part in parts:
                mine = edges[place : place + len(part) + 1]
                place += len(part)
                if window is None or window[0] <= (mine[0] + mine[-1]) / 2 <= window[1]:
                    found.begins.append(len(found.times))
                    found.times.extend(pairwise(mine))
                    found.confidences.extend([stretch.confidence] * len(part))
                    text.append(part)
        return cls("".join(text), found.times, found.confidences, found.begins)

    def find(
        self, words: Sequence[tuple[str, ...]], seconds: float, anywhere: bool
    ) -> list[tuple[float, float, float]] | None:
        """Start, end and confidence of words that may each be written in several forms; None where they do not follow.

        They must make up all characters, or with `anywhere` a run of them: that which leaves the clip least.
        """
        runs = []
        for begin in self.begins if anywhere else [0]:
            for places in _runs(self.text, words, begin):
                if anywhere or places[-1] == len(self.text):
                    first, last = self.times[places[0]][0], self.times[places[-1] - 1][1]
                    runs.append((max(-first, 0.0) + max(last - seconds, 0.0), places))
        if not runs:
            return None
        _, places = min(runs)
        return [(self.times[a][0], self.times[b - 1][1], min(self.confidences[a:b])) for a, b in pairwise(places)]


def _runs(text: str, words: Sequence[tuple[str, ...]], begin: int) -> Iterator[list[int]]:
    """Ways to write the words one after the other in `text` from `begin`, one for each place where they may end: the
    place at which each word begins, and the end."""
    reached: list[dict[int, int]] = [{begin: begin}]  # per word: place after it → place before it
    for forms in words:
        after: dict[int, int] = {}
        for place in reached[-1]:
            for form in forms:
                if text.startswith(form, place):
                    after.setdefault(place + len(form), place)
        if not after:
            return
        reached.append(after)
    for end in reached[-1]:
        places = [end]
        for step in reversed(reached[1:]):
            places.append(step[places[-1]])
        yield places[::-1]


def _difference(words: Sequence[Token], stretches: Sequence[Stretch], ends: bool) -> str:
    """How the file differs, in words; without `ends`, it may have more before and after the transcript."""
    file: list[str] = []
    for stretch in stretches:
        file += (
            [stretch.text] if _is_unknown(stretch.text) else [t.text for t in tokens(stretch.text) if _letters(t.text)]
        )
    letters = [_UNKNOWN if _is_unknown(word) else _letters(word) for word in file]
    matcher = SequenceMatcher(None, [_letters(token.text) for token in words], letters, autojunk=False)
    said = []
    for kind, *block in matcher.get_opcodes():
        for a, b, c, d in _differing(words, letters, *block) if kind != "equal" else ():
            ours, theirs = " ".join(token.text for token in words[a:b]), " ".join(file[c:d])
            if ours and theirs:
                said.append(f"{ours!r} (word {a + 1}) is {theirs!r} in the file")
            elif ours:
                said.append(f"{ours!r} (word {a + 1}) is not in the file")
            elif ends or 0 < a < len(words):
                said.append(f"the file has {theirs!r} before word {a + 1}" if a < len(words) else f"{theirs!r} follows")
    more = f"; and {len(said) - _NAMED} more differences" if len(said) > _NAMED else ""
    return "; ".join(said[:_NAMED]) + more or "they do not follow one another there"


Block = tuple[int, int, int, int]
"""Words of the transcript from, to; words of the file from, to."""


def _differing(words: Sequence[Token], letters: Sequence[str], a: int, b: int, c: int, d: int) -> list[Block]:
    """What is left of a block that differs when words that are only written otherwise are taken out of it."""
    if (b - a) * (d - c) > _LARGEST:
        return [(a, b, c, d)]
    forms = [_forms(token) for token in words[a:b]]
    # Place in both → number of words left over on the best way to it, and the place before.
    best: dict[tuple[int, int], tuple[int, tuple[int, int]]] = {(a, c): (0, (a, c))}
    for here in product(range(a, b + 1), range(c, d + 1)):
        i, j = here
        steps = {(i + 1, j): 1, (i, j + 1): 1}
        if i < b and j < d:
            steps |= {(i + 1, k): 0 for k in range(j + 1, d + 1) if "".join(letters[j:k]) in forms[i - a]}
            steps |= {
                (k, j + 1): 0 for k in range(i + 1, b + 1) if "".join(f[0] for f in forms[i - a : k - a]) == letters[j]
            }
        for there, cost in steps.items():
            if there[0] <= b and there[1] <= d and best[here][0] + cost < best.get(there, (math.inf, here))[0]:
                best[there] = best[here][0] + cost, here
    blocks: list[Block] = []
    at = (b, d)
    while at != (a, c):
        cost, before = best[at]
        if cost > best[before][0]:
            if blocks and blocks[-1][::2] == at:
                blocks[-1] = (before[0], blocks[-1][1], before[1], blocks[-1][3])
            else:
                blocks.append((before[0], at[0], before[1], at[1]))
        at = before
    return blocks[::-1]


def _inside(
    words: Sequence[Token], found: Sequence[tuple[float, float, float]], seconds: float, who: str
) -> Iterator[Word]:
    for token, (start, end, confidence) in zip(words, found, strict=True):
        by = max(-start, end - seconds)
        is_missed = min(end, seconds) <= max(start, 0.0) and by > _ROUNDED
        if by > OUTSIDE or is_missed:
            raise AlignmentError(
                f"{who} has {token.text!r} from {start:.2f} to {end:.2f} s of a clip that is {seconds:.2f} s long"
            )
        start, end = (min(max(time, 0.0), seconds) for time in (start, end))
        yield Word(token.text, start, end, confidence, token.span)
