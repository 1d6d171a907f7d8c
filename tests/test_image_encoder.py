"""Image encoders on face crops: where the eyes come to lie, who is encoded when, and what the model is given."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from mmfeat import models
from mmfeat.extractors import MissingBackendError, face_crops, find
from mmfeat.extractors.face_crops import BATCH, EYES, FaceCropConfig, encode_faces, upright
from mmfeat.extractors.face_follow import Seen
from mmfeat.media import open_media
from mmfeat.recipe import load_recipe
from mmfeat.track import Frame
from tests import tiny_models


def spot(image: NDArray, channel: int) -> NDArray:
    """Centre of what shines in one channel, shape (2,) as x, y; the middle of pixel k is k + 0.5."""
    light = image[:, :, channel].astype(float)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.array([(light * x).sum(), (light * y).sum()]) / light.sum()


@pytest.mark.parametrize(("size", "margin"), [(112, 0.0), (224, 0.0), (224, 0.5)])
@pytest.mark.parametrize(
    ("right", "left"),
    [((80, 90), (120, 90)), ((300, 200), (420, 330)), ((330, 250), (300, 130)), ((150, 300), (560, 290))],
)
def test_eyes_come_to_lie_at_the_stated_place(size: int, margin: float, right: tuple, left: tuple) -> None:
    image = np.zeros((600, 800, 3), np.uint8)
    radius = int(np.hypot(left[0] - right[0], left[1] - right[1]) / 8)
    cv2.circle(image, right, radius, (255, 0, 0), -1, cv2.LINE_AA)
    cv2.circle(image, left, radius, (0, 255, 0), -1, cv2.LINE_AA)
    crop = upright(image, np.array([right, left], float), size, margin)
    assert crop.shape == (size, size, 3) and crop.dtype == np.uint8
    expected = size * (0.5 + (EYES - 0.5) / (1 + 2 * margin))
    for channel, place in enumerate(expected):
        np.testing.assert_allclose(spot(crop, channel), place, atol=0.5)


def test_beyond_the_picture_is_black() -> None:
    crop = upright(np.full((100, 100, 3), 200, np.uint8), np.array([[10.0, 50], [40, 50]]), 112, 0.25)
    assert crop[60, 0].max() == 0 and crop[60, 60].min() == 200


def test_a_large_face_is_averaged_not_picked_from() -> None:
    checks = np.indices((2160, 3840)).sum(0) % 2 * 255
    crop = upright(
        np.repeat(checks[:, :, None], 3, 2).astype(np.uint8), np.array([[1500.0, 1000], [2100, 1000]]), 112, 0
    )
    assert np.ptp(crop[30:80, 30:80].astype(int)) < 80  # of 255


class Follower:
    """Faces by frame: {index: [(identity, width)]}."""

    def __init__(self, plan: dict[int, list[tuple[int, float]]]):
        self._plan, self._frame = plan, -1

    def __call__(self, image: NDArray, time: float) -> list[Seen]:
        self._frame += 1
        found = []
        for identity, width in self._plan.get(self._frame, []):
            mesh = np.zeros((468, 3), np.float32)
            mesh[0], mesh[1] = 0, width
            mesh[[33, 133]], mesh[[263, 362]] = (20 + identity, 30, 0), (40 + identity, 30, 0)
            found.append(Seen(identity, mesh, np.zeros((2, 2), np.float32)))
        return found


def run(monkeypatch, plan, count: int, fps: float = 25.0, **settings):
    """The track of `count` frames whose grey level is their number, and the sizes of the batches."""
    monkeypatch.setattr(face_crops, "FaceFollower", lambda *args, **kwargs: Follower(plan))
    sizes = []

    def encode(crops: list[NDArray]) -> NDArray:
        sizes.append(len(crops))
        return np.array([[crop[60, 60, 0], crop.shape[0]] for crop in crops], np.float32)

    frames = [Frame(np.full((64, 64, 3), k, np.uint8), k / fps, (k + 1) / fps) for k in range(count)]
    config = FaceCropConfig(**{"frame_rate": None, **settings})
    return encode_faces(iter(frames), None, None, encode, config, 2), sizes  # type: ignore[arg-type]


class TestWhoIsEncodedWhen:
    def test_each_row_is_its_frame_and_frames_without_a_face_are_invalid(self, monkeypatch) -> None:
        with_face = [k for k in range(3 * BATCH) if k % 5]
        track, sizes = run(monkeypatch, {k: [(0, 30)] for k in with_face}, 3 * BATCH, crop=112)
        assert np.flatnonzero(track.valid).tolist() == with_face
        assert track.values[with_face, 0].tolist() == with_face and (track.values[with_face, 1] == 112).all()
        assert (track.values[~track.valid] == 0).all()
        assert max(sizes) == BATCH and sum(sizes) == len(with_face)  # never more crops at once, however long the clip

    @pytest.mark.parametrize(("person", "chosen"), [("largest", 1), ("longest", 0)])
    def test_one_person_is_taken_and_the_next_where_they_are_gone(self, monkeypatch, person, chosen) -> None:
        plan = {k: [(0, 10)] for k in range(10)} | {k: [(0, 10), (1, 120)] for k in (2, 3)}
        monkeypatch.setattr(
            face_crops, "upright", lambda image, eyes, size, margin: np.full((99, 99, 3), round(eyes[0, 0]), np.uint8)
        )
        track, _ = run(monkeypatch, plan, 10, person=person)
        seen = (track.values[:, 0] - 20).tolist()
        assert seen == [0, 0, chosen, chosen, 0, 0, 0, 0, 0, 0]

    def test_thinned_out_rows_stand_until_the_next(self, monkeypatch) -> None:
        track, _ = run(monkeypatch, {k: [(0, 30)] for k in range(25)}, 25, frame_rate=5)
        assert track.values[:, 0].tolist() == [0, 5, 10, 15, 20]
        np.testing.assert_allclose(track.times, [[0, 0.2], [0.2, 0.4], [0.4, 0.6], [0.6, 0.8], [0.8, 1.0]])
        slow, _ = run(monkeypatch, {k: [(0, 30)] for k in range(4)}, 4, fps=2, frame_rate=5)
        assert len(slow) == 4  # fewer pictures than asked for: every one

    def test_everybody_has_a_seat(self, monkeypatch) -> None:
        plan = {0: [(0, 10)], 1: [(0, 10), (1, 120)], 2: [(1, 120)], 3: []}
        track, _ = run(monkeypatch, plan, 4, person="all", max_faces=2)
        assert track.names[:3] == ("face0_seen", "face0_hidden_0", "face0_hidden_1") and len(track.names) == 6
        assert track.values[:, [0, 3]].tolist() == [[0, 1], [1, 1], [1, 0], [0, 0]]
        assert track.values[:3, [1, 4]].tolist() == [[0, 0], [1, 1], [2, 0]]
        assert track.valid.tolist() == [True, True, True, False]

    def test_nothing_at_all(self, monkeypatch) -> None:
        assert len(run(monkeypatch, {}, 0)[0]) == 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    models.pull(["face_detection_short_range", "face_landmark", "iris_landmark"])
    folder = tmp_path_factory.mktemp("image-models")
    return {family: tiny_models.image(family, folder / family) for family in tiny_models.IMAGE}


def made(folder: Path, **settings):
    registered = find("image")
    return registered.make(registered.config(model=str(folder), **settings))


CROPS = [np.random.default_rng(k).integers(0, 256, (224, 224, 3), dtype=np.uint8) for k in range(5)]


@pytest.mark.parametrize("family", tiny_models.IMAGE)
class TestTransformers:
    def expected(self, folder: Path, family: str, pooling: str) -> NDArray:
        """By hand: Pillow resizes, numpy normalises, the model's own class computes."""
        import json

        import torch
        import transformers

        settings = json.loads((folder / "preprocessor_config.json").read_text())
        pixels = []
        for crop in CROPS:
            small = Pillow.fromarray(crop).resize((32, 32), Pillow.Resampling(settings["resample"]))
            pixels.append((np.asarray(small) / 255 - settings["image_mean"]) / settings["image_std"])
        given = torch.tensor(np.stack(pixels).transpose(0, 3, 1, 2), dtype=torch.float32)
        kind = {"clip": "CLIPModel", "dinov2": "Dinov2Model", "vit": "ViTModel"}[family]
        model = getattr(transformers, kind).from_pretrained(folder).eval()
        with torch.inference_mode():
            found = getattr(model, "vision_model", model)(pixel_values=given)
            if pooling == "projection":
                return (found.pooler_output @ model.visual_projection.weight.T).numpy()
        if pooling == "pooler":
            return found.pooler_output.numpy()
        hidden = found.last_hidden_state
        return (hidden[:, 0] if pooling == "cls" else hidden[:, 1:].mean(1)).numpy()

    @pytest.mark.parametrize("pooling", ["cls", "mean", "pooler", "projection"])
    def test_vectors_are_the_model_s(self, folders, family: str, pooling: str) -> None:
        if pooling == "projection" and family != "clip":
            with pytest.raises(MissingBackendError, match="no 'projection' output; choose another"):
                made(folders[family], pooling=pooling)
            return
        extractor = made(folders[family], pooling=pooling)
        found = extractor._encoder(CROPS)
        assert found.dtype == np.float32 and found.shape == (5, len(extractor.names))
        np.testing.assert_allclose(found, self.expected(folders[family], family, pooling), atol=1e-5)

    def test_batching_changes_nothing_that_matters(self, folders, family: str) -> None:
        encode = made(folders[family])._encoder
        alone = np.concatenate([encode([crop]) for crop in CROPS])
        np.testing.assert_allclose(encode(CROPS), alone, atol=1e-5)


