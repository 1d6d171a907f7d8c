"""CPU time of `facemesh` per frame without decoding, as found, at 1080p, and beside MediaPipe's FaceMesh.

    python tests/benchmarks/vision_speed.py VIDEO [--mediapipe PYTHON]

PYTHON is an interpreter in an environment of its own, as MediaPipe's pins clash with ours:

    python -m venv mp && mp/bin/pip install mediapipe==0.10.21      # then --mediapipe mp/bin/python

All figures are CPU time of all threads, so that other work on the machine counts for little. MediaPipe's net computes
mesh and irises at once, on operators of its own that LiteRT does not have; `facemesh` runs three nets.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from mmfeat.extractors.vision_facemesh import Facemesh, FacemeshConfig
from mmfeat.media import open_media
from mmfeat.track import Frame

_MEDIAPIPE = """
import sys, time
import cv2, numpy
from mediapipe import solutions
cv2.setNumThreads(1)
frames = numpy.load(sys.argv[1])
mesh = solutions.face_mesh.FaceMesh(refine_landmarks=True, max_num_faces=1)
times = []
for _ in range(3):
    began = time.process_time()
    for frame in frames:
        mesh.process(frame)
    times.append((time.process_time() - began) * 1000 / len(frames))
print(min(times))
"""


def ours(frames: list[Frame], config: FacemeshConfig | None = None) -> float:
    """Milliseconds of CPU per frame, best of three runs: other work on the machine only ever adds."""
    extractor = Facemesh(config or FacemeshConfig())
    times = []
    for _ in range(3):
        began = time.process_time()
        extractor(frames)
        times.append((time.process_time() - began) * 1000 / len(frames))
    return min(times)


def mediapipe(frames: list[Frame], python: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.npy"
        np.save(path, np.stack([frame.image for frame in frames]))
        command = [python, "-c", _MEDIAPIPE, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--mediapipe", metavar="PYTHON")
    arguments = parser.parse_args()
    with open_media(arguments.video) as media:
        frames = list(islice(media.frames(), arguments.frames))
    height, width = frames[0].image.shape[:2]
    base = ours(frames)
    print(f"facemesh, {width} x {height}: {base:.2f} ms per frame; aim ≤ 3.5 at 640 x 360")
    pose = ours(frames, FacemeshConfig(columns=("pose",)))
    print(f"head pose only, so without the iris net: {pose:.2f} ms, {pose / base:.2f} of it")
    few = frames[:50]
    large, small = (
        [replace(frame, image=cv2.resize(frame.image, size)) for frame in few] for size in ((1920, 1080), (640, 360))
    )
    at_1080, at_360 = ours(large), ours(small)
    print(f"1920 x 1080 {at_1080:.2f} ms, 640 x 360 {at_360:.2f} ms: {at_1080 / at_360:.2f} times as much; aim ≤ 1.5")
    if arguments.mediapipe:
        theirs = mediapipe(frames, arguments.mediapipe)
        print(f"MediaPipe FaceMesh with iris: {theirs:.2f} ms; facemesh takes {base / theirs:.2f} times that")


if __name__ == "__main__":
    main()
