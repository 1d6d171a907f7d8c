"""The extractors over backends: up to their models' boundary, and beyond it where they are installed."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfeat import models
from mmfeat.backends import BACKENDS, Backend, environment
from mmfeat.backends.process import Server
from mmfeat.backends.serving import torchvision_build, wire
from mmfeat.extractors import (
    ENTRIES,
    find,
    openface_columns,
    vision_mediapipe,
    vision_openface3,
    vision_pyfaceau,
    vision_pyfeat,
)
from mmfeat.extractors.face_geometry import camera_matrix, euler_angles
from mmfeat.media import open_media
from mmfeat.recipe import RecipeError, load_recipe
from mmfeat.registry import MissingBackendError
from mmfeat.track import Frame, Track
from tests.test_backends import Tiny

SERVING = Path(wire.__file__).parent


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if every backend were; none is started."""
    monkeypatch.setattr(environment, "state", lambda backend: "")
    monkeypatch.setattr(environment, "environment", lambda backend: Path("/env"))
    monkeypatch.setenv("MMFEAT_BACKENDS", str(tmp_path / "backends"))


def recipe(name: str, **settings):
    content = {"vision": {"extractor": name, **settings}}
    return load_recipe("default").changed(**content)


@pytest.mark.parametrize("name", BACKENDS)
class TestEach:
    def test_columns_follow_the_configured_groups(self, installed: None, name: str) -> None:
        registered = find(name)
        groups = registered.make.groups
        assert set(openface_columns.COLUMNS["landmarks_2d"]) <= {n for names in groups.values() for n in names}
        for group, columns in groups.items():
            if group in ("pose", "landmarks_2d", "shape_rigid", "shape_nonrigid", "au_intensity"):
                assert columns == openface_columns.COLUMNS[group]  # OpenFace's names mean OpenFace's columns
        everything = [column for columns in groups.values() for column in columns]
        assert len(set(everything)) == len(everything)
        with pytest.raises(RecipeError, match="a group is named twice"):
            recipe(name, columns=["landmarks_2d", "landmarks_2d"])
        with pytest.raises(RecipeError, match="columns"):
            recipe(name, columns=[])

    def test_the_fingerprint_covers_the_pins(self, installed: None, name: str) -> None:
        version = find(name).version
        assert str(version).endswith(BACKENDS[name].digest)


@pytest.mark.parametrize(
    ("name", "files"), [("openface3", vision_openface3.WEIGHTS), ("pyfeat", vision_pyfeat.WEIGHTS)]
)
class TestWeights:
    def test_missing_ones_are_named_with_the_command(self, installed: None, name: str, files: tuple) -> None:
        with pytest.raises(
            MissingBackendError, match=rf"{files[0]}, .*/{name}/weights; get them with: /env/bin/[\w-]+ dow"
        ):
            recipe(name).fingerprints()
        with pytest.raises(MissingBackendError, match=f"{files[0]}, .* in /no/such/folder"):
            recipe(name, weights="/no/such/folder").make("vision")

    def test_their_content_is_in_the_fingerprint_and_their_place_is_not(
        self, installed: None, name: str, files: tuple, tmp_path: Path
    ) -> None:
        def fingerprint(folder: Path, **settings) -> str:
            return recipe(name, **settings)._fingerprint("vision")

        usual, other = tmp_path / "backends" / name / "weights", tmp_path / "other"
        for folder in (usual, other):
            folder.mkdir(parents=True)
            for file in files:
                (folder / file).write_text(file)
        before = fingerprint(usual)
        assert fingerprint(other, weights=str(other)) == before
        (other / files[-1]).write_text("trained again")
        assert fingerprint(other, weights=str(other)) != before == fingerprint(usual)


def test_models_of_optional_extractors_are_pulled_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_is_intact", lambda path, file: True)
    monkeypatch.setattr(models, "local", lambda name: Path(name))
    assert Path("face_landmarker") not in models.pull() and Path("face_landmark") in models.pull()
    assert models.pull(["face_landmarker"]) == [Path("face_landmarker")]


