"""Search for settings: on validation only, resumable after a kill, in parallel; its result is a config for training."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import optuna
import pytest

from cmc import tune
from cmc.cli import main
from cmc.cluster import pool
from cmc.config import Config, UsageError
from cmc.planted import Plan, plant
from cmc.space import Range, default_space, read_space, suggest
from cmc.tune import Goal, Tuning, validation_figures

BASE = Config(layers=1, pretrain_epochs=1, epochs=1, text="freeze", batch_size=12)
FIXED = ["--layers", "1", "--pretrain-epochs", "1", "--epochs", "1", "--text", "freeze", "--batch-size", "12"]
SPACE = {"lr": Range(low=1e-4, high=1e-1, log=True), "width": [8, 16], "label_momentum": Range(low=0.5, high=0.9)}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "features.h5"
    plant(path, Plan({"train": 24, "valid": 12, "test": 12}, signal=4.0))
    return path


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Instead of training: NLL is smallest at lr 0.01, and worse by a little with every seed. Lists what was asked."""
    asked: list[Config] = []

    def figures(features: Path, config: Config, threads: int, device: str) -> dict[str, float]:
        asked.append(config)
        nll = abs(np.log10(config.lr) + 2) + 0.01 * (config.seed % 10)
        return {"nll": float(nll), "accuracy": float(1 - nll / 9), "f1": 0.5, "seconds": 0.0}

    monkeypatch.setattr(tune, "validation_figures", figures)
    return asked


def settings(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "trials.csv").open(newline="") as file:
        return [tuple(row[name] for name in ("state", "seeds", "nll", *SPACE)) for row in csv.DictReader(file)]


