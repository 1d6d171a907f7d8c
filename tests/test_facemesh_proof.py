"""facemesh on real footage: what is taken for a face, and agreement with OpenFace and with motion that is known."""

from __future__ import annotations

import importlib.util
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mmfeat import models
from mmfeat.extractors.face_nets import NETS
from mmfeat.extractors.vision_facemesh import Facemesh, FacemeshConfig
from mmfeat.media import open_media
from mmfeat.track import Frame, Track

Image = NDArray[np.uint8]


@pytest.fixture(scope="module")
def facemesh() -> Facemesh:
    models.pull(NETS)
    return Facemesh(FacemeshConfig(columns=("pose", "gaze", "landmarks_px", "measures")))


def clip(images: list[Image]) -> list[Frame]:
    return [Frame(image, index / 25, (index + 1) / 25) for index, image in enumerate(images)]


FOUND = {
    "talking/WDA_KatieHill_000.mp4": 0.98,
    "talking/vr_face2.mp4": 0.98,
    "talking/vr_face4.mp4": 0.98,
    "silent/d11.mp4": 0.98,
    "silent/d18.mp4": 0.98,
    "silent/d20.mp4": 0.98,
    "silent/single_face.mp4": 0.98,
    "silent/WolfgangLanger_Pexels.mp4": 0.98,
    "odd/test_video_multi_5_frames.mp4": 0.98,  # several small faces, and a flag that BlazeFace takes for one
    "grid/Raw/bbaf2n/0001.mpg": 0.98,
    "grid/Raw/sbwe5n/0001.mpg": 0.98,
}


@pytest.mark.parametrize("name", FOUND)
def test_faces_are_found_in_real_footage(facemesh: Facemesh, shared_data: Path, name: str) -> None:
    with open_media(shared_data / name) as media:
        track = facemesh(islice(media.frames(), 100))
    assert track.valid.mean() >= FOUND[name]


def test_no_face_is_found_where_there_is_none(facemesh: Facemesh, shared_data: Path) -> None:
    with open_media(shared_data / "silent/no_face.mp4") as media:
        assert not facemesh(media.frames()).valid.any()


@pytest.mark.parametrize("change", ["as it is", "mirrored", "twice as large", "later"])
def test_a_drawn_animal_is_no_face(facemesh: Facemesh, shared_data: Path, change: str) -> None:
    """The mesh fits a rabbit's head in every tenth frame when it is asked once."""
    with open_media(shared_data / "odd/big_buck_bunny_small.mp4") as media:
        images = [frame.image for frame in islice(media.frames(), 80)]
    alter = {
        "as it is": lambda: images,
        "mirrored": lambda: [np.ascontiguousarray(image[:, ::-1]) for image in images],
        "twice as large": lambda: [cv2.resize(image, None, fx=2, fy=2) for image in images],
        "later": lambda: images[14:],
    }
    assert not facemesh(clip(alter[change]())).valid.any()


@pytest.mark.parametrize("worse", ["dark", "noisy", "grey", "rolled"])
def test_faces_are_found_in_bad_pictures(facemesh: Facemesh, shared_data: Path, worse: str) -> None:
    """What tells animals from faces does not cost faces."""
    with open_media(shared_data / "grid/Raw/brbk7n/0001.mpg") as media:
        image = next(iter(media.frames())).image
    height, width = image.shape[:2]
    made = {
        "dark": lambda: (image * 0.12).astype(np.uint8),
        "noisy": lambda: np.clip(image + np.random.default_rng(0).normal(0, 40, image.shape), 0, 255).astype(np.uint8),
        "grey": lambda: np.repeat(image.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2),
        "rolled": lambda: cv2.warpAffine(
            image, cv2.getRotationMatrix2D((width / 2, height / 2), 40, 1), (width, height)
        ),
    }
    assert facemesh(clip([made[worse]()])).valid.all()


def test_a_face_that_leaves(facemesh: Facemesh, shared_data: Path) -> None:
    with open_media(shared_data / "odd/face_noface.mov") as media:
        valid = facemesh(media.frames()).valid
    edges = np.flatnonzero(np.diff(valid.astype(int)))
    assert len(edges) == 1 and valid[0] and not valid[-1]


def benchmark(name: str) -> ModuleType:
    path = Path(__file__).parent / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def known_motion() -> ModuleType:
    return benchmark("known_motion")


@pytest.fixture(scope="module")
def vs_openface() -> ModuleType:
    return benchmark("vs_openface")