class TestMediapipe:
    def test_no_such_file_says_where_to_get_one(self, installed: None) -> None:
        with pytest.raises(MissingBackendError, match=r"/none\.task is not there.*mmfeat models pull face_landmarker"):
            recipe("mediapipe", model="/none.task").fingerprints()

    def test_a_users_file_counts_by_content(self, installed: None, tmp_path: Path) -> None:
        one, same, other = (tmp_path / folder / "f.task" for folder in "abc")
        for path, content in ((one, b"1"), (same, b"1"), (other, b"2")):
            path.parent.mkdir()
            path.write_bytes(content)
        found = [recipe("mediapipe", model=str(path))._fingerprint("vision") for path in (one, same, other)]
        assert found[0] == found[1] != found[2]

    @settings(deadline=None)
    @given(st.lists(st.floats(-0.8, 0.8), min_size=3, max_size=3), st.lists(st.floats(-9, 9), min_size=2, max_size=2))
    def test_pose_is_in_openfaces_axes_and_units(self, angles: list[float], place: list[float]) -> None:
        """A head 400 mm before a camera that sees 63 degrees from top to bottom, as MediaPipe writes its place."""
        x, y, z = angles
        turn = rotation(x, y, z)
        matrix = np.eye(4)
        flip = np.diag([1, -1, -1])
        matrix[:3, :3], matrix[:3, 3] = flip @ turn @ flip, (place[0], -place[1], -40)
        height = 480
        pose = vision_mediapipe.pose(matrix[None], np.array([[640, height]]))[0]
        np.testing.assert_allclose(pose[3:], angles, atol=1e-9)
        np.testing.assert_allclose(pose[:2], np.array(place) * 10, atol=1e-9)
        assert pose[2] == pytest.approx(400 * 500 / (height / 2 / np.tan(np.radians(31.5))))  # OpenFace's focal length

    def test_it_agrees_with_facemesh_on_a_real_face(self, shared_data: Path) -> None:
        """Both measure one face with nets of different age: landmarks within 4 % of the distance of the eyes."""
        ready("mediapipe")
        models.pull()
        theirs = made("mediapipe", columns=("pose", "landmarks_2d"))
        ours = made("facemesh", columns=("pose", "landmarks_px"))
        with open_media(shared_data / "talking" / "WDA_KatieHill_000.mp4") as media:
            frames = [frame for frame, _ in zip(media.frames(), range(100), strict=False)]
        one, other = theirs(iter(frames)), ours(iter(frames))
        assert one.valid.all() and other.valid.all()
        np.testing.assert_array_equal(one.times, other.times)
        face, same_face = (points(track, openface_columns.COLUMNS["landmarks_2d"]) for track in (one, other))
        distance = np.linalg.norm(same_face[:, 36] - same_face[:, 45], axis=1)[:, None]
        assert (np.linalg.norm(face - same_face, axis=2) / distance).mean() < 0.04
        for name in ("pose_Tx", "pose_Ty", "pose_Rx", "pose_Ry", "pose_Rz"):
            a, b = (track.values[:, track.names.index(name)] for track in (one, other))
            assert np.corrcoef(a, b)[0, 1] > 0.9, name

    def test_a_file_that_is_none_is_refused(self, tmp_path: Path) -> None:
        ready("mediapipe")
        (tmp_path / "x.task").write_bytes(b"not a bundle")
        extractor = made("mediapipe", model=str(tmp_path / "x.task"))
        with pytest.raises(MissingBackendError, match=r"x\.task is no face landmarker that MediaPipe can read"):
            extractor(iter([Frame(np.zeros((9, 9, 3), np.uint8), 0, 1)]))


