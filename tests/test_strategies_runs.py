"""Strategies that learn without labels, and cyclic translation, from the feature file to the run and its figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cmc import journal
from cmc import run as runs
from cmc.cli import main
from cmc.config import LETTERS, Config
from cmc.planted import Plan, plant
from cmc.predict import classify
from cmc.train import open_material
from mmfeat.layout import FeatureFile
from tests.test_cmc_train import encoder  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("one_thread")

STRATEGIES = ("cyclic", "generation", "masked")
PLAN = Plan({"train": 30, "valid": 12, "test": 12}, signal=4.0, missing=0.15, seed=5)
QUICK = ["--layers", "1", "--pretrain-epochs", "3", "--epochs", "2", "--batch-size", "12"]
FROZEN = [*QUICK, "--text", "freeze"]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some clips lack sound or sight, and some values are no numbers."""
    path = tmp_path_factory.mktemp("planted") / "features.h5"
    plant(path, PLAN)
    with h5py.File(path, "r+") as file:
        for split in ("train", "valid", "test"):
            file[split]["audio"][1, :3] = np.nan
            file[split]["vision"][2] = np.inf
    return path


@pytest.fixture(scope="module")
def trained(features: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("runs") / name for name in STRATEGIES}
    for name, folder in folders.items():
        assert main(["train", str(features), "-o", str(folder), "--pretrain", name, *FROZEN]) == 0
    return folders


def weights(folder: Path) -> dict[str, torch.Tensor]:
    names = ("model", "unimodal", "extra")
    found = {
        name: load_file(folder / f"{name}.safetensors") for name in names if (folder / f"{name}.safetensors").exists()
    }
    return {f"{name}.{key}": tensor for name, tensors in found.items() for key, tensor in tensors.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", STRATEGIES)
def test_runs(name: str, trained: dict[str, Path], features: Path) -> None:
    record = runs.read(trained[name])
    assert record.config.pretrain == name and record.status == "finished" and not record.relabelled
    assert all(torch.isfinite(tensor).all() for tensor in weights(trained[name]).values())
    states = runs.load_pseudo_labels(trained[name])
    for key in "TAV":  # copies of the clip's label
        np.testing.assert_array_equal(states[f"train_{key}"], states["train_T"])
    assert main(["evaluate", str(trained[name]), str(features)]) == 0
    result = json.loads((trained[name] / "metrics.json").read_text())
    assert ("text_alone" in result) == (name == "cyclic")
    assert set(record.reconstruction) == (set() if name == "cyclic" else {"text", "audio", "vision"})


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_stage_1_taught_reaches_stage_2(name: str, features: Path, tmp_path: Path) -> None:
    """Untrained, stage 2 would be the same as after no stage 1 at all."""
    arguments = [str(features), *FROZEN, "--epochs", "1", "--lr", "1e-9", "--pretrain"]
    assert main(["train", "-o", str(tmp_path / "run"), *arguments, name]) == 0
    stage_1, stage_2 = (load_file(tmp_path / "run" / f"{kind}.safetensors") for kind in ("unimodal", "model"))
    for m in LETTERS:
        one, other = stage_1[f"{m}.branch.proj.weight"], stage_2[f"branches.{m}.proj.weight"]
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            stage_1[f"{m}.head.proj1.weight"], stage_2[f"heads.{m}.proj1.weight"], rtol=0, atol=1e-6
        )


class Killed(BaseException):
    """As kill -9 would: nothing gets to say a last word."""


