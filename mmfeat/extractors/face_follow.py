"""Faces followed through a clip: found by BlazeFace, then carried from frame to frame by their own mesh.

Each keeps its identity while it is in the picture, and when it comes back within seconds and looks the same. A cut in
the footage ends all of them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from mmfeat.extractors.face_looks import apart, glare, is_clear, is_faded, looks
from mmfeat.extractors.face_nets import Detection, FaceNets, Image, Region, overlap
from mmfeat.extractors.face_points import LEFT_LIDS, RIGHT_LIDS
from mmfeat.extractors.shot_cuts import ShotCuts

Floats = NDArray[np.float32]

_MET = 0.9999
_TILT = np.radians(15)
"""Presence that a face needs at first sight, on two more looks from where the mesh itself says that the face is, tilted
to either side. Faces keep theirs however the head is held; what merely looks like one, a drawn animal's head or a sign,
loses it in one of the two."""
_SAME = 0.3
"""Boxes that overlap by more are one face."""
_ZOOM_EVERY = 10
"""Faces too small for BlazeFace in the whole picture are looked for in every n-th frame without a face."""
_SEEK_EVERY = 5
"""Frames between looking for a face that is gone, and between windows where small faces are looked for in turn."""
_CUT, _DOUBT = 0.5, 0.06
"""Shares of the picture that are new where one shot meets the next, and where that is asked of the faces."""
_ALIKE, _UNLIKE = 0.6, 1.0
"""How far apart the looks of one person may be, see `looks`, and how far where the place speaks for that person."""
_CHANGED = 0.3
"""… and how far from one frame to the next where much of the picture is new, or brighter or darker."""
_BLACK = 0.01
"""Contrast below which not even two pictures in a row can be compared, see `is_clear`."""
_BLINDED = 4
"""Frames after which a face must look again as it did before a flash; in a fade it has `detect_every`."""
_PUSHED = 0.1
"""A mesh that was moved by more than this share of the face's size sits on it only roughly, and is fitted again."""
_JUMP = 0.3
"""A face that moves by more than this share of its size beyond what it was about to do is looked at closely."""
_PORTRAITS = 5
"""Looks that are kept of a face, one every `detect_every` frames: people turn."""
_PATIENCE = 2
"""Portraits in a row that may say nothing, see `is_clear`; then a face must look as it did."""


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


@dataclass(eq=False)
class _Followed:
    identity: int
    region: Region
    box: Floats
    time: float
    """When it was last seen, in seconds."""
    motion: tuple[float, float] = (0.0, 0.0)
    """Pixels from the frame before."""
    portraits: deque[Floats] = field(default_factory=lambda: deque(maxlen=_PORTRAITS))
    is_clear: bool = False
    """Whether somebody can be told by the portraits."""
    unsure: int = 0
    """Portraits in a row that could not tell."""
    portrayed: int = 0
    """Index of the frame of the last portrait."""
    in_doubt: bool = False
    """Whether it was not recognised since a flash, or since it came back in poor light."""
    doubted: int = 0
    """Index of the frame of that flash, or in which it came back."""

    def unlike(self, portrait: Floats) -> float:
        """How far a face is from what this one looked like."""
        return min((apart(portrait, other) for other in self.portraits), default=0.0)

    def add(self, portrait: Floats, is_clear: bool, frame: int) -> None:
        """Those by which nobody can be told make way for the first by which one can, and are not added to such."""
        self.portrayed = frame
        if is_clear > self.is_clear:
            self.portraits.clear()
        if is_clear >= self.is_clear:
            self.portraits.append(portrait)
            self.is_clear = is_clear

    def is_confirmed(self, portrait: Floats, is_clear: bool, frame: int) -> bool:
        """Whether a new portrait shows the same face as the others, to which it is then added.

        Where one of them is not clear, as in a flash or a fade, it need not, but not for long.
        """
        self.unsure = 0 if is_clear and self.is_clear else self.unsure + 1
        if self.unlike(portrait) > _UNLIKE and not 0 < self.unsure <= _PATIENCE:
            return False
        self.add(portrait, is_clear, frame)
        return True

    def leap(self, region: Region) -> float:
        """How far a place is from where the face was about to be, in sizes of the face."""
        x, y = self.region.x + self.motion[0], self.region.y + self.motion[1]
        return float(np.hypot(region.x - x, region.y - y)) / min(region.side, self.region.side)

    def move(self, region: Region, box: Floats, time: float) -> None:
        self.motion = region.x - self.region.x, region.y - self.region.y
        self.region, self.box, self.time = region, box, time


@dataclass(frozen=True, eq=False)
class _Look:
    """Where a followed face may be in this frame."""

    face: _Followed
    mesh: Floats
    box: Floats
    region: Region