# What serve_pyfaceau.py uses of pyfaceau 1.4.0, with a face of which everything is known in place of its models.
FAKE_PYFACEAU = """
import sys, types
import cv2, numpy as np
rng = np.random.default_rng(0)
shape = rng.normal(0, 50, (204, 1))
turn, shift = cv2.Rodrigues(np.array({rotation}))[0], np.array({shift}, float)

class Series(list):
    pass

class Table:
    def __init__(self, rows): self.rows = rows
    def __getitem__(self, names): return Table([[row.get(name, np.nan) for name in names] for row in self.rows])
    def to_numpy(self, dtype): return np.array(self.rows, dtype)

class Detector:
    pdm = types.SimpleNamespace(mean_shape=shape, princ_comp=rng.normal(0, 1, (204, 34)))
    def fit(self, picture, box, return_params=False):
        height, width = picture.shape[:2]
        focal = (500 * width / 640 + 500 * height / 480) / 2
        camera = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        seen = cv2.projectPoints(shape.reshape(3, 68).T.copy(), turn, shift, camera, None)[0][:, 0]
        rigid = [focal / shift[2], {angles[0]}, {angles[1]}, {angles[2]}, *seen.mean(axis=0)]
        return seen, dict(params=np.array(rigid + [0.0] * 34))

class Pipeline:
    def __init__(self, mtcnn_backend, verbose): assert mtcnn_backend == "cpu"
    def _initialize_components(self): self.landmark_detector = Detector()
    def _process_frame(self, picture, index, time):
        if picture[0, 0].tolist() == [0, 0, 0]:
            return dict(success=False)
        assert picture[0, 0].tolist() == [30, 20, 10], "not BGR"
        self.landmark_detector.fit(picture, None, return_params=True)
        return dict(success=True, **{{f"AU{{unit:02}}_r": index + unit / 100 for unit in range(46)}})
    def finalize_predictions(self, table): return table

class Processor:
    cleared = 0
    def __init__(self):
        if {lacking}: raise FileNotFoundError("The OpenFace model files that pyfaceau needs are not installed yet.")
    def clear_cache(self): self.cleared += 1

for name, content in {{
    "pyfaceau": {{}}, "pyclnf": {{}}, "pymtcnn": {{}}, "pandas": dict(DataFrame=Table),
    "pyfaceau.config": dict(CLNF_CONFIG=dict(use_gpu=True)), "pyfaceau.pipeline": dict(FullPythonAUPipeline=Pipeline),
    "pyfaceau.processor": dict(OpenFaceProcessor=Processor),
}}.items():
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(content)
sys.path.insert(0, {serving!r})
from serve_pyfaceau import PyFaceAU, serve
serve(PyFaceAU)
"""


