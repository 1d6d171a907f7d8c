"""`facemesh`: head pose, gaze, landmarks and expression measures from MediaPipe's face nets, offline, without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from mmfeat import models
from mmfeat.extractors import Config, each_once, openface_columns, register
from mmfeat.extractors import face_geometry as geometry
from mmfeat.extractors.face_follow import FaceFollower, Seen
from mmfeat.extractors.face_geometry import Faces
from mmfeat.extractors.face_measures import MEASURES, measures
from mmfeat.extractors.face_nets import NETS, FaceNets
from mmfeat.extractors.face_people import Choice, People, Seats, Sound
from mmfeat.track import Frame, Seconds, Track
from mmfeat.voice import MODEL as VOICE

Floats = NDArray[np.floating]
Group = Literal["pose", "gaze", "landmarks_2d", "landmarks_3d", "landmarks_px", "measures"]
_BLOCK = 128
"""Frames whose columns are computed at once: numpy's overhead is shared, and a long clip's meshes are not kept."""


COLUMNS: dict[Group, tuple[str, ...]] = {
    "pose": openface_columns.COLUMNS["pose"],
    "gaze": openface_columns.COLUMNS["gaze"],
    "landmarks_2d": openface_columns.numbered(openface_columns.LANDMARKS, "nx", "ny"),
    "landmarks_3d": openface_columns.numbered(openface_columns.LANDMARKS, "nX", "nY", "nZ"),
    "landmarks_px": openface_columns.COLUMNS["landmarks_2d"],
    "measures": MEASURES,
}
"""Group → names of its columns. OpenFace's names mean here what they mean there, in the same units and axes."""


class FacemeshConfig(Config):
    columns: tuple[Group, ...] = Field(
        ("pose", "gaze", "landmarks_2d", "landmarks_3d", "measures"),
        min_length=1,
        description="groups of columns, in their order: pose and gaze as OpenFace's; 68 landmarks in the image with "
        "roll and size removed, in space with pose and size removed, or in pixels; expression measures",
    )
    person: Choice = Field(
        "largest",
        description="whose face, where there are several. largest: who fills most of the picture over the whole clip; "
        "longest: who is seen longest; where that one is gone, the next in this order. speaking: at each moment, whose "
        "mouth moves with the voice that is heard (needs the model silero_vad). all: everybody, in columns face0_… up "
        "to max_faces, the largest first; face0_seen is 1 where that one is there, otherwise they are zero, "
        "which means over words leave out and statistics of training do not",
    )
    max_faces: int = Field(3, ge=1, description="faces followed at once; each costs as much time as the first")
    detect_every: int = Field(15, ge=1, description="frames between looking for further faces while one is followed")
    memory: float = Field(
        2.0, ge=0, description="seconds that a person may be hidden and still be the same; a cut makes everybody new"
    )
    detection: float = Field(0.5, gt=0, le=1, description="score from which BlazeFace's answer counts as a face")
    presence: float = Field(0.5, gt=0, le=1, description="score below which the mesh has lost its face")
    smoothing: float = Field(
        0.0,
        ge=0,
        description="standard deviation in seconds of a Gaussian over each run of frames with a face; 0 is none",
    )

    _no_group_twice = field_validator("columns")(each_once)


