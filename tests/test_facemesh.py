"""facemesh on drawn faces whose expression is known, and on pictures without a face."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from mmfeat import extractors, models
from mmfeat.demo.face import Face, Pose, random_identity
from mmfeat.extractors import face_geometry as geometry
from mmfeat.extractors.face_nets import NETS, FaceNets
from mmfeat.extractors.face_points import RIGID, RIGID_FACE
from mmfeat.extractors.vision_facemesh import COLUMNS, Facemesh, FacemeshConfig
from mmfeat.track import Frame, Track

Image = NDArray[np.uint8]


@pytest.fixture(scope="session")
def face_models() -> list[Path]:
    """The nets' files, fetched on the first use ever."""
    return models.pull(NETS)


@pytest.fixture(scope="module")
def facemesh(face_models: list[Path]) -> Facemesh:
    return Facemesh(
        FacemeshConfig(columns=("pose", "gaze", "landmarks_2d", "landmarks_3d", "landmarks_px", "measures"))
    )


@pytest.fixture(scope="module")
def drawn() -> Face:
    return Face(random_identity(np.random.default_rng(3), female=True))


def clip(images: list[Image]) -> list[Frame]:
    return [Frame(image, index / 25, (index + 1) / 25) for index, image in enumerate(images)]


def column(track: Track, name: str) -> NDArray[np.float32]:
    return track.values[:, track.names.index(name)]


def on_wall(face: Image, size: tuple[int, int], corner: tuple[int, int]) -> Image:
    """The picture pasted on grey, (width, height) pixels in all."""
    wall = np.full((size[1], size[0], 3), 90, np.uint8)
    left, top = corner
    wall[top : top + face.shape[0], left : left + face.shape[1]] = face
    return wall


# What comes out


def test_is_registered_with_its_models() -> None:
    entry = extractors.find("facemesh")
    assert entry.make is Facemesh and entry.config is FacemeshConfig
    assert entry.models(FacemeshConfig()) == NETS and set(NETS) <= set(models.MODELS)


def test_a_row_per_frame(facemesh: Facemesh, drawn: Face) -> None:
    frames = clip([drawn.draw(Pose(mouth=mouth)) for mouth in (0.0, 0.5, 1.0)])
    track = facemesh(iter(frames))
    assert track.names == facemesh.names and track.valid.all()
    assert track.times.tolist() == [[frame.start, frame.end] for frame in frames]
    assert (track.values != 0).all(axis=1).any()


def test_no_frames(facemesh: Facemesh) -> None:
    track = facemesh([])
    assert len(track) == 0 and track.values.shape == (0, len(facemesh.names))


def test_one_frame(facemesh: Facemesh, drawn: Face) -> None:
    track = facemesh(clip([drawn.draw(Pose())]))
    assert len(track) == 1 and track.valid.all()


def faceless() -> dict[str, Image]:
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 320, dtype=np.uint8)
    return {
        "noise": random.integers(0, 256, (240, 320, 3), np.uint8),
        "gradient": np.ascontiguousarray(np.broadcast_to(ramp[None, :, None], (240, 320, 3))),
        "black": np.zeros((240, 320, 3), np.uint8),
        "tiny": random.integers(0, 256, (16, 16, 3), np.uint8),
        "one pixel": np.full((1, 1, 3), 128, np.uint8),
        "odd": random.integers(0, 256, (81, 121, 3), np.uint8),
        "line": np.full((1, 2000, 3), 200, np.uint8),
        "4K": np.full((2160, 3840, 3), 70, np.uint8),
    }


@pytest.mark.parametrize("name", faceless())
def test_frames_without_a_face_keep_their_row(facemesh: Facemesh, name: str) -> None:
    track = facemesh(clip([faceless()[name]] * 3))
    assert len(track) == 3 and not track.valid.any() and not track.values.any()


def test_a_face_that_comes_and_goes(facemesh: Facemesh, drawn: Face) -> None:
    face = drawn.draw(Pose())
    empty = np.full_like(face, 90)
    track = facemesh(clip([empty, face, face, empty, empty, face]))
    assert track.valid.tolist() == [False, True, True, False, False, True]
    assert not track.values[~track.valid].any()


def test_deterministic_whatever_ran_before(facemesh: Facemesh, drawn: Face) -> None:
    frames = clip([drawn.draw(Pose(smile=smile, yaw=10 * smile)) for smile in (-1.0, 0.0, 1.0)])
    first = facemesh(frames)
    facemesh(clip([drawn.draw(Pose(shift=(0.3, 0.2)))]))
    again, other = facemesh(frames), Facemesh(facemesh.config)(frames)
    assert first.values.tobytes() == again.values.tobytes() == other.values.tobytes()


