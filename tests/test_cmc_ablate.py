"""Ablations: every variant trains, results are reused, recovered labels are counted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.stats import ttest_rel

from cmc.ablate import VARIANTS, ablate
from cmc.cli import main
from cmc.config import Config
from cmc.finetune import Finetuning
from cmc.planted import Plan, plant
from cmc.training import Report, silent

QUICK = ["--layers", "1", "--pretrain-epochs", "1", "--epochs", "1", "--text", "freeze"]
SMALL = {"layers": 1, "pretrain_epochs": 1, "epochs": 1, "text": "freeze"}


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
    assert all(name in shown for name in VARIANTS) and "pseudo labels, CMC" in shown
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == len(VARIANTS)
    stamps = [file.stat().st_mtime_ns for file in files]
    assert main(arguments) == 0
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert capsys.readouterr().out == shown


def test_without_unimodal_labels_there_is_no_cmc_gt(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["ablate", str(features), "-o", str(tmp_path / "out"), "--seeds", "1", *QUICK, "--variants"]
    assert main([*call, "CMC-GT", "late fusion"]) == 0
    shown = capsys.readouterr().out
    assert "late fusion" in shown and "left out: CMC-GT" in shown and "no annotated unimodal labels (--truth" in shown
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["late_fusion-1111.json"]
    assert main([*call, "CMC-GT"]) == 2


def test_cmc_gt_learns_from_the_labels_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "annotated.h5"
    plant(path, Plan({"train": 30, "valid": 12, "test": 12}, annotated=True))
    found = ablate(path, tmp_path / "out", SMALL, 1, variants=("CMC-GT",))
    assert set(found.results["CMC-GT"][0]["clips"]) == {"overall", "consistent", "conflicting"}


def test_modes(features: Path, tmp_path: Path) -> None:
    """The reference row has the published schedule; where all rows are in reference mode there is none."""
    ablate(features, tmp_path, SMALL, 1, variants=("CMC, reference mode",))
    stored = json.loads(next(tmp_path.glob("CMC_reference*.json")).read_text())["config"]
    assert stored["label_momentum"] == [0.8, 0.99, 0.99] and stored["layers"] == 1
    found = ablate(
        features, tmp_path, SMALL | {"mode": "reference"}, 1, variants=("late fusion", "CMC, reference mode")
    )
    assert found.results["late fusion"][0]["config"]["mode"] == "reference"
    assert set(found.left_out) == {"CMC, reference mode"}


def _reference_row(out: Path) -> dict[str, Any]:
    return json.loads((out / "CMC_reference_mode-1111.json").read_text())["config"]


@pytest.mark.parametrize("by", ["flags", "file"])
def test_what_was_asked_for_reaches_reference_mode(by: str, features: Path, tmp_path: Path) -> None:
    """Also where it is what calibrated mode does anyway, as 2 layers and batches of 16 are."""
    flags = ["--layers", "2", "--batch-size", "16"]
    if by == "file":
        (tmp_path / "c.yaml").write_text("layers: 2\nbatch_size: 16\n")
        flags = ["--config", str(tmp_path / "c.yaml")]
    call = ["ablate", str(features), "-o", str(tmp_path / "out"), "--seeds", "1", *QUICK[2:], *flags, "--variants"]
    assert main([*call, "CMC, reference mode"]) == 0
    config = _reference_row(tmp_path / "out")
    assert (config["layers"], config["batch_size"], config["out_dropout"]) == (2, 16, 0.4)


def test_a_file_of_all_settings_leaves_reference_mode_none(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "best.json"
    path.write_text(Config(**SMALL).model_dump_json())
    call = ["ablate", str(features), "-o", str(tmp_path / "out"), "--seeds", "1", "--config", str(path), "--variants"]
    assert main([*call, "CMC, reference mode", "late fusion"]) == 0
    assert "left out: CMC, reference mode: all settings that modes differ in are given" in capsys.readouterr().out


def test_a_setting_that_a_mode_does_not_have_leaves_its_variant_out(features: Path, tmp_path: Path) -> None:
    settings = SMALL | {"class_weights": "balanced"}
    found = ablate(features, tmp_path, settings, 1, variants=("CMC, reference mode", "late fusion"))
    assert list(found.results) == ["late fusion"]
    assert "the published method has no class weights" in found.left_out["CMC, reference mode"]


def test_variants_of_modalities_that_are_not_in_use_are_left_out(features: Path, tmp_path: Path) -> None:
    variants = ("text only", "audio only", "vision only", "late fusion")
    found = ablate(features, tmp_path, SMALL | {"use": ("text",)}, 1, variants=variants)
    assert list(found.results) == ["text only", "late fusion"]
    assert found.left_out == {f"{m} only": f"--use does not name {m}" for m in ("audio", "vision")}


def test_without_an_encoder_to_finetune_it_is_said_once(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["ablate", str(features), "-o", str(tmp_path / "out"), "--seeds", "1", *QUICK[:-2]]
    assert main(call) == 2
    shown = capsys.readouterr()
    assert shown.err.count("no transformers text encoder") == 1 == shown.err.count("\n") and not shown.out
    assert not (tmp_path / "out").exists()
    assert main([*call, "--variants", "audio only"]) == 0  # which needs none


def test_one_reason_for_several_variants_is_said_once(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["ablate", str(features), "-o", str(tmp_path / "out"), "--seeds", "1", *QUICK, "--pretrain", "cyclic"]
    assert main([*call, "--use", "audio", "vision", "--variants", "CMC", "no PFM", "late fusion"]) == 0
    shown = capsys.readouterr().out
    assert "left out: CMC; no PFM: cyclic translates text" in shown and shown.count("left out") == 1


def test_without_unimodal_labels_the_groups_are_missed(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missed = "No unimodal labels: consistent and conflicting clips cannot be told apart"
    call = ["ablate", str(features), "-o", str(tmp_path / "out"), "--seeds", "1", *QUICK, "--variants", "late fusion"]
    assert main(call) == 0 and missed in capsys.readouterr().out
    assert main([*call, "--truth", str(features.with_name("features_truth.csv"))]) == 0
    assert missed not in capsys.readouterr().out


def test_workers_make_the_same_table(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["ablate", str(features), "--seeds", "2", *QUICK, "--variants", "CMC", "concatenation", "-o"]
    shown = []
    for out, more in (("one", []), ("two", ["--workers", "2"])):
        assert main([*call, str(tmp_path / out), *more]) == 0
        shown.append(capsys.readouterr())
    assert shown[0].out == shown[1].out and "CMC" in shown[0].out
    assert "4 of 4: " in shown[1].err and "4 of 4: " not in shown[0].err
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_results_of_other_files_or_settings_are_not_taken(features: Path, tmp_path: Path) -> None:
    truth, out, trained = features.with_name("features_truth.csv"), tmp_path / "out", []

    def progress(label: str) -> AbstractContextManager[Report]:
        trained.append(label)
        return nullcontext(silent)

    def again(settings: Mapping[str, Any] = SMALL) -> int:
        trained.clear()
        ablate(features, out, settings, 1, truth, ("late fusion",), progress)
        return len(trained)

    assert again() == 1 and again() == 0
    assert again(SMALL | {"lr": 0.01}) == 1 and again() == 1
    truth.write_text(truth.read_text().replace("0.8", "-0.8", 1))
    assert again() == 1
    with h5py.File(features, "r+") as file:
        file["test/audio"][0] += 1
    assert again() == 1 and again() == 0


@pytest.mark.parametrize("damage", [b'{"config": {', b"\xff", b"[]", b"{}"])
def test_a_damaged_result_is_made_again(
    damage: bytes, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    whole = ablate(features, out, SMALL, 1, variants=("late fusion",))
    path = out / "late_fusion-1111.json"
    path.write_bytes(damage)
    assert ablate(features, out, SMALL, 1, variants=("late fusion",)) == whole
    assert f"{path} is damaged" in capsys.readouterr().err
    assert json.loads(path.read_text()) == whole.results["late fusion"][0]


def test_a_variant_that_diverges_is_left_out(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = Finetuning.figures

    def diverging(stage: Finetuning) -> dict[str, float]:
        nan = {"valid": float("nan")} if stage.config.seed == 1112 and not stage.config.fusion else {}
        return figures(stage) | nan

    monkeypatch.setattr(Finetuning, "figures", diverging)
    found = ablate(features, tmp_path / "out", SMALL, 2, variants=("no PFM", "CMC"))
    assert list(found.results) == ["CMC"] and len(found.results["CMC"]) == 2
    assert "seed 1112: stage 2 diverged" in found.left_out["no PFM"]


def test_a_folder_that_is_a_file_is_refused_before_training(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "afile").touch()
    assert main(["ablate", str(features), "-o", str(tmp_path / "afile"), *QUICK]) == 2
    shown = capsys.readouterr().err
    assert "afile: File exists" in shown and "epoch" not in shown


@pytest.mark.parametrize(("name", "stage"), [("CMC", "pretrain"), ("CMC", "finetune"), ("concatenation", "finetune")])
def test_an_interrupted_training_is_no_result(name: str, stage: str, features: Path, tmp_path: Path) -> None:
    def interrupt(of_stage: str, epoch: int, epochs: int, figures: Mapping[str, float]) -> None:
        if of_stage == stage and name in now:
            raise KeyboardInterrupt

    now: list[str] = []

    def progress(label: str) -> AbstractContextManager[Report]:
        now[:] = [label.partition(",")[0]]
        return nullcontext(interrupt)

    with pytest.raises(KeyboardInterrupt):
        ablate(features, tmp_path, SMALL, 1, None, ("late fusion", name), progress)
    assert [path.name for path in tmp_path.glob("*.json")] == ["late_fusion-1111.json"]


def test_pseudo_labels_find_planted_labels(tmp_path: Path) -> None:
    """On planted data, over seeds of it: significantly more true unimodal labels than copying M has (paired test).

    The published schedule leaves audio and vision at exactly the copies.
    """
    settings = SMALL | {"pretrain_epochs": 30, "heads": 2}
    copied, recovered = [], []
    for seed in range(3):
        path = tmp_path / f"{seed}.h5"
        plant(path, Plan({"train": 120, "valid": 48, "test": 6}, conflict=0.6, signal=5.0, seed=seed))
        names = ("CMC", "CMC, reference mode") if seed == 0 else ("CMC",)
        found = ablate(path, tmp_path / f"{seed}", settings, 1, tmp_path / f"{seed}_truth.csv", names).results
        shares = found["CMC"][0]["recovered"]
        copied += [share["copying M"] for share in shares.values()]
        recovered += [share["pseudo labels"] for share in shares.values()]
        if seed == 0:
            for m in ("audio", "vision"):
                published = found["CMC, reference mode"][0]["recovered"][m]
                assert published["pseudo labels"] == published["copying M"], "a published label of these cannot turn"
    means = np.reshape(recovered, (3, 3)).mean(1), np.reshape(copied, (3, 3)).mean(1)
    assert ttest_rel(*means, alternative="greater").pvalue < 0.05, means
    assert np.mean(means[0] - means[1]) > 0.05
    assert min(np.subtract(recovered, copied)) >= 0