def test_weights_that_are_not_there_are_never_drawn_at_random(folders, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "vit"
    shutil.copytree(folders["vit"], folder)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, folder / "model.safetensors", {"format": "pt"})
    made(folder, pooling="cls")
    with pytest.raises(MissingBackendError, match=r"no weights for pooler.*choose another `pooling`"):
        made(folder, pooling="pooler")


def test_a_folder_without_image_processor_is_named(folders, tmp_path: Path) -> None:
    shutil.copytree(folders["vit"], tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    with pytest.raises(MissingBackendError, match="vit' has no image processor"):
        made(tmp_path / "vit")


def test_another_model_is_another_fingerprint(folders, tmp_path: Path) -> None:
    shutil.copytree(folders["vit"], tmp_path / "vit")

    def fingerprint(**settings) -> str:
        section = {"extractor": "image", "model": str(tmp_path / "vit"), **settings}
        return load_recipe("default").changed(vision=section).fingerprints()["vision"]

    before = fingerprint()
    assert fingerprint(margin=0.1) != before
    described = tmp_path / "vit" / "preprocessor_config.json"
    described.write_text(described.read_text().replace("0.5", "0.4"))
    assert fingerprint() != before


def test_faces_of_a_real_clip(folders, shared_data: Path) -> None:
    clip = sorted((shared_data / "grid").rglob("*.mpg"))[0]
    extractor = made(folders["dinov2"], frame_rate=5)
    with open_media(clip) as media:
        track = extractor(media.frames())
        assert len(track) == pytest.approx(5 * media.seconds, abs=1)
    assert track.valid.all() and track.names[0] == "hidden_0"
    near, far = np.abs(np.diff(track.values, axis=0)).mean(), np.abs(track.values).mean()
    assert 0 < near < far  # one face in motion


class TestTimm:
    """Where timm is installed: it wants a torchvision that fits torch, which has no build without CUDA on PyPI."""

    def test_vectors_are_the_model_s(self, folders, tmp_path: Path) -> None:
        timm = pytest.importorskip("timm")
        import torch

        model = timm.create_model("test_vit", pretrained=False).eval()
        timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
        registered = find("timm")
        extractor = registered.make(registered.config(model=str(tmp_path), pooling="cls"))
        size = model.default_cfg["input_size"][1]
        crops = [crop[:size, :size] for crop in CROPS]
        pixels = torch.from_numpy(np.stack(crops) / 255).permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(model.default_cfg[key])[:, None, None] for key in ("mean", "std"))
        with torch.inference_mode():
            expected = model.forward_features((pixels - mean) / std)[:, 0].numpy()
        np.testing.assert_allclose(extractor._encode(crops), expected, atol=1e-5)
        with pytest.raises(MissingBackendError, match="none that timm loads"):
            registered.make(registered.config(model=str(folders["vit"])))

    @pytest.mark.parametrize("name", ["test_vit", "test_convnext", "swin_tiny_patch4_window7_224"])
    def test_every_family_has_its_own_width_and_batches_change_nothing(self, tmp_path: Path, name: str) -> None:
        timm = pytest.importorskip("timm")
        model = timm.create_model(name, pretrained=False).eval()
        timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
        registered = find("timm")
        for pooling in ("mean", "pooler"):
            encode = registered.make(registered.config(model=str(tmp_path), pooling=pooling))._encode
            together = encode(CROPS)
            assert together.shape == (len(CROPS), model.num_features)
            np.testing.assert_allclose(together, np.concatenate([encode([crop]) for crop in CROPS]), atol=1e-5)

    @pytest.mark.parametrize(
        ("shape", "layout"), [((2, 8, 3, 5), "NCHW"), ((2, 3, 5, 8), "NHWC"), ((2, 8, 3, 5), None)]
    )
    def test_the_mean_is_over_places_wherever_a_family_has_its_channels(self, shape: tuple, layout: str | None) -> None:
        import torch

        from mmfeat.extractors.vision_timm import TimmConfig, TimmEncoder

        encoder = TimmEncoder.__new__(TimmEncoder)
        encoder.config = TimmConfig(model="any", pooling="mean")
        encoder._model = SimpleNamespace(**({"output_fmt": layout} if layout else {}))
        hidden = torch.arange(float(np.prod(shape))).reshape(shape)
        expected = hidden.numpy().mean(axis=(1, 2) if layout == "NHWC" else (2, 3))
        assert expected.shape == (2, 8)
        np.testing.assert_allclose(encoder._pool(hidden).numpy(), expected)

    def test_without_timm_it_is_listed_with_the_command_that_gets_it(self, monkeypatch) -> None:
        from mmfeat.extractors import ENTRIES

        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert "timm" in ENTRIES["timm"].missing()
        with pytest.raises(MissingBackendError, match=r"'timm' needs timm.*: pip install 'mmfeat\[timm\]'"):
            find("timm")