def test_frame_size_may_change(facemesh: Facemesh, drawn: Face) -> None:
    face = drawn.draw(Pose())
    larger = on_wall(face, (face.shape[1] + 200, face.shape[0] + 100), (0, 0))
    track = facemesh(clip([face, face, larger, larger]))
    assert track.valid.all()
    # The same face in a larger picture is farther away, as the focal length follows the picture's size.
    focal = [geometry.camera_matrix(*image.shape[1::-1])[0, 0] for image in (face, larger)]
    assert column(track, "pose_Tz")[3] / column(track, "pose_Tz")[1] == pytest.approx(focal[1] / focal[0], rel=0.05)


# Config


def test_columns_choose_groups_in_order(face_models: list[Path], facemesh: Facemesh, drawn: Face) -> None:
    few = Facemesh(FacemeshConfig(columns=("measures", "pose")))
    assert few.names == COLUMNS["measures"] + COLUMNS["pose"]
    frames = clip([drawn.draw(Pose())])
    some, whole = few(frames), facemesh(frames)
    for name in few.names:
        assert column(some, name) == column(whole, name)


def test_column_names() -> None:
    names = [name for group in COLUMNS.values() for name in group]
    assert len(set(names)) == len(names)
    assert COLUMNS["landmarks_px"][:2] == ("x_0", "x_1") and COLUMNS["landmarks_px"][68] == "y_0"
    assert COLUMNS["landmarks_3d"][-1] == "nZ_67" and len(COLUMNS["landmarks_3d"]) == 204
    assert not any(name.startswith("AU") for name in names)