@pytest.mark.parametrize("name", STRATEGIES)
def test_resume_gives_the_very_same_weights(
    name: str, trained: dict[str, Path], features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within stage 1, between the stages, and within stage 2."""
    monkeypatch.setattr(journal, "SHARE", float("inf"))
    step, ticks = torch.optim.Adam.step, 0

    def counted(self: Any, *args: Any, **more: Any) -> Any:
        nonlocal ticks
        ticks += 1
        if ticks == deadline:
            raise Killed if kind == "killed" else KeyboardInterrupt
        return step(self, *args, **more)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    arguments = ["train", str(features), "-o", str(tmp_path / "run"), "--pretrain", name, *FROZEN, "--resume"]
    for deadline, kind in ((5, "killed"), (3, "interrupted"), (4, "killed"), (3, "interrupted")):  # noqa: B007
        ticks = 0
        try:
            status = main(arguments)
        except Killed:
            continue
        assert status in (130, 0)
    deadline = 0
    assert main(arguments) == 0
    assert same(weights(tmp_path / "run"), weights(trained[name]))


@pytest.mark.parametrize("name", STRATEGIES)
def test_streamed_and_named_classes(name: str, tmp_path: Path) -> None:
    plant(tmp_path / "five.h5", replace(PLAN, classes=5))
    arguments = ["train", str(tmp_path / "five.h5"), "--pretrain", name, *FROZEN]
    assert main([*arguments, "-o", str(tmp_path / "memory")]) == 0
    assert main([*arguments, "-o", str(tmp_path / "streamed"), "--stream", "always"]) == 0
    assert same(weights(tmp_path / "memory"), weights(tmp_path / "streamed"))


@pytest.mark.parametrize(
    ("name", "use", "message"),
    [
        ("cyclic", ["audio", "vision"], "cyclic translates text"),
        ("cyclic", ["text"], "--use names neither"),
        ("generation", ["vision"], "--use names just one"),
        ("cyclic", ["text", "audio"], None),
        ("generation", ["text", "vision"], None),
        ("masked", ["audio"], None),
    ],
)
def test_some_modalities(
    name: str, use: list[str], message: str | None, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["train", str(features), "-o", str(tmp_path), "--pretrain", name, *FROZEN, "--use", *use])
    assert status == (2 if message else 0)
    assert message is None or message in capsys.readouterr().err


def test_the_text_encoder_reads_again(encoder: Path, tmp_path: Path) -> None:  # noqa: F811
    """Features whose text a named encoder made, with the encoder frozen, and finetuned in stage 2."""
    path = tmp_path / "encoded.h5"
    plant(path, PLAN, encoder)
    material = open_material(path, Config(pretrain="masked", text="freeze"))
    assert material.reader == str(encoder)
    assert open_material(path, Config(pretrain="generation", text="freeze")).reader is None
    for text in ("freeze", "finetune"):
        arguments = ["--pretrain", "masked", *QUICK, "--text", text]
        assert main(["train", str(path), "-o", str(tmp_path / text), *arguments]) == 0
    with h5py.File(path, "r+") as file:
        file.attrs["recipe"] = file.attrs["recipe"].replace(str(encoder), str(tmp_path / "gone"))
    assert main(["train", str(path), "-o", str(tmp_path / "gone"), "--pretrain", "masked", *FROZEN]) == 2


# --unlabelled


def take_labels(path: Path, kept: int) -> Path:
    """The file, with labels for the first training clips only."""
    with h5py.File(path, "r+") as file:
        file["train/regression_labels"][kept:] = np.nan
    return path


def more(path: Path, seed: int = 5, **other: Any) -> Path:
    """Further clips of the same plan, with ids of their own."""
    plant(path, replace(PLAN, clips={"train": 20}, seed=seed, **other))
    with h5py.File(path, "r+") as file:
        file["train/id"][:] = [f"more$_${k}" for k in range(20)]
        file["train/regression_labels"][:] = np.nan
    return path


@pytest.mark.parametrize("name", ["generation", "masked"])
def test_clips_without_a_label_are_learnt_from_and_their_labels_are_not_read(
    name: str, trained: dict[str, Path], features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = more(tmp_path / "more.h5")
    arguments = ["train", str(features), "--pretrain", name, *FROZEN, "--unlabelled", str(others)]
    assert main([*arguments, "-o", str(tmp_path / "one")]) == 0
    assert not same(weights(tmp_path / "one"), weights(trained[name]))
    with h5py.File(others, "r+") as file:
        file["train/regression_labels"][:] = np.linspace(-1, 1, 20)
        file["train/regression_labels_A"][:] = 1
    assert main([*arguments, "-o", str(tmp_path / "two")]) == 0
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert main([*arguments, "-o", str(tmp_path / "streamed"), "--stream", "always"]) == 0
    assert same(weights(tmp_path / "one"), weights(tmp_path / "streamed"))


def test_training_clips_without_a_label_are_pretrained_on(features: Path, tmp_path: Path, capsys: Any) -> None:
    few = tmp_path / "few.h5"
    few.write_bytes(features.read_bytes())
    take_labels(few, 14)
    material = open_material(few, Config(pretrain="masked", text="freeze"))
    assert len(material.train) == 14 and [len(split) for split in material.unlabelled] == [16]
    assert set(material.train.ids).isdisjoint(material.unlabelled[0].ids)
    assert material.unlabelled[0].labels is None
    assert open_material(few, Config(text="freeze")).unlabelled == ()
    assert main(["train", str(few), "-o", str(tmp_path / "run"), "--pretrain", "masked", *FROZEN]) == 0
    assert "16 clips of split train only pretrained on: they have no label" in capsys.readouterr().err


def rename(path: Path, names: list[str]) -> None:
    with h5py.File(path, "r+") as file:
        file["meta/feature_names/audio"][:] = names


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: more(path, seed=6), "recipe of"),
        (lambda path: rename(more(path), [f"other_{k}" for k in range(8)]), "names of audio columns"),
        (lambda path: plant(path, PLAN), "12 valid clips of"),
        (lambda path: plant(path, replace(PLAN, clips={"test": 9})), "9 test clips of"),
        (lambda path: path.write_bytes(b"no"), "not a readable HDF5 file"),
        (lambda path: None, "no feature file at"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    spoil: Any, message: str, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "more.h5"
    spoil(path)
    arguments = ["train", str(features), "-o", str(tmp_path / "run"), "--pretrain", "masked", *FROZEN]
    assert main([*arguments, "--unlabelled", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run" / "run.json").exists()


def test_strategies_of_labels_refuse_clips_without(features: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["train", str(features), "-o", str(tmp_path), *FROZEN, "--unlabelled", str(features)]
    for name in ("plgm", "cyclic", "none"):
        assert main([*arguments, "--pretrain", name]) == 2
        assert "generation, masked" in capsys.readouterr().err


# what stays with a run


def test_evaluate_completes(trained: dict[str, Path], features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained["generation"]
    for arguments in ([], ["--drop", "audio"], ["--drop", "audio", "--complete"], ["--complete"]):
        assert main(["evaluate", str(run), str(features), *arguments]) == 0
    found = {path.stem: json.loads(path.read_text()) for path in run.glob("metrics*.json")}
    assert set(found) == {"metrics", "metrics_without_audio", "metrics_without_audio_completed", "metrics_completed"}
    dropped, completed = found["metrics_without_audio"], found["metrics_without_audio_completed"]
    assert dropped["router"]["audio"] == 0 < completed["router"]["audio"]
    with FeatureFile(features) as file:
        blind = int(
            (~(file.read("test", "vision_mask") & np.isfinite(file.read("test", "vision")).all(2)).any(1)).sum()
        )
    assert completed["completed"] == {"audio": 12, "vision": blind} and blind
    assert "completed" not in dropped and found["metrics_completed"]["completed"]["vision"] == blind
    assert "made up from what else the clips have: audio of 12 clips" in " ".join(completed["notes"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Split test, without audio, completed" in shown
    runs.forget_figures(run)
    assert not list(run.glob("metrics*")) and not list(run.glob("*.png"))


def test_what_is_completed_does_not_depend_on_what_was_dropped(
    trained: dict[str, Path], features: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.h5"
    other.write_bytes(features.read_bytes())
    with h5py.File(other, "r+") as file:
        file["test/audio"][:] = 77.0
    found = []
    for path in (features, other):
        assert main(["evaluate", str(trained["generation"]), str(path), "--drop", "audio", "--complete"]) == 0
        found.append(json.loads((trained["generation"] / "metrics_without_audio_completed.json").read_text()))
    assert found[0]["cmc"] == found[1]["cmc"] and found[0]["reliability"] == found[1]["reliability"]


def test_other_runs_cannot_complete(
    trained: dict[str, Path], features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained["masked"]), str(features), "--drop", "audio", "--complete"]) == 2
    assert "cmc train --pretrain generation" in capsys.readouterr().err


def test_finetuned_text_is_not_made_up(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    path = tmp_path / "encoded.h5"
    plant(path, PLAN, encoder)
    assert main(["train", str(path), "-o", str(tmp_path / "run"), "--pretrain", "generation", *QUICK]) == 0
    evaluate = ["evaluate", str(tmp_path / "run"), str(path), "--complete"]
    assert main([*evaluate, "--drop", "text"]) == 2
    assert "cannot make up text" in capsys.readouterr().err
    assert main([*evaluate, "--drop", "audio"]) == 0


def test_damaged_networks_are_named(trained: dict[str, Path], features: Path, tmp_path: Path, capsys: Any) -> None:
    for name in ("generation", "masked"):
        for path in trained["generation"].iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / "extra.safetensors").unlink()
        if name == "masked":
            (tmp_path / "extra.safetensors").write_bytes(b"damage")
        assert main(["evaluate", str(tmp_path), str(features), "--complete"]) == 2
        error = capsys.readouterr().err
        assert "extra.safetensors" in error and error.count("\n") == 1


def test_a_clip_is_completed(trained: dict[str, Path], features: Path) -> None:
    run = trained["generation"]
    record = runs.read(run)
    with FeatureFile(features) as file:
        row = {key: file.read("test", key)[3] for key in ("text", "text_bert", "audio", "vision", "vision_mask")}
    row["audio_mask"] = np.zeros(len(row["audio"]), bool)
    plain, made = classify(run, record, row), classify(run, record, row, complete=True)
    assert plain.absent == made.absent == ("audio",) and plain.completed == () and made.completed == ("audio",)
    assert plain.modalities["audio"] is None and made.modalities["audio"] and made.router["audio"] > 0


def test_cyclic_predicts_from_text_alone(trained: dict[str, Path], features: Path, capsys: Any) -> None:
    run = trained["cyclic"]
    found = []
    for arguments in ([], ["--drop", "audio", "--drop", "vision"], ["--drop", "text"]):
        assert main(["evaluate", str(run), str(features), *arguments, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["text_alone"] == found[1]["text_alone"] and "text_alone" not in found[2]
    assert found[0]["cmc"] != found[1]["cmc"]
    assert main(["evaluate", str(run), str(features)]) == 0
    assert "text alone, Acc" in capsys.readouterr().out
