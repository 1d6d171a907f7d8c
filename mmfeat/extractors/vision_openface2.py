"""`openface2`: OpenFace 2's gaze, pose, landmarks, face shape and action units, by its `FeatureExtraction` program or
out of CSV files that it wrote earlier."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
from pydantic import Field, field_validator, model_validator

from mmfeat.corpus import Clip
from mmfeat.extractors import OPENFACE, Config, MissingBackendError, each_once, register
from mmfeat.extractors.openface_columns import COLUMNS, Group
from mmfeat.extractors.openface_csv import CsvError, Person, read
from mmfeat.extractors.openface_times import FASTER, Spans, at_rate, averaged, cut, spans_of
from mmfeat.given_files import checked_folder, checked_pattern, fields_of, given_file
from mmfeat.media import SHORT, MediaError, open_media
from mmfeat.supervise import Ended, Keeper, keeper_of
from mmfeat.track import Frame, Track

_FLAGS: dict[Group, str] = {
    "gaze": "-gaze",
    "eye_landmarks_2d": "-gaze",
    "eye_landmarks_3d": "-gaze",
    "pose": "-pose",
    "landmarks_2d": "-2Dfp",
    "landmarks_3d": "-3Dfp",
    "shape_rigid": "-pdmparams",
    "shape_nonrigid": "-pdmparams",
    "au_intensity": "-aus",
    "au_presence": "-aus",
}
_OURS = {"-f", "-fdir", "-device", "-of", "-out_dir", "-root", "-inroot", "-outroot"}
"""Options that say what is read and written."""
_FIELDS = ("folder", "name", "out", "id", "user")
_DAEMONS = ("docker", "podman", "nerdctl")
"""Programs whose containers outlive them."""
_LOST = 1
"""Pictures at the end that OpenCV may fail to read."""
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Workers are the parallelism; and OpenBLAS of several threads runs out of memory regions."""
_SAID = 300


class OpenfaceError(MediaError):
    """OpenFace failed at a clip; the message holds what it printed."""