def test_from_search_to_trained_run(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space, out = tmp_path / "space.yaml", tmp_path / "tuning"
    space.write_text("lr: {low: 1e-4, high: 1e-2, log: true}\nlabel_momentum: [0.6, [0.8, 0.9, 0.9]]\n")
    call = ["tune", str(features), "-o", str(out), *FIXED, "--space", str(space), "--seeds", "2"]
    assert main([*call, "--trials", "2"]) == 0
    shown = capsys.readouterr()
    assert "2 trials finished" in shown.out and "2 of 2: nll" in shown.err
    best = json.loads((out / "best.json").read_text())
    assert best["layers"] == 1 and best["label_momentum"] in ([0.6] * 3, [0.8, 0.9, 0.9])
    assert main([*call, "--trials", "3"]) == 0
    assert "3 trials, 2 of them done" in capsys.readouterr().err
    run = tmp_path / "run"
    assert main(["train", str(features), "-o", str(run), "--config", str(out / "best.json"), "--seed", "3"]) == 0
    trained = json.loads((run / "run.json").read_text())["config"]
    best = json.loads((out / "best.json").read_text())
    assert trained == best | {"seed": 3}, "flags go before the file"


def test_a_file_of_settings_keeps_its_mode(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "best.json"
    path.write_text(json.dumps(BASE.model_dump(mode="json")))
    call = ["train", str(features), "-o", str(tmp_path / "run"), "--config", str(path), "--mode"]
    assert main([*call, "reference"]) == 2
    assert "best.json holds settings for calibrated mode" in capsys.readouterr().err
    assert main([*call, "calibrated"]) == 0
    path.write_text("layers: 1\ntext: freeze\npretrain_epochs: 1\nepochs: 1\n")
    assert main([*call, "reference", "--overwrite"]) == 0
    trained = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert trained["layers"] == 1 and trained["out_dropout"] == 0.4, "of the reference preset"


def test_import_trains_nothing_and_has_no_precision(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    shown = capsys.readouterr().out
    assert "--precision" not in shown and "--batch-size" in shown


def test_figures_are_of_validation_clips(features: Path) -> None:
    found = validation_figures(features, BASE, 1)
    again = validation_figures(features, BASE, 1)
    assert found | {"seconds": 0} == again | {"seconds": 0}
    assert 0 < found["nll"] < 3 and found["accuracy"] * 12 == pytest.approx(round(found["accuracy"] * 12))


def test_nll_does_not_depend_on_what_the_loss_counts(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the very same logits: the model is left as it starts."""
    from cmc.training import Best

    monkeypatch.setattr(Best, "improves", lambda self, value, epoch: epoch == 1 and self.epoch == 0)
    still = BASE.model_copy(update={"lr": 1e-30, "weight_decay": 0.0, "ema_epochs": 1e9})
    found = [validation_figures(features, still.model_copy(update={"contrastive": c}), 1) for c in (True, False)]
    assert found[0]["nll"] == pytest.approx(found[1]["nll"], abs=1e-6)


@pytest.mark.parametrize("change", ["scramble", "remove"])
def test_the_test_split_is_not_read(features: Path, tmp_path: Path, change: str) -> None:
    other = tmp_path / "other.h5"
    other.write_bytes(features.read_bytes())
    with h5py.File(other, "r+") as file:
        if change == "remove":
            del file["test"]
        else:
            file["test/regression_labels"][:] = file["test/regression_labels"][:][::-1] * -1
            file["test/audio"][:] = np.nan
    for path, folder in ((features, "one"), (other, "two")):
        with Tuning(Goal(path, BASE, SPACE, seeds=1), tmp_path / folder) as tuning, pool() as here:
            tuning.run(2, here)
            tuning.write()
    assert settings(tmp_path / "one") == settings(tmp_path / "two")


def test_an_interrupted_search_is_the_uninterrupted_one(
    features: Path, tmp_path: Path, invented: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    goal = Goal(features, BASE, SPACE, seeds=3)
    with Tuning(goal, tmp_path / "whole") as tuning, pool() as here:
        tuning.run(12, here)
        tuning.write()
    whole, asked = settings(tmp_path / "whole"), len(invented)
    assert any(row[0] == "given up" and row[1] == "1" for row in whole) and asked < 12 * 3
    invented.clear()
    figures = tune.validation_figures
    for stop in (5, 4, 8, None):  # Ctrl-C in the middle of a trial, three times

        def interrupted(*given: object, left: list[int | None] = [stop]) -> dict[str, float]:  # noqa: B006
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
            return figures(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(tune, "validation_figures", interrupted)
        try:
            with Tuning(goal, tmp_path / "parts") as tuning, pool() as here:
                tuning.run(12, here)
                tuning.write()
        except KeyboardInterrupt:
            assert stop is not None
    assert settings(tmp_path / "parts") == whole
    assert len(invented) == asked, "no seed is trained twice"


def test_better_settings_are_found_and_come_first(features: Path, tmp_path: Path, invented: list[Config]) -> None:
    with Tuning(Goal(features, BASE, SPACE, seeds=1), tmp_path) as tuning, pool() as here:
        tuning.run(20, here)
        best = tuning.ranking()[0]
        assert 0.003 < best.params["lr"] < 0.03
        assert best.value == min(trial.value for trial in tuning.done())
        assert json.loads((tmp_path / "best.json").read_text())["lr"] == best.params["lr"]
        assert max(tuning.importances(), key=tuning.importances().__getitem__) == "lr"


def test_the_highest_accuracy_is_best(features: Path, tmp_path: Path, invented: list[Config]) -> None:
    with Tuning(Goal(features, BASE, SPACE, "accuracy", seeds=1), tmp_path) as tuning, pool() as here:
        tuning.run(4, here)
        assert tuning.ranking()[0].value == max(trial.value for trial in tuning.done())
        assert not tuning.importances(), "of too few trials"


def test_a_killed_search_goes_on(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuning"
    call = ["tune", str(features), "-o", str(out), *FIXED[2:], "--seeds", "1", "--trials", "400"]
    with subprocess.Popen([sys.executable, "-m", "cmc.cli", *call], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(4)]
        with pytest.raises(UsageError, match="another cmc tune is at work"):
            Tuning(Goal(features, BASE, SPACE), out).__enter__()
        process.send_signal(signal.SIGKILL)
    assert lines[-1].startswith("3 of 400")
    study = optuna.load_study(study_name="cmc", storage=f"sqlite:///{out / 'study.db'}")
    there = sum(trial.state.is_finished() for trial in study.trials)
    assert main([*call[:-1], str(there + 1)]) == 0
    states = [trial.state.name for trial in study.trials]
    assert "RUNNING" not in states and states.count("COMPLETE") == there + 1


def test_two_processes(features: Path, tmp_path: Path) -> None:
    """Different processes of Dask give what this one gives."""
    goal = Goal(features, BASE, SPACE, seeds=1)
    with Tuning(goal, tmp_path) as tuning, pool(workers=2) as workers:
        assert workers.slots == 2
        tuning.run(3, workers)
        trial = tuning.done()[0]
        figures = trial.user_attrs["runs"][0]
    here = validation_figures(features, goal.config_of(trial), 1)
    assert figures | {"seconds": 0} == here | {"seconds": 0}
    assert len(tuning.done()) == 3


def test_another_search_in_the_same_folder_is_refused(features: Path, tmp_path: Path, invented: list[Config]) -> None:
    with Tuning(Goal(features, BASE, {"layers": [1, 2]}, seeds=5), tmp_path):
        pass  # a folder without trials is free
    with Tuning(Goal(features, BASE, SPACE, seeds=1), tmp_path) as tuning, pool() as here:
        tuning.run(1, here)
    with pytest.raises(UsageError, match="another space, number of seeds"):
        Tuning(Goal(features, BASE, {"layers": [1, 2]}, seeds=2), tmp_path).__enter__()
    other = tmp_path / "other.h5"
    other.write_bytes(features.read_bytes())
    with h5py.File(other, "r+") as file:
        file["train/audio"][0] += 1
    with pytest.raises(UsageError, match="another feature file"):
        Tuning(Goal(other, BASE, SPACE, seeds=1), tmp_path).__enter__()


def test_settings_that_do_not_go_together_are_passed_over(
    features: Path, tmp_path: Path, invented: list[Config]
) -> None:
    space = {"width": [6, 9], "heads": [2, 3]}
    with Tuning(Goal(features, BASE, space, seeds=1), tmp_path) as tuning, pool() as here:
        tuning.run(12, here)
        assert {(t.params["width"], t.params["heads"]) for t in tuning.ranking()} <= {(6, 2), (6, 3), (9, 3)}
        assert len(tuning.done()) == 12 and len(tuning.ranking()) < 12


def test_a_loss_that_is_not_finite_is_never_best(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {"nll": float("nan"), "accuracy": 1.0, "f1": 1.0, "seconds": 0.0}
    monkeypatch.setattr(tune, "validation_figures", lambda *given: bad)
    with Tuning(Goal(features, BASE, SPACE, seeds=2), tmp_path) as tuning, pool() as here:
        tuning.run(2, here)
        assert len(tuning.done()) == 2 and not tuning.ranking()


def test_a_trial_that_diverges_is_given_up_and_the_search_goes_on(features: Path, tmp_path: Path) -> None:
    space = {"lr": [1e-3, 1e30]}
    with Tuning(Goal(features, BASE, space, seeds=1), tmp_path) as tuning, pool() as here:
        tuning.run(6, here)
        assert {trial.params["lr"] for trial in tuning.done()} == {1e-3, 1e30}
        assert {trial.params["lr"] for trial in tuning.ranking()} == {1e-3}


@pytest.mark.parametrize("at", [0, 4096])
def test_a_damaged_study_is_named(
    at: int, features: Path, tmp_path: Path, invented: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["tune", str(features), "-o", str(tmp_path), *FIXED, "--seeds", "1", "--trials", "1"]
    assert main(call) == 0
    path = tmp_path / "study.db"
    content = path.read_bytes()
    path.write_bytes(content[:at] + b"\xff" * (len(content) - at))
    assert main(call) == 2
    assert f"{path} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers: []", "layers must be a list of values"),
        ("lr: {low: 1e-2, high: 1e-3}", "lr: low 0.01 is not below high 0.001"),
        ("layrs: [1]", "layrs is not a setting"),
        ("seed: [1, 2]", "seed is not a setting"),
        ("lr: {low: 0, high: 1, log: true}", "logarithmic"),
        ("top_k: [1, 4]", "top_k: 4: Input should be less than or equal to 3"),
        ("heads: {low: 0, high: 3}", "heads: 0"),
        ("layers: {low: 1.5, high: 3}", "layers: 1.5"),
        ("mode: {low: 1, high: 2}", "mode is not a number"),
        ("[", "not YAML"),
        ("", "names no setting"),
    ],
)
def test_a_wrong_space_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_space(path)
    assert message in str(caught.value) and "space.yaml" in str(caught.value)


@pytest.mark.parametrize("flag", ["--space", "--config", "-o"])
def test_a_file_of_another_kind_is_named(
    flag: str, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "given"
    path.write_bytes(b"\xff\xfe\x00")
    call = ["tune", str(features), "-o", str(tmp_path / "out"), *FIXED]
    assert main([*call, flag, str(path)]) == 2
    shown = capsys.readouterr().err
    assert str(path) in shown and "Traceback" not in shown
    assert main([*call, "--config", str(tmp_path)]) == 2
    assert f"{tmp_path}: Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["plgm", "copy"])
@pytest.mark.parametrize("text", ["freeze", "finetune"])
def test_every_corner_of_the_default_space_is_a_config(strategy: str, text: str) -> None:
    base = Config(pretrain=strategy, text=text)
    space = default_space(base, ["lr"])
    assert "lr" not in space and ("label_warmup" in space) == (strategy == "plgm")
    assert ("lr_text" in space) == (text == "finetune")
    for end in (0, -1):
        params = {n: v[end] if isinstance(v, list) else (v.low, v.high)[end] for n, v in space.items()}
        Config(**(base.model_dump() | suggest(optuna.trial.FixedTrial(params), space)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("layers: [", "neither JSON nor YAML"),
        ("layrs: 1", "no setting layrs"),
        ("", "no settings"),
        ("layers: 0", "--layers"),
    ],
)
def test_a_wrong_config_file_is_named(
    content: str, message: str, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    assert main(["train", str(features), "-o", str(tmp_path / "run"), "--config", str(path)]) == 2
    assert message in capsys.readouterr().err