@register(
    "facemesh",
    FacemeshConfig,
    version=6,
    models=lambda config: (*NETS, VOICE) if config.person == "speaking" else NETS,
    hears=lambda config: config.person == "speaking",
)
class Facemesh:
    """Raises MissingModelError where the nets were not pulled."""

    def __init__(self, config: FacemeshConfig):
        self.config = config
        names = tuple(name for group in config.columns for name in COLUMNS[group])
        if config.person == "all":
            names = tuple(f"face{k}_{name}" for k in range(config.max_faces) for name in ("seen", *names))
        self.names = names
        self._nets = FaceNets()
        if config.person == "speaking":
            models.local(VOICE)  # where it is missing, it is missed before the first clip

    def __call__(self, frames: Iterable[Frame], sound: Sound | None = None) -> Track:
        """One row per frame; valid where a face was found. `sound` is called after the last frame, for `speaking`."""
        config = self.config
        follow = FaceFollower(
            self._nets,
            config.max_faces,
            config.detect_every,
            config.detection,
            config.presence,
            eyes=config.columns != ("pose",),
            memory=config.memory,
            small=config.person != "largest",
        )
        people, tables = People(config.person), dict[int, _Table]()
        times = []
        for index, frame in enumerate(frames):
            times.append((frame.start, frame.end))
            size = frame.image.shape[1], frame.image.shape[0]
            seen = follow(frame.image, frame.start)
            people.see(index, seen, size)
            for face in seen:
                tables.setdefault(face.identity, _Table(config.columns)).add(index, face, size)
        spans = np.array(times, np.float64).reshape(-1, 2)
        seats, note = people.seats(spans, config.max_faces, sound)
        values, valid = self._rows(spans, seats, tables)
        return Track(spans, values, valid, self.names, note)

    def _rows(
        self, spans: Seconds, seats: Seats, tables: dict[int, _Table]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Values and mask; where there are several seats, each one's first column says whether somebody sits there."""
        values: NDArray[np.float32] = np.zeros((*seats.shape, len(self.names) // seats.shape[1]), np.float32)
        for identity, table in tables.items():
            table.write(values, seats, identity)
        for seat, whose in enumerate(seats.T):
            if self.config.smoothing:
                values[:, seat] = _smooth(values[:, seat], whose, spans.mean(axis=1), self.config.smoothing)
            if self.config.person == "all":
                values[:, seat, 0] = whose >= 0
        valid: NDArray[np.bool_] = np.asarray((seats >= 0).any(axis=1))
        return values.reshape(len(seats), len(self.names)), valid


class _Table:
    """One face's rows, made in blocks."""

    def __init__(self, columns: tuple[Group, ...]):
        self._columns = columns
        self._frames: list[int] = []
        self._rows: list[Floats] = []
        self._waiting: list[Seen] = []
        self._size = (0, 0)

    def add(self, frame: int, face: Seen, size: tuple[int, int]) -> None:
        if len(self._waiting) == _BLOCK or size != self._size:
            self._flush()
        self._size = size
        self._frames.append(frame)
        self._waiting.append(face)

    def write(self, values: NDArray[np.float32], seats: Seats, identity: int) -> None:
        """Set the last columns of the seats that are this face's; a seat whose row is not finite becomes nobody's."""
        self._flush()
        rows, frames = np.concatenate(self._rows), np.array(self._frames)
        for seat in range(seats.shape[1]):
            mine = seats[frames, seat] == identity
            broken = mine & ~np.isfinite(rows).all(axis=1)
            seats[frames[broken], seat] = -1
            mine &= ~broken
            values[frames[mine], seat, -rows.shape[1] :] = rows[mine]

    def _flush(self) -> None:
        if not self._waiting:
            return
        mesh, iris = (np.stack([getattr(face, part) for face in self._waiting]) for part in ("mesh", "iris"))
        self._rows.append(rows(Faces(mesh, iris, self._size), self._columns))
        self._waiting = []


def rows(faces: Faces, columns: tuple[Group, ...]) -> NDArray[np.float32]:
    """Shape (N, D): the columns of some groups for one face in N frames."""
    pose = geometry.head_pose(faces) if {"pose", "gaze"} & set(columns) else None

    def of_pose() -> Floats:
        assert pose
        return np.hstack([pose.translation, geometry.euler_angles(pose.rotation)])

    def of_gaze() -> Floats:
        assert pose
        vectors = geometry.gaze(faces, pose)
        return np.hstack([vectors.reshape(-1, 6), geometry.gaze_angles(vectors)])

    makers: dict[Group, Callable[[], Floats]] = {
        "pose": of_pose,
        "gaze": of_gaze,
        "landmarks_2d": lambda: _by_axis(geometry.landmarks_in_plane(faces.mesh)),
        "landmarks_3d": lambda: _by_axis(geometry.landmarks_in_space(faces.mesh)),
        "landmarks_px": lambda: _by_axis(geometry.ibug_68(faces.mesh[:, :, :2])),
        "measures": lambda: measures(geometry.upright(faces.mesh)),
    }
    return np.hstack([makers[group]() for group in columns]).astype(np.float32)


def _by_axis(points: Floats) -> Floats:
    """(N, P, axes) → (N, axes * P): all x first, as OpenFace writes them."""
    return points.transpose(0, 2, 1).reshape(len(points), -1)


def _smooth(values: NDArray[np.float32], whose: Seats, times: NDArray[np.float64], width: float) -> NDArray[np.float32]:
    """Weighted mean over the neighbours in time, never across frames without a face, nor from one person to another."""
    smooth = values.copy()
    edges = np.flatnonzero(np.diff(whose, prepend=-2, append=-2))
    for first, stop in pairwise(edges):
        if whose[first] < 0:
            continue
        for row in range(first, stop):
            low, high = np.searchsorted(times[first:stop], (times[row] - 3 * width, times[row] + 3 * width)) + first
            high = max(high, row + 1)
            weights = np.exp(-0.5 * ((times[low:high] - times[row]) / width) ** 2)
            smooth[row] = weights @ values[low:high] / weights.sum()
    return smooth


assert set(COLUMNS) == set(get_args(Group))
