"""Every shipped recipe: its columns in the order that its comments promise, and what is missing here by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

import mmfeat
from mmfeat import models
from mmfeat.extractors import MissingBackendError
from mmfeat.recipe import Recipe, load_recipe, shipped
from tests import tiny_models
from tests.media_files import stripes, tone, write_media

POSE = ["pose_Tx", "pose_Ty", "pose_Tz", "pose_Rx", "pose_Ry", "pose_Rz"]
_UNITS = ("01", "02", "04", "05", "06", "07", "09", "10", "12", "14", "15", "17", "20", "23", "25", "26")
UNITS = [*(f"AU{unit}_r" for unit in (*_UNITS, "45")), *(f"AU{unit}_c" for unit in (*_UNITS, "28", "45"))]
LANDMARKS = [f"{axis}_{point}" for axis in "xy" for point in range(68)]
HIDDEN = [f"hidden_{k}" for k in range(32)]  # of the tiny models
EGEMAPS = 25
SIMS_AUDIO = [
    "zero_crossing_rate",
    *(f"mfcc_{k}" for k in range(20)),
    *(f"chroma_cqt_{k}" for k in range(12)),
]
COLUMNS: dict[str, dict[str, list[str] | int]] = {
    "default": {"vision": 381, "audio": 28, "text": 384},
    "sims": {"vision": 709, "audio": SIMS_AUDIO, "text": HIDDEN},
    "simsv2": {"vision": [*POSE, *LANDMARKS, *UNITS], "audio": EGEMAPS, "text": HIDDEN},
    "mosei-like": {"vision": [*POSE, *UNITS], "audio": EGEMAPS, "text": HIDDEN},
    "ssl": {"vision": HIDDEN, "audio": HIDDEN, "text": HIDDEN},
}
"""Names in their order, or their number where another test holds the names."""
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {
        "vision": {"extractor": "facemesh"},
        "audio": {"extractor": "librosa", "sample_rate": 22050, "hop_length": 512, "n_mfcc": 20, "htk": False},
        "text": {"model": "all-MiniLM-L6-v2"},
        "words": {"aligner": "pocketsphinx"},
    },
    "sims": {
        "vision": {"extractor": "openface2", "frame_rate": 30, "average": 5, "confidence": 0},
        "audio": {"extractor": "librosa", "sample_rate": 22050, "hop_length": 512, "n_mfcc": 20, "htk": True},
        "text": {"model": "bert-base-chinese"},
    },
    "simsv2": {
        "vision": {"extractor": "openface2", "frame_rate": 25, "average": 1, "confidence": 0},
        "audio": {"extractor": "opensmile", "feature_set": "eGeMAPSv02", "level": "lld", "sample_rate": 16000},
        "text": {"model": "bert-base-chinese"},
    },
    "mosei-like": {
        "vision": {"extractor": "openface2", "frame_rate": 30, "average": 1},
        "audio": {"extractor": "opensmile", "feature_set": "eGeMAPSv02", "level": "lld", "sample_rate": 16000},
        "text": {"model": "bert-base-uncased"},
        "words": {"aligner": "pocketsphinx"},
    },
    "ssl": {
        "vision": {"extractor": "image", "model": "openai/clip-vit-base-patch32"},
        "audio": {"extractor": "ssl", "model": "microsoft/wavlm-base-plus", "layer": "mean_last_4"},
        "text": {"model": "bert-base-uncased"},
        "words": {"aligner": "pocketsphinx"},
    },
}
"""What the recipes promise, whether they write it out or it is the extractor's default."""
KNOWN = set(models.MODELS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Part → a tiny model, in place of one that has to be downloaded."""
    models.pull()
    folder = tmp_path_factory.mktemp("models")
    return {
        "vision": str(tiny_models.image("clip", folder / "clip")),
        "audio": str(tiny_models.speech("wavlm", folder / "wavlm")),
        "text": str(tiny_models.text(folder / "bert")),
    }


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def at_hand(recipe: Recipe, tiny: dict[str, str]) -> Recipe:
    """The recipe without what has to be downloaded: tiny models, and OpenFace's CSV files instead of OpenFace."""
    sections: dict[str, Any] = {}
    for part in tiny:
        section = dict(getattr(recipe, part))
        if section.get("model", "all-MiniLM-L6-v2") not in KNOWN:
            section["model"] = tiny[part]
        if section["extractor"] == "openface2":
            section["csv_folder"] = "openface"
        sections[part] = section
    return recipe.changed(**sections)


def test_all_are_listed_here() -> None:
    assert set(COLUMNS) == set(SETTINGS) == set(shipped())


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str) -> None:
    if "opensmile" in str(load_recipe(name).audio):
        pytest.importorskip("opensmile", reason="pip install 'mmfeat[opensmile]'")
    found = load_recipe(name).resolved()
    for part, promised in SETTINGS[name].items():
        assert {setting: found[part].get(setting) for setting in promised} == promised, part
    assert bool(found["words"]) == ("words" in SETTINGS[name])
    assert found["language"] == ("zh" if name.startswith("sims") else "en")
    assert (found["loudness"], found["grid_hz"], found["pooling"]) == (None, None, "mean")


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("part", ["vision", "audio", "text"])
def test_columns(name: str, part: str, tiny: dict[str, str]) -> None:
    expected = COLUMNS[name][part]
    if "opensmile" in str(getattr(load_recipe(name), part)):
        pytest.importorskip("opensmile", reason="pip install 'mmfeat[opensmile]'")
    found = at_hand(load_recipe(name), tiny).make(part).names
    assert len(set(found)) == len(found)
    assert (len(found) if isinstance(expected, int) else list(found)) == expected


@pytest.mark.parametrize("name", COLUMNS)
def test_fingerprints_follow_the_settings(name: str, tiny: dict[str, str]) -> None:
    if "opensmile" in str(load_recipe(name).audio):
        pytest.importorskip("opensmile", reason="pip install 'mmfeat[opensmile]'")
    recipe = at_hand(load_recipe(name), tiny)
    prints = recipe.fingerprints()
    assert set(prints) == set(recipe.parts())
    assert Recipe.model_validate(recipe.resolved()).fingerprints() == prints


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("part", ["vision", "audio", "text"])
def test_what_is_missing_is_named_with_the_command_that_gets_it(name: str, part: str, tiny: dict[str, str]) -> None:
    said = ""
    try:
        load_recipe(name).make(part)
    except MissingBackendError as error:
        said = str(error)
    if not said:
        pytest.skip("nothing is missing")
    section = getattr(load_recipe(name), part)
    assert str(section.get("model", section["extractor"])) in said
    assert any(command in said for command in ("hf download", "pip install", "docker pull")), said


def test_encoders_of_all_three_modalities(tiny: dict[str, str], tmp_path: Path) -> None:
    film = write_media(tmp_path / "a.mp4", stripes(10), sound=tone(0.4))
    found = mmfeat.extract(film, "hello world", at_hand(load_recipe("ssl"), tiny))
    assert len(found.audio) >= 19 and found.audio.valid.all()
    assert len(found.vision) == 4 and not found.vision.valid.any()  # 10 rows a second
    assert found.text.values.shape == (4, 32)


def test_models_that_a_fingerprint_needs_are_named_together(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(models, "_from_hub", lambda name: (_ for _ in ()).throw(FileNotFoundError("not there")))
    with pytest.raises(models.MissingBackendError) as missing:
        load_recipe("ssl").fingerprints()
    for name in ("openai/clip-vit-base-patch32", "microsoft/wavlm-base-plus", "bert-base-uncased"):
        assert f"hf download {name}" in str(missing.value)
