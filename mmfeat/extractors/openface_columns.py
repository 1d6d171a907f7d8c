"""Names and groups of OpenFace 2's columns, in OpenFace's order. A column of one of these names means the same from
whichever extractor it comes.

Axes are the camera's: x to the image's right, y down, z away from the camera. Lengths in space are millimetres, angles
radians. Of two eyes, 0 is the one further left in the image.
"""

from __future__ import annotations

from typing import Literal, get_args

Group = Literal[
    "gaze",
    "eye_landmarks_2d",
    "eye_landmarks_3d",
    "pose",
    "landmarks_2d",
    "landmarks_3d",
    "shape_rigid",
    "shape_nonrigid",
    "au_intensity",
    "au_presence",
]

LANDMARKS = 68
"""Points of the face, as in the iBUG annotation."""
EYE_LANDMARKS = 56
"""Points of both eyes: lids, irises, pupils."""
_ACTION_UNITS = ("01", "02", "04", "05", "06", "07", "09", "10", "12", "14", "15", "17", "20", "23", "25", "26")


def numbered(count: int, *stems: str) -> tuple[str, ...]:
    """`x_0, x_1, …, y_0, y_1, …` from `x` and `y`."""
    return tuple(f"{stem}_{point}" for stem in stems for point in range(count))


COLUMNS: dict[Group, tuple[str, ...]] = {
    # Unit vectors from each eye to what it looks at, and the mean of both as angles.
    "gaze": (
        *("gaze_0_x", "gaze_0_y", "gaze_0_z", "gaze_1_x", "gaze_1_y", "gaze_1_z"),
        *("gaze_angle_x", "gaze_angle_y"),
    ),
    "eye_landmarks_2d": numbered(EYE_LANDMARKS, "eye_lmk_x", "eye_lmk_y"),  # pixels
    "eye_landmarks_3d": numbered(EYE_LANDMARKS, "eye_lmk_X", "eye_lmk_Y", "eye_lmk_Z"),  # millimetres
    # Where the head is and how it is turned; R = Rx Ry Rz.
    "pose": ("pose_Tx", "pose_Ty", "pose_Tz", "pose_Rx", "pose_Ry", "pose_Rz"),
    "landmarks_2d": numbered(LANDMARKS, "x", "y"),  # pixels
    "landmarks_3d": numbered(LANDMARKS, "X", "Y", "Z"),  # millimetres
    # The point distribution model: scale, turn and place in the image; then how the face is shaped.
    "shape_rigid": ("p_scale", "p_rx", "p_ry", "p_rz", "p_tx", "p_ty"),
    "shape_nonrigid": numbered(34, "p"),
    "au_intensity": tuple(f"AU{unit}_r" for unit in (*_ACTION_UNITS, "45")),  # 0 to 5
    "au_presence": tuple(f"AU{unit}_c" for unit in (*_ACTION_UNITS, "28", "45")),  # 0 or 1
}
"""Group → names of its columns: 709 in all."""

assert tuple(COLUMNS) == get_args(Group)