class FaceFollower:
    """Follows the faces of one clip; call it with one frame after another.

    `memory` is how many seconds a face may be hidden and still be the same. With `small`, faces too small for BlazeFace
    in the whole picture are looked for beside those that are followed, not only where there is none.
    """

    def __init__(
        self,
        nets: FaceNets,
        max_faces: int,
        detect_every: int,
        detection: float,
        presence: float,
        eyes: bool,
        memory: float = 2.0,
        small: bool = False,
    ):
        self._nets = nets
        self._max_faces, self._detect_every = max_faces, detect_every
        self._detection, self._presence, self._eyes = detection, presence, eyes
        self._memory, self._small = memory, small
        self._new = ShotCuts()
        self._last: Image | None = None
        self._followed: list[_Followed] = []
        self._gone: list[_Followed] = []
        self._frame = -1
        self._faceless = 0
        self._is_new_shot = True
        self._identities = 0

    def __call__(self, image: Image, time: float | None = None) -> list[Seen]:
        """The faces in the next frame, none twice. It is shown from `time` on; without it, 25 frames make a second."""
        self._frame += 1
        time = self._frame / 25 if time is None else time
        self._gone = [face for face in self._gone if time - face.time <= self._memory]
        before = len(self._followed)
        seen = [self._keep(image, look, time) for look in self._look_again(image)]
        every = min(_SEEK_EVERY, self._detect_every) if self._gone else self._detect_every
        if not seen or len(seen) < before or self._frame % every == 0:
            self._meet_all(image, self._nets.detect(image, self._detection), seen, time)
        windows = self._windows_to_search(image, seen, len(seen) < before)
        zoomed = [self._nets.detect(image, self._detection, window) for window in windows]
        self._meet_all(image, list(chain.from_iterable(zoomed)), seen, time)
        self._faceless = 0 if seen else self._faceless + 1
        self._is_new_shot = False
        self._last = image
        return seen

    def _windows_to_search(self, image: Image, seen: list[Seen], is_lost: bool) -> list[tuple[int, int, int, int]]:
        """All where nobody is seen, a shot begins or somebody `is_lost`; else one in turn, every few frames."""
        windows = _windows(image.shape[1], image.shape[0])
        if not seen:
            return windows if self._faceless % _ZOOM_EVERY == 0 else []
        if not self._small or not windows or len(seen) >= self._max_faces:
            return []
        if self._is_new_shot or is_lost:
            return windows
        turn, rest = divmod(self._frame, _SEEK_EVERY)
        return [] if rest else [windows[turn % len(windows)]]

    def _look_again(self, image: Image) -> list[_Look]:
        """The followed faces that are still there; the others are gone, after a cut for good."""
        new = self._new(image)
        if new >= _CUT:
            self._forget()
        found = [look for look in (self._look(image, face) for face in self._followed) if look]
        if new >= _DOUBT or self._new.is_flash:
            same = [look for look in found if not self._has_changed(image, look)]
            if found and not same:
                self._forget()
                return []
            found = same  # part of a split screen may be cut
        found = [look for look in found if self._is_itself(image, look)]
        found = self._without_doubles(image, found)
        self._gone += [face for face in self._followed if face not in {look.face for look in found}]
        self._followed = [look.face for look in found]
        return found

    def _look(self, image: Image, face: _Followed) -> _Look | None:
        """Where a face is now, if anywhere: nearby, or where it went when it or the camera was pushed."""
        region = face.region
        for _ in range(2):
            mesh, score = self._nets.mesh(image, region)
            if score < self._presence or not np.isfinite(mesh).all():
                return None
            region = _region(mesh)
            if face.leap(region) < _PUSHED:
                break
        return _Look(face, mesh, _box(mesh), region)

    def _has_changed(self, image: Image, look: _Look) -> bool:
        """Whether somebody else is where a face was in the last frame; in a flash that blinds, it is left open."""
        assert self._last is not None
        face, before = look.face, looks(self._last, look.face.region)
        if self._new.is_flash and not self._can_be_compared(image, look):
            if not face.in_doubt:
                face.add(before, is_clear(self._last, face.region), self._frame)
                face.in_doubt, face.doubted = True, self._frame
            return False
        limit = _CHANGED + 1.5 * abs(glare(image, look.region) - glare(self._last, face.region))
        return apart(before, looks(image, look.region)) > min(limit, _UNLIKE)

    def _can_be_compared(self, image: Image, look: _Look) -> bool:
        assert self._last is not None
        return is_clear(self._last, look.face.region, _BLACK) and is_clear(image, look.region, _BLACK)

    def _forget(self) -> None:
        self._followed, self._gone, self._faceless, self._is_new_shot = [], [], 0, True

    def _is_itself(self, image: Image, look: _Look) -> bool:
        """Whether a mesh still sits on the face that it followed, and did not slip to somebody else's close by."""
        leapt = look.face.leap(look.region) > _JUMP
        if look.face.in_doubt and not leapt:
            return self._is_still_possible(image, look)
        if not leapt and self._frame - look.face.portrayed < self._detect_every:
            return True
        portrait = looks(image, look.region)
        others = [face for face in self._followed + self._gone if face is not look.face]
        if leapt:
            rivals = min((face.unlike(portrait) for face in others), default=_UNLIKE)
            return look.face.unlike(portrait) < min(rivals, _UNLIKE)
        if any(_is_beside(look.region, face.region) for face in others):
            return True  # a portrait would show them both
        return look.face.is_confirmed(portrait, is_clear(image, look.region), self._frame)

    def _is_still_possible(self, image: Image, look: _Look) -> bool:
        """Of a face in doubt, which ends when it is recognised: it must be soon, and sooner where the light is good."""
        face, can_tell = look.face, is_clear(image, look.region)
        face.in_doubt = face.unlike(looks(image, look.region)) > (_UNLIKE if can_tell else _ALIKE)
        patience = self._detect_every if is_faded(image, look.region) else _BLINDED
        return not face.in_doubt or self._frame - face.doubted < patience

    def _without_doubles(self, image: Image, found: list[_Look]) -> list[_Look]:
        """Where one person hides another, both meshes end on the one in front: it stays with whom it belongs to."""
        kept: list[_Look] = []
        for look in found:
            other = next((other for other in kept if overlap(look.box, other.box[None])[0] > _SAME), None)
            if other is None:
                kept.append(look)
            elif self._strangeness(image, look) < self._strangeness(image, other):
                kept[kept.index(other)] = look
        return kept

    @staticmethod
    def _strangeness(image: Image, look: _Look) -> float:
        return look.face.unlike(looks(image, look.region)) + look.face.leap(look.region)

    def _keep(self, image: Image, look: _Look, time: float) -> Seen:
        look.face.move(look.region, look.box, time)
        return Seen(look.face.identity, *self._with_eyes(image, look.mesh))

    def _meet_all(self, image: Image, detections: list[Detection], seen: list[Seen], time: float) -> None:
        """The largest first."""
        for detection in sorted(detections, key=lambda face: -float(np.prod(face.box[2:] - face.box[:2]))):
            if len(seen) < self._max_faces and not _known(detection.box, seen):
                self._meet(image, detection, seen, time)

    def _meet(self, image: Image, detection: Detection, seen: list[Seen], time: float) -> None:
        mesh, presence = self._nets.mesh(image, detection.region)
        if presence < self._presence or not np.isfinite(mesh).all() or not self._is_face(image, _region(mesh)):
            return
        mesh, presence = self._nets.mesh(image, _region(mesh))
        if presence < self._presence or not np.isfinite(mesh).all() or _known(_box(mesh), seen):
            return
        region, portrait = _region(mesh), looks(image, _region(mesh))
        face = self._recognised(region, portrait, is_faded(image, region), time)
        if face is None:
            face = _Followed(self._identities, region, _box(mesh), time)
            self._identities += 1
        if not face.in_doubt:
            face.add(portrait, is_clear(image, region), self._frame)
        face.move(region, _box(mesh), time)
        face.motion = 0.0, 0.0
        self._followed.append(face)
        seen.append(Seen(face.identity, *self._with_eyes(image, mesh)))

    def _is_face(self, image: Image, region: Region) -> bool:
        tilted = (replace(region, angle=region.angle + turn) for turn in (-_TILT, _TILT))
        return all(self._nets.mesh(image, look)[1] >= max(self._presence, _MET) for look in tilted)

    def _recognised(self, region: Region, portrait: Floats, is_faded: bool, time: float) -> _Followed | None:
        """The face that was gone and is here again: of those within reach, the one that looks most like it.

        In poor light, as where a picture fades in, it is for a while who was last seen at that place.
        """
        near = [face for face in self._gone if _can_be_reached(face, region, time)]
        face = min(near, key=lambda face: face.unlike(portrait), default=None)
        if face is None:
            return None
        crowd = [other for other in self._followed if _is_beside(region, other.region)]
        limit = max(_UNLIKE, *(other.unlike(portrait) for other in crowd)) if crowd else _ALIKE
        is_known = face.unlike(portrait) <= limit
        is_late = face.in_doubt and self._frame - face.doubted >= self._detect_every
        if not is_known and (is_late or not is_faded or face.leap(region) > _JUMP):
            return None
        if not face.in_doubt:
            face.doubted = self._frame
        face.in_doubt = not is_known
        self._gone.remove(face)
        return face

    def _with_eyes(self, image: Image, mesh: Floats) -> tuple[Floats, Floats]:
        iris = np.stack([mesh[[33, 133], :2].mean(axis=0), mesh[[263, 362], :2].mean(axis=0)])
        if self._eyes:
            mesh = mesh.copy()
            for side, lids in enumerate((RIGHT_LIDS, LEFT_LIDS)):
                points, irises = self._nets.eye(image, mesh[lids[0]], mesh[lids[8]], is_left=bool(side))
                mesh[lids, :2], iris[side] = points, irises[0]
        return mesh, iris


def _is_beside(one: Region, other: Region) -> bool:
    """Whether what is cut out of the picture for one face shows some of the other."""
    return float(np.hypot(one.x - other.x, one.y - other.y)) < 0.5 * (one.side + other.side)


def _can_be_reached(face: _Followed, region: Region, time: float) -> bool:
    """Heads move by a few of their sizes a second, and grow or shrink by half at most while they are gone."""
    size = max(face.region.side, region.side)
    away = float(np.hypot(region.x - face.region.x, region.y - face.region.y)) / size
    return away < 1 + 3 * (time - face.time) and 0.5 < region.side / face.region.side < 2


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
