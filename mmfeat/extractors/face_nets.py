"""BlazeFace, the 468-point face mesh and the iris net through LiteRT: images in, points in pixels of the frame out.

What goes in and comes out of each net is MediaPipe's: Bazarevsky et al. 2019 (arXiv 1907.05047), Kartynnik et al. 2019
(arXiv 1907.06724), Ablavatski et al. 2020 (arXiv 2006.11341).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from mmfeat import models

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

NETS = ("face_detection_short_range", "face_landmark", "iris_landmark")
"""Names of the model files."""
_DETECTION_SIDE, _MESH_SIDE, _IRIS_SIDE = 128, 192, 64
_LIDS, _IRIS = 16, 5


@dataclass(frozen=True)
class Region:
    """A rotated square of the frame, in pixels; `angle` in radians turns its x axis from the frame's."""

    x: float
    y: float
    side: float
    angle: float = 0.0

    def to_frame(self, size: int, mirrored: bool = False) -> NDArray[np.float64]:
        """Shape (2, 3): the affine map from points of the square cut out as size x size pixels to the frame."""
        scale = self.side / size
        cos, sin = scale * np.cos(self.angle), scale * np.sin(self.angle)
        flip = -1.0 if mirrored else 1.0
        half = size / 2
        turn = np.array([[flip * cos, -sin], [flip * sin, cos]])
        return np.column_stack([turn, (self.x, self.y) - turn @ (half, half)])

    def cut(self, image: Image, size: int, mirrored: bool = False) -> Floats:
        """The square as (1, size, size, 3), values 0 to 1, in one warp; beyond the frame its border is repeated."""
        warp = self.to_frame(size, mirrored)
        # Points are measured from the corner of the first pixel, cv2 measures from its centre.
        warp[:, 2] += warp[:, :2] @ (0.5, 0.5) - 0.5
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        crop = cv2.warpAffine(image, warp, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        floats = crop[None].astype(np.float32)
        floats *= np.float32(1 / 255)
        return floats


@dataclass(frozen=True, eq=False)
class Detection:
    """A face that BlazeFace sees: box (left, top, right, bottom) and two eyes, in pixels."""

    box: Floats
    eyes: Floats
    """Shape (2, 2): the person's right eye, then the left."""
    score: float

    @property
    def region(self) -> Region:
        """What the mesh wants to see: the box upright on the eyes and half as large again."""
        left, top, right, bottom = self.box
        across = self.eyes[1] - self.eyes[0]
        side = 1.5 * max(right - left, bottom - top)
        return Region((left + right) / 2, (top + bottom) / 2, side, float(np.arctan2(across[1], across[0])))


class _Net:
    def __init__(self, path: Path):
        with _without_greeting():
            self._interpreter = Interpreter(str(path), num_threads=1)
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        # Told apart by size, not by order: converters reorder outputs.
        outputs = self._interpreter.get_output_details()
        self._outputs = [out["index"] for out in sorted(outputs, key=lambda out: -np.prod(out["shape"]))]

    def __call__(self, batch: Floats) -> list[Floats]:
        """All outputs, the largest first."""
        self._interpreter.set_tensor(self._input, batch)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index)[0] for index in self._outputs]


@contextlib.contextmanager
def _without_greeting() -> Iterator[None]:
    """LiteRT greets on the process's standard error, in the middle of a progress bar; all else it says is passed on."""
    try:
        stderr = os.dup(2)
    except OSError:  # a process without standard error
        yield
        return
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said:
                if not line.startswith(b"INFO: Created TensorFlow Lite XNNPACK delegate"):
                    os.write(2, line)


