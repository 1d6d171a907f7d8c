"""py-feat 2's multitask detector: 478 points, action units, emotions, valence and arousal, gaze, blendshapes."""

from __future__ import annotations

import functools
import sys
import types
from typing import Any

import numpy as np
from server import serve
from torchvision_build import import_torchvision

POINTS = 478


class PyFeat:
    @staticmethod
    def load() -> None:
        import_torchvision()
        # It reads video files, which is not asked here, with FFmpeg's libraries, which a machine need not have.
        sys.modules["torchcodec"] = types.ModuleType("torchcodec")
        sys.modules["torchcodec.decoders"] = decoders = types.ModuleType("torchcodec.decoders")
        decoders.VideoDecoder = None  # type: ignore[attr-defined]
        import feat.detector_v2  # noqa: F401

    def __init__(self, settings: dict[str, Any]) -> None:
        from feat import detector_v2
        from feat.face_detectors.Retinaface.Retinaface_test import Retinaface
        from safetensors.torch import load_file

        faces, heads = settings["weights"]
        # With our files of weights: those that it would download itself change with its makers' repository.
        detector_v2.Retinaface = functools.partial(Retinaface, pretrained="")
        self._detector = detector_v2.Detectorv2(
            settings["device"], settings["detection"], identity_model=None, multitask_weights=heads
        )
        net = self._detector.face_detector.net
        net.load_state_dict(load_file(faces, device=str(self._detector.device)), strict=True)
        self._least = settings["detection"]
        self.names = tuple(settings["names"])
        self._rows: list[np.ndarray] = []

    def start(self) -> None:
        self._rows = []

    def frame(self, image: np.ndarray, start: float, end: float) -> None:
        import torch
        from feat.data import TensorDataset
        from torch.utils.data import DataLoader

        pictures = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        (batch,) = DataLoader(TensorDataset(pictures), batch_size=1)
        table = self._detector.forward(self._detector.detect_faces(batch["Image"], self._least), batch)
        areas = (table["FaceRectWidth"] * table["FaceRectHeight"]).to_numpy(np.float64)
        row = np.full(len(self.names), np.nan)
        if np.isfinite(areas).any():
            row = table.iloc[int(np.nanargmax(areas))][list(self.names)].to_numpy(np.float64)
        self._rows.append(row)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        rows = np.array(self._rows, np.float64).reshape(-1, len(self.names))
        return rows, np.asarray(np.isfinite(rows).all(axis=1))


if __name__ == "__main__":
    serve(PyFeat)
