"""`cmc predict`: what it asks of extraction, what it prints, and what it says where it cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cmc import run as runs
from cmc.calibration import expected_values, probabilities
from cmc.cli import main
from cmc.data import load, open_features, task_of
from cmc.evaluate import predict_split
from cmc.planted import Plan, plant
from cmc.predict import classify
from mmfeat.layout import FeatureFile
from mmfeat.recipe import Recipe, load_recipe

KEYS = ("text", "text_bert", "audio", "audio_mask", "vision", "vision_mask")
QUICK = ["--layers", "1", "--pretrain-epochs", "2", "--epochs", "2", "--batch-size", "12", "--text", "freeze"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "features.h5"
    plant(path, Plan({"train": 36, "valid": 24, "test": 12}, signal=2.0))
    return path


@pytest.fixture(scope="module")
def run(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(features), "-o", str(folder), *QUICK]) == 0
    return folder


def rows(features: Path, row: int) -> dict[str, Any]:
    with FeatureFile(features) as file:
        return {key: file.read("test", key)[row] for key in KEYS}


@pytest.fixture
def extracting(run: Path, features: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Extraction that gives a planted clip, and notes what it was asked for; the run looks like one of clips."""
    asked: dict[str, Any] = {}
    recipe = load_recipe("default")
    record = runs.read(run)
    made = record.features | {"recipe": recipe.resolved(), "fingerprints": {"audio": "a"}}
    monkeypatch.setattr("cmc.run.read", lambda folder: replace(record, features=made))
    monkeypatch.setattr(Recipe, "fingerprints", lambda self: {"audio": "a"})

    def extract(path: Path, **more: Any) -> SimpleNamespace:
        asked.update(more, path=path)
        return SimpleNamespace(rows=lambda aligned: rows(features, 3), status="no_face", reason="nobody is there")

    monkeypatch.setattr("mmfeat.clip.extract", extract)
    return asked


def test_a_clip_is_extracted_with_the_runs_recipe(
    extracting: dict[str, Any], run: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.touch()
    arguments = ["predict", str(run), str(clip), "--text", "so good", "--start", "1", "--end", "2.5"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (extracting["text"], extracting["start"], extracting["end"]) == ("so good", 1.0, 2.5)
    assert isinstance(extracting["recipe"], Recipe) and extracting["recipe"].name == "default"
    with open_features(features) as file:
        split = load(file, "test", task_of(file))
    logits = predict_split(runs.load_model(run, runs.read(run)), split).logits[3:4]
    calibration = runs.read(run).calibration
    expected = probabilities(logits, calibration.temperature)
    assert list(found["fused"].values()) == pytest.approx(expected[0].tolist(), abs=1e-5)
    assert calibration.temperature != 1 and found["temperature"] == calibration.temperature
    assert calibration.class_values is not None
    assert found["value"] == pytest.approx(expected_values(expected, calibration.class_values)[0], abs=1e-5)
    assert (found["status"], found["reason"]) == ("no_face", "nobody is there")
    assert main(arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"predicted label: {found['value']:.3f}" in shown and "no_face nobody is there" in shown
    assert f"at temperature {calibration.temperature:.3f}" in shown


def test_the_temperature_changes_no_decision(run: Path, features: Path) -> None:
    record = runs.read(run)
    for row in range(12):
        found = classify(run, record, rows(features, row))
        plain = classify(run, replace(record, calibration=type(record.calibration)()), rows(features, row))
        assert found.label == plain.label and plain.temperature == 1 and plain.value is None
        assert not np.allclose(list(found.fused.values()), list(plain.fused.values()), atol=1e-6)


def test_a_recipe_that_extracts_otherwise_today(
    extracting: dict[str, Any],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.touch()
    monkeypatch.setattr(Recipe, "fingerprints", lambda self: {"audio": "another model"})
    assert main(["predict", str(run), str(clip)]) == 2
    assert "features of audio were made otherwise" in capsys.readouterr().err and not extracting


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.mp4"], "no file absent.mp4"),
        (["."], "no file ."),
        (["clip.mp4", "--start", "3", "--end", "2"], "cannot end at 2 s when it starts at 3 s"),
        (["clip.mp4"], "not extracted from clips"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").touch()
    assert main(["predict", str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clip.mp4").touch()
    assert main(["predict", str(tmp_path), str(tmp_path / "clip.mp4")]) == 2
    assert "cmc train FEATURES" in capsys.readouterr().err


def test_absent_modalities_are_named(run: Path, features: Path) -> None:
    record = runs.read(run)
    silence = {"audio": np.zeros((0, record.columns["audio"]), np.float32), "audio_mask": np.zeros(0, bool)}
    one = replace(record, config=record.config.model_copy(update={"top_k": 1}))
    found = classify(run, one, rows(features, 0) | silence)
    assert found.absent == ("audio",) and found.modalities["audio"] is None
    assert sum(experts is not None for experts in found.modalities.values()) == 1, "two are not selected"
