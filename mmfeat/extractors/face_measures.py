"""Expression measures: plain distances on a face whose pose and size are removed.

They are geometry, not the output of a model trained on coded action units, and carry each person's resting face.
More means more of what the name says; the unit is the distance of the outer eye corners. Left and right are the
person's own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmfeat.extractors.face_points import LEFT_LIDS, RIGHT_LIDS, Indices

Floats = NDArray[np.floating]
Side = dict[str, list[int] | Indices]

# Lids: the three middle points of each, in the order of `face_points`.
_RIGHT: Side = {
    "inner brow": [107, 66, 55, 65],
    "outer brow": [70, 63, 46, 53],
    "eye corners": [33, 133],
    "upper lid": RIGHT_LIDS[11:14],
    "lower lid": RIGHT_LIDS[3:6],
    "nose wing": [129],
    "mouth corner": [61],
}
_LEFT: Side = {
    "inner brow": [336, 296, 285, 295],
    "outer brow": [300, 293, 276, 283],
    "eye corners": [263, 362],
    "upper lid": LEFT_LIDS[11:14],
    "lower lid": LEFT_LIDS[3:6],
    "nose wing": [358],
    "mouth corner": [291],
}
_NOSE_BASE, _UPPER_LIP, _LOWER_LIP, _CHIN = 2, 0, 17, 152
_CHIN_FRONT = [_CHIN, 175, 199, 200]
_INNER_LIPS = ([82, 13, 312], [87, 14, 317])
_OPEN_EYE = 0.3
"""Height of an open eye over its width, about."""


def _brow_raise_inner(face: Floats, side: Side) -> Floats:
    return _below(face, side["eye corners"], side["inner brow"])


def _brow_raise_outer(face: Floats, side: Side) -> Floats:
    return _below(face, side["eye corners"], side["outer brow"])


def _eye_closure(face: Floats, side: Side) -> Floats:
    """About 0 for an open eye, 1 for a shut one, below 0 for one wide open."""
    outer, inner = side["eye corners"]
    opening = np.linalg.norm(face[:, side["lower lid"]] - face[:, side["upper lid"]], axis=2).mean(axis=1)
    return 1 - opening / (_OPEN_EYE * _distance(face, outer, inner))


def _upper_lid_raise(face: Floats, side: Side) -> Floats:
    return _below(face, side["eye corners"], side["upper lid"])


def _lower_lid_raise(face: Floats, side: Side) -> Floats:
    return _below(face, side["eye corners"], side["lower lid"])


def _nose_wrinkle(face: Floats, side: Side) -> Floats:
    return -_below(face, side["nose wing"], side["eye corners"])


def _lip_corner_raise(face: Floats, side: Side) -> Floats:
    """Height of the mouth's corner over the upper lip, which a falling jaw does not move."""
    return _below(face, [_UPPER_LIP], side["mouth corner"])


def _lip_corner_pull(face: Floats, side: Side) -> Floats:
    """How far the mouth's corner is drawn out, half as much up and a quarter back: along the zygomatic muscle.

    Height is measured from the eyes: nose and lips move with a smile themselves. Without the way back, pressed lips
    that the chin pushes up would count as a smile.
    """
    x, y, z = face[:, side["mouth corner"]].mean(axis=1).T
    return np.abs(x) - y / 2 + z / 4


def _brow_furrow(face: Floats) -> Floats:
    """The brows' lower edges drawn down, and a third of how far they are drawn together."""
    height = (_below(face, _LEFT["eye corners"], [285, 295]) + _below(face, _RIGHT["eye corners"], [55, 65])) / 2
    return -height - _distance(face, 55, 285) / 3


def _upper_lip_raise(face: Floats) -> Floats:
    return -_distance(face, _NOSE_BASE, _UPPER_LIP)


def _lip_stretch(face: Floats) -> Floats:
    return _distance(face, 61, 291)


def _lip_pucker(face: Floats) -> Floats:
    """How narrow the mouth is, and half of how far the lips are pushed forward."""
    return -_distance(face, 61, 291) - face[:, [_UPPER_LIP, _LOWER_LIP], 2].mean(axis=1) / 2


def _lip_parting(face: Floats) -> Floats:
    return np.linalg.norm(face[:, _INNER_LIPS[0]] - face[:, _INNER_LIPS[1]], axis=2).mean(axis=1)


def _mouth_open(face: Floats) -> Floats:
    """Height of the gap between the lips over its width."""
    return _lip_parting(face) / _distance(face, 78, 308)


def _lip_tighten(face: Floats) -> Floats:
    return -_distance(face, _UPPER_LIP, 13) - _distance(face, 14, _LOWER_LIP)


def _jaw_drop(face: Floats) -> Floats:
    """From the nose to the chin's front: its outline is another place of the head when that nods."""
    return np.linalg.norm(face[:, _CHIN_FRONT].mean(axis=1) - face[:, _NOSE_BASE], axis=1)


def _chin_raise(face: Floats) -> Floats:
    return -_distance(face, _LOWER_LIP, _CHIN)


_BOTH_SIDES: dict[str, Callable[[Floats, Side], Floats]] = {
    "brow_raise_inner": _brow_raise_inner,
    "brow_raise_outer": _brow_raise_outer,
    "eye_closure": _eye_closure,
    "upper_lid_raise": _upper_lid_raise,
    "lip_corner_raise": _lip_corner_raise,
}
"""Given for the right, the left, and as their mean."""
_MEAN_OF_SIDES: dict[str, Callable[[Floats, Side], Floats]] = {
    "lower_lid_raise": _lower_lid_raise,
    "nose_wrinkle": _nose_wrinkle,
    "lip_corner_pull": _lip_corner_pull,
}
_WHOLE_FACE: dict[str, Callable[[Floats], Floats]] = {
    "brow_furrow": _brow_furrow,
    "upper_lip_raise": _upper_lip_raise,
    "lip_stretch": _lip_stretch,
    "lip_pucker": _lip_pucker,
    "lip_parting": _lip_parting,
    "lip_tighten": _lip_tighten,
    "mouth_open": _mouth_open,
    "jaw_drop": _jaw_drop,
    "chin_raise": _chin_raise,
}

MEASURES = (
    *(f"{name}{end}" for name in _BOTH_SIDES for end in ("", "_left", "_right")),
    *_MEAN_OF_SIDES,
    *_WHOLE_FACE,
)
"""Names of the columns of `measures`."""


def measures(face: Floats) -> Floats:
    """Shape (N, len(MEASURES)) from upright faces (N, 468, 3) as `face_geometry.upright` makes them."""
    columns = []
    for one_side in _BOTH_SIDES.values():
        left, right = one_side(face, _LEFT), one_side(face, _RIGHT)
        columns += [(left + right) / 2, left, right]
    columns += [(one_side(face, _LEFT) + one_side(face, _RIGHT)) / 2 for one_side in _MEAN_OF_SIDES.values()]
    columns += [whole(face) for whole in _WHOLE_FACE.values()]
    return np.stack(columns, axis=1)


def _below(face: Floats, low: list[int] | Indices, high: list[int] | Indices) -> Floats:
    """How far the mean of some points lies below that of others (y grows downwards)."""
    return face[:, low, 1].mean(axis=1) - face[:, high, 1].mean(axis=1)


def _distance(face: Floats, one: int | np.integer, other: int | np.integer) -> Floats:
    return np.linalg.norm(face[:, one] - face[:, other], axis=1)
