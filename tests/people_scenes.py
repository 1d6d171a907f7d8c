"""Drawn people before a wall, and whom a follower takes them for."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mmfeat.demo.face import Face, Pose
from mmfeat.extractors.face_follow import FaceFollower
from mmfeat.extractors.face_nets import FaceNets

Image = NDArray[np.uint8]
FPS = 25
WIDTH, HEIGHT = 480, 240


def wall() -> Image:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    soft = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 9)
    return np.interp(soft, (soft.min(), soft.max()), (60, 190)).astype(np.uint8)


def put(scene: Image, face: Face, x: float, pose: Pose | None = None, noise: int = 0, scale: float = 1.0) -> None:
    """Paste the drawn head, an oval, so that its middle lies at x."""
    drawn = face.draw(pose or Pose(), noise)[10:230, 85:235]
    head = cv2.resize(drawn, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    height, width = head.shape[:2]
    oval = np.zeros((height, width), np.float32)
    cv2.ellipse(oval, (width // 2, height // 2), (width // 2 - 3, height // 2 - 3), 0, 0, 360, 1.0, -1)
    oval = cv2.GaussianBlur(oval, (0, 0), 2)[:, :, None]
    left, top = round(x - width / 2), (HEIGHT - height) // 2
    low, high = max(left, 0), min(left + width, WIDTH)
    if low < high:
        part, mask = head[:, low - left : high - left], oval[:, low - left : high - left]
        under = scene[top : top + height, low:high]
        under[:] = np.round(under + (part - under.astype(np.float32)) * mask)


def identities(nets: FaceNets, scenes: list[Image]) -> list[dict[int, float]]:
    """Of each frame: identity → x of its middle."""
    follow = FaceFollower(nets, 3, 15, 0.5, 0.5, eyes=False)
    return [
        {face.identity: float(face.mesh[:, 0].mean()) for face in follow(scene, k / FPS)}
        for k, scene in enumerate(scenes)
    ]


# Identity
