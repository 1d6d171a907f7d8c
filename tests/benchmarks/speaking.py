"""How often `person: speaking` finds who speaks, on two real talkers side by side of whom one is heard.

    python tests/benchmarks/speaking.py FOLDER [--pairs N] [--seed N] [--offset SECONDS] [--still]

FOLDER holds clips of one talker each, such as those of GRID. Both go on talking in the picture, which is harder than
footage, where who listens is mostly silent; with --still, the one who is not heard is frozen but for the first frames.
Each pair gives four cases: the left is heard, the right is heard, left then right, right then left; half of the pairs
are mirrored. Shares are of the frames in which a face was found.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mmfeat.extractors.face_follow import FaceFollower
from mmfeat.extractors.face_nets import FaceNets
from mmfeat.extractors.face_people import People
from mmfeat.media import open_media
from mmfeat.track import Waveform

FPS, RATE = 25, 16000
HEIGHT = 288


@dataclass(frozen=True, eq=False)
class Talker:
    name: str
    images: list[NDArray[np.uint8]]
    """At FPS, HEIGHT pixels high."""
    samples: NDArray[np.float32]
    """At RATE, all equally loud."""

    @property
    def seconds(self) -> float:
        return min(len(self.images) / FPS, len(self.samples) / RATE)


def load(path: Path) -> Talker | None:
    """None where the clip lacks pictures or sound."""
    images: list[NDArray[np.uint8]] = []
    with open_media(path) as media:
        for frame in media.frames():
            while len(images) / FPS < frame.end - 1e-3:
                scale = HEIGHT / frame.image.shape[0]
                images.append(cv2.resize(frame.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
        sound = media.waveform()
    if not images or sound is None or not sound.samples.any():
        return None
    samples = sound.at(RATE).samples
    return Talker(path.parent.name if path.stem.isdigit() else path.stem, images, 0.05 * samples / samples.std())


def cases(
    left: Talker, right: Talker, nets: FaceNets, offset: float, frozen: str = ""
) -> dict[str, tuple[float, float]]:
    """Case → share of frames that are right, and share of frames with a face. `frozen` is `left` or `right`."""
    frames = int(min(left.seconds, right.seconds) * FPS)
    times = np.stack([np.arange(frames), np.arange(frames) + 1], axis=1) / FPS
    follow, people = FaceFollower(nets, 3, 15, 0.5, 0.5, eyes=False, small=True), People("speaking")
    middle = left.images[0].shape[1]
    side: dict[int, int] = {}
    for k in range(frames):
        halves = [
            talker.images[min(k, 5) if frozen == name else k] for name, talker in (("left", left), ("right", right))
        ]
        picture = np.ascontiguousarray(np.hstack(halves))
        faces = follow(picture, k / FPS)
        people.see(k, faces, (picture.shape[1], picture.shape[0]))
        side |= {face.identity: int(face.mesh[:, 0].mean() > middle) for face in faces}
    half = frames // 2
    turns = {"left": [0] * frames, "right": [1] * frames}
    turns |= {"left, right": [0] * half + [1] * (frames - half), "right, left": [1] * half + [0] * (frames - half)}
    found = {}
    for name, heard in turns.items():
        if frozen and name != {"left": "right", "right": "left"}[frozen]:
            continue
        waves = np.stack(
            [np.roll(talker.samples, round(offset * RATE))[: frames * RATE // FPS] for talker in (left, right)]
        )
        samples = waves[np.repeat(heard, RATE // FPS), np.arange(frames * RATE // FPS)]
        seats, _ = people.seats(times, 1, lambda samples=samples: Waveform(samples, RATE))  # type: ignore[misc]
        seen = seats[:, 0] >= 0
        right_ones = [
            side[identity] == who for identity, who in zip(seats[seen, 0], np.array(heard)[seen], strict=True)
        ]
        found[name] = (float(np.mean(right_ones)) if right_ones else 0.0, float(seen.mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--offset", type=float, default=0.0, help="seconds by which the sound comes too late")
    parser.add_argument("--still", action="store_true")
    arguments = parser.parse_args()
    paths = sorted(path for folder in arguments.folder for path in folder.rglob("*.[mM][pPkKoO][4gGvVeE]*"))
    talkers = [talker for path in paths if (talker := load(path))]
    random = np.random.default_rng(arguments.seed)
    nets = FaceNets()
    pairs = list(combinations(talkers, 2))
    chosen = random.permutation(len(pairs))[: arguments.pairs]
    shares: dict[str, list[float]] = defaultdict(list)
    for pair in chosen:
        left, right = pairs[pair] if random.random() < 0.5 else pairs[pair][::-1]
        found = {}
        for frozen in ("left", "right") if arguments.still else ("",):
            found |= cases(left, right, nets, arguments.offset, frozen)
        said = "  ".join(f"{case}: {share:.0%}" for case, (share, _) in found.items())
        print(f"{left.name:>20} | {right.name:<20}  {said}", flush=True)
        for case, (share, _) in found.items():
            shares["turns" if "," in case else "one speaks"].append(share)
    for kind, values in shares.items():
        won = sum(value > 0.5 for value in values)
        print(f"{kind}: {np.mean(values):.1%} of frames right; more than half in {won} of {len(values)}")


if __name__ == "__main__":
    main()