class FaceNets:
    """The three nets, loaded. Raises MissingModelError where their files were not pulled."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)  # one clip, one thread: clips run in parallel
        self._detect, self._mesh, self._iris = (_Net(models.local(name)) for name in NETS)
        self._anchors = _anchors()

    def detect(
        self, image: Image, threshold: float, window: tuple[int, int, int, int] | None = None
    ) -> list[Detection]:
        """Faces in the image or in a window (left, top, right, bottom) of it, the surest first."""
        left, top, right, bottom = window or (0, 0, image.shape[1], image.shape[0])
        part = image[top:bottom, left:right]
        scale = _DETECTION_SIDE / max(part.shape[:2])
        width, height = (max(1, round(length * scale)) for length in (part.shape[1], part.shape[0]))
        canvas = np.zeros((1, _DETECTION_SIDE, _DETECTION_SIDE, 3), np.float32)
        small = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
        canvas[0, :height, :width] = small
        canvas *= 1 / 127.5
        canvas -= 1.0
        boxes, logits = self._detect(canvas)
        scores = _sigmoid(logits[:, 0])
        keep = scores >= threshold
        points = boxes[keep].reshape(-1, 8, 2) / _DETECTION_SIDE
        points[:, [0, *range(2, 8)]] += self._anchors[keep, None]
        # Rounding of the resized sides makes the scales of the axes differ a little.
        points *= np.array([part.shape[1] / width, part.shape[0] / height], np.float32) * _DETECTION_SIDE
        origin = np.array([left, top], np.float32)
        middle, extent = points[:, 0] + origin, points[:, 1]
        corners = np.concatenate([middle - extent / 2, middle + extent / 2], axis=1)
        eyes = points[:, 2:4] + origin
        return [Detection(*merged) for merged in _merge(corners, eyes, scores[keep])]

    def mesh(self, image: Image, region: Region) -> tuple[Floats, float]:
        """468 points (x, y, z) in pixels, z growing away from the camera, and the score that a face is there."""
        flat, logit = self._mesh(region.cut(image, _MESH_SIDE))
        return _place(flat.reshape(-1, 3), region.to_frame(_MESH_SIDE)), float(_sigmoid(logit).item())

    def eye(self, image: Image, outer: Floats, inner: Floats, is_left: bool) -> tuple[Floats, Floats]:
        """Lids (16, 2) and iris (5, 2; centre first) in pixels, from the two corners of an eye in pixels."""
        across = (outer - inner if is_left else inner - outer)[:2]
        x, y = (outer + inner)[:2] / 2
        # The net knows right eyes only (on the image's left) and sees them at 2.3 times their width.
        region = Region(float(x), float(y), 2.3 * float(np.hypot(*across)), float(np.arctan2(across[1], across[0])))
        lids, iris = self._iris(region.cut(image, _IRIS_SIDE, mirrored=is_left))
        points = np.concatenate([lids.reshape(-1, 3)[:_LIDS], iris.reshape(_IRIS, 3)])
        placed = _place(points, region.to_frame(_IRIS_SIDE, mirrored=is_left))[:, :2]
        return placed[:_LIDS], placed[_LIDS:]


def _sigmoid(logits: Floats) -> Any:
    return 1 / (1 + np.exp(-np.clip(logits, -50, 50)))


def _place(points: Floats, to_frame: NDArray[np.float64]) -> Floats:
    """Points (n, 3) of a crop in the frame; depth scales with the plane."""
    placed = np.empty_like(points)
    placed[:, :2] = points[:, :2] @ to_frame[:, :2].T + to_frame[:, 2]
    placed[:, 2] = points[:, 2] * np.hypot(to_frame[0, 0], to_frame[1, 0])
    return placed


def _anchors() -> Floats:
    """Shape (896, 2): centres of BlazeFace's anchors, 2 per cell of a 16 x 16 grid and 6 per cell of an 8 x 8 grid."""
    grids = []
    for cells, repeats in ((16, 2), (8, 6)):
        centres = (np.arange(cells, dtype=np.float32) + 0.5) / cells
        x, y = np.meshgrid(centres, centres)
        grids.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), repeats, axis=0))
    return np.concatenate(grids)


def _merge(boxes: Floats, eyes: Floats, scores: Floats) -> list[tuple[Floats, Floats, float]]:
    """Non-maximum suppression that averages overlapping answers by score, as BlazeFace's authors do against jitter."""
    found = []
    left = np.argsort(-scores, kind="stable")
    while len(left):
        near = overlap(boxes[left[0]], boxes[left]) > 0.3
        near[0] = True  # also where the box has no area
        group, left = left[near], left[~near]
        weights = scores[group] / scores[group].sum()
        found.append(
            (np.tensordot(weights, boxes[group], 1), np.tensordot(weights, eyes[group], 1), float(scores[group[0]]))
        )
    return found


def overlap(box: Floats, boxes: Floats) -> Floats:
    """Intersection over union of one box (left, top, right, bottom) with each of (n, 4)."""
    shared = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None).prod(axis=1)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    union = np.clip(box[2:] - box[:2], 0, None).prod() + areas - shared
    return shared / np.maximum(union, 1e-9)
