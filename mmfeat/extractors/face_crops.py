"""Upright crops of the faces in a clip, and what an image encoder says of whoever is chosen.

People are followed and chosen as `facemesh` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmfeat.extractors import Config
from mmfeat.extractors.face_follow import FaceFollower
from mmfeat.extractors.face_nets import NETS, FaceNets
from mmfeat.extractors.face_people import Choice, People, Sound
from mmfeat.track import Floats, Frame, Track
from mmfeat.voice import MODEL as VOICE

Image = NDArray[np.uint8]
Encode = Callable[[list[Image]], Floats]
"""RGB crops, each (size, size, 3), to vectors of shape (N, D)."""

EYES = np.array([[0.342, 0.461], [0.657, 0.461]])
"""Where the middles of the right and of the left eye come to lie in a crop without margin, as shares of its width:
those of the 112-pixel template that face recognition uses (ArcFace, SphereFace), levelled."""
_CORNERS = ((33, 133), (362, 263))
"""The mesh's corners of the right and of the left eye; unlike the irises they stay when the gaze moves."""
BATCH = 16
"""Crops encoded at once."""
_FINEST = 8
"""Times finer than wanted that a large face is sampled at most, before it is averaged."""


class FaceCropConfig(Config):
    """How faces are found, cut out, and thinned out in time."""

    crop: Literal[112, 224] = Field(224, description="width of a face's crop in pixels; the model's own size follows")
    margin: float = Field(
        0.25,
        ge=0,
        le=2,
        description="shown around the face on each side, as a share of a tight crop (eyes 0.315 apart)",
    )
    frame_rate: float | None = Field(
        10.0,
        gt=0,
        description="pictures encoded per second at most, each standing until the next; in the others the face is only "
        "followed; null: every one",
    )
    person: Choice = Field("largest", description="whose face, where there are several, as of `facemesh`")
    max_faces: int = Field(3, ge=1, description="faces followed and encoded at once; each costs as much as the first")
    detect_every: int = Field(15, ge=1, description="frames between looking for further faces while one is followed")
    memory: float = Field(2.0, ge=0, description="seconds that a person may be hidden and still be the same")
    detection: float = Field(0.5, gt=0, le=1, description="score from which BlazeFace's answer counts as a face")
    presence: float = Field(0.5, gt=0, le=1, description="score below which the mesh has lost its face")

    @property
    def hears(self) -> bool:
        """Whether the choice of a person needs the sound."""
        return self.person == "speaking"

    @property
    def face_models(self) -> tuple[str, ...]:
        return (*NETS, VOICE) if self.hears else NETS

    def names(self, columns: int) -> tuple[str, ...]:
        """Of a track of vectors: `hidden_k`; where everybody has a seat, as `facemesh` names them."""
        names = tuple(f"hidden_{k}" for k in range(columns))
        if self.person != "all":
            return names
        return tuple(f"face{seat}_{name}" for seat in range(self.max_faces) for name in ("seen", *names))


def eyes(mesh: Floats) -> NDArray[np.float64]:
    """The middles of the right and of the left eye of a mesh (468, 3), in pixels, shape (2, 2)."""
    return np.array([mesh[list(corners), :2].mean(axis=0) for corners in _CORNERS], np.float64)


def similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The turn, scale and shift, shape (2, 3), that takes the two points of `source` to those of `target`."""
    (a, b), (c, d) = (points @ [1, 1j] for points in (source, target))
    factor = (d - c) / (b - a)
    shift = c - factor * a
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def upright(image: Image, eye_middles: NDArray[np.float64], size: int, margin: float) -> Image:
    """The face with its eyes level and at `EYES`, shape (size, size, 3); black where the picture ends.

    A face that is much larger than the crop is sampled finer and averaged, so that it does not flicker.
    """
    tight = 0.5 + (EYES - 0.5) / (1 + 2 * margin)
    distance = float(np.linalg.norm(eye_middles[1] - eye_middles[0]))
    finer = int(np.clip(np.ceil(distance / (size * (tight[1, 0] - tight[0, 0]))), 1, _FINEST))
    width = size * finer
    # Pixel k covers k to k + 1 of the picture, and its value stands for its middle.
    matrix = similarity(eye_middles, tight * width - 0.5)
    found = cv2.warpAffine(image, matrix, (width, width), flags=cv2.INTER_LINEAR)
    if finer > 1:
        found = cv2.resize(found, (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(found, np.uint8)


def encode_faces(
    frames: Iterable[Frame], sound: Sound | None, nets: FaceNets, encode: Encode, config: FaceCropConfig, columns: int
) -> Track:
    """One row per picture that is encoded, valid where there was a face.

    Frames are encoded in batches as they come: nothing but vectors, of shape (columns,), is kept of a long clip.
    """
    follow = FaceFollower(
        nets,
        config.max_faces,
        config.detect_every,
        config.detection,
        config.presence,
        eyes=False,
        memory=config.memory,
        small=config.person != "largest",
    )
    people, batch = People(config.person), _Batch(encode)
    times: list[tuple[float, float]] = []
    due: list[int] = []
    for index, (frame, is_due) in enumerate(_thinned(frames, config.frame_rate)):
        times.append((frame.start, frame.end))
        seen = follow(frame.image, frame.start)
        people.see(index, seen, (frame.image.shape[1], frame.image.shape[0]))
        if is_due:
            for face in seen:
                crop = upright(frame.image, eyes(face.mesh), config.crop, config.margin)
                batch.add(crop, len(due), face.identity)
            due.append(index)
    batch.flush()
    spans = np.array(times, np.float64).reshape(-1, 2)
    seats, note = people.seats(spans, config.max_faces, sound)
    seats = seats[due]
    names = config.names(columns)
    values = np.zeros((*seats.shape, len(names) // seats.shape[1]), np.float32)
    valid = np.zeros(seats.shape, bool)
    for row, identity, vector in batch.vectors:
        seat = seats[row] == identity
        values[row, seat, -columns:] = vector
        valid[row] |= seat
    if config.person == "all":
        values[:, :, 0] = valid
    starts = spans[due, 0]
    rows = np.stack([starts, np.append(starts[1:], spans[-1:, 1])], axis=1)
    return Track(rows, values.reshape(len(due), len(names)), np.asarray(valid.any(axis=1)), names, note)


def _thinned(frames: Iterable[Frame], rate: float | None) -> Iterator[tuple[Frame, bool]]:
    """Each frame, and whether it is the first one in its tick of a clock of `rate` per second."""
    last = -1
    for frame in frames:
        tick = last + 1 if rate is None else int(frame.start * rate + 1e-6)
        yield frame, tick > last
        last = max(last, tick)


class _Batch:
    """Crops that wait for each other, then go through the encoder at once."""

    def __init__(self, encode: Encode):
        self._encode = encode
        self._waiting: list[tuple[Image, int, int]] = []
        self.vectors: list[tuple[int, int, Floats]] = []
        """Row, identity of the person, vector."""

    def add(self, crop: Image, row: int, identity: int) -> None:
        self._waiting.append((crop, row, identity))
        if len(self._waiting) == BATCH:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        vectors = self._encode([crop for crop, _, _ in self._waiting])
        self.vectors += [(row, who, vector) for (_, row, who), vector in zip(self._waiting, vectors, strict=True)]
        self._waiting = []
