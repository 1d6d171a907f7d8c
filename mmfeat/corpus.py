"""`label.csv` + `Raw/<video_id>/<clip_id>.<any extension>` → a list of clips and a list of everything that is wrong.

The layout is the one MMSA-FET reads. Columns are found by name: `video_id, clip_id, text, label, mode` must be there,
`label_T, label_A, label_V, annotation, start, end` may be; every other column is kept as it is.

Labels are numbers, or names of classes (joy, anger, …): `label` is of the kind that most of its rows are, and a row of
the other kind is refused. Classes are in alphabetical order, so that no added clip changes their numbers.
"""

from __future__ import annotations

import csv
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

REQUIRED = ("video_id", "clip_id", "text", "label", "mode")
LABELS = ("label", "label_T", "label_A", "label_V")
OPTIONAL = ("label_T", "label_A", "label_V", "annotation", "start", "end")
SPLITS = ("train", "valid", "test")
# The widest range in use: MOSI and MOSEI label from -3 to 3, CH-SIMS from -1 to 1.
LABEL_RANGE = (-3.0, 3.0)
MOST_CLASSES = 100
"""More different names in the column `label` are no classes but something else, transcripts for instance."""
_NOT_ANNOTATED = ("na", "nan", "none", "null")  # of a single modality; in the column `label` they are names
# Where one clip has several files, pictures are wanted before sound alone.
SOUND_ONLY = {".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus", ".wma"}
WORD_TIMES = {".csv", ".json", ".srt", ".vtt", ".textgrid", ".ctm", ".lab", ".align", ".csd"}
NOT_MEDIA = {".txt", ".xml", ".jpg", ".png", *WORD_TIMES}


class CorpusError(Exception):
    """The corpus as a whole cannot be read; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One row of label.csv."""

    video_id: str
    clip_id: str
    split: str
    """train, valid or test; column `mode` of label.csv."""
    path: Path | None
    """The media file; None where there is none (then `refused` says so)."""
    text: str
    label: float
    """NaN in a corpus of named classes, as are the three of single modalities."""
    label_T: float = math.nan
    label_A: float = math.nan
    label_V: float = math.nan
    annotation: str = ""
    start: float | None = None
    """Seconds; with `end`, cuts the clip out of a longer file."""
    end: float | None = None
    extra: dict[str, str] = field(default_factory=dict, hash=False)
    classes: dict[str, str] = field(default_factory=dict, hash=False)
    """In a corpus of named classes: `label`, and those of `label_T, label_A, label_V` that are given → class."""
    row: int = 0
    """Line of label.csv on which the row begins; the header is line 1."""
    refused: str = ""
    """Why the clip cannot be used; empty for a usable one."""
    root: Path | None = None
    """The corpus; None for a single file."""
    given: dict[str, Path] = field(default_factory=dict, hash=False)
    """Part → file made earlier that its result is taken from, where the recipe says so (`Recipe.locate`)."""
    transcriber: str = ""
    """Fingerprint of the speech recognition that makes the transcript, where `text` is empty and the recipe says so."""

    @property
    def id(self) -> str:
        return f"{self.video_id}$_${self.clip_id}"


@dataclass(frozen=True, slots=True)
class Problem:
    row: int
    clip: str
    kind: str
    message: str
    fatal: bool = True
    """Whether the clip is refused; otherwise it is only worth knowing."""


@dataclass(frozen=True)
class Corpus:
    root: Path
    clips: list[Clip]
    """Every row in the order of label.csv, refused ones too."""
    problems: list[Problem]
    class_names: tuple[str, ...] = ()
    """Named classes in alphabetical order; empty where labels are numbers."""

    @property
    def usable(self) -> list[Clip]:
        return [clip for clip in self.clips if not clip.refused]


