"""Upright crops of the faces in a clip, and what an image encoder says of the one person who matters.

People are followed and chosen as `facemesh` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmfeat.extractors import Config
from mmfeat.extractors.face_follow import FaceFollower, Seen
from mmfeat.extractors.face_nets import FaceNets
from mmfeat.track import Floats, Frame, Track

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
    person: Literal["largest", "longest"] = Field("largest", description="whose face, as of `facemesh`")
    max_faces: int = Field(3, ge=1, description="faces followed at once; each costs as much time as the first")
    detect_every: int = Field(15, ge=1, description="frames between looking for further faces while one is followed")
    detection: float = Field(0.5, gt=0, le=1, description="score from which BlazeFace's answer counts as a face")
    presence: float = Field(0.5, gt=0, le=1, description="score below which the mesh has lost its face")


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
    frames: Iterable[Frame], nets: FaceNets, encode: Encode, config: FaceCropConfig, names: tuple[str, ...]
) -> Track:
    """One row per picture that is encoded, valid where there was a face.

    Frames are encoded in batches as they come: nothing but vectors is kept of a long clip.
    """
    follow = FaceFollower(nets, config.max_faces, config.detect_every, config.detection, config.presence, eyes=False)
    batch = _Batch(encode)
    people: dict[int, _Person] = {}
    starts: list[float] = []
    end = 0.0
    for frame, is_due in _thinned(frames, config.frame_rate):
        end = frame.end
        seen = follow(frame.image)
        if is_due:
            starts.append(frame.start)
        for face in seen:
            person = people.setdefault(face.identity, _Person())
            person.see(face, frame.image.shape)
            if is_due:
                crop = upright(frame.image, eyes(face.mesh), config.crop, config.margin)
                batch.add(crop, person, len(starts) - 1)
    batch.flush()
    values, valid = np.zeros((len(starts), len(names)), np.float32), np.zeros(len(starts), bool)
    for person in sorted(people.values(), key=lambda person: person.rank(config.person)):
        if person.rows:
            values[person.rows], valid[person.rows] = np.stack(person.vectors), True
    times = np.stack([starts, [*starts[1:], end]], axis=1) if starts else np.zeros((0, 2))
    return Track(times, values, valid, names)


def _thinned(frames: Iterable[Frame], rate: float | None) -> Iterator[tuple[Frame, bool]]:
    """Each frame, and whether it is the first one in its tick of a clock of `rate` per second."""
    last = -1
    for frame in frames:
        tick = last + 1 if rate is None else int(frame.start * rate + 1e-6)
        yield frame, tick > last
        last = max(last, tick)


@dataclass(eq=False)
class _Person:
    rows: list[int] = field(default_factory=list)
    vectors: list[Floats] = field(default_factory=list)
    share: float = 0.0
    frames: int = 0

    def see(self, face: Seen, shape: tuple[int, ...]) -> None:
        self.share += face.area / (shape[0] * shape[1])
        self.frames += 1

    def rank(self, by: str) -> float:
        """The person to take sorts last."""
        return self.share if by == "largest" else self.frames


class _Batch:
    """Crops that wait for each other, then go through the encoder at once."""

    def __init__(self, encode: Encode):
        self._encode = encode
        self._waiting: list[tuple[Image, _Person, int]] = []

    def add(self, crop: Image, person: _Person, row: int) -> None:
        self._waiting.append((crop, person, row))
        if len(self._waiting) == BATCH:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        vectors = self._encode([crop for crop, _, _ in self._waiting])
        for vector, (_, person, row) in zip(vectors, self._waiting, strict=True):
            person.rows.append(row)
            person.vectors.append(vector)
        self._waiting = []
