"""How far the landmarks and measures of `facemesh` agree with dlib's 68-point predictor, a second opinion on any video.

    python -m venv dl
    dl/bin/pip install dlib-bin face-recognition-models==0.3.0 numpy opencv-python-headless 'setuptools<80'
    python tests/benchmarks/vs_dlib.py --dlib dl/bin/python VIDEO...

dlib's predictor was trained on iBUG's own annotations and shares nothing with the face mesh, so it shows on people for
whom there is no OpenFace output where the 68 points lie, and whether the measures follow the same distances on its
points (roll and size removed; a head that turns far distorts them). Its points jitter: errors are upper bounds, r are
lower bounds. The shares in `face_points` were fitted to its points once; OpenFace's output is the test of them.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmfeat.extractors.vision_facemesh import Facemesh, FacemeshConfig
from mmfeat.media import open_media
from mmfeat.track import Track

Floats = NDArray[np.float64]

_DLIB = """
import sys
import cv2, dlib, numpy
import face_recognition_models as models
find, fit = dlib.get_frontal_face_detector(), dlib.shape_predictor(models.pose_predictor_model_location())
found = []
for image in numpy.load(sys.argv[1]):
    scale = 640 / max(image.shape)
    image = cv2.resize(image, None, fx=scale, fy=scale)
    faces = find(image, 0)
    points = [[numpy.nan] * 2] * 68
    if faces:
        points = [[p.x, p.y] for p in fit(image, max(faces, key=lambda face: face.area())).parts()]
    found.append(numpy.array(points) / scale)
numpy.save(sys.argv[2], numpy.array(found))
"""
REGIONS = {"jaw": (0, 17), "brows": (17, 27), "nose": (27, 36), "eyes": (36, 48), "mouth": (48, 68)}


def _gap(points: Floats, one: list[int], other: list[int]) -> Floats:
    return np.linalg.norm(points[:, one] - points[:, other], axis=2).mean(axis=1)


def _height(points: Floats, low: list[int], high: list[int]) -> Floats:
    return points[:, low, 1].mean(axis=1) - points[:, high, 1].mean(axis=1)


SAME: dict[str, Callable[[Floats], Floats]] = {
    "lip_parting": lambda p: _gap(p, [61, 62, 63], [67, 66, 65]),
    "jaw_drop": lambda p: _gap(p, [33], [8]),
    "lip_stretch": lambda p: _gap(p, [48], [54]),
    "lip_corner_pull": lambda p: (_gap(p, [48], [54]) - p[:, [48, 54], 1].mean(axis=1)) / 2,
    "brow_raise_inner": lambda p: _height(p, [39, 42], [20, 21, 22, 23]),
    "brow_raise_outer": lambda p: _height(p, [36, 45], [17, 18, 25, 26]),
    "brow_furrow": lambda p: -_height(p, [39, 42], [20, 21, 22, 23]) - _gap(p, [21], [22]) / 3,
    "eye_closure": lambda p: -_gap(p, [37, 38, 43, 44], [41, 40, 47, 46]),
}
"""Measure → the same distance on dlib's points, eyes level, outer corners 1 apart."""


def dlib_points(images: NDArray[np.uint8], python: str) -> Floats:
    """Shape (N, 68, 2) in pixels; NaN where dlib sees no face."""
    with tempfile.TemporaryDirectory() as folder:
        given, taken = Path(folder) / "images.npy", Path(folder) / "points.npy"
        np.save(given, images)
        subprocess.run([python, "-c", _DLIB, str(given), str(taken)], check=True, stderr=subprocess.DEVNULL)
        return np.load(taken)


def levelled(points: Floats) -> Floats:
    """The points with the eyes level and the outer corners 1 apart."""
    across = points[:, 45] - points[:, 36]
    length = np.linalg.norm(across, axis=1)
    cos, sin = (across / length[:, None]).T
    turn = np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)
    return (points - points[:, 36:48].mean(axis=1, keepdims=True)) @ turn / length[:, None, None]


def report(track: Track, points: Floats, rows: NDArray[np.intp]) -> str:
    both = np.isfinite(points).all(axis=(1, 2)) & track.valid[rows]
    theirs, rows = points[both], rows[both]
    column = {name: track.values[rows, place].astype(np.float64) for place, name in enumerate(track.names)}
    mine = np.stack([[column[f"{axis}_{point}"] for point in range(68)] for axis in "xy"], axis=-1).swapaxes(0, 1)
    error = np.linalg.norm(mine - theirs, axis=2) / np.linalg.norm(theirs[:, 36] - theirs[:, 45], axis=1)[:, None]
    parts = "  ".join(f"{name} {100 * error[:, a:b].mean():.1f}" for name, (a, b) in REGIONS.items())
    flat = levelled(theirs)
    lines = [f"  {both.sum()} frames; landmarks {100 * error.mean():.2f} % of inter-ocular distance: {parts}"]
    for name, distance in SAME.items():
        other = distance(flat)
        lines.append(f"    {name:<20} r {np.corrcoef(column[name], other)[0, 1]:5.2f}   moved {other.std():.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO")
    parser.add_argument("--dlib", required=True, metavar="PYTHON", help="interpreter that has dlib")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--every", type=int, default=10, help="frames between those shown to dlib")
    arguments = parser.parse_args()
    extract = Facemesh(FacemeshConfig(columns=("landmarks_px", "measures")))
    for video in arguments.videos:
        with open_media(video) as media:
            frames = list(islice(media.frames(), arguments.frames))
        rows = np.arange(0, len(frames), arguments.every)
        points = dlib_points(np.stack([frames[row].image for row in rows]), arguments.dlib)
        print(f"{video.name}\n{report(extract(frames), points, rows)}")


if __name__ == "__main__":
    main()