class TestPyfaceau:
    ANGLES, PLACE = (0.1, -0.3, 0.2), (20.0, -35.0, 420.0)

    def server(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: bool = False) -> Server:
        monkeypatch.setattr(environment, "interpreter", lambda backend: Path(sys.executable))
        monkeypatch.setattr(environment, "environment", lambda backend: Path("/env"))
        path = tmp_path / "fake.py"
        turn = rotation(*self.ANGLES).tolist()
        path.write_text(
            textwrap.dedent(FAKE_PYFACEAU).format(
                rotation=turn, shift=self.PLACE, angles=self.ANGLES, lacking=lacking, serving=str(SERVING)
            )
        )
        real: Backend = BACKENDS["pyfaceau"]
        backend = Tiny(real.name, real.requirement, (), real.pythons, real.licence, real.weights, path=path)
        return Server(backend, {}, vision_pyfaceau.Pyfaceau.served)

    def test_rows_are_openfaces(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The pose comes out that went in; a frame without a face stays a row; units are in OpenFace's order."""
        server = self.server(tmp_path, monkeypatch)
        face = np.full((480, 640, 3), (10, 20, 30), np.uint8)
        track = server(iter([Frame(image, k, k + 1) for k, image in enumerate([face, face * 0, face])]))
        server.close()
        assert track.valid.tolist() == [True, False, True]
        for row, index in ((track.values[0], 0), (track.values[2], 2)):
            column = dict(zip(track.names, row, strict=True))
            found = [column[name] for name in openface_columns.COLUMNS["pose"]]
            np.testing.assert_allclose(found, [*self.PLACE, *self.ANGLES], rtol=1e-3)
            assert column["AU12_r"] == pytest.approx(index + 0.12) and column["AU45_r"] == pytest.approx(index + 0.45)
            assert column["p_scale"] == pytest.approx(500 / 420) and column["p_33"] == 0
            np.testing.assert_allclose([column["p_rx"], column["p_ry"], column["p_rz"]], self.ANGLES, rtol=1e-6)
            assert column["p_tx"] == pytest.approx(np.mean([column[f"x_{k}"] for k in range(68)]), rel=1e-5)

    def test_missing_weights_name_its_own_command(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        server = self.server(tmp_path, monkeypatch, lacking=True)
        with pytest.raises(MissingBackendError, match=r"OpenFace's weights.*: /env/bin/pyfaceau-download-models$"):
            server(iter([Frame(np.ones((9, 9, 3), np.uint8), 0, 1)]))


def test_the_68_points_are_in_ibugs_order() -> None:
    """On WFLW's own scheme: 33 jaw points, 9 a brow, 9 of the nose, 8 an eye, 20 of the mouth, 2 pupils."""
    chosen = np.array(vision_openface3.IBUG_68)
    assert len(set(chosen)) == 68 and chosen.max() < 96
    parts = {"jaw": (0, 17, 0, 33), "brows": (17, 27, 33, 51), "nose": (27, 36, 51, 60), "eyes": (36, 48, 60, 76)}
    for start, stop, low, high in (*parts.values(), (48, 68, 76, 96)):
        assert ((chosen[start:stop] >= low) & (chosen[start:stop] < high)).all()
    assert chosen[8] == 16  # the chin is the middle of the jaw
    assert chosen[[36, 39, 42, 45, 48, 54]].tolist() == [60, 64, 68, 72, 76, 82]  # corners of eyes and mouth


@settings(deadline=None)
@given(st.integers(0, 40), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_suppression_keeps_the_best_of_what_overlaps(count: int, threshold: float, seed: int) -> None:
    import torch

    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 10, (count, 2))
    boxes = np.hstack([corners, corners + rng.uniform(0.1, 5, (count, 2))])
    scores = rng.permutation(count) / 100
    kept = torchvision_build.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).tolist()

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        shared = sides.prod() if (sides > 0).all() else 0.0
        return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)

    expected: list[int] = []
    for k in np.argsort(-scores):
        if all(overlap(boxes[k], boxes[other]) <= threshold for other in expected):
            expected.append(int(k))
    assert kept == expected


def ready(name: str) -> None:
    """Skips by name where a backend or its model is not here."""
    if missing := ENTRIES[name].missing():
        pytest.skip(f"{name} needs {', '.join(missing)}: {ENTRIES[name].install}")
    if name == "mediapipe" and not models.is_present("face_landmarker"):
        pytest.skip("mediapipe needs its model: mmfeat models pull face_landmarker")


def made(name: str, **settings):
    return find(name).make(find(name).config(**settings))


def points(track: Track, names: tuple[str, ...]) -> np.ndarray:
    """Shape (T, 68, 2)."""
    columns = [track.names.index(name) for name in names]
    return track.values[:, columns].reshape(len(track), 2, -1).transpose(0, 2, 1)


def rotation(pitch: float, yaw: float, roll: float) -> np.ndarray:
    """R = Rx Ry Rz."""
    about_x, about_y, about_z = (
        cv2.Rodrigues(np.eye(3)[axis] * angle)[0] for axis, angle in enumerate((pitch, yaw, roll))
    )
    whole = about_x @ about_y @ about_z
    np.testing.assert_allclose(euler_angles(whole[None])[0], (pitch, yaw, roll), atol=1e-9)
    return whole


assert camera_matrix(640, 480)[0, 0] == 500
