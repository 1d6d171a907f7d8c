"""pyfaceau, OpenFace 2.2's pipeline in Python: 68 landmarks, shape parameters, head pose, 17 action units."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from server import MissingError, serve

POINTS, MODES = 68, 34
ACTION_UNITS = ("01", "02", "04", "05", "06", "07", "09", "10", "12", "14", "15", "17", "20", "23", "25", "26", "45")
_RIGID = ("p_scale", "p_rx", "p_ry", "p_rz", "p_tx", "p_ty")
_INTENSITIES = tuple(f"AU{unit}_r" for unit in ACTION_UNITS)


class PyFaceAU:
    names = (
        *("pose_Tx", "pose_Ty", "pose_Tz", "pose_Rx", "pose_Ry", "pose_Rz"),
        *(f"{axis}_{point}" for axis in "xy" for point in range(POINTS)),
        *_RIGID,
        *(f"p_{mode}" for mode in range(MODES)),
        *_INTENSITIES,
    )

    @staticmethod
    def load() -> None:
        import pyclnf  # noqa: F401
        import pyfaceau.processor  # noqa: F401
        import pymtcnn  # noqa: F401

    def __init__(self, settings: dict[str, Any]) -> None:
        os.environ.pop("PYFACEAU_WEIGHTS_DIR", None)  # it may hold any weights; those of the shared folder are checked
        from pyfaceau.config import CLNF_CONFIG
        from pyfaceau.pipeline import FullPythonAUPipeline
        from pyfaceau.processor import OpenFaceProcessor

        CLNF_CONFIG["use_gpu"] = False  # else the machine would decide what is computed how
        try:
            self._processor = OpenFaceProcessor()
            self._pipeline = FullPythonAUPipeline(mtcnn_backend="cpu", verbose=False)
            self._processor.pipeline = self._pipeline
            self._pipeline._initialize_components()
        except FileNotFoundError as error:
            raise MissingError("OpenFace's weights, which pyfaceau needs, are not here; get them with") from error
        detector = self._pipeline.landmark_detector
        self._shape, self._fit = detector.pdm, detector.fit
        detector.fit = self._watched
        self.start()

    def start(self) -> None:
        self._processor.clear_cache()  # all that it carries from clip to clip; features of a clip are kept for its end
        self._states: list[dict[str, Any]] = []
        self._rows: list[np.ndarray] = []

    def frame(self, image: np.ndarray, start: float, end: float) -> None:
        self._found: tuple[np.ndarray, np.ndarray] | None = None
        picture = np.ascontiguousarray(image[:, :, ::-1])
        state = self._pipeline._process_frame(picture, len(self._states), start)
        self._states.append(state)
        row = np.full(len(self.names) - len(_INTENSITIES), np.nan)
        if state["success"] and self._found:
            landmarks, parameters = self._found
            row = np.concatenate([self._pose(landmarks, parameters, image.shape[:2]), landmarks.T.ravel(), parameters])
        self._rows.append(row)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        import pandas

        rows = np.array(self._rows, np.float64)
        valid = np.array([bool(state["success"]) for state in self._states]) & np.isfinite(rows).all(axis=1)
        intensities = np.zeros((len(rows), len(_INTENSITIES)))
        if valid.any():
            table = self._pipeline.finalize_predictions(pandas.DataFrame(self._states))
            intensities = table[list(_INTENSITIES)].to_numpy(np.float64)
        return np.hstack([rows, intensities]), valid

    def _watched(self, *arguments: Any, **options: Any) -> Any:
        """The pipeline keeps neither landmarks nor shape: they are noted on their way."""
        landmarks, info = self._fit(*arguments, **options)
        self._found = np.array(landmarks, np.float64), np.array(info["params"], np.float64)
        return landmarks, info

    def _pose(self, landmarks: np.ndarray, parameters: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        """As OpenFace: the face's shape in millimetres, put where a camera of its guess sees the landmarks."""
        import cv2

        shape = self._shape.mean_shape.ravel() + self._shape.princ_comp @ parameters[6:]
        height, width = size
        focal = (500 * width / 640 + 500 * height / 480) / 2
        camera = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        scale, *angles, x, y = parameters[:6]
        turn = cv2.Rodrigues(_rotation(*angles))[0]
        depth = focal / scale
        shift = np.array([(x - width / 2) / scale, (y - height / 2) / scale, depth])
        points = np.ascontiguousarray(shape.reshape(3, POINTS).T, np.float64)
        _, turn, shift = cv2.solvePnP(points, landmarks, camera, None, turn, shift.reshape(3, 1), True)
        matrix = cv2.Rodrigues(turn)[0]
        pitch = np.arctan2(-matrix[1, 2], matrix[2, 2])
        yaw = np.arcsin(np.clip(matrix[0, 2], -1, 1))
        roll = np.arctan2(-matrix[0, 1], matrix[0, 0])
        return np.array([*shift.ravel(), pitch, yaw, roll])


def _rotation(pitch: float, yaw: float, roll: float) -> np.ndarray:
    """R = Rx Ry Rz."""
    (cx, cy, cz), (sx, sy, sz) = np.cos([pitch, yaw, roll]), np.sin([pitch, yaw, roll])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


if __name__ == "__main__":
    serve(PyFaceAU)
