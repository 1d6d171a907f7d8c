"""What `cmc evaluate` and `cmc predict` say of what is not there: experts that were not selected, clips without labels
or modalities, runs that were cut short, files that are damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cmc import run as runs
from cmc.cli import main
from cmc.config import MODALITIES
from cmc.data import load, open_features, task_of
from cmc.evaluate import evaluate, predict_split
from cmc.planted import Plan, plant
from cmc.predict import Prediction
from cmc.report import show_prediction

QUICK = ["--layers", "1", "--pretrain-epochs", "4", "--epochs", "2", "--batch-size", "12", "--text", "freeze"]
QUICK += ["--lr", "0.005"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "features.h5"
    plant(path, Plan({"train": 36, "valid": 20, "test": 24}, signal=5.0, missing=0.1, seed=5))
    return path


@pytest.fixture(scope="module")
def one_expert(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose router selects a single expert per clip."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(features), "-o", str(folder), *QUICK, "--top-k", "1"]) == 0
    return folder


def test_experts_count_on_the_clips_they_were_selected_for(one_expert: Path, features: Path) -> None:
    found = evaluate(one_expert, features)["experts"]
    with open_features(features) as file:
        test = load(file, "test", task_of(file))
    output = predict_split(runs.load_model(one_expert, runs.read(one_expert)), test)
    selected = output.gates > 0
    assert sum(found[m]["clips"] for m in MODALITIES) == len(test), "one expert per clip"
    for k, m in enumerate(MODALITIES):
        rows = selected[:, k]
        assert found[m]["clips"] == rows.sum()
        right = output.logits[rows].argmax(1) == test.label("M").numpy()[rows]  # the one expert is the whole answer
        assert found[m]["accuracy_clip_label"] == (pytest.approx(np.mean(right)) if rows.any() else None)


def test_a_modality_that_was_not_selected_is_not_absent(capsys: pytest.CaptureFixture[str]) -> None:
    experts = {"text": {"bad": 0.2, "good": 0.8}, "audio": None, "vision": None}
    gates = {"text": 1.0, "audio": 0.0, "vision": 0.0}
    show_prediction(Prediction("good", experts["text"] or {}, experts, gates, "ok", absent=("vision",)))
    said = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.startswith("│")}
    assert "not selected" in said["audio"] and "absent" in said["vision"]


def test_overwriting_leaves_nothing_of_the_old_model(features: Path, tmp_path: Path) -> None:
    run, arguments = tmp_path / "run", ["train", str(features), "-o", str(tmp_path / "run"), *QUICK]

    def names() -> set[str]:
        return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}

    assert main(arguments) == 0
    trained = names()
    assert main(["evaluate", str(run), str(features)]) == 0
    assert main(["evaluate", str(run), str(features), "--split", "valid", "--drop", "audio", "--drop", "vision"]) == 0
    assert {"metrics.json", "pseudo_labels.png", "router_valid_without_audio_without_vision.png"} <= names()
    mine = {"notes.txt", "metrics_of_mine.json", "router_old.png", "seed-7/model.safetensors"}
    (run / "seed-7").mkdir()
    for name in mine:
        (run / name).write_text("mine")
    assert main([*arguments, "--seeds", "2", "--overwrite"]) == 0
    several = {f"seed-{seed}/{name}" for seed in (1111, 1112) for name in trained}
    assert names() == several | {"seeds.json"} | mine
    assert main(["evaluate", str(run), str(features)]) == 0
    (run / "seed-1112" / "notes.txt").write_text("mine")
    assert main([*arguments, "--overwrite"]) == 0
    assert names() == trained | mine | {"seed-1112/notes.txt"} and not (run / "seed-1111").exists()


def test_a_folder_without_a_run_keeps_its_files(features: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("mine")
    assert main(["train", str(features), "-o", str(tmp_path), *QUICK, "--overwrite"]) == 0
    assert (tmp_path / "metrics.json").read_text() == "mine"
