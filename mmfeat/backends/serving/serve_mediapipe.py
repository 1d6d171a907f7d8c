"""MediaPipe's FaceLandmarker: 478 points, 52 blendshapes, and where the head is."""

from __future__ import annotations

from typing import Any

import numpy as np
from server import MissingError, serve

POINTS = 478


class FaceLandmarker:
    @staticmethod
    def load() -> None:
        import mediapipe.tasks.python.vision  # noqa: F401

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self.names = (
            *("width", "height"),
            *(f"mesh_{axis}_{point}" for axis in "xyz" for point in range(POINTS)),
            *(f"matrix_{row}_{column}" for row in range(4) for column in range(4)),
            *(f"blendshape_{name}" for name in settings["blendshapes"]),
        )
        self._landmarker: Any = None
        self._rows: list[np.ndarray] = []
        try:
            self.start()
        except (RuntimeError, OSError, ValueError) as error:
            raise MissingError(f"{settings['model']} is no face landmarker that MediaPipe can read: {error}") from error

    def start(self) -> None:
        from mediapipe.tasks.python import BaseOptions, vision

        settings = self._settings
        if self._landmarker:
            self._landmarker.close()
        # A new one for every clip: it follows faces, and must not go on with those of the last clip.
        self._landmarker = vision.FaceLandmarker.create_from_options(
            vision.FaceLandmarkerOptions(
                base_options=BaseOptions(model_asset_path=settings["model"]),
                running_mode=vision.RunningMode.VIDEO,
                num_faces=settings["max_faces"],
                min_face_detection_confidence=settings["detection"],
                min_face_presence_confidence=settings["presence"],
                min_tracking_confidence=settings["presence"],
                output_face_blendshapes=True,
                output_facial_transformation_matrixes=True,
            )
        )
        self._rows, self._last = [], -1

    def frame(self, image: np.ndarray, start: float, end: float) -> None:
        import mediapipe

        # Whole milliseconds that rise, as the Tasks API wants them.
        self._last = max(self._last + 1, round(start * 1000))
        picture = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=image)
        found = self._landmarker.detect_for_video(picture, self._last)
        faces = [np.array([(p.x, p.y, p.z) for p in points]) for points in found.face_landmarks]
        if not faces:
            self._rows.append(np.full(len(self.names), np.nan))
            return
        height, width = image.shape[:2]
        # The x scale is z's too. Of several faces the largest: order says nothing, and changes when one is lost.
        meshes = [points * (width, height, width) for points in faces]
        largest = int(np.argmax([np.ptp(mesh[:, 0]) * np.ptp(mesh[:, 1]) for mesh in meshes]))
        matrix = np.asarray(found.facial_transformation_matrixes[largest])
        shapes = found.face_blendshapes[largest]
        if [shape.category_name for shape in shapes] != self._settings["blendshapes"]:
            raise ValueError(f"{self._settings['model']} gives other blendshapes than MediaPipe's 52")
        scores = [shape.score for shape in shapes]
        self._rows.append(np.concatenate([(width, height), meshes[largest].T.ravel(), matrix.ravel(), scores]))

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        rows = np.array(self._rows).reshape(-1, len(self.names))
        return rows, np.isfinite(rows).all(axis=1)


if __name__ == "__main__":
    serve(FaceLandmarker)
