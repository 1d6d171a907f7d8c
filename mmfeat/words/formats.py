"""Files of word times: TextGrid, CTM, JSON of several tools, SRT and VTT, CSV, GRID's .align, CMU-MultimodalSDK's .csd.

`read` gives what a file says, `write` makes one that `read` understands. What is a word of the transcript and what a
pause is not decided here.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mmfeat.files import atomic
from mmfeat.track import Word
from mmfeat.words import AlignmentError, textgrid
from mmfeat.words.json_dialects import from_json

T = TypeVar("T")

_ROUNDING = 1e-4


class FormatError(AlignmentError):
    """A file of word times cannot be read, or cannot hold what should be written."""


class SpeakersError(FormatError):
    """A file has the words of several speakers, and none was chosen."""

    def __init__(self, message: str, choices: Sequence[str]):
        super().__init__(message)
        self.choices = choices
        """Values of `tier`."""


@dataclass(frozen=True)
class Stretch:
    """A piece of text and when it is said: a word, a phrase in a subtitle, or the label of a pause."""

    text: str
    start: float
    """Seconds in the clock of the recording that the file belongs to."""
    end: float
    confidence: float = 1.0
    """0 to 1; 1 where the file says nothing about it."""


def read(path: Path, names: Sequence[str] = (), tier: str | None = None) -> list[Stretch]:
    """What a file says, in order of time; starts and ends are finite and in order.

    `names` are those under which the recording may go in a file of several, the likeliest first. `tier` is the tier of
    a TextGrid or of MFA's JSON, by default the one for words, or the channel of a CTM, by default the only one.

    Raises FormatError, naming the file and the cause, and SpeakersError where `tier` must say who is meant.
    """
    parse = READERS.get(path.suffix.lower())
    if parse is None:
        raise FormatError(f"{path}: word times are read from {', '.join(READERS)}, not from {path.suffix or 'this'!r}")
    try:
        found = [_stretch(*values) for values in parse(path, names, tier)]
    except FileNotFoundError:
        raise FormatError(f"no file {path}") from None
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror or error}") from None
    except RecursionError:
        raise FormatError(f"{path}: nested too deeply") from None
    except textgrid.ChoiceError as error:
        raise SpeakersError(f"{path}: {error}", error.choices) from None
    except (ValueError, OverflowError, csv.Error) as error:
        raise FormatError(f"{path}: {error}") from None
    for stretch in found:
        if not (math.isfinite(stretch.start) and math.isfinite(stretch.end) and stretch.start <= stretch.end):
            raise FormatError(f"{path}: {stretch.text!r} is said from {stretch.start:g} to {stretch.end:g} s")
        if not 0 <= stretch.confidence <= 1:
            raise FormatError(f"{path}: {stretch.text!r} has the confidence {stretch.confidence:g}, not 0 to 1")
    return sorted(found, key=lambda stretch: stretch.start)


def _stretch(text: str, start: float, end: float, confidence: float = 1.0) -> Stretch:
    """A confidence that rounding took out of 0 to 1 is put back."""
    if -_ROUNDING <= confidence <= 1 + _ROUNDING:
        confidence = min(max(confidence, 0.0), 1.0)
    return Stretch(text, start, end, confidence)


def write(words: Sequence[Word], path: Path, seconds: float) -> None:
    """Write the words of a recording that is `seconds` long in the format that the ending of `path` names.

    Times are rounded to a microsecond in JSON, CSV and TextGrid and to a millisecond in the others. Raises FormatError
    where the format does not exist or cannot hold these words, OSError where the file cannot be written.
    """
    form = WRITERS.get(path.suffix.lower())
    if form is None:
        raise FormatError(f"{path}: word times are written as {', '.join(WRITERS)}, not as {path.suffix or 'this'!r}")
    try:
        content = form(words, path.stem, seconds)
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from None
    with atomic(path) as temporary:
        temporary.write_text(content, encoding="utf-8", newline="")


def rows(words: Iterable[Word]) -> list[dict[str, str | float]]:
    """Words as plain values, times to a microsecond: what JSON and CSV hold."""
    return [
        {"word": w.text, "start": round(w.start, 6), "end": round(w.end, 6), "confidence": round(w.confidence, 4)}
        for w in words
    ]


Values = tuple[str, float, float] | tuple[str, float, float, float]
"""A stretch's text, start, end and, where the file has it, confidence."""


def decode(content: bytes) -> str:
    """Text in UTF-8, or in UTF-16 where it says so with a byte order mark. Raises ValueError."""
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"not {encoding.removesuffix('-sig').upper()} (byte {error.start})") from None


