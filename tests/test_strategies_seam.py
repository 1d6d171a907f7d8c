"""`--pretrain`: what every strategy has in common, from the flag to the run's files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from cmc import journal, strategies
from cmc import run as runs
from cmc.ablate import ablate
from cmc.cli import main
from cmc.config import Config
from cmc.data import Split
from cmc.planted import Plan, plant
from cmc.pretrain import Given, Pretrained, Stage, run
from cmc.strategies import STRATEGIES, Strategy, mug
from cmc.strategies.labels import Distributions
from cmc.training import optimizer
from cmc.trial import trial

QUICK = ["--layers", "1", "--heads", "2", "--pretrain-epochs", "3", "--epochs", "2", "--batch-size", "12"]
FROZEN = [*QUICK, "--text", "freeze"]
PLAN = Plan({"train": 30, "valid": 12, "test": 12}, signal=4.0, missing=0.15, seed=5)


@pytest.fixture(autouse=True)
def quick_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mug, "STEPS", 1)
    monkeypatch.setattr(mug, "EPOCHS", 2)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seam") / "f.h5"
    plant(path, PLAN)
    return path


def train(features: Path, folder: Path, name: str, *more: str) -> int:
    return main(["train", str(features), "-o", str(folder), *FROZEN, "--pretrain", name, *more])


@pytest.mark.parametrize("name", ["mug", "ulgm", "none", "copy"])
def test_runs(name: str, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert train(features, folder, name) == 0
    assert train(features, folder, name) == 0 and "already trained" in capsys.readouterr().out
    record, stored = runs.read(folder), runs.load_pseudo_labels(folder)
    makes = STRATEGIES[name].makes_labels
    assert record.status == "finished" and bool(record.relabelled) == makes
    assert ("train_A_value" in stored) == makes
    if not makes:
        assert (stored["train_A"] == stored["train_V"]).all()
    assert bool(record.history["pretrain"]) == (name != "none")
    assert main(["evaluate", str(folder), str(features)]) == 0
    assert (folder / "pseudo_labels.png").exists() == makes


@pytest.mark.parametrize("name", ["mug", "ulgm"])
def test_resume_gives_the_very_same_weights(
    name: str, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after every epoch of stage 1, whatever phase it is of, and of stage 2."""
    monkeypatch.setattr(journal, "SHARE", float("inf"))
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert train(features, whole, name, "--stream", "always") == 0
    write, stops = journal.RunJournal.write, 0

    def interrupting(self: Any, *arguments: Any) -> None:
        nonlocal stops
        write(self, *arguments)
        stops += 1
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(journal.RunJournal, "write", interrupting)
        statuses = [train(features, pieces, name, "--resume") for _ in range(20)]
    epochs = sum(len(rows) for rows in runs.read(whole).history.values())
    assert statuses.index(0) >= epochs and stops == epochs
    for file in ("model.safetensors", "unimodal.safetensors", "pseudo_labels.npz"):
        assert (whole / file).read_bytes() == (pieces / file).read_bytes(), file


def test_without_stage_1_weights_are_fresh_and_labels_copies(features: Path, tmp_path: Path) -> None:
    assert train(features, tmp_path / "run", "none") == 0
    assert not load_file(tmp_path / "run" / "unimodal.safetensors")
    record = runs.read(tmp_path / "run")
    assert record.best_epochs.keys() == {"finetune"} and record.history["pretrain"] == []


@pytest.mark.parametrize("name", ["mug", "ulgm", "none"])
def test_reference_mode_is_the_published_code(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValidationError, match=f"knows no pretrain {name}"):
        Config(mode="reference", pretrain=name)
    with pytest.raises(SystemExit):
        main(["train", "f.h5", "-o", "run", "--pretrain", "plmg"])
    assert "'plmg'" in capsys.readouterr().err
    with pytest.raises(ValidationError, match="there is no 'plmg'"):
        Config(pretrain="plmg")


