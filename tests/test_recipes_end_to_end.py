"""Every shipped recipe as it is, from footage to tracks: small models lie in the hub's cache under the true names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

import mmfeat
from mmfeat import models
from mmfeat.recipe import load_recipe, shipped
from tests import tiny_models
from tests.media_files import tone, write_media
from tests.stand_in_openface import pictures, write_program

HUB: dict[str, Callable[[Path], Path]] = {
    "bert-base-chinese": lambda folder: tiny_models.text(folder, "你 好 world"),
    "bert-base-uncased": tiny_models.text,
    "microsoft/wavlm-base-plus": lambda folder: tiny_models.speech("wavlm", folder),
    "openai/clip-vit-base-patch32": lambda folder: tiny_models.image("clip", folder),
}
"""Hub name → what makes a small model of its family."""
WIDTHS = {
    "default": (381, 28, 384),
    "sims": (709, 33, 32),
    "simsv2": (177, 25, 32),
    "mosei-like": (41, 25, 32),
    "ssl": (32, 32, 32),
}
"""Columns of vision, audio, and text, where the encoders have 32."""
RATES = {
    "default": (25, 22050 / 512),
    "sims": (6, 22050 / 512),
    "simsv2": (25, 100),
    "mosei-like": (30, 100),
    "ssl": (10, 50),
}
"""Rows a second of vision, of pictures at 25 a second, and of audio."""


def into_hub(cache: Path, name: str, make: Callable[[Path], Path]) -> None:
    """Lay a model into the hub's cache as downloading leaves it."""
    repository = cache / f"models--{name.replace('/', '--')}"
    make(repository / "snapshots/abc")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models.pull()
    folder = tmp_path_factory.mktemp("hub")
    for name, make in HUB.items():
        into_hub(folder, name, make)
    return folder


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_media(tmp_path / "a.mkv", pictures(50), sound=tone(2.0), codec="ffv1", sound_codec="pcm_s16le")


@pytest.fixture
def _as_if_installed(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("OPENFACE_DIR", str(write_program(tmp_path / "openface").parent))


def test_all_are_here() -> None:
    assert set(WIDTHS) == set(RATES) == set(shipped())


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.usefixtures("_as_if_installed")
def test_from_footage_to_tracks(name: str, film: Path) -> None:
    if "opensmile" in str(load_recipe(name).audio):
        pytest.importorskip("opensmile", reason="pip install 'mmfeat[opensmile]'")
    recipe = load_recipe(name)
    recipe.check()
    found = mmfeat.extract(film, "你好 world" if recipe.language == "zh" else "hello world", recipe)
    tracks = (found.vision.values, found.audio.values, found.text.values)
    assert tuple(values.shape[1] for values in tracks) == WIDTHS[name]
    for track, rate in zip((found.vision, found.audio), RATES[name], strict=True):
        assert len(track) == pytest.approx(2.0 * rate, abs=6)
    openface = "openface2" in str(recipe.vision)
    assert found.vision.valid.all() == openface and found.audio.valid.all()
    assert ("no_face" in found.status) != openface  # there is no face in grey pictures, but in the stand-in's CSV
    assert bool(found.words) == (recipe.words is not None), found.reason
    assert all(np.isfinite(values).all() for values in tracks)


@pytest.mark.parametrize(
    ("recipe", "missing", "says"),
    [
        ("sims", "bert-base-chinese", "model 'bert-base-chinese' was not found.*hf download bert-base-chinese"),
        ("simsv2", "OPENFACE_DIR", "extractor 'openface2' needs FeatureExtraction.*docker pull algebr/openface"),
        ("mosei-like", "bert-base-uncased", "model 'bert-base-uncased' was not found"),
        ("ssl", "openai/clip-vit-base-patch32", "model 'openai/clip-vit-base-patch32' was not found"),
        ("ssl", "microsoft/wavlm-base-plus", "hf download microsoft/wavlm-base-plus"),
    ],
)
@pytest.mark.usefixtures("_as_if_installed")
def test_what_is_missing_is_said_before_a_clip_is_read(
    recipe: str, missing: str, says: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing in HUB:
        without = tmp_path / "hub"
        shutil.copytree(cache, without, ignore=shutil.ignore_patterns(f"models--{missing.replace('/', '--')}"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(without))
    else:
        monkeypatch.setenv(missing, str(tmp_path / "nowhere"))
    if recipe in ("simsv2", "mosei-like"):
        pytest.importorskip("opensmile", reason="pip install 'mmfeat[opensmile]'")
    with pytest.raises(models.MissingBackendError, match=says) as refused:
        load_recipe(recipe).check()
    assert "\n" not in str(refused.value)