@pytest.mark.parametrize("name", ["pitch", "yaw", "roll"])
@pytest.mark.parametrize("video", ["silent/d18.mp4", "talking/WDA_KatieHill_000.mp4"])
def test_pose_and_gaze_turn_with_the_camera(
    facemesh: Facemesh, known_motion: ModuleType, shared_data: Path, video: str, name: str
) -> None:
    """A camera that turns gives a homography of what it saw, so what must come out is known exactly."""
    with open_media(shared_data / video) as media:
        frames = list(islice(media.frames(), 30))
    axis, reach = known_motion.SWINGS[name]
    for angle in known_motion.follow_camera(facemesh, frames, axis, reach):
        assert angle.difference < 2, angle
        if angle.added > 5:
            assert angle.r > 0.97 and 0.9 < angle.slope < 1.15, angle


def test_a_mirrored_face_has_mirrored_angles(facemesh: Facemesh, known_motion: ModuleType, shared_data: Path) -> None:
    with open_media(shared_data / "silent/d18.mp4") as media:
        frames = list(islice(media.frames(), 30))
    assert max(known_motion.follow_mirror(facemesh, frames).values()) < 1.5
    assert known_motion.follow_distance(facemesh, frames) == pytest.approx(2, rel=0.05)


def test_aims_are_judged_only_where_something_moves(vs_openface: ModuleType) -> None:
    """What keeps still proves nothing, and NaN is no agreement."""

    def verdict(r: float, moved: float, difference: float = 1.0) -> str:
        return str(vs_openface.Agreement("a", "b", r, moved, 0.0, difference).verdict(5, 0.95, 3))

    assert verdict(0.99, 4) == verdict(0.1, 5) == "still"
    assert verdict(0.96, 6) == "met"
    assert verdict(0.94, 6) == verdict(float("nan"), 6) == verdict(0.99, 6, 3.5) == "missed"


def test_shut_eyes_are_left_out_of_gaze(vs_openface: ModuleType, facemesh: Facemesh) -> None:
    """Our own values under OpenFace's names agree with themselves, whatever gaze does while the eyes are shut."""
    random = np.random.default_rng(0)
    values = random.normal(0, 0.1, (40, len(facemesh.names)))
    times = np.stack([np.arange(40), np.arange(1, 41)], axis=1) / 25
    theirs = {name: values[:, place].copy() for place, name in enumerate(facemesh.names)}
    shut = np.arange(40) % 4 == 0
    theirs |= {"timestamp": times[:, 0], "success": np.ones(40), "confidence": np.ones(40), "AU45_r": 2.0 * shut}
    theirs["gaze_angle_x"][shut] += 1
    found = vs_openface.compare(Track(times, values.astype(np.float32), np.ones(40, bool), facemesh.names), theirs)
    assert found.landmarks["all"] == pytest.approx(0, abs=1e-4)
    assert [one.r for one in found.pose + found.gaze] == [pytest.approx(1)] * 5


def test_one_face_of_openface_is_compared(vs_openface: ModuleType, tmp_path: Path) -> None:
    csv = tmp_path / "two.csv"
    csv.write_text("frame, face_id, timestamp\n1, 0, 0.00\n1, 1, 0.00\n2, 1, 0.04\n")
    assert vs_openface.read_openface(csv)["timestamp"].tolist() == [0, 0.04]


def test_what_is_no_csv_of_openface_is_said_in_one_line(
    vs_openface: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for name in ("other.csv", "missing.csv"):
        monkeypatch.setattr(sys, "argv", ["vs_openface", "video.mp4", str(tmp_path / name)])
        with pytest.raises(SystemExit) as raised:
            vs_openface.main()
        assert raised.value.code == 2 and f"error: {tmp_path / name}: " in capsys.readouterr().err


def test_agrees_with_openface(facemesh: Facemesh, vs_openface: ModuleType, shared_data: Path) -> None:
    track, _ = vs_openface.run(shared_data / "openface/subj01_timepoint01.mp4")
    csv = shared_data / "openface/subj01_timepoint01_openface.csv"
    found = vs_openface.compare(track, vs_openface.read_openface(csv))
    assert found.frames == 158
    assert found.landmarks["all"] < 0.031 and found.landmarks["eyes"] < 0.018
    for angle in found.pose:  # a head that turns by no more than 2.5 degrees
        assert angle.r > 0.5 and angle.difference < 0.6 and abs(angle.offset) < 2, angle
    r = {measure.theirs: measure.r for measure in found.measures}
    assert r["AU45_r"] > 0.9 and r["AU01_r"] > 0.7 and r["AU02_r"] > 0.6
    assert found.gaze[1].r > 0.5
