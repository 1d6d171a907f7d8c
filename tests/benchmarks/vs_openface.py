"""How far `facemesh` agrees with OpenFace 2 on one video.

    python tests/benchmarks/vs_openface.py VIDEO CSV

CSV is what OpenFace's FeatureExtraction wrote for VIDEO. Compared are the frames in which both see a face: landmark
error over inter-ocular distance, head pose, gaze, and each expression measure with the action unit that it stands for.
A correlation says nothing where the thing measured keeps still: how far it moved is printed beside it, and an aim is
judged only where it moved by more than 5 degrees, or by more than half a step of OpenFace's intensities (0 to 5).
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmfeat.extractors.vision_facemesh import Facemesh, FacemeshConfig
from mmfeat.media import MediaError, open_media
from mmfeat.track import Track

Floats = NDArray[np.float64]

ACTION_UNITS = {
    "AU01": "brow_raise_inner",
    "AU02": "brow_raise_outer",
    "AU04": "brow_furrow",
    "AU05": "upper_lid_raise",
    "AU07": "lower_lid_raise",
    "AU09": "nose_wrinkle",
    "AU10": "upper_lip_raise",
    "AU12": "lip_corner_pull",
    "AU15": "lip_corner_raise",
    "AU17": "chin_raise",
    "AU20": "lip_stretch",
    "AU23": "lip_tighten",
    "AU25": "lip_parting",
    "AU26": "jaw_drop",
    "AU45": "eye_closure",
}
"""OpenFace's action unit → the measure that should follow it (AU15, lip corners down, with the opposite sign)."""
AIMED_AT = ("AU01", "AU02", "AU04", "AU12", "AU25", "AU26", "AU45")
"""Action units that the measures should follow wherever they vary; the others are printed for comparison."""
_OTHER_CLIP = 0.3
"""Landmark error over inter-ocular distance beyond which two different faces must have been measured."""
_REGIONS = {"jaw": (0, 17), "brows": (17, 27), "nose": (27, 36), "eyes": (36, 48), "mouth": (48, 68)}


@dataclass(frozen=True)
class Agreement:
    """Of one pair of columns."""

    ours: str
    theirs: str
    r: float
    """Pearson correlation; NaN where either keeps still."""
    moved: float
    """1st to 99th percentile of OpenFace's values: a blink or two are in."""
    offset: float
    """Median of ours less theirs."""
    difference: float
    """Mean absolute difference after the offset."""

    def verdict(self, moves: float, least_r: float, most_difference: float = float("inf")) -> str:
        """`still` where OpenFace's values move by no more than `moves`, else whether the aim is `met` or `missed`."""
        if self.moved <= moves:
            return "still"
        return "met" if self.r >= least_r and self.difference <= most_difference else "missed"


@dataclass(frozen=True)
class Comparison:
    frames: int
    """In which both see a face."""
    landmarks: dict[str, float]
    """Mean error over inter-ocular distance: `all`, then by region."""
    pose: list[Agreement]
    """Rotations, in degrees."""
    gaze: list[Agreement]
    """In degrees, while the eyes are open."""
    measures: list[Agreement]


def read_openface(path: Path) -> dict[str, Floats]:
    """Column → values, of the face seen most often; older versions put blanks into the header.

    Raises ValueError where the file is none of OpenFace's.
    """
    with path.open(newline="") as file:
        table = list(csv.reader(file, skipinitialspace=True))
    names = [name.strip() for name in table[0]] if table else []
    if "timestamp" not in names:
        raise ValueError("not what OpenFace writes: no column timestamp")
    if len(table) < 2:
        raise ValueError("no rows")
    values = np.array(table[1:], np.float64)
    columns = {name: values[:, column] for column, name in enumerate(names)}
    faces, counts = np.unique(columns.get("face_id", np.zeros(len(values))), return_counts=True)
    chosen = columns.get("face_id", np.zeros(len(values))) == faces[counts.argmax()]
    return {name: column[chosen] for name, column in columns.items()}