def _read_textgrid(path: Path, names: Sequence[str], tier: str | None) -> Iterator[Values]:
    for start, end, label in textgrid.parse(decode(path.read_bytes()), tier):
        yield label, start, end


def _read_json(path: Path, names: Sequence[str], tier: str | None) -> Iterator[Values]:
    return from_json(decode(path.read_bytes()), tier)


def _read_ctm(path: Path, names: Sequence[str], tier: str | None) -> Iterator[Values]:
    """NIST's `recording channel start duration word [confidence]`."""
    lines: dict[str, list[tuple[str, Values]]] = {}
    """By recording: channel and word."""
    for number, line in enumerate(decode(path.read_bytes()).split("\n"), 1):
        fields = line.split()
        if not fields or fields[0].startswith(";;"):
            continue
        if len(fields) < 5:
            raise ValueError(f"line {number} is not `recording channel start duration word [confidence]`")
        begin, duration = _number(fields[2], number), _number(fields[3], number)
        confidence = _number(fields[5], number) if len(fields) > 5 and fields[5] != "NA" else 1.0
        lines.setdefault(fields[0], []).append((fields[1], (fields[4], begin, begin + duration, confidence)))
    said = _of(lines, names)
    channels = list(dict.fromkeys(channel for channel, _ in said))
    if tier is None and len(channels) > 1:
        raise textgrid.ChoiceError("channels", channels)
    if tier is not None and tier not in channels:
        raise ValueError(f"no channel {tier!r}; there are: {', '.join(channels) or 'none'}")
    yield from (values for channel, values in said if tier in (None, channel))


def _number(written: str, line: int) -> float:
    try:
        return float(written)
    except ValueError:
        raise ValueError(f"line {line}: {written!r} is not a number") from None


def _of(recordings: Mapping[str, list[T]], names: Sequence[str]) -> list[T]:
    """The recording by one of its names, or the only one there is."""
    for name in names:
        if name in recordings:
            return recordings[name]
    if len(recordings) > 1:
        known = ", ".join(list(recordings)[:3])
        raise ValueError(f"none of its {len(recordings)} recordings ({known}, …) is called {' or '.join(names)}")
    return next(iter(recordings.values()), [])


_CUE = re.compile(r"((?:\d+:)?\d+:\d+[.,]\d+)\s*-->\s*((?:\d+:)?\d+:\d+[.,]\d+)")
_INLINE = re.compile(r"<((?:\d+:)?\d+:\d+\.\d+)>")
_MARKUP = re.compile(r"<[^<>\n]*>|\{\\[^{}\n]*\}")


def _read_subtitles(path: Path, names: Sequence[str], tier: str | None) -> Iterator[Values]:
    """SRT and WebVTT: a cue is its line with the times and the text down to the next blank line."""
    found = False
    for block in re.split(r"\n[ \t]*\n", decode(path.read_bytes())):
        before, arrow, after = block.partition("-->")
        if not arrow:
            continue
        line = f"{before.rpartition(chr(10))[2]}-->{after.partition(chr(10))[0]}"
        times = _CUE.match(line.strip())
        if not times:
            raise ValueError(f"{line.strip()!r} are no times of a cue")
        found = True
        is_vtt = path.suffix.lower() == ".vtt"
        text, *later = _INLINE.split(after.partition("\n")[2]) if is_vtt else [after.partition("\n")[2]]
        # WebVTT may say inside of a cue when what follows is said.
        texts, starts = [text, *later[1::2]], [times[1], *later[::2]]
        for text, start, end in zip(texts, starts, [*starts[1:], times[2]], strict=True):
            plain = _MARKUP.sub("", text)
            words = " ".join((html.unescape(plain) if is_vtt else plain).split())
            if words or not later:
                yield words, _clock(start), _clock(end)
    if not found:
        raise ValueError("there is no cue in it")


def _clock(written: str) -> float:
    hours, minutes, seconds = ["0", *written.replace(",", ".").split(":")][-3:]
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _read_csv(path: Path, names: Sequence[str], tier: str | None) -> Iterator[Values]:
    """A table with the columns word, start, end and perhaps confidence."""
    text = decode(path.read_bytes())
    header = text.partition("\n")[0]
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    if missing := [name for name in ("word", "start", "end") if name not in (table.fieldnames or ())]:
        raise ValueError(f"its first line must name the columns word, start and end; not there: {', '.join(missing)}")
    for row in table:
        if None in row.values():
            raise ValueError(f"line {table.line_num} has fewer columns than the first")
        start, end, confidence = (
            _number(value, table.line_num) for value in (row["start"], row["end"], row.get("confidence") or "1")
        )
        yield row["word"], start, end, confidence