def load(root: str | Path, label_range: tuple[float, float] = LABEL_RANGE) -> Corpus:
    """Read `label.csv` and find every clip's file. Problems are collected, not raised.

    Raises CorpusError where there is no readable label.csv with the columns that must be there.
    """
    root = Path(root)
    table = root / "label.csv"
    if not root.is_dir():
        raise CorpusError(f"no folder {root}")
    if not table.is_file():
        raise CorpusError(f"no label.csv in {root}: it must have the columns {', '.join(REQUIRED)}")
    files = _Files(root)
    clips: list[Clip] = []
    problems: list[Problem] = []
    classes = _class_names([values["label"].strip() for _, values in _rows(table)])
    if len(classes) > MOST_CLASSES:
        raise CorpusError(
            f"the column label of {table} has {len(classes)} different names, more than {MOST_CLASSES}: "
            "it must hold numbers, or names of classes"
        )
    read = _names(classes) if classes else _numbers(label_range)
    for row, values in _rows(table):  # a second time, so that a million rows are never in memory as text too
        clip, found = _clip(row, values, files, read)
        clips.append(clip)
        problems += found
    if not clips:
        raise CorpusError(f"{table} has a header but no rows")
    clips, found = _duplicates(clips)
    problems += found + _shared_videos(clips) + _class_notes(clips)
    used = {name for clip in clips if not clip.refused for name in clip.classes.values()} or classes
    return Corpus(root, clips, sorted(problems, key=lambda problem: problem.row), tuple(sorted(used)))


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column → value) of every row that is not blank."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = max(",;\t", key=header.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            columns = [name.strip() for name in next(reader, [])]
            if missing := [name for name in REQUIRED if name not in columns]:
                raise CorpusError(
                    f"{table} lacks the column {', '.join(missing)}; it has: {', '.join(columns) or 'nothing'}"
                )
            if twice := [name for name, count in Counter(columns).items() if count > 1 and name]:
                raise CorpusError(f"{table} has the column {', '.join(twice)} more than once")
            begins = reader.line_num + 1
            for values in reader:
                row, begins = begins, reader.line_num + 1
                if any("\0" in value for value in values):
                    raise CorpusError(f"{table}, line {row}: NUL bytes, so it is no text file")
                if any(values):
                    values += [""] * (len(columns) - len(values))
                    yield row, dict(zip(columns, values, strict=False)) | {"": "\0".join(values[len(columns) :])}
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{table} is not UTF-8 (byte {error.start}): save it as UTF-8, for instance `iconv -f GB18030 -t UTF-8`"
        ) from None
    except csv.Error as error:
        raise CorpusError(f"{table}, line {reader.line_num}: {error}") from None


def _clip(row: int, values: dict[str, str], files: _Files, read: _Read) -> tuple[Clip, list[Problem]]:
    problems: list[tuple[str, str, bool]] = []

    def label(column: str) -> float | str | None:
        written = values.get(column, "").strip()
        if not written or (column != "label" and written.lower() in _NOT_ANNOTATED):
            if column == "label":
                problems.append(("label", "label is empty", True))
            return None
        try:
            return read(written)
        except _LabelError as error:
            problems.append((error.kind, f"{column} is {error}", True))
            return None

    def seconds(column: str) -> float | None:
        written = values.get(column, "").strip()
        try:
            value = _seconds(written) if written else None
        except ValueError:
            value = math.nan
        if value is not None and not math.isfinite(value):
            problems.append(("number", f"{column} is {written!r}, not a number", True))
            return None
        return value

    video_id, clip_id = values["video_id"].strip(), values["clip_id"].strip()
    split = values["mode"].strip().lower()
    if split not in SPLITS:
        problems.append(("split", f"mode is {values['mode']!r}; it must be train, valid or test", True))
    labels = {column: label(column) for column in LABELS}
    start, end = seconds("start"), seconds("end")
    if (start or 0.0) < 0 or (end is not None and end <= (start or 0.0)):
        problems.append(("times", f"start {start} and end {end} do not make a clip", True))
    if values[""]:
        problems.append(("columns", "the row has more values than the header has columns", False))
    path = None
    if escapes := [name for name in (video_id, clip_id) if not _plain(name)]:
        problems.append(("id", f"{escapes[0]!r} cannot be a file's name inside the corpus", True))
    else:
        path, why = files.find(video_id, clip_id, cut=start is not None or end is not None)
        if why:
            problems.append(("file", why, path is None))
    fatal = [message for _, message, is_fatal in problems if is_fatal]
    clip = Clip(
        video_id,
        clip_id,
        split,
        path,
        values["text"],
        **{column: value if isinstance(value, float) else math.nan for column, value in labels.items()},
        annotation=values.get("annotation", ""),
        start=start,
        end=end,
        extra={key: value for key, value in values.items() if key and key not in REQUIRED + OPTIONAL},
        classes={column: value for column, value in labels.items() if isinstance(value, str)},
        row=row,
        refused="; ".join(fatal),
        root=files.root,
        given={},
        transcriber="",
    )
    return clip, [Problem(row, clip.id, *problem) for problem in problems]


