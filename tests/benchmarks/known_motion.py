"""Whether head pose and gaze of `facemesh` follow motion that is known exactly.

    python tests/benchmarks/known_motion.py VIDEO...

A camera that turns sees a picture that is a homography of what it saw before, whatever the scene. So each video is
played twice, as it is and through a camera that swings about one axis; the second run must give the first one's poses
and lines of sight turned by exactly what the camera turned. Besides: a face twice as far away in the picture's terms
doubles Tz, and a mirrored picture has the opposite yaw, roll and sideways gaze. Printed are Pearson r and slope over
what the motion added, and the mean absolute difference in degrees, also of the angles that should not have changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mmfeat.extractors import face_geometry as geometry
from mmfeat.extractors.vision_facemesh import Facemesh, FacemeshConfig
from mmfeat.media import open_media
from mmfeat.track import Frame, Track

Floats = NDArray[np.float64]
Image = NDArray[np.uint8]

ANGLES = ("pose_Rx", "pose_Ry", "pose_Rz", "gaze_angle_x", "gaze_angle_y")
SWINGS = {"pitch": (0, 10.0), "yaw": (1, 10.0), "roll": (2, 25.0)}
"""Name → axis, and how far the camera swings to either side in degrees."""


@dataclass(frozen=True)
class Following:
    """How one angle followed a motion, in degrees."""

    angle: str
    added: float
    """Standard deviation of what the motion should have added to it."""
    r: float
    """Of what was added with what should have been."""
    slope: float
    difference: float
    """Mean absolute difference from what it should be."""


def turn(axis: int, degrees: float) -> Floats:
    """Shape (3, 3): rotation about an axis of the camera."""
    return cv2.Rodrigues(np.eye(3)[axis] * np.radians(degrees))[0]


def through_turned_camera(image: Image, rotation: Floats) -> Image:
    """The picture after the scene has turned about the camera."""
    camera = geometry.camera_matrix(image.shape[1], image.shape[0])
    # Pixels of cv2 are numbered by their centres, the camera's from the corner of the first.
    shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    warp = np.linalg.inv(shift) @ camera @ rotation @ np.linalg.inv(camera) @ shift
    turned = cv2.warpPerspective(image, warp, image.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(turned, np.uint8)


def _columns(track: Track, *names: str) -> Floats:
    return np.stack([track.values[:, track.names.index(name)] for name in names], axis=1).astype(np.float64)


def _turned(track: Track, rotations: Floats) -> Floats:
    """Shape (N, 5): what `ANGLES` should be after the scene has turned."""
    heads = np.stack(
        [turn(0, rx) @ turn(1, ry) @ turn(2, rz) for rx, ry, rz in np.degrees(_columns(track, *ANGLES[:3]))]
    )
    sight = _columns(track, *(f"gaze_{eye}_{axis}" for eye in "01" for axis in "xyz")).reshape(-1, 2, 3)
    angles = geometry.gaze_angles(sight @ np.swapaxes(rotations, 1, 2))
    return np.hstack([geometry.euler_angles(rotations @ heads), angles])


def follow_camera(
    extract: Callable[[list[Frame]], Track], frames: list[Frame], axis: int, reach: float
) -> list[Following]:
    """One per angle, of the video seen through a camera that swings twice to either side."""
    swing = reach * np.sin(np.linspace(0, 4 * np.pi, len(frames)))
    rotations = np.stack([turn(axis, degrees) for degrees in swing])
    moved = [
        replace(frame, image=through_turned_camera(frame.image, rotation))
        for frame, rotation in zip(frames, rotations, strict=True)
    ]
    plain, seen = extract(frames), extract(moved)
    both = plain.valid & seen.valid
    if both.mean() < 0.5:
        raise ValueError("the face is lost in more than half of the frames")
    before = np.degrees(_columns(plain, *ANGLES))[both]
    should = np.degrees(_turned(plain, rotations))[both]
    is_now = np.degrees(_columns(seen, *ANGLES))[both]
    found = []
    for column, angle in enumerate(ANGLES):
        wanted, got = should[:, column] - before[:, column], is_now[:, column] - before[:, column]
        r = float(np.corrcoef(wanted, got)[0, 1])
        slope = float(np.polyfit(wanted, got, 1)[0])
        found.append(Following(angle, float(wanted.std()), r, slope, float(np.abs(got - wanted).mean())))
    return found


def follow_mirror(extract: Callable[[list[Frame]], Track], frames: list[Frame]) -> dict[str, float]:
    """Angle → mean absolute difference in degrees between the video and its mirror image, signs turned back."""
    mirrored = [replace(frame, image=np.ascontiguousarray(frame.image[:, ::-1])) for frame in frames]
    plain, seen = extract(frames), extract(mirrored)
    both = plain.valid & seen.valid
    sign = np.array([1, -1, -1, -1, 1])
    gap = np.abs(np.degrees(_columns(plain, *ANGLES) - sign * _columns(seen, *ANGLES)))[both].mean(axis=0)
    return dict(zip(ANGLES, gap.tolist(), strict=True))


def follow_distance(extract: Callable[[list[Frame]], Track], frames: list[Frame]) -> float:
    """Factor of Tz where the picture shrinks to half its size in a frame that stays; 2 is right."""

    def shrink(image: Image) -> Image:
        height, width = image.shape[:2]
        warp = np.array([[0.5, 0, width / 4], [0, 0.5, height / 4]])
        return np.asarray(cv2.warpAffine(image, warp, (width, height), flags=cv2.INTER_AREA), np.uint8)

    plain, seen = extract(frames), extract([replace(frame, image=shrink(frame.image)) for frame in frames])
    both = plain.valid & seen.valid
    return float((_columns(seen, "pose_Tz")[both] / _columns(plain, "pose_Tz")[both]).mean())


def noise(extract: Callable[[list[Frame]], Track], frames: list[Frame]) -> dict[str, float]:
    """Angle → standard deviation in degrees of the part that no smooth motion explains (second differences)."""
    track = extract(frames)
    angles = np.degrees(_columns(track, *ANGLES))
    apart = (angles[2:] - 2 * angles[1:-1] + angles[:-2])[track.valid[2:] & track.valid[1:-1] & track.valid[:-2]]
    # Of independent noise, the second difference has six times the variance; the median forgives blinks and cuts.
    return dict(zip(ANGLES, (1.4826 * np.median(np.abs(apart), axis=0) / np.sqrt(6)).tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO")
    parser.add_argument("--frames", type=int, default=75)
    arguments = parser.parse_args()
    extract = Facemesh(FacemeshConfig(columns=("pose", "gaze")))
    for video in arguments.videos:
        with open_media(video) as media:
            frames = list(islice(media.frames(), arguments.frames))
        print(f"{video.name}: {len(frames)} frames")
        for name, (axis, reach) in SWINGS.items():
            print(f"  camera swings in {name} by ±{reach:.0f}°{'added':>12}{'r':>8}{'slope':>8}{'difference':>12}")
            for one in follow_camera(extract, frames, axis, reach):
                follows = f"{one.r:8.3f}{one.slope:8.2f}" if one.added > 1 else " " * 16
                print(f"    {one.angle:<30}{one.added:10.2f}°{follows}{one.difference:11.2f}°")
        mirror = "  ".join(f"{angle} {gap:.2f}°" for angle, gap in follow_mirror(extract, frames).items())
        print(f"  mirrored, mean difference: {mirror}")
        print(f"  half the size: Tz times {follow_distance(extract, frames):.3f}")
        print("  noise: " + "  ".join(f"{angle} {sd:.2f}°" for angle, sd in noise(extract, frames).items()))


if __name__ == "__main__":
    main()
