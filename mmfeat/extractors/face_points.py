"""Which points of the 468-point face mesh and of the iris net stand for what.

Left and right are the person's own, so that "right" lies on the image's left when the person looks at the camera.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]


def _indices(*points: int) -> Indices:
    return np.array(points, np.intp)


# The 68 points of the iBUG scheme (Sagonas et al. 2013) in the order that OpenFace writes them: jaw from the image's
# left to its right, brows, nose bridge, nose base, eyes, outer lips, inner lips.
IBUG_68 = _indices(
    *(127, 234, 93, 132, 58, 172, 150, 176, 152, 400, 379, 397, 288, 361, 323, 454, 356),
    *(46, 63, 105, 66, 107, 336, 296, 334, 293, 276),
    *(168, 197, 5, 4),
    *(240, 97, 2, 326, 460),
    *(33, 160, 158, 133, 153, 144),
    *(362, 385, 387, 263, 373, 380),
    *(61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91),
    *(62, 81, 13, 311, 292, 402, 14, 178),
)
# iBUG's jaw points divide the outline evenly from ear to chin, the mesh's do not: how far each lies on the way from its
# point above to the next point of the mesh.
JAW_NEXT = _indices(127, 93, 132, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 361, 323, 356)
_HALF_JAW = (0.0, 0.17, 0.30, 0.34, 0.42, 0.80, 0.42, 0.38)
JAW_SHARE = np.array([*_HALF_JAW, 0.0, *_HALF_JAW[::-1]], np.float32)

# Outer corner, lower lid to the inner corner, upper lid from the outer side: the order of the iris net's first points.
RIGHT_LIDS = _indices(33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173)
LEFT_LIDS = _indices(263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398)
# Points that expressions hardly move, with their place on MediaPipe's canonical face in centimetres (x to the image's
# right, y up, z towards the camera). Right half and midline; the left half mirrors the right.
_MIDLINE = {
    168: (0.0, 3.271027, 5.236015),
    6: (0.0, 2.473255, 5.788627),
    197: (0.0, 1.728369, 6.316750),
    195: (0.0, 1.059413, 6.774605),
    5: (0.0, 0.365669, 7.242870),
    4: (0.0, -0.463170, 7.586580),
    1: (0.0, -1.126865, 7.475604),
}
_PAIRS = {
    (33, 263): (-4.445859, 2.663991, 3.173422),
    (133, 362): (-1.856432, 2.585245, 3.757904),
    (143, 372): (-6.407571, 2.236021, 1.560843),
    (127, 356): (-7.743095, 2.364999, -2.005167),
    (162, 389): (-7.555811, 4.106811, -0.991917),
    (234, 454): (-7.664182, 0.673132, -2.435867),
    (227, 447): (-7.297331, 0.763172, -0.048769),
    (121, 350): (-1.820731, 1.467954, 4.224124),
    (198, 420): (-1.246815, 0.230297, 5.681036),
    (129, 358): (-1.785794, -0.978284, 4.850470),
}


def _rigid() -> tuple[Indices, NDArray[np.float64]]:
    points = dict(_MIDLINE)
    for (right, left), (x, y, z) in _PAIRS.items():
        points |= {right: (x, y, z), left: (-x, y, z)}
    return _indices(*points), np.array(list(points.values()))


RIGID, _CANONICAL = _rigid()
RIGID_FACE = _CANONICAL * (10.0, -10.0, -10.0)
"""Shape (R, 3): the points `RIGID` on the canonical face, in millimetres; x to the image's right, y down, z away.

From the face geometry module of MediaPipe (Apache-2.0).
"""
