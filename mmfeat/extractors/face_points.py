"""Which points of the 468-point face mesh and of the iris net stand for what.

Left and right are the person's own, so that "right" lies on the image's left when the person looks at the camera.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]


def _indices(*points: int) -> Indices:
    return np.array(points, np.intp)


# The 68 points of the iBUG scheme (Sagonas et al. 2013) in the order that OpenFace writes them, each on a line of the
# mesh: from one vertex, towards another, by this share of the way. The lines follow the outline, lids and lips, so that
# points move with them. The shares are least squares to where dlib's 68-point predictor, trained on iBUG's own
# annotations, sees the points in 15 clips, the same for both halves; OpenFace's output took no part in it.
_IBUG = (
    # jaw, from the image's left to its right
    (127, 127, 0), (234, 93, 0.23), (93, 132, 0.44), (132, 58, 0.55), (58, 172, 0.71), (136, 150, 0.12),
    (150, 149, 0.74), (176, 148, 0.52), (152, 152, 0), (400, 377, 0.52), (379, 378, 0.74), (365, 379, 0.12),
    (288, 397, 0.71), (361, 288, 0.55), (323, 361, 0.44), (454, 323, 0.23), (356, 356, 0),
    # brows
    (70, 46, 0.21), (63, 105, 0.2), (105, 66, 0.37), (66, 107, 0.37), (107, 55, 0.57), (336, 285, 0.57),
    (296, 336, 0.37), (334, 296, 0.37), (293, 334, 0.2), (300, 276, 0.21),
    # nose: bridge, base
    (168, 6, 0.29), (6, 197, 0.82), (197, 5, 0.72), (5, 19, 0.42), (240, 75, 0.59), (2, 99, 0.84), (2, 2, 0),
    (2, 328, 0.84), (460, 305, 0.59),
    # eyes
    (33, 33, 0), (160, 159, 0.32), (158, 157, 0.27), (133, 133, 0), (145, 153, 0.86), (163, 144, 0.87), (362, 362, 0),
    (385, 384, 0.27), (387, 386, 0.32), (263, 263, 0), (390, 373, 0.87), (374, 380, 0.86),
    # lips: outer, inner
    (61, 61, 0), (40, 39, 0.6), (37, 0, 0.12), (0, 11, 0.58), (267, 0, 0.12), (270, 269, 0.6), (291, 291, 0),
    (405, 321, 0.43), (314, 314, 0), (17, 17, 0), (84, 84, 0), (181, 91, 0.43), (62, 62, 0), (81, 82, 0.8),
    (13, 13, 0), (311, 312, 0.8), (292, 292, 0), (317, 402, 0.15), (14, 15, 0.22), (87, 178, 0.15),
)  # fmt: skip
IBUG_68 = _indices(*(start for start, _, _ in _IBUG))
IBUG_NEXT = _indices(*(towards for _, towards, _ in _IBUG))
IBUG_SHARE = np.array([share for _, _, share in _IBUG], np.float32)

# Outer corner, lower lid to the inner corner, upper lid from the outer side: the order of the iris net's first points.
RIGHT_LIDS = _indices(33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173)
LEFT_LIDS = _indices(263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398)
# Points that expressions hardly move and that stay on their spot of the head when it turns, which those of the outline
# do not, with their place on MediaPipe's canonical face in centimetres (x to the image's
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