_GRID_RATE = 25000  # the GRID corpus counts in steps of 40 µs


def _read_align(path: Path, names: Sequence[str], tier: str | None) -> Iterator[Values]:
    for number, line in enumerate(decode(path.read_bytes()).split("\n"), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"(\d{1,15})\s+(\d{1,15})\s+(\S+)", line.strip())
        if not match:
            raise ValueError(f"line {number} is not GRID's `start end word` in steps of 1/25000 s")
        yield match[3], int(match[1]) / _GRID_RATE, int(match[2]) / _GRID_RATE


def _read_csd(path: Path, names: Sequence[str], tier: str | None) -> Iterator[Values]:
    """A computational sequence: <its name>/data/<recording>/{intervals, features}, `sp` for pauses."""
    import h5py

    path.stat()  # a missing file is to be called missing
    try:
        with h5py.File(path) as file:
            groups = [file, *(group for group in file.values() if isinstance(group, h5py.Group))]
            data = next((group["data"] for group in groups if "data" in group), None)
            if data is None:
                raise ValueError("no group `data` as in a computational sequence")
            recording = data[_of({name: [name] for name in data}, names)[0]] if len(data) else None
            if recording is None:
                return
            intervals, words = recording["intervals"][:].tolist(), recording["features"][:].reshape(-1).tolist()
    except (OSError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"not a readable computational sequence of words ({error})") from None
    if len(intervals) != len(words):
        raise ValueError(f"{len(intervals)} intervals for {len(words)} words")
    for interval, word in zip(intervals, words, strict=True):
        if not isinstance(word, bytes | str):
            raise ValueError(f"its features are {type(word).__name__}, not words")
        if not isinstance(interval, list) or len(interval) != 2:
            raise ValueError("its intervals are not pairs of start and end")
        start, end = map(float, interval)
        yield word.decode() if isinstance(word, bytes) else word, start, end


READERS: dict[str, Callable[[Path, Sequence[str], str | None], Iterator[Values]]] = {
    ".textgrid": _read_textgrid,
    ".ctm": _read_ctm,
    ".json": _read_json,
    ".srt": _read_subtitles,
    ".vtt": _read_subtitles,
    ".csv": _read_csv,
    ".align": _read_align,
    ".csd": _read_csd,
}
"""By the ending of a file's name."""


def _as_json(words: Sequence[Word], name: str, seconds: float) -> str:
    return json.dumps(rows(words), ensure_ascii=False, indent=1) + "\n"


def _as_csv(words: Sequence[Word], name: str, seconds: float) -> str:
    out = io.StringIO()
    table = csv.DictWriter(out, ("word", "start", "end", "confidence"), lineterminator="\n")
    table.writeheader()
    table.writerows(rows(words))
    return out.getvalue()


def _as_textgrid(words: Sequence[Word], name: str, seconds: float) -> str:
    return textgrid.write([(round(w.start, 6), round(w.end, 6), w.text) for w in words], round(seconds, 6))


def _as_ctm(words: Sequence[Word], name: str, seconds: float) -> str:
    recording = "_".join(name.split()) or "1"
    lines = []
    for word in words:
        start, end = round(word.start, 3), round(word.end, 3)
        lines.append(f"{recording} 1 {start:.3f} {end - start:.3f} {word.text} {word.confidence:.4f}\n")
    return "".join(lines)


def _as_srt(words: Sequence[Word], name: str, seconds: float) -> str:
    return "".join(
        f"{index}\n{_stamp(w.start, ',')} --> {_stamp(w.end, ',')}\n{w.text}\n\n" for index, w in enumerate(words, 1)
    )


def _as_vtt(words: Sequence[Word], name: str, seconds: float) -> str:
    cues = (f"{_stamp(w.start, '.')} --> {_stamp(w.end, '.')}\n{html.escape(w.text, quote=False)}\n\n" for w in words)
    return "WEBVTT\n\n" + "".join(cues)


def _stamp(time: float, point: str) -> str:
    milliseconds = round(1000 * time)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


WRITERS: dict[str, Callable[[Sequence[Word], str, float], str]] = {
    ".json": _as_json,
    ".textgrid": _as_textgrid,
    ".ctm": _as_ctm,
    ".srt": _as_srt,
    ".vtt": _as_vtt,
    ".csv": _as_csv,
}