def compare(track: Track, theirs: dict[str, Floats]) -> Comparison:
    """`track` holds the columns pose, gaze, landmarks_px and measures. Raises ValueError where no frame is common."""
    # OpenFace's timestamps are rounded to milliseconds.
    rows = np.searchsorted(track.times[:, 0] + 0.002, theirs["timestamp"])
    rows = np.clip(rows, 0, len(track) - 1)
    near = np.abs(track.times[rows, 0] - theirs["timestamp"]) < 0.02
    both = near & (theirs["success"] == 1) & (theirs["confidence"] > 0.7) & track.valid[rows]
    if both.sum() < 2:
        raise ValueError("fewer than two frames in which both see a face")
    openface = {name: values[both] for name, values in theirs.items()}
    ours = {name: track.values[rows[both], column].astype(np.float64) for column, name in enumerate(track.names)}

    def agree(mine: str, other: str, scale: float = 1.0, where: slice | NDArray[np.bool_] = slice(None)) -> Agreement:
        a, b = ours[mine][where] * scale, openface[other][where] * scale
        still = a.std() < 1e-9 or b.std() < 1e-9
        offset = float(np.median(a - b))
        low, high = np.percentile(b, (1, 99))
        r = float("nan") if still else float(np.corrcoef(a, b)[0, 1])
        return Agreement(mine, other, r, float(high - low), offset, float(np.abs(a - b - offset).mean()))

    degrees = 180 / np.pi
    # A shut eye looks nowhere: both then report what they make of the lashes.
    is_open = openface["AU45_r"] < 1 if "AU45_r" in openface else slice(None)
    return Comparison(
        int(both.sum()),
        _landmark_error(ours, openface),
        [agree(f"pose_R{axis}", f"pose_R{axis}", degrees) for axis in "xyz"],
        [
            agree(f"gaze_angle_{axis}", f"gaze_angle_{axis}", degrees, is_open)
            for axis in "xy"
            if f"gaze_angle_{axis}" in openface
        ],
        [agree(name, f"{unit}_r") for unit, name in ACTION_UNITS.items() if f"{unit}_r" in openface],
    )


def _landmark_error(ours: dict[str, Floats], theirs: dict[str, Floats]) -> dict[str, float]:
    def points(columns: dict[str, Floats]) -> Floats:
        return np.stack([[columns[f"{axis}_{point}"] for point in range(68)] for axis in "xy"], axis=-1)

    mine, other = points(ours), points(theirs)
    error = np.linalg.norm(mine - other, axis=2) / np.linalg.norm(other[36] - other[45], axis=1)
    by_region = {name: float(error[first:stop].mean()) for name, (first, stop) in _REGIONS.items()}
    return {"all": float(error.mean()), **by_region}


def run(video: Path) -> tuple[Track, float]:
    """The track that `compare` needs, and CPU milliseconds per frame without decoding."""
    extractor = Facemesh(FacemeshConfig(columns=("pose", "gaze", "landmarks_px", "measures")))
    with open_media(video) as media:
        frames = list(media.frames())
    began = time.process_time()
    track = extractor(frames)
    return track, (time.process_time() - began) * 1000 / max(1, len(track))


def report(found: Comparison) -> str:
    lines = [f"{found.frames} frames with a face in both", "", "landmark error / inter-ocular distance"]
    lines += [f"  {name:<8}{100 * error:6.2f} %" for name, error in found.landmarks.items()]
    lines[-len(found.landmarks)] += f"  aim ≤ 4 %: {'met' if found.landmarks['all'] <= 0.04 else 'missed'}"

    def table(title: str, unit: str, rows: list[tuple[Agreement, str]]) -> None:
        lines.extend(["", f"{title:<42}{'r':>8}{'moved':>10}{'offset':>10}{'difference':>12}"])
        for one, verdict in rows:
            name = one.ours if one.ours == one.theirs else f"{one.ours} – {one.theirs}"
            scaled = f"{one.offset:9.2f}{unit}{one.difference:11.2f}{unit}" if unit else " " * 22
            lines.append(f"  {name:<40}{one.r:8.2f}{one.moved:9.2f}{unit or ' '}{scaled}  {verdict}".rstrip())

    table("head pose: r ≥ 0.95, difference ≤ 3°", "°", [(one, one.verdict(5, 0.95, 3)) for one in found.pose])
    table("gaze, eyes open: r ≥ 0.6", "°", [(one, one.verdict(5, 0.6)) for one in found.gaze])
    units = [(one, one.verdict(0.5, 0.6) if one.theirs[:4] in AIMED_AT else "") for one in found.measures]
    table("measures and action units: r ≥ 0.6", "", units)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("csv", type=Path, help="OpenFace 2's output for the video")
    arguments = parser.parse_args()
    try:
        theirs = read_openface(arguments.csv)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        parser.error(f"{arguments.csv}: {error}")
    try:
        track, milliseconds = run(arguments.video)
    except (OSError, MediaError) as error:
        parser.error(f"{arguments.video}: {error}")
    try:
        found = compare(track, theirs)
    except KeyError as error:
        parser.error(f"{arguments.csv}: no column {error}")
    except ValueError as error:
        parser.error(f"{arguments.video} and {arguments.csv}: {error}")
    print(report(found))
    if found.landmarks["all"] > _OTHER_CLIP:
        print("\nThe landmarks are so far apart that video and CSV seem to be of different clips.")
    elif len(track) != len(theirs["timestamp"]):
        print(f"\nThe video has {len(track)} frames, the CSV {len(theirs['timestamp'])} rows.")
    print(f"\n{milliseconds:.2f} ms of CPU per frame without decoding")


if __name__ == "__main__":
    main()
