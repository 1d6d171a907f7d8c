"""`openface2`: OpenFace 2's gaze, pose, landmarks, face shape and action units, by its `FeatureExtraction` program or
out of CSV files that it wrote earlier."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import uuid
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from mmfeat.corpus import Clip
from mmfeat.extractors import OPENFACE, Config, MissingBackendError, register
from mmfeat.extractors.openface_columns import COLUMNS, Group
from mmfeat.extractors.openface_csv import CsvError, FaceRows, Person, read
from mmfeat.given_files import checked_folder, checked_pattern, given_file
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
Spans = NDArray[np.float64]


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

    without_effect: ClassVar[frozenset[str]] = frozenset({"csv_pattern", "time_limit", "start_limit"})

    def identity(self) -> dict[str, Any]:
        """Where CSV files lie has no effect; which file it is enters a clip's own identity."""
        return {**super().identity(), "csv_folder": self.csv_folder is not None}

    _folder = field_validator("csv_folder")(checked_folder)
    _pattern = field_validator("csv_pattern")(checked_pattern)

    @field_validator("columns")
    @classmethod
    def _no_group_twice(cls, columns: tuple[Group, ...]) -> tuple[Group, ...]:
        if len(set(columns)) < len(columns):
            raise ValueError("a group is named twice")
        return columns

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
        fields = re.findall(r"\{(\w*)\}", container)
        if unknown := [name for name in fields if name not in _FIELDS]:
            raise ValueError(f"{{{unknown[0]}}} is unknown; there are {', '.join(f'{{{name}}}' for name in _FIELDS)}")
        needed = ("folder", "name", "out", *(("id",) if words and Path(words[0]).name in _DAEMONS else ()))
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


@register("openface2", Openface2Config, version=1, given_file=csv_file, by_clip=True)
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
            spans = _copy(frames, folder / "clip.avi")
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
        stop = (filled[0], "kill", own) if Path(filled[0]).name in _DAEMONS else ()
        return keeper.run([*filled, *flags, *self.config.options], folder, seconds, stop)

    def _result(self, out: Path, spans: Spans, ended: Ended) -> Track:
        """Its exit status says little, being 0 for most failures: what counts is a CSV with a row for each picture."""
        assert ended.status is not None
        how = f"was killed by signal {-ended.status}" if ended.status < 0 else f"ended with status {ended.status}"
        how = f"OpenFace {how}"
        files = sorted(out.rglob("*.csv"))
        if len(files) != 1:
            raise OpenfaceError(f"{how} and {len(files) or 'no'} CSV files{_said(ended)}")
        try:
            found = read(files[0], self.names, self.config.confidence, self.config.person)
        except CsvError as error:
            reason = str(error).removeprefix(str(files[0])).lstrip(",: ")
            raise OpenfaceError(f"{how}; its CSV: {reason}{_said(ended)}") from None
        rows, pictures = len(found.valid), len(spans)
        if not pictures - _LOST <= rows <= pictures:
            raise OpenfaceError(f"{how} and {rows} rows for {pictures} pictures{_said(ended)}")
        values, valid = np.zeros((pictures, len(self.names)), np.float32), np.zeros(pictures, bool)
        values[:rows], valid[:rows] = found.values, found.valid
        return Track(spans, values, valid, self.names)

    def _given(self, clip: Clip) -> Track:
        file = clip.given.get("vision") or csv_file(self.config, clip)
        assert file is not None
        if not file.is_file():
            raise CsvError(f"there is no CSV {file}")
        assert clip.path is not None
        found = read(file, self.names, self.config.confidence, self.config.person)
        return _cut(
            Track(_spans(file, found, clip.path), found.values, found.valid, self.names), clip, file, found.gaps
        )


