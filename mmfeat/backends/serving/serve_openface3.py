"""OpenFace 3 (openface-test): 98 landmarks, gaze, emotions, and eight scores of action units."""

from __future__ import annotations

from typing import Any

import numpy as np
from server import serve
from torchvision_build import import_torchvision

POINTS, EMOTIONS, SCORES = 98, 8, 8
_FACE = 0.5
"""Score from which the detector's answer counts as a face; OpenFace 3's own threshold."""


class OpenFace3:
    names = (
        *(f"wflw_{axis}_{point}" for axis in "xy" for point in range(POINTS)),
        *("gaze_yaw", "gaze_pitch"),
        *(f"emotion_{k}" for k in range(EMOTIONS)),
        *(f"au_score_{k}" for k in range(SCORES)),
    )

    @staticmethod
    def load() -> None:
        import_torchvision()
        import openface.face_detection
        import openface.landmark_detection
        import openface.multitask_model  # noqa: F401

    def __init__(self, settings: dict[str, Any]) -> None:
        detector, landmarks, heads = settings["weights"]
        device = settings["device"]
        self._detector = _detector(detector, device)
        self._landmarks = _landmark_detector(landmarks, device)
        from openface.multitask_model import MultitaskPredictor

        self._heads = MultitaskPredictor(heads, device)
        self._rows: list[np.ndarray] = []

    def start(self) -> None:
        self._rows = []

    def frame(self, image: np.ndarray, start: float, end: float) -> None:
        self._rows.append(self._row(np.ascontiguousarray(image[:, :, ::-1])))

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        rows = np.array(self._rows, np.float64).reshape(-1, len(self.names))
        return rows, np.asarray(np.isfinite(rows).all(axis=1))

    def _row(self, picture: np.ndarray) -> np.ndarray:
        """Of the largest face in a BGR picture; NaN without one."""
        import torch

        nothing = np.full(len(self.names), np.nan)
        faces, _ = self._detector.detect_faces(picture)
        height, width = picture.shape[:2]
        faces[:, [0, 2]] = faces[:, [0, 2]].clip(0, width)  # a face that leaves the picture is cropped at its edge
        faces[:, [1, 3]] = faces[:, [1, 3]].clip(0, height)
        sides = (faces[:, 2:4].astype(int) - faces[:, :2].astype(int)).astype(float)
        areas = np.where((faces[:, 4] >= _FACE) & (sides > 1).all(axis=1), sides.prod(axis=1), 0)
        if not areas.any():
            return nothing
        face = faces[int(np.argmax(areas))]
        left, top, right, bottom = face[:4].astype(int)
        points = np.asarray(self._landmarks.detect_landmarks(picture, face[None])[0])
        emotions, gaze, scores = self._heads.predict(picture[top:bottom, left:right])
        emotions = torch.softmax(emotions, dim=1)
        return np.concatenate([points.T.ravel(), *(part[0].cpu().numpy() for part in (gaze, emotions, scores))])


def _detector(weights: str, device: str) -> Any:
    """OpenFace 3's detector, for pictures in memory instead of files."""
    import torch
    from openface.face_detection import FaceDetector
    from openface.Pytorch_Retinaface.data import cfg_mnet

    class InMemory(FaceDetector):
        def preprocess_image(self, picture: np.ndarray, resize: float = 1.0) -> tuple[Any, np.ndarray]:
            # Less the mean colour that RetinaFace was trained on.
            centred = picture.astype(np.float32) - np.array([104, 117, 123], np.float32)
            return torch.from_numpy(centred.transpose(2, 0, 1)).unsqueeze(0).to(self.device), picture

    cfg_mnet["pretrain"] = False  # weights to start a training from, which the file of weights replaces anyway
    return InMemory(weights, device)


def _landmark_detector(weights: str, device: str) -> Any:
    from openface.landmark_detection import LandmarkDetector
    from openface.STAR.conf.alignment import Alignment

    Alignment.init_instance = lambda self: None  # makes folders for the logs of a training
    return LandmarkDetector(weights, device, device_ids=[-1] if device == "cpu" else [0])


if __name__ == "__main__":
    serve(OpenFace3)