def test_a_run_of_another_version_says_so(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert train(features, folder, "none") == 0
    values = json.loads((folder / "run.json").read_text())
    values["format_version"] = 1
    values["config"]["labels"] = values["config"].pop("pretrain")
    (folder / "run.json").write_text(json.dumps(values))
    assert main(["evaluate", str(folder), str(features)]) == 2
    assert "of version 1, not 2: it was written by another version of cmc" in capsys.readouterr().err
    assert train(features, folder, "none", "--overwrite") == 0


@pytest.mark.parametrize("name", ["mug", "ulgm"])
def test_tune_seeds_tensorboard_and_ablate(name: str, features: Path, tmp_path: Path) -> None:
    assert train(features, tmp_path / "two", name, "--seeds", "2", "--tensorboard") == 0
    assert list((tmp_path / "two").glob("seed-*/tensorboard/events*"))
    assert main(["evaluate", str(tmp_path / "two"), str(features)]) == 0
    tune = ["tune", str(features), "-o", str(tmp_path / "tuning"), *FROZEN, "--pretrain", name]
    assert main([*tune, "--trials", "1", "--seeds", "1"]) == 0
    settings = {"pretrain": name, "text": "freeze", "layers": 1, "pretrain_epochs": 1, "epochs": 1}
    found = ablate(features, tmp_path / "ablation", settings, 1, features.with_name("f_truth.csv"), ("CMC", "no PLGM"))
    assert found.results["CMC"][0]["config"]["pretrain"] == name
    assert found.results["no PLGM"][0]["config"]["pretrain"] == "copy"


def test_trial(features: Path) -> None:
    config = Config(pretrain="ulgm", text="freeze", layers=1, pretrain_epochs=2, epochs=2)
    found = trial(features, config, features.with_name("f_truth.csv"))
    assert set(found["clips"]) == {"overall", "consistent", "conflicting"}
    assert set(found["recovered"]) == {"text", "audio", "vision"}
    assert set(found["seconds"]) == {"pretrain", "finetune", "slowest pretrain", "slowest finetune"}
    assert min(found["seconds"].values()) > 0
    assert not trial(features, config.model_copy(update={"pretrain": "copy"}))["recovered"]


def test_class_weights_weigh_the_cross_entropies_of_mug() -> None:
    logits, classes, weight = torch.randn(9, 4), torch.arange(9) % 4, torch.tensor([0.5, 2.0, 1.0, 3.0])
    found = Distributions(4, weight).loss(logits, functional.one_hot(classes, 4).float())
    torch.testing.assert_close(found, functional.cross_entropy(logits, classes, weight))


class Constant(Stage):
    """A strategy of a few lines: its labels are all class 0."""

    warmup = 1

    def __init__(self, given: Given):
        super().__init__(given.models, given.train, given.valid, given.config, given.task)
        self.optimizer = optimizer(self.models.values(), self.config)

    def train_epoch(self, epoch: int, batches: Any, steps: int) -> dict[str, float]:
        assert len(list(batches)) == steps
        return {"loss": 1.0}

    def validate(self, epoch: int) -> dict[str, float]:
        return {"loss": {1: 0.0, 2: 0.5}.get(epoch, 0.9)}

    def figures(self, losses: Any) -> dict[str, float]:
        return dict.fromkeys(self.models, losses["loss"])

    def states(self, split: str) -> dict[str, Tensor]:
        clips: Split = self.splits[split]
        return {m: functional.one_hot(torch.zeros(len(clips), dtype=torch.long), 3).float() for m in self.models}

    def extra(self) -> dict[str, Tensor]:
        return {"kept": torch.arange(3)}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None: ...


def test_a_new_strategy_is_one_module_and_one_line(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretrain(given: Given) -> Pretrained:
        return run(Constant(given), given.report, given.journal)

    module = ModuleType("cmc.strategies.constant")
    module.pretrain = pretrain  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cmc.strategies.constant", module)
    monkeypatch.setitem(strategies.STRATEGIES, "constant", Strategy("constant", "all alike", makes_labels=True))
    config = tmp_path / "config.yaml"
    config.write_text("pretrain: constant")
    folder = tmp_path / "run"
    arguments = ["train", str(features), "-o", str(folder), *FROZEN, "--config", str(config), "--patience", "1"]
    assert main(arguments) == 0
    record, stored = runs.read(folder), runs.load_pseudo_labels(folder)
    assert record.best_epochs["pretrain_text"] == 2, "epoch 1 prepares, and is not judged"
    assert len(record.history["pretrain"]) == 3, "the one that prepares does not count as one without improvement"
    assert np.array_equal(stored["train_V"].argmax(1), np.zeros(len(stored["train_id"])))
    assert torch.equal(runs.load_extra(folder)["kept"], torch.arange(3))
    assert train(features, folder, "none", "--overwrite") == 0
    assert runs.load_extra(folder) == {}, "of another run"