def _command(config: Openface2Config) -> tuple[str, ...]:
    """How FeatureExtraction, or the container, is called. Raises MissingBackendError where it is not there."""
    if config.container:
        words = shlex.split(config.container)
        if not (program := shutil.which(words[0])):
            raise MissingBackendError(f"extractor 'openface2': its container needs {words[0]}, which is not installed")
        return program, *words[1:]
    if config.binary:
        path = Path(config.binary).expanduser().absolute()
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise MissingBackendError(f"extractor 'openface2': binary {path} is not a program")
        return (str(path),)
    if not (found := OPENFACE.find()):
        raise MissingBackendError(f"extractor 'openface2' needs {OPENFACE.missing()}, or set `csv_folder`")
    return (str(found),)


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
            picture = picture.reformat(stream.width, stream.height)
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


def _spans(file: Path, found: FaceRows, media: Path) -> Spans:
    """Start and end of a CSV's rows in the media file, shape (T, 2).

    Its timestamps suppose a constant frame rate. Where it has as many rows as the file has pictures, these say when
    they are shown; otherwise, as where the file was converted first, the timestamps count.
    """
    with open_media(media) as opened:
        shown = opened.picture_times()
    if len(shown) == len(found.valid):
        starts = np.array(shown)
    else:
        starts = found.timestamps
        if not np.isfinite(starts).all() or (np.diff(starts) <= 0).any() or starts[0] < 0:
            wrong = next(k for k, time in enumerate(starts) if not time > (starts[k - 1] if k else -1e-9))
            raise CsvError(f"{file}: timestamps do not rise, at frame {wrong + 1}")
        if len(shown) > 1 and starts[-1] > (end := 2 * shown[-1] - shown[-2]) + SHORT:
            raise CsvError(f"{file} goes on to {starts[-1]:.2f} s, but {media.name} is {end:.2f} s long")
        if len(shown) and starts[-1] < shown[-1] - SHORT and not found.gaps:
            raise CsvError(f"{file} ends at {starts[-1]:.2f} s, but {media.name} is {shown[-1]:.2f} s long")
    step = float(np.median(np.diff(starts))) if len(starts) > 1 else 1 / 30
    return np.stack([starts, np.append(starts[1:], starts[-1] + step)], axis=1)


def _cut(track: Track, clip: Clip, file: Path, gaps: bool) -> Track:
    """The rows during a clip, timed from its start; as for pictures, a row belongs to where it starts."""
    start, end = clip.start or 0.0, np.inf if clip.end is None else clip.end
    if clip.end is not None and track.times[-1, 1] < end - SHORT and not gaps:
        raise CsvError(f"{file} ends at {track.times[-1, 1]:.2f} s, before the clip does at {end:.2f} s")
    inside = (track.times[:, 1] > start) & (track.times[:, 0] < end)
    times = np.clip(track.times[inside], start, end) - start
    return Track(times, track.values[inside], track.valid[inside], track.names)


def at_rate(track: Track, rate: float) -> Track:
    """So many rows per second: each is the row whose time holds its start."""
    if not len(track):
        return track
    begin, end = track.times[0, 0], track.times[-1, 1]
    # By a hundredth of a step, so that times that were rounded make neither a step more nor choose the row before.
    starts = begin + np.arange(max(1, np.ceil((end - begin) * rate - 0.01))) / rate
    rows = np.searchsorted(track.times[:, 0], starts + 0.01 / rate, side="right") - 1
    times = np.stack([starts, np.minimum(starts + 1 / rate, end)], axis=1)
    return Track(times, track.values[rows], track.valid[rows], track.names)


def averaged(track: Track, count: int) -> Track:
    """Each `count` rows become one: the mean of the valid ones among them, invalid where there is none."""
    if count == 1 or not len(track):
        return track
    firsts = np.arange(0, len(track), count)
    numbers = np.add.reduceat(track.valid, firsts, dtype=np.int64)
    sums = np.add.reduceat(track.values, firsts, dtype=np.float64)  # rows that are not valid are zero
    values = (sums / np.maximum(numbers, 1)[:, None]).astype(np.float32)
    lasts = np.append(firsts[1:], len(track)) - 1
    times = np.stack([track.times[firsts, 0], track.times[lasts, 1]], axis=1)
    return Track(times, values, numbers > 0, track.names)