@pytest.mark.parametrize(
    "wrong",
    [{"columns": []}, {"columns": ["pose", "pose"]}, {"columns": ["AU"]}, {"person": "x"}, {"max_faces": 0}, {"a": 1}],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FacemeshConfig(**wrong)


def test_config_pickles_and_is_hashable() -> None:
    config = FacemeshConfig(columns=("pose",), person="longest")
    assert pickle.loads(pickle.dumps(config)) == config and hash(config) == hash(pickle.loads(pickle.dumps(config)))


def test_missing_models_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMFEAT_MODELS", str(tmp_path))
    with pytest.raises(models.MissingModelError, match="mmfeat models pull"):
        Facemesh(FacemeshConfig())


def test_smoothing_is_off_unless_asked_for(face_models: list[Path], drawn: Face) -> None:
    frames = clip([drawn.draw(Pose(), noise) for noise in range(8)] + [np.zeros((240, 320, 3), np.uint8)])
    plain = Facemesh(FacemeshConfig(columns=("measures",)))(frames)
    smooth = Facemesh(FacemeshConfig(columns=("measures",), smoothing=0.1))(frames)
    assert (smooth.valid == plain.valid).all() and not smooth.values[~smooth.valid].any()
    assert smooth.values[:8].std(axis=0).mean() < 0.5 * plain.values[:8].std(axis=0).mean()
    assert smooth.values[:8].mean(axis=0) == pytest.approx(plain.values[:8].mean(axis=0), abs=0.02)


# What is measured, on faces whose pose and expression are known


@pytest.mark.parametrize(
    ("parameter", "values", "follows", "sign"),
    [
        ("smile", (-1, 0, 1), "lip_corner_pull", 1),
        ("smile", (-1, 0, 1), "lip_corner_raise", 1),
        ("brow", (-1, 0, 1), "brow_raise_inner", 1),
        ("brow", (-1, 0, 1), "brow_raise_outer", 1),
        ("brow", (-1, 0, 1), "brow_furrow", -1),
        ("mouth", (0, 0.5, 1), "lip_parting", 1),
        ("mouth", (0, 0.5, 1), "mouth_open", 1),
        ("mouth", (0, 0.5, 1), "jaw_drop", 1),
        ("eyes", (0, 0.5, 1), "eye_closure_left", -1),
        ("eyes", (0, 0.5, 1), "eye_closure_right", -1),
        ("yaw", (-15, 0, 15), "pose_Ry", -1),
        ("pitch", (-12, 0, 12), "pose_Rx", 1),
        ("roll", (-20, 0, 20), "pose_Rz", 1),
    ],
)
def test_columns_follow_the_drawn_face(
    facemesh: Facemesh, drawn: Face, parameter: str, values: tuple[float, ...], follows: str, sign: int
) -> None:
    track = facemesh(clip([drawn.draw(Pose(**{parameter: value})) for value in values]))
    assert track.valid.all()
    assert (sign * np.diff(column(track, follows)) > 0.01).all()


@pytest.mark.parametrize(("axis", "name"), [(0, "gaze_angle_x"), (1, "gaze_angle_y")])
def test_gaze_follows_the_drawn_eyes(facemesh: Facemesh, drawn: Face, axis: int, name: str) -> None:
    looks = [tuple(value if part == axis else 0.0 for part in range(2)) for value in (-1.0, 0.0, 1.0)]
    track = facemesh(clip([drawn.draw(Pose(gaze=(look[0], look[1]))) for look in looks]))
    angles = column(track, name)
    assert (np.diff(angles) > 0.02).all() and np.ptp(angles) > 0.12 and abs(angles[1]) < 0.2
    for eye in "01":
        vector = np.stack([column(track, f"gaze_{eye}_{part}") for part in "xyz"])
        assert np.linalg.norm(vector, axis=0) == pytest.approx(1, abs=1e-5) and (vector[2] < 0).all()


def test_normalised_landmarks_do_not_feel_size_place_and_roll(facemesh: Facemesh, drawn: Face) -> None:
    image = drawn.draw(Pose())
    double = np.kron(image, np.ones((2, 2, 1), np.uint8))
    rolled = drawn.draw(Pose(roll=20))
    tracks = [facemesh(clip([shown])) for shown in (image, double, rolled)]
    for group in ("landmarks_2d", "landmarks_3d"):
        columns = [facemesh.names.index(name) for name in COLUMNS[group]]
        plain, *others = (track.values[0, columns] for track in tracks)
        assert [np.abs(other - plain).mean() for other in others] == [pytest.approx(0, abs=0.02)] * 2
    eyes = [facemesh.names.index(name) for name in ("nX_36", "nY_36", "nZ_36", "nX_45", "nY_45", "nZ_45")]
    right, left = tracks[0].values[0, eyes].reshape(2, 3)
    assert np.linalg.norm(left - right) == pytest.approx(1, abs=0.1) and left[0] > right[0]


def test_pose_and_gaze_geometry_recover_what_was_projected() -> None:
    """A head of the average shape, turned and projected by hand."""
    camera = geometry.camera_matrix(640, 480)
    assert camera[0, 0] == camera[1, 1] == 500  # OpenFace's guess
    pitch, yaw, roll = 0.2, -0.3, 0.1
    x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    place = np.array([30.0, -20.0, 600.0])
    points = RIGID_FACE @ (x @ y @ z).T + place
    mesh = np.zeros((1, 468, 3))
    mesh[0, RIGID, :2] = (points / points[:, 2:] @ camera.T)[:, :2]
    pose = geometry.head_pose(geometry.Faces(mesh, np.zeros((1, 2, 2)), (640, 480)))
    assert geometry.euler_angles(pose.rotation)[0] == pytest.approx([pitch, yaw, roll], abs=1e-4)
    assert pose.translation[0] == pytest.approx(place, abs=0.05)


# Several people, small faces


def test_largest_person_is_followed(facemesh: Facemesh, drawn: Face) -> None:
    """The small face speaks, the large one does not; then the large one leaves."""
    width, height = drawn.draw(Pose()).shape[1::-1]

    def scene(mouth: float, large: bool) -> Image:
        small = drawn.draw(Pose(mouth=mouth))[::2, ::2]
        wall = on_wall(small, (width * 2, height), (width + width // 4, height // 4))
        if large:
            wall[:, :width] = drawn.draw(Pose())
        return wall

    track = facemesh(clip([scene(mouth, True) for mouth in (0, 1, 0, 1)] + [scene(1, False)] * 2))
    assert track.valid.all()
    assert (column(track, "x_30")[:4] < width).all() and (column(track, "x_30")[4:] > width).all()
    assert np.ptp(column(track, "lip_parting")[:4]) < 0.05


def test_longest_person_may_be_another(face_models: list[Path], drawn: Face) -> None:
    face = drawn.draw(Pose())
    width, height = face.shape[1::-1]
    alone = on_wall(face[::2, ::2], (width * 2, height), (width + width // 4, height // 4))
    both = alone.copy()
    both[:, :width] = face
    frames = clip([alone] * 4 + [both] * 2)
    places = {}
    for person in ("largest", "longest"):
        config = FacemeshConfig(columns=("landmarks_px",), person=person, detect_every=1)
        places[person] = column(Facemesh(config)(frames), "x_30") > width
    assert places["longest"].all() and places["largest"].tolist() == [True] * 4 + [False] * 2


def test_a_face_too_small_for_the_whole_picture_is_found(facemesh: Facemesh, drawn: Face) -> None:
    nets = FaceNets()
    face = drawn.draw(Pose())
    (seen,) = nets.detect(face, 0.5)
    scale = 0.07 * 1920 / (seen.box[2] - seen.box[0])
    face = cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    image = on_wall(face, (1920, 1080), (300, 400))
    assert not nets.detect(image, 0.5)
    assert facemesh(clip([image] * 2)).valid.all()
