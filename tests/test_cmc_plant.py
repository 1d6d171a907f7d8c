"""`cmc plant`: what it refuses, what it leaves alone, and which planted files go together."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from cmc.cli import main
from cmc.planted import Plan, plant
from mmfeat.layout import REGRESSION, FeatureFile

CLIPS = ["--clips", "8", "4", "4"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--missing", "1.5"], "missing 1.5"),
        (["--conflict", "2"], "conflict 2"),
        (["--corrupt", "-0.1"], "corrupt -0.1"),
        (["--conflict", "nan"], "conflict nan"),
        (["--signal", "nan"], "signal nan"),
        (["--signal", "-1"], "signal -1"),
        (["--seed", "-1"], "seed -1"),
        (["--unlabelled", "-1"], "unlabelled -1"),
    ],
)
def test_impossible_plans_are_refused(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plant", str(tmp_path / "f.h5"), *CLIPS, *flags]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_name_that_is_no_feature_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plant", str(tmp_path / "f"), *CLIPS]) == 2
    assert "must end in .h5" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["f.h5", "f_truth.csv"])
def test_what_is_there_is_kept(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"mine")
    assert main(["plant", str(tmp_path / "f.h5"), *CLIPS]) == 2
    assert name in capsys.readouterr().err
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"mine")]
    assert main(["plant", str(tmp_path / "f.h5"), *CLIPS, "--overwrite"]) == 0
    assert (tmp_path / name).read_bytes() != b"mine"


def test_folders_are_made_and_a_modality_may_be_missing_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "f.h5"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["plant", str(path), *CLIPS, "--missing", "1"]) == 0
    with FeatureFile(path) as file:
        assert not file.read("train", "audio_mask").any()


@pytest.mark.parametrize("classes", [3, 5])
def test_corrupted_labels_are_a_share_of_what_is_trained_on(classes: int, tmp_path: Path) -> None:
    clips = {"train": 200, "valid": 200, "test": 50}
    plans = {name: Plan(clips, classes=classes, corrupt=share) for name, share in (("clean", 0.0), ("corrupt", 0.3))}
    truths = {name: plant(tmp_path / f"{name}.h5", plan) for name, plan in plans.items()}
    key, wrong = "regression_labels" if classes == 3 else "classification_labels", {}
    with FeatureFile(tmp_path / "clean.h5") as clean, FeatureFile(tmp_path / "corrupt.h5") as corrupt:
        for split in clips:
            wrong[split] = clean.read(split, key) != corrupt.read(split, key)
            assert all((truths["clean"][split][m] == truths["corrupt"][split][m]).all() for m in "MTAV")
            for same in ("text", "audio", "vision_mask"):
                assert (clean.read(split, same) == corrupt.read(split, same)).all()
    assert 0.2 < wrong["train"].mean() < 0.4 and 0.2 < wrong["valid"].mean() < 0.4
    assert not wrong["test"].any() and (wrong["train"] != wrong["valid"]).any()
    assert (tmp_path / "clean_truth.csv").read_bytes() == (tmp_path / "corrupt_truth.csv").read_bytes()


def test_a_run_does_not_answer_for_another_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips, run = {"train": 16, "valid": 8, "test": 8}, tmp_path / "run"
    plans = {
        "own": Plan(clips),
        "more": Plan({**clips, "test": 12}, conflict=0.1, missing=0.2),
        "seed": Plan(clips, seed=5),
        "signal": Plan(clips, signal=3.0),
    }
    for name, plan in plans.items():
        plant(tmp_path / f"{name}.h5", plan)
    quick = ["--layers", "1", "--pretrain-epochs", "1", "--epochs", "1", "--text", "freeze"]
    assert main(["train", str(tmp_path / "own.h5"), "-o", str(run), *quick]) == 0
    for name, status in (("own", 0), ("more", 0), ("seed", 2), ("signal", 2)):
        assert main(["evaluate", str(run), str(tmp_path / f"{name}.h5")]) == status, name
    assert "features of" in capsys.readouterr().err


def test_clips_without_a_label_are_of_the_same_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The labelled file does not change by them, and strategies that learn from such clips take them."""
    path, alone = tmp_path / "p.h5", tmp_path / "alone.h5"
    clips = ["--clips", "30", "12", "12"]
    assert main(["plant", str(path), *clips, "--unlabelled", "20"]) == 0
    assert main(["plant", str(alone), *clips]) == 0
    more = tmp_path / "p_unlabelled.h5"
    assert str(more) in capsys.readouterr().out
    with FeatureFile(path) as file, FeatureFile(alone) as other, FeatureFile(more) as further:
        assert (file.read("train", "audio") == other.read("train", "audio")).all()
        assert list(further.splits) == ["train"] and len(further.read("train", "id")) == 20
        assert np.isnan(further.read("train", REGRESSION)).all()
        assert not set(further.read("train", "id")) & set(file.read("train", "id"))
    call = ["train", str(path), "-o", str(tmp_path / "run"), "--unlabelled", str(more), "--pretrain", "masked"]
    assert main([*call, "--layers", "1", "--pretrain-epochs", "1", "--epochs", "1", "--text", "freeze"]) == 0
