"""What `cmc evaluate` and `cmc predict` say of what is not there: experts that were not selected, clips without labels
or modalities, runs that were cut short, files that are damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cmc import run as runs
from cmc.cli import main
from cmc.config import MODALITIES
from cmc.data import DataError, load, open_features, task_of
from cmc.evaluate import evaluate, predict_split
from cmc.pictures import _pseudo_labels, _router
from cmc.planted import Plan, plant
from cmc.predict import Prediction, classify
from cmc.report import show_prediction
from cmc.seeds import best, together
from mmfeat.layout import FeatureFile

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


@pytest.fixture
def gaps(features: Path, tmp_path: Path) -> Path:
    """Per split, one clip without a label and, in the test split, two more that have no modality."""
    path = tmp_path / "gaps.h5"
    shutil.copy(features, path)
    with h5py.File(path, "r+") as file:
        for split in ("train", "valid", "test"):
            file[split]["regression_labels"][0] = np.nan
        for key in ("text_bert", "audio_mask", "vision_mask"):
            file["test"][key][1:3] = 0
    return path


def test_clips_that_are_left_out_are_counted(
    one_expert: Path, gaps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(gaps), "-o", str(tmp_path / "run"), *QUICK]) == 0
    said = capsys.readouterr().err
    assert all(f"1 clips of split {split} left out: they have no label" in said for split in ("train", "valid"))
    result = evaluate(one_expert, gaps)
    assert result["left_out"] == {"without_any_modality": 2, "without_label": 1}
    assert result["clips"]["overall"] == np.sum(result["confusion"]) == 21
    assert main(["evaluate", str(one_expert), str(gaps)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "left out: 2 clips without any modality." in said and "left out: 1 clip without label." in said
    with h5py.File(gaps, "r+") as file:
        file["test"]["text_bert"][:] = 0
    assert main(["evaluate", str(one_expert), str(gaps), "--drop", "audio", "--drop", "vision"]) == 4
    assert "none of 23 clips has any of text, audio, vision" in capsys.readouterr().err


def test_a_clip_without_modalities_is_not_predicted(one_expert: Path, gaps: Path) -> None:
    keys = ("text", "text_bert", "audio", "audio_mask", "vision", "vision_mask")
    with FeatureFile(gaps) as file:
        nothing = {key: file.read("test", key)[1] for key in keys}
    with pytest.raises(DataError, match="nothing to predict from: none of text, audio, vision"):
        classify(one_expert, runs.read(one_expert), nothing)


def test_what_a_reader_must_know(one_expert: Path, features: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(one_expert, run)
    assert evaluate(run, features)["notes"] == [] and evaluate(run, features)["status"] == "finished"
    assert "trained on this split" in evaluate(run, features, "train")["notes"][0]
    assert "selected on this split" in evaluate(run, features, "valid")["notes"][0]
    record = json.loads((run / "run.json").read_text()) | {"status": "interrupted"}
    (run / "run.json").write_text(json.dumps(record))
    result = evaluate(run, features)
    assert result["status"] == "interrupted" and "after epoch 2 of stage 2" in result["notes"][0]
    del record["history"]["finetune"]
    (run / "run.json").write_text(json.dumps(record))
    result = evaluate(run, features)
    assert "before stage 2" in result["notes"][0]
    assert together([result, result | {"status": "finished", "notes": []}])["notes"] == result["notes"]
    assert together([result, result | {"status": "finished"}])["status"] == "interrupted"


def test_no_pseudo_labels_of_a_modality_that_no_clip_has(one_expert: Path, features: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(one_expert, run)
    record = json.loads((run / "run.json").read_text())
    record["relabelled"]["audio"] = np.zeros((3, 3), int).tolist()
    (run / "run.json").write_text(json.dumps(record))
    result = evaluate(run, features)
    assert result["relabelled"]["audio"] is None and result["relabelled"]["text"] is not None
    for several in (result, together([result, result])):
        titles = [axes.get_title() for axes in _pseudo_labels(several).axes]
        assert titles[1] == "audio: no clip has it" and titles[0].startswith("text: 0.0 % of ")


def test_the_mean_of_the_routers_weights_is_exact(features: Path, tmp_path: Path) -> None:
    assert main(["train", str(features), "-o", str(tmp_path), *QUICK, "--use", "text", "audio"]) == 0
    result = evaluate(tmp_path, features)
    with open_features(features) as file:
        test = load(file, "test", task_of(file))
    output = predict_split(runs.load_model(tmp_path, runs.read(tmp_path)), test)
    expected = output.gates[test.present("audio").numpy(), 1].mean()
    assert result["router_means"]["overall"]["audio"] == pytest.approx(expected, rel=1e-6)
    for several in (result, together([result, result])):
        lines = _router(several).axes[1].get_lines()
        drawn = [line.get_xdata()[0] for line in lines if len(set(line.get_xdata())) == 1]
        assert drawn[0] == pytest.approx(expected, rel=1e-6)


def test_the_run_for_predictions_is_the_most_accurate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seeds.json").write_text('{"runs": ["a", "b", "c"]}')
    figures = {"a": (0.7, 1.0), "b": (0.8, 3.0), "c": (0.8, 2.0)}
    validation = {name: {"accuracy": accuracy, "loss": loss} for name, (accuracy, loss) in figures.items()}
    monkeypatch.setattr("cmc.run.read", lambda folder: SimpleNamespace(validation=validation[folder.name]))
    assert best(tmp_path) == tmp_path / "c"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", None, "model.safetensors is damaged"),
        ("pseudo_labels.npz", None, "pseudo_labels.npz is damaged"),
        ("pseudo_labels.npz", b"", "pseudo_labels.npz is damaged"),
        ("pseudo_labels.npz", b"no archive", "pseudo_labels.npz is damaged"),
        ("run.json", b"[1]", "run.json is damaged: it holds no object"),
        ("run.json", b'{"format_version": 2}', "run.json is damaged: it lacks 'config'"),
        ("run.json", b"\xff", "run.json is damaged"),
        ("run.json", b"{}", "run.json is of version None, not 2"),
        ("seeds.json", b"{", "seeds.json is damaged"),
        ("seeds.json", b"{}", "seeds.json is damaged (no 'runs')"),
        ("seeds.json", b'{"runs": []}', "seeds.json is damaged (it names no runs)"),
        ("seeds.json", b'{"runs": [1]}', "seeds.json is damaged"),
    ],
)
def test_damaged_files_are_named_in_one_line(
    name: str,
    content: bytes | None,
    said: str,
    one_expert: Path,
    features: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(one_expert, run)
    (run / name).write_bytes((run / name).read_bytes()[:-200] if content is None else content)
    assert main(["evaluate", str(run), str(features)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_weights_of_another_model(
    one_expert: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(one_expert, run)
    shutil.copy(run / "unimodal.safetensors", run / "model.safetensors")
    assert main(["evaluate", str(run), str(features)]) == 2
    error = capsys.readouterr().err
    assert "does not belong to" in error and error.count("\n") == 1


def test_weights_that_are_partly_missing_are_never_made_up(one_expert: Path, features: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(one_expert, run)
    for name, load_again in (("model", runs.load_model), ("unimodal", runs.load_unimodal)):
        weights = load_file(run / f"{name}.safetensors")
        lost = next(key for key in weights if key.endswith("out_layer.bias"))
        save_file({key: value for key, value in weights.items() if key != lost}, run / f"{name}.safetensors")
        with pytest.raises(
            runs.RunError, match=rf"{name}.safetensors does not belong to .*Missing key.*out_layer.bias"
        ):
            load_again(run, runs.read(run))


def test_truth_that_is_no_text(one_expert: Path, features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(one_expert), str(features), "--truth", str(features)]) == 2
    error = capsys.readouterr().err
    assert f"{features} is no csv" in error and error.count("\n") == 1


@pytest.mark.parametrize("classes", [3, 7])
def test_the_pseudo_labels_title_is_close_to_them(classes: int) -> None:
    counts = np.eye(classes, dtype=int).tolist()
    names = ["a rather long name", *"bcdefgh"][:classes]
    result = {"class_names": names, "pseudo_labels": dict.fromkeys(MODALITIES, counts)}
    figure = _pseudo_labels(result | {"relabelled": dict.fromkeys(MODALITIES, 0.0)})
    figure.draw_without_rendering()
    assert figure._suptitle is not None
    gap = figure._suptitle.get_window_extent().y0 - figure.axes[0].title.get_window_extent().y1
    assert 0 <= gap / figure.dpi < 0.2, "inches"
