"""`mediapipe`: Google's FaceLandmarker through the Tasks API: 478 points, 52 blendshapes, head pose.

It runs in an environment of its own: its wheel needs opencv-contrib-python, and only one cv2 may be installed in ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmfeat import models
from mmfeat.backends import BACKENDS
from mmfeat.backends.extractor import BackendConfig, BackendExtractor
from mmfeat.extractors import openface_columns, register
from mmfeat.extractors.face_geometry import euler_angles, ibug_68

Floats = NDArray[np.floating]
Group = Literal["pose", "landmarks_2d", "mesh", "blendshapes"]
POINTS = 478
_SIDED = (
    "browDown", "browOuterUp", "cheekSquint", "eyeBlink", "eyeLookDown", "eyeLookIn", "eyeLookOut", "eyeLookUp",
    "eyeSquint", "eyeWide", "mouthDimple", "mouthFrown", "mouthLowerDown", "mouthPress", "mouthSmile", "mouthStretch",
    "mouthUpperUp", "noseSneer",
)  # fmt: skip
_WHOLE = (
    "_neutral", "browInnerUp", "cheekPuff", "jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose", "mouthFunnel",
    "mouthLeft", "mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
)  # fmt: skip
# The net's order is the alphabet's.
BLENDSHAPES = tuple(sorted((*_WHOLE, *(f"{name}{side}" for name in _SIDED for side in ("Left", "Right")))))
_MESH = tuple(f"mesh_{axis}_{point}" for axis in "xyz" for point in range(POINTS))
_MATRIX = tuple(f"matrix_{row}_{column}" for row in range(4) for column in range(4))
_BLENDSHAPES = tuple(f"blendshape_{name}" for name in BLENDSHAPES)
_SIZE = ("width", "height")
# MediaPipe's camera looks along -z with y up and measures in centimetres; OpenFace's along z with y down, millimetres.
_AXES = np.diag([1.0, -1.0, -1.0])
_MILLIMETRES = 10.0
_FIELD_OF_VIEW = np.radians(63)
"""From top to bottom, as MediaPipe's face geometry assumes."""


class MediapipeConfig(BackendConfig):
    without_effect = frozenset({"model"})  # the content of its file has the effect, and is told by `_models`

    columns: tuple[Group, ...] = Field(
        ("pose", "landmarks_2d", "blendshapes"),
        min_length=1,
        description="groups of columns, in their order: pose, and 68 landmarks in pixels, as OpenFace's; all 478 "
        "points in pixels, z on the scale of x; 52 blendshape weights, which are no action units",
    )
    model: str = Field(
        "face_landmarker", description="a face landmarker of MediaPipe: a registered model, or a path to a .task file"
    )
    max_faces: int = Field(1, ge=1, description="faces followed at once; the largest is taken in every frame")
    detection: float = Field(0.5, gt=0, le=1, description="score from which the detector's answer counts as a face")
    presence: float = Field(0.5, gt=0, le=1, description="score below which the landmarks have lost their face")


def _models(config: MediapipeConfig) -> tuple[str, ...]:
    _task(config)
    return (config.model,)


def _task(config: MediapipeConfig) -> Path:
    """Raises MissingModelError where there is no such file."""
    if config.model in models.MODELS:
        return models.local(config.model)
    path = Path(config.model).expanduser().absolute()
    if not path.is_file():
        raise models.MissingModelError(
            f"{path} is not there: a face landmarker of MediaPipe is a .task file. Get its makers' with: "
            "mmfeat models pull face_landmarker (and `model: face_landmarker`), or see "
            "https://ai.google.dev/edge/mediapipe/solutions/vision/face_landmarker"
        )
    return path


@register("mediapipe", MediapipeConfig, version=f"1 {BACKENDS['mediapipe'].digest}", models=_models)
class Mediapipe(BackendExtractor):
    """Raises MissingModelError where its model is not there."""

    backend = "mediapipe"
    groups: ClassVar[Mapping[Group, tuple[str, ...]]] = {
        "pose": openface_columns.COLUMNS["pose"],
        "landmarks_2d": openface_columns.COLUMNS["landmarks_2d"],
        "mesh": _MESH,
        "blendshapes": _BLENDSHAPES,
    }
    served = (*_SIZE, *_MESH, *_MATRIX, *_BLENDSHAPES)

    def settings(self) -> dict[str, Any]:
        told = self.config.model_dump(mode="json", exclude={"columns"})
        return {**told, "model": str(_task(self.config)), "blendshapes": BLENDSHAPES}

    def derived(self, column: Mapping[str, Any], valid: Any) -> Mapping[str, Any]:
        matrix = np.stack([column[name] for name in _MATRIX], axis=1).reshape(-1, 4, 4).astype(np.float64)
        mesh = np.stack([column[name] for name in _MESH[: 2 * POINTS]], axis=1).reshape(-1, 2, POINTS)
        landmarks = ibug_68(mesh.transpose(0, 2, 1)[:, :468])
        size = np.stack([column[name] for name in _SIZE], axis=1).astype(np.float64)
        values = np.hstack([pose(matrix, size), landmarks.transpose(0, 2, 1).reshape(len(mesh), 136)])
        return dict(zip((*self.groups["pose"], *self.groups["landmarks_2d"]), values.T, strict=True))


def pose(matrix: Floats, size: Floats) -> Floats:
    """Shape (N, 6): place in millimetres and turn in radians, as OpenFace's, from transformation matrices (N, 4, 4).

    `size` (N, 2) is the picture's width and height. The distance is the one at which OpenFace's camera, whose focal
    length is another, sees the face as large.
    """
    place = matrix[:, :3, 3] @ _AXES * _MILLIMETRES
    place[:, 2] *= (size @ (500 / 640, 500 / 480) / 2) / np.maximum(size[:, 1] / 2 / np.tan(_FIELD_OF_VIEW / 2), 1e-9)
    return np.hstack([place, euler_angles(_AXES @ matrix[:, :3, :3] @ _AXES)])
