"""Ablations: every variant trains, results are reused, recovered labels are counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmc.ablate import VARIANTS, ablate
from cmc.cli import main
from cmc.config import Config
from cmc.planted import Plan, plant

QUICK = ["--layers", "1", "--pretrain-epochs", "1", "--epochs", "1", "--text", "freeze"]


@pytest.fixture
def features(tmp_path: Path) -> Path:
    path = tmp_path / "features.h5"
    plant(path, Plan({"train": 30, "valid": 12, "test": 12}, signal=4.0))
    return path


def test_every_variant(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = features.with_name("features_truth.csv")
    arguments = ["ablate", str(features), "-o", str(tmp_path / "out"), "--truth", str(truth), "--seeds", "1", *QUICK]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in VARIANTS) and "PLGM, CMC" in shown
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == len(VARIANTS)
    stamps = [file.stat().st_mtime_ns for file in files]
    assert main(arguments) == 0
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert capsys.readouterr().out == shown


def test_without_unimodal_labels_there_is_no_cmc_gt(features: Path, tmp_path: Path) -> None:
    config = Config(layers=1, pretrain_epochs=1, epochs=1, text="freeze")
    found = ablate(features, tmp_path / "out", config, 1, variants=("CMC-GT", "late fusion"))
    assert set(found) == {"late fusion"} and found["late fusion"][0]["clips"] == {"overall": 12}


def test_reference_mode_keeps_its_own_schedule(features: Path, tmp_path: Path) -> None:
    config = Config(layers=1, pretrain_epochs=1, epochs=1, text="freeze")
    ablate(features, tmp_path, config, 1, variants=("CMC, reference mode",))
    stored = json.loads(next(tmp_path.glob("CMC_reference*.json")).read_text())["config"]
    assert stored["label_momentum"] == [0.8, 0.99, 0.99] and stored["layers"] == 1


def test_pseudo_labels_find_planted_labels(tmp_path: Path) -> None:
    """On clearly planted data: many more true unimodal labels than copying M; the published schedule finds none."""
    path = tmp_path / "features.h5"
    plant(path, Plan({"train": 120, "valid": 48, "test": 12}, conflict=0.6, signal=5.0))
    truth = path.with_name("features_truth.csv")
    config = Config(layers=1, pretrain_epochs=30, epochs=1, text="freeze", heads=2)
    names = ("CMC", "CMC, reference mode")
    found = {name: rows[0]["recovered"] for name, rows in ablate(path, tmp_path, config, 1, truth, names).items()}
    gains = {m: shares["pseudo labels"] - shares["copying M"] for m, shares in found["CMC"].items()}
    assert min(gains.values()) > 0 and sum(gains.values()) / 3 > 0.05, gains
    for m in ("audio", "vision"):
        shares = found["CMC, reference mode"][m]
        assert shares["pseudo labels"] == shares["copying M"], "a published label of this modality cannot turn"
