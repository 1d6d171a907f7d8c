"""TensorBoard's own reader finds every epoch once, also when training was interrupted and went on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from cmc import journal
from cmc import run as runs
from cmc import train as training
from cmc.board import FOLDER
from cmc.cli import main
from cmc.config import Config
from cmc.planted import Plan, plant

pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")

CONFIG = Config(layers=1, pretrain_epochs=3, epochs=3, batch_size=12, text="freeze", label_warmup=0)
COMMAND = ["--layers", "1", "--pretrain-epochs", "3", "--epochs", "3", "--batch-size", "12", "--text", "freeze"]
COMMAND += ["--label-warmup", "0", "--tensorboard"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "features.h5"
    plant(path, Plan({"train": 24, "valid": 12}, signal=4.0, seed=5))
    return path


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / FOLDER))
    found.Reload()
    return found


def assert_is_the_history(folder: Path) -> None:
    record, events = runs.read(folder), read(folder)
    wanted = {
        f"{stage}/{name}": [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in rows]
        for stage, rows in record.history.items()
        for name in rows[0]
        if name != "epoch"
    }
    assert {"pretrain/relabelled_audio", "pretrain/valid_contrast", "finetune/valid_accuracy"} <= wanted.keys()
    for tag, values in wanted.items():
        assert [(event.step, event.value) for event in events.Scalars(tag)] == values, tag
    assert set(events.Tags()["scalars"]) == {*wanted, *(f"validation/{name}" for name in record.validation)}
    settings = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"pretrain_epochs" in settings and b"label_momentum" in settings


def test_curves_are_the_history(features: Path, tmp_path: Path) -> None:
    assert main(["train", str(features), "-o", str(tmp_path), *COMMAND]) == 0
    assert_is_the_history(tmp_path)


def test_a_finished_run_gets_its_curves_later(features: Path, tmp_path: Path) -> None:
    call = ["train", str(features), "-o", str(tmp_path), *COMMAND]
    assert main(call[:-1]) == 0
    assert not (tmp_path / FOLDER).exists()
    assert main(call) == 0
    assert_is_the_history(tmp_path)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_run_that_went_on_has_no_epoch_twice(
    stage: str, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(at: str, epoch: int, epochs: int, figures: Any) -> None:
        if (at, epoch) == (stage, 2):
            raise KeyboardInterrupt

    # No state is written of the second epoch, so it is trained twice.
    monkeypatch.setattr(journal, "SHARE", 1e-9)
    training.train(features, tmp_path, CONFIG, interrupt, tensorboard=True)
    assert [
        event.step for event in read(tmp_path).Scalars(f"{stage}/{'valid_text' if stage == 'pretrain' else 'valid'}")
    ]
    assert main(["train", str(features), "-o", str(tmp_path), *COMMAND, "--resume"]) == 0
    assert_is_the_history(tmp_path)


def test_without_the_package_it_is_said_how_to_get_it(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["train", str(features), "-o", str(tmp_path / "run"), *COMMAND]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