class Openface2Config(Config):
    columns: tuple[Group, ...] = Field(
        tuple(COLUMNS), min_length=1, description="groups of columns, in their order; all are 709 columns"
    )
    confidence: float = Field(
        0.5, ge=0, le=1, description="a frame is valid where OpenFace reports success and at least this confidence"
    )
    person: Person = Field(
        "largest",
        description="whose face, where a CSV holds several (face_id): the one that is largest over the whole clip, or "
        "seen longest. Where that face is gone, the next one in this order is taken",
    )
    frame_rate: float | None = Field(
        None, gt=0, le=1000, description="rows per second, each that of the picture shown then; null: one per picture"
    )
    average: int = Field(
        1, ge=1, description="so many rows in a row become one, the mean of the valid ones; the last may have fewer"
    )
    csv_folder: str | None = Field(
        None, description="where CSV files made earlier lie in the corpus; nothing is run then; null: OpenFace is run"
    )
    csv_pattern: str = Field(
        "{media}.csv",
        description="a CSV's name below csv_folder, with {video_id}, {clip_id} and {media}, the media file's name "
        "without its ending",
    )
    binary: str | None = Field(
        None, description="path of FeatureExtraction; null: looked for in $OPENFACE_DIR and on the PATH"
    )
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="of FeatureExtraction: no other is run; needed where this machine does not have it, but workers do",
    )
    container: str | None = Field(
        None,
        description="a command that runs FeatureExtraction in a container; what it is to write is added at the end. "
        "{folder} and {name} are the folder and name of the video, {out} the folder for the CSV, {id} a name for the "
        "container, {user} the numbers of user and group",
    )
    options: tuple[str, ...] = Field((), description="more arguments for FeatureExtraction, such as -wild")
    time_limit: float = Field(
        30.0, gt=0, description="seconds that OpenFace may take for each second of the clip, besides start_limit"
    )
    start_limit: float = Field(60.0, gt=0, description="seconds for loading OpenFace's models or starting a container")

    without_effect: ClassVar[frozenset[str]] = frozenset({"binary", "csv_pattern", "time_limit", "start_limit"})

    def identity(self) -> dict[str, Any]:
        """Where CSV files or the program lie has no effect; which CSV it is enters a clip's own identity.

        The content of the program has. A machine that does not have it, and only asks workers who do, cannot promise
        what they would compute: unless `sha256` says which program is meant, its fingerprint is another than theirs,
        and they refuse rather than mix the output of unlike programs. A container is known by its command alone.
        """
        found = {**super().identity(), "csv_folder": self.csv_folder is not None}
        if self.csv_folder:
            return {name: value for name, value in found.items() if name not in ("options", "container", "sha256")}
        return {**found, "sha256": self.sha256 or (None if self.container else _digest(_program(self)))}

    _folder = field_validator("csv_folder")(checked_folder)
    _pattern = field_validator("csv_pattern")(checked_pattern)

    _no_group_twice = field_validator("columns")(each_once)

    @field_validator("options")
    @classmethod
    def _not_ours(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        if ours := [option for option in options if option in _OURS]:
            raise ValueError(f"{ours[0]} is set by mmfeat")
        return options

    @field_validator("container")
    @classmethod
    def _template(cls, container: str | None) -> str | None:
        if container is None:
            return None
        words = shlex.split(container)  # ValueError for quotes that do not end
        fields = fields_of(container, _FIELDS)
        needed = ("folder", "name", "out", *(("id",) if _stop(words) else ()))
        if missing := [name for name in needed if name not in fields]:
            why = " (as --name {id}, by which a container that hangs is ended)" if missing == ["id"] else ""
            raise ValueError(f"{{{missing[0]}}} must be in it{why}")
        return container

    @model_validator(mode="after")
    def _one_source(self) -> Openface2Config:
        named = [name for name in ("csv_folder", "binary", "container") if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(f"only one of {' and '.join(named)} can be used")
        return self


def csv_file(config: Openface2Config, clip: Clip) -> Path | None:
    """The CSV made earlier for a clip, absolute, which may not exist; None where OpenFace is to be run."""
    return given_file(config.csv_folder, config.csv_pattern, clip) if config.csv_folder else None


def _check(config: Openface2Config) -> None:
    if not config.csv_folder:
        _command(config)


@register("openface2", Openface2Config, version=2, given_file=csv_file, by_clip=True, check=_check)
class Openface2:
    """Raises MissingBackendError where OpenFace is to be run and is not there."""

    def __init__(self, config: Openface2Config):
        self.config = config
        self.names = tuple(name for group in config.columns for name in COLUMNS[group])
        self._command = () if config.csv_folder else _command(config)

    def __call__(self, frames: Iterable[Frame], clip: Clip) -> Track:
        """One row per picture, or as `frame_rate` and `average` say. Raises OpenfaceError, or CsvError for a CSV.

        With `csv_folder`, the pictures are not decoded and the clip's CSV is in `clip.given`.
        """
        track = self._given(clip) if self.config.csv_folder else self._run(frames)
        if self.config.frame_rate:
            track = at_rate(track, self.config.frame_rate)
        return averaged(track, self.config.average)

    def _run(self, frames: Iterable[Frame]) -> Track:
        """OpenFace gets the clip's pictures as a lossless video of its own, not the clip's file.

        So picture k of its CSV is picture k of ours, whose time is known: reading a file itself, OpenFace takes a
        rotated one as it lies, loses pictures of some, dates those of a variable frame rate wrongly, and cannot cut.
        """
        with keeper_of(_ONE_THREAD, "mmfeat-openface-") as keeper:
            assert keeper.scratch
            folder, out = keeper.scratch / "in", keeper.scratch / "out"
            folder.mkdir()
            out.mkdir()
            try:
                spans = _copy(frames, folder / "clip.avi")
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise OpenfaceError(
                    f"no space in {keeper.scratch.parent} for the clip's pictures, about 1 byte per pixel: let TMPDIR "
                    "name a larger folder"
                ) from None
            if not len(spans):
                return Track.empty(self.names)
            seconds = self.config.start_limit + self.config.time_limit * float(spans[-1, 1])
            ended = self._start(keeper, folder, "clip.avi", out, seconds)
            if ended.status is None:
                raise OpenfaceError(
                    f"OpenFace took longer than {seconds:.0f} s (start_limit, time_limit){_said(ended)}"
                )
            return self._result(out, spans, ended)

    def _start(self, keeper: Keeper, folder: Path, name: str, out: Path, seconds: float) -> Ended:
        flags = dict.fromkeys(_FLAGS[group] for group in self.config.columns)
        if not self.config.container:
            command = [*self._command, "-f", str(folder / name), "-out_dir", str(out)]
            return keeper.run([*command, *flags, *self.config.options], folder, seconds)
        own = f"mmfeat-{uuid.uuid4().hex}"
        values = {"folder": folder, "name": name, "out": out, "id": own, "user": f"{os.getuid()}:{os.getgid()}"}
        filled = [re.sub(r"\{(\w+)\}", lambda match: str(values[match[1]]), word) for word in self._command]
        stop = _stop(filled)
        return keeper.run([*filled, *flags, *self.config.options], folder, seconds, [*stop, own] if stop else ())

    def _result(self, out: Path, spans: Spans, ended: Ended) -> Track:
        """Its exit status says little, being 0 for most failures: what counts is a CSV with a row for each picture.

        Where it is not 0, that is said. Of a program that crashed, a picture without a row may be anything's work.
        """
        assert ended.status is not None
        how = f"was killed by signal {-ended.status}" if ended.status < 0 else f"ended with status {ended.status}"
        how = f"OpenFace {how}"
        files = sorted(path for path in out.rglob("*.csv") if path.is_file() and not path.is_symlink())
        if len(files) != 1:
            raise OpenfaceError(f"{how} and {len(files) or 'no'} CSV files{_said(ended)}")
        try:
            found = read(files[0], self.names, self.config.confidence, self.config.person, len(spans))
        except CsvError as error:
            reason = str(error).removeprefix(str(files[0])).lstrip(",: ")
            raise OpenfaceError(f"{how}; its CSV: {reason}{_said(ended)}") from None
        rows, pictures = len(found.valid), len(spans)
        if not pictures - (0 if ended.status else _LOST) <= rows <= pictures:
            raise OpenfaceError(f"{how} and {rows} rows for {pictures} pictures{_said(ended)}")
        values, valid = np.zeros((pictures, len(self.names)), np.float32), np.zeros(pictures, bool)
        values[:rows], valid[:rows] = found.values, found.valid
        note = f"{how} after it had written a row for every picture" if ended.status else ""
        if note and {"au_intensity", "au_presence"} & set(self.config.columns):
            note += ", perhaps before it corrected the action units of the whole clip"
        return Track(spans, values, valid, self.names, note)

    def _given(self, clip: Clip) -> Track:
        file = clip.given.get("vision") or csv_file(self.config, clip)
        assert file is not None
        if not file.is_file():
            raise CsvError(f"there is no CSV {file}")
        assert clip.path is not None
        with open_media(clip.path) as media:
            shown = media.picture_times()
        most = FASTER * len(shown) if shown else None
        found = read(file, self.names, self.config.confidence, self.config.person, most)
        times, rows = spans_of(file, found, shown, clip.path.name), len(found.valid)
        values, valid = np.zeros((len(times), len(self.names)), np.float32), np.zeros(len(times), bool)
        values[:rows], valid[:rows] = found.values, found.valid
        track = cut(Track(times, values, valid, self.names), clip)
        ends, goes_on = times[rows - 1, 1], (clip.start or 0.0) + (track.times[-1, 1] if len(track) else 0.0)
        note = f"{file.name} ends at {ends:.2f} s: no face from there on" if goes_on > ends + SHORT else ""
        return replace(track, note=note)


def _command(config: Openface2Config) -> tuple[str, ...]:
    """How FeatureExtraction, or the container, is called. Raises MissingBackendError where it is not there."""
    if config.container:
        words = shlex.split(config.container)
        if not (program := shutil.which(words[0])):
            raise MissingBackendError(f"extractor 'openface2': its container needs {words[0]}, which is not installed")
        return program, *words[1:]
    if not (path := _program(config)):
        raise MissingBackendError(f"extractor 'openface2' needs {OPENFACE.missing()}, or set `csv_folder`")
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise MissingBackendError(f"extractor 'openface2': binary {path} is not a program")
    if config.sha256 and _digest(path) != config.sha256:
        raise MissingBackendError(f"extractor 'openface2': {path} is not the program whose sha256 the recipe names")
    return (str(path),)


def _program(config: Openface2Config) -> Path | None:
    return Path(config.binary).expanduser().absolute() if config.binary else OPENFACE.find()


def _digest(program: Path | None) -> str | None:
    if not (program and program.is_file() and os.access(program, os.R_OK)):
        return None
    with program.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stop(words: Sequence[str]) -> list[str]:
    """What ends a container, its name still to be added, by the command that runs it; empty where that is no daemon's.

    What comes before `run`, such as `sudo` or the daemon's host, is needed for it too.
    """
    daemon = next((place for place, word in enumerate(words) if Path(word).name in _DAEMONS), None)
    if daemon is None:
        return []
    end = words.index("run", daemon) if "run" in words[daemon:] else daemon + 1
    return [*words[:end], "kill"]


def _copy(frames: Iterable[Frame], path: Path) -> Spans:
    """Write the pictures, bit for bit, as a video of constant rate. Returns their true times, shape (N, 2).

    HuffYUV in AVI: every FFmpeg reads it, no picture waits for a later one, and it takes a seventh of FFV1's time for
    files twice as large (about 1 byte per pixel). Ut Video loses noisy pictures of odd widths.
    """
    spans: list[tuple[float, float]] = []
    with av.open(str(path), "w") as container:
        stream: Any = None
        step = Fraction(1)
        for frame in frames:
            if stream is None:
                rate = Fraction(1 / max(frame.end - frame.start, 1e-3)).limit_denominator(1001)
                step = 1 / rate
                stream = container.add_stream("huffyuv", rate=rate)
                stream.height, stream.width = frame.image.shape[:2]
                stream.pix_fmt, stream.thread_count = "rgb24", 1
            picture = av.VideoFrame.from_ndarray(frame.image, format="rgb24")
            picture = picture.reformat(stream.width, stream.height, threads=1)
            picture.pts, picture.time_base = len(spans), step
            container.mux(stream.encode(picture))
            spans.append((frame.start, frame.end))
        if stream is not None:
            container.mux(stream.encode())
    return np.array(spans, np.float64).reshape(-1, 2)


def _said(ended: Ended) -> str:
    """The end of what it printed, in one line."""
    printed = " ".join(ended.printed.split())
    return (
        f"; it printed: {'…' if len(printed) > _SAID else ''}{printed[-_SAID:]}" if printed else "; it printed nothing"
    )