class _LabelError(ValueError):
    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


_Read = Callable[[str], float | str]
"""A label as it is written → its value. Raises _LabelError."""


def _numbers(label_range: tuple[float, float]) -> _Read:
    low, high = label_range

    def read(written: str) -> float:
        value = _number(written)
        if value is None:
            raise _LabelError("number", f"{written!r}, not a number")
        if not low <= value <= high:
            raise _LabelError("range", f"{value:g}, outside {low:g} to {high:g}")
        return value

    return read


def _names(classes: set[str]) -> _Read:
    def read(written: str) -> str:
        if written not in classes:
            number = "a number, where most labels are names" if _number(written) is not None else "no clip's label"
            raise _LabelError("class", f"{written!r}, {number}")
        return written

    return read


def _class_names(labels: list[str]) -> set[str]:
    """The names in the column `label`; empty where it holds numbers."""
    names = [label for label in labels if label and _number(label) is None]
    return set(names) if 2 * len(names) > sum(map(bool, labels)) else set()


def _class_notes(clips: list[Clip]) -> list[Problem]:
    """Classes that cannot be learnt, and those that may be one class in two spellings."""
    rows: dict[str, list[Clip]] = {}
    for clip in clips:
        if not clip.refused and "label" in clip.classes:
            rows.setdefault(clip.classes["label"], []).append(clip)
    problems, spellings = [], dict[str, str]()
    for name, members in sorted(rows.items()):
        splits = Counter(clip.split for clip in members)
        if not splits["train"]:
            where = ", ".join(f"{count} in {split}" for split, count in splits.items())
            message = f"no training clip is {name!r} ({where}): it cannot be learnt"
            problems.append(Problem(members[0].row, members[0].id, "class", message, fatal=False))
        if (other := spellings.setdefault(name.casefold(), name)) != name:
            message = f"{name!r} and {other!r} are two classes: they differ in upper and lower case only"
            problems.append(Problem(members[0].row, members[0].id, "class", message, fatal=False))
    return problems


def _seconds(written: str) -> float:
    """Seconds from `12.5` or from a clock: `1:02.5`, `00:16:16,059`. Raises ValueError."""
    hours, minutes, seconds = (["0", "0", *written.replace(",", ".").split(":")])[-3:]
    if written.count(":") > 2:
        raise ValueError(written)
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _number(written: str) -> float | None:
    """A finite number with a decimal point, or with the comma that spreadsheets write in many countries."""
    try:
        value = float(written.replace(",", ".") if written.count(",") == 1 and "." not in written else written)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _plain(name: str) -> bool:
    """Whether a name from the csv is one component of a path, so that it cannot lead out of the corpus."""
    return bool(name) and name not in (".", "..") and not any(char in name for char in "/\\\0")


