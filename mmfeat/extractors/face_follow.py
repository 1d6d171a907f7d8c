"""Faces followed through a clip: found by BlazeFace, then carried from frame to frame by their own mesh."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from mmfeat.extractors.face_nets import Detection, FaceNets, Image, Region, overlap
from mmfeat.extractors.face_points import LEFT_LIDS, RIGHT_LIDS

Floats = NDArray[np.float32]

_MET = 0.9999
_TILT = np.radians(15)
"""Presence that a face needs at first sight, on two more looks from where the mesh itself says that the face is, tilted
to either side. Faces keep theirs however the head is held; what merely looks like one, a drawn animal's head or a sign,
loses it in one of the two."""
_SAME = 0.3
"""Boxes that overlap by more are one face."""
_REMEMBERED = 30
"""Frames for which a face that is gone may come back under its identity."""
_ZOOM_EVERY = 10
"""Faces too small for BlazeFace in the whole picture are looked for in every n-th frame without a face."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One face in one frame, in pixels."""

    identity: int
    mesh: Floats
    """Shape (468, 3), with the iris net's eyelids where it ran."""
    iris: Floats
    """Shape (2, 2): centres of the right and the left iris; the middle of the eye's corners where no net ran."""

    @property
    def box(self) -> Floats:
        return _box(self.mesh)

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return float((right - left) * (bottom - top))


@dataclass
class _Followed:
    identity: int
    region: Region
    box: Floats
    last: int
    """Index of the frame in which it was last seen."""


class FaceFollower:
    """Follows the faces of one clip; call it with one frame after another."""

    def __init__(
        self, nets: FaceNets, max_faces: int, detect_every: int, detection: float, presence: float, eyes: bool
    ):
        self._nets = nets
        self._max_faces, self._detect_every = max_faces, detect_every
        self._detection, self._presence, self._eyes = detection, presence, eyes
        self._followed: list[_Followed] = []
        self._gone: list[_Followed] = []
        self._frame = -1
        self._faceless = 0
        self._identities = 0

    def __call__(self, image: Image) -> list[Seen]:
        """The faces in the next frame, none twice."""
        self._frame += 1
        seen: list[Seen] = []
        lost = 0
        for face in list(self._followed):
            lost += not self._look(image, face, seen, self._presence)
        if not seen or lost or self._frame % self._detect_every == 0:
            self._meet_all(image, self._nets.detect(image, self._detection), seen)
        if not seen and self._faceless % _ZOOM_EVERY == 0:
            windows = _windows(image.shape[1], image.shape[0])
            found = [self._nets.detect(image, self._detection, window) for window in windows]
            self._meet_all(image, list(chain.from_iterable(found)), seen)
        self._faceless = 0 if seen else self._faceless + 1
        return seen

    def _meet_all(self, image: Image, detections: list[Detection], seen: list[Seen]) -> None:
        """The largest first."""
        for detection in sorted(detections, key=lambda face: -float(np.prod(face.box[2:] - face.box[:2]))):
            if len(seen) < self._max_faces and not _known(detection.box, seen):
                self._meet(image, detection, seen)

    def _meet(self, image: Image, detection: Detection, seen: list[Seen]) -> None:
        mesh, presence = self._nets.mesh(image, detection.region)
        if presence < self._presence or not np.isfinite(mesh).all() or not self._is_face(image, _region(mesh)):
            return
        self._gone = [face for face in self._gone if self._frame - face.last <= _REMEMBERED]
        old = next((face for face in self._gone if overlap(detection.box, face.box[None])[0] > _SAME), None)
        face = old or _Followed(self._identities, _region(mesh), detection.box, self._frame)
        face.region = _region(mesh)
        if self._look(image, face, seen, self._presence):
            self._followed.append(face)
            if old:
                self._gone.remove(old)
            else:
                self._identities += 1

    def _is_face(self, image: Image, region: Region) -> bool:
        tilted = (replace(region, angle=region.angle + turn) for turn in (-_TILT, _TILT))
        return all(self._nets.mesh(image, look)[1] >= max(self._presence, _MET) for look in tilted)

    def _look(self, image: Image, face: _Followed, seen: list[Seen], presence: float) -> bool:
        """Fit the mesh where the face should be; False where it is not, or is one already seen in this frame."""
        mesh, score = self._nets.mesh(image, face.region)
        box = _box(mesh)
        if score < presence or not np.isfinite(mesh).all() or _known(box, seen):
            if face in self._followed:
                self._followed.remove(face)
                self._gone.append(face)
            return False
        face.region, face.box, face.last = _region(mesh), box, self._frame
        seen.append(Seen(face.identity, *self._with_eyes(image, mesh)))
        return True

    def _with_eyes(self, image: Image, mesh: Floats) -> tuple[Floats, Floats]:
        iris = np.stack([mesh[[33, 133], :2].mean(axis=0), mesh[[263, 362], :2].mean(axis=0)])
        if self._eyes:
            mesh = mesh.copy()
            for side, lids in enumerate((RIGHT_LIDS, LEFT_LIDS)):
                points, irises = self._nets.eye(image, mesh[lids[0]], mesh[lids[8]], is_left=bool(side))
                mesh[lids, :2], iris[side] = points, irises[0]
        return mesh, iris


def _box(mesh: Floats) -> Floats:
    return np.concatenate([mesh[:, :2].min(axis=0), mesh[:, :2].max(axis=0)])


def _known(box: Floats, seen: list[Seen]) -> bool:
    return bool(seen) and bool((overlap(box, np.stack([face.box for face in seen])) > _SAME).any())


def _region(mesh: Floats) -> Region:
    """Where to look for the same face in the next frame: upright on the eyes, half as large again as the mesh."""
    across = mesh[263, :2] - mesh[33, :2]
    angle = float(np.arctan2(across[1], across[0]))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    level = mesh[:, :2] @ turn
    low, high = level.min(axis=0), level.max(axis=0)
    x, y = turn @ ((low + high) / 2)
    return Region(float(x), float(y), 1.5 * max(float(np.max(high - low)), 1.0), angle)


def _windows(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Squares of half the longer side that overlap by at least half and cover the picture."""
    side = max(width, height) // 2
    if side < 64:
        return []

    def starts(length: int) -> list[int]:
        steps = max(1, -(-2 * (length - side) // side)) if length > side else 0
        return [round(step * (length - side) / steps) for step in range(steps + 1)] if steps else [0]

    return [(x, y, min(x + side, width), min(y + side, height)) for y in starts(height) for x in starts(width)]