class _Files:
    """The media files under Raw. Each folder is listed once, however many clips it holds."""

    def __init__(self, root: Path):
        self.root, self._raw = root, root / "Raw"
        self._folders: dict[str, dict[str, list[str]]] = {}

    def _list(self, folder: str) -> dict[str, list[str]]:
        """Name without extension → file names, sound-only files last; of `Raw/<folder>`, or of Raw itself for ""."""
        if folder not in self._folders:
            found: dict[str, list[str]] = {}
            try:
                with os.scandir(self._raw / folder) as entries:
                    names = [entry.name for entry in entries if not entry.name.startswith(".") and _is_file(entry)]
            except OSError:
                names = []
            for name in sorted(names, key=lambda name: (Path(name).suffix.lower() in SOUND_ONLY, name)):
                if Path(name).suffix.lower() not in NOT_MEDIA and Path(name).suffix:
                    # macOS writes accents apart from their letters (NFD), spreadsheets together (NFC).
                    stem = unicodedata.normalize("NFC", name[: -len(Path(name).suffix)])
                    found.setdefault(stem, []).append(name)
            self._folders[folder] = found
        return self._folders[folder]

    def find(self, video_id: str, clip_id: str, cut: bool) -> tuple[Path | None, str]:
        """(file, what is wrong with it). With `cut`, the file may be `Raw/<video_id>.<ext>`, or alone in its folder."""
        spellings = [video_id, *(unicodedata.normalize(form, video_id) for form in ("NFC", "NFD"))]
        folder = next((name for name in spellings if self._list(name)), video_id)
        video_id, clip_id = (unicodedata.normalize("NFC", name) for name in (video_id, clip_id))
        names = self._list(folder).get(clip_id, [])
        if not names and cut:
            if beside := self._list("").get(video_id):
                folder, names = "", beside
            elif len(alone := [name for names in self._list(folder).values() for name in names]) == 1:
                names = alone
        if not names:
            where = f"no file Raw/{video_id}/{clip_id}.*" + (f" nor Raw/{video_id}.*" if cut else "")
            return None, where
        pictures = [name for name in names if Path(name).suffix.lower() not in SOUND_ONLY]
        why = f"several files fit: {', '.join(names)}; {names[0]} is taken" if len(pictures) > 1 else ""
        path = self._raw / folder / names[0]
        try:
            if not path.stat().st_size:
                return None, f"file is empty: {names[0]}"
        except OSError as error:
            return None, f"{names[0]} cannot be read: {error.strerror}"
        return path, why


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether a file can be read there: no folder, pipe or device, and no link to itself."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _duplicates(clips: list[Clip]) -> tuple[list[Clip], list[Problem]]:
    """The first row of an id stays, later ones are refused."""
    first: dict[str, Clip] = {}
    kept: list[Clip] = []
    problems: list[Problem] = []
    for clip in clips:
        earlier = first.setdefault(clip.id, clip)
        if earlier is not clip:
            other = f" in split {earlier.split}" if earlier.split != clip.split else ""
            message = f"same clip as row {earlier.row}{other}"
            problems.append(Problem(clip.row, clip.id, "leak" if other else "duplicate", message))
            clip = replace(clip, refused="; ".join(filter(None, (clip.refused, message))))
        kept.append(clip)
    return kept, problems


def _shared_videos(clips: list[Clip]) -> list[Problem]:
    """Clips of one video in two splits share speaker and scene: allowed (CH-SIMS does it), but the user should know."""
    splits: dict[str, set[str]] = {}
    for clip in clips:
        if not clip.refused:
            splits.setdefault(clip.video_id, set()).add(clip.split)
    rows = {clip.video_id: clip for clip in reversed(clips)}
    return [
        Problem(rows[video].row, video, "video in two splits", f"clips are in {', '.join(sorted(found))}", fatal=False)
        for video, found in splits.items()
        if len(found) > 1
    ]
