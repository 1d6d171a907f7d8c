"""Rows that are read batch by batch are the rows that an array in memory has, and give the same weights."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from cmc import rows, text_encoder
from cmc.cli import main
from cmc.config import MODALITIES
from cmc.data import load, open_features, task_of
from cmc.evaluate import evaluate
from cmc.planted import Plan, plant
from mmfeat.layout import FeatureFile
from tests.test_cmc_train import encoder  # noqa: F401 - a fixture

FILES = ("model.safetensors", "unimodal.safetensors", "pseudo_labels.npz")
QUICK = ["--layers", "1", "--pretrain-epochs", "2", "--epochs", "2", "--batch-size", "8", "--text", "freeze"]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With values that are not finite, and a clip without a label."""
    path = tmp_path_factory.mktemp("planted") / "features.h5"
    plant(path, Plan({"train": 20, "valid": 10, "test": 8}, signal=4.0, missing=0.2, seed=3))
    with h5py.File(path, "r+") as file:
        file["train/audio"][4, 2, 1] = np.nan
        file["train/vision"][:, 5, 3] = np.inf
        file["train/text"][2, 1, 0] = -np.inf
        file["train/regression_labels"][7] = np.nan
    return path


@pytest.mark.parametrize("steps", [0, 7, 100])
@pytest.mark.parametrize("masked", [True, False])
def test_batches_are_the_same(features: Path, steps: int, masked: bool) -> None:
    with open_features(features) as file:
        task = task_of(file)
        whole, streamed = (load(file, "train", task, masked, steps, stream) for stream in ("never", "always"))
    assert streamed.streamed and not whole.streamed and streamed.ids == whole.ids
    assert {m: x.shape for m, x in streamed.inputs.items()} == {m: tuple(x.shape) for m, x in whole.inputs.items()}
    batches = [split.batches(6, torch.Generator().manual_seed(1)) for split in (whole, streamed)]
    for ours, theirs in zip(*batches, strict=True):
        for m in MODALITIES:
            assert torch.equal(ours.inputs[m], theirs.inputs[m]), m
            assert masked or theirs.masks[m] is None
            assert not masked or torch.equal(ours.masks[m], theirs.masks[m]), m


@pytest.mark.parametrize("arguments", [[], ["--steps", "7"]])
def test_weights_are_the_same(features: Path, arguments: list[str], tmp_path: Path, capsys: Any) -> None:
    for stream in ("never", "always"):
        command = ["train", str(features), "-o", str(tmp_path / stream), *QUICK, *arguments, "--stream", stream]
        assert main(command) == 0
    assert "batch by batch" in capsys.readouterr().err
    for name in FILES:
        assert (tmp_path / "never" / name).read_bytes() == (tmp_path / "always" / name).read_bytes(), name


def test_weights_are_the_same_with_an_encoder_whose_output_is_not_in_the_file(
    encoder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "features.h5"
    plant(path, Plan({"train": 16, "valid": 8}, seed=3), encoder)
    monkeypatch.setattr(text_encoder, "is_cached", lambda recipe: False)
    made = []
    monkeypatch.setattr(text_encoder, "zeros_on_disk", lambda shape: made.append(shape) or rows.zeros_on_disk(shape))
    for stream in ("never", "always"):
        assert main(["train", str(path), "-o", str(tmp_path / stream), *QUICK, "--stream", stream]) == 0
    assert [shape[0] for shape in made] == [16, 8]
    for name in FILES:
        assert (tmp_path / "never" / name).read_bytes() == (tmp_path / "always" / name).read_bytes(), name


def test_no_array_is_read_whole(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FeatureFile.read

    def watch(self: FeatureFile, split: str, key: str) -> Any:
        assert key not in MODALITIES, f"{key} was read whole"
        return original(self, split, key)

    monkeypatch.setattr(FeatureFile, "read", watch)
    assert main(["train", str(features), "-o", str(tmp_path / "run"), *QUICK, "--stream", "always"]) == 0
    monkeypatch.setattr(rows, "available_memory", lambda: 1)
    evaluate(tmp_path / "run", features)  # `auto` sees that there is no memory
    monkeypatch.setattr(rows, "available_memory", lambda: 2**40)
    with pytest.raises(AssertionError, match="was read whole"):
        evaluate(tmp_path / "run", features)


def test_auto_goes_by_the_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "available_memory", lambda: 1000)
    assert rows.fits(250, "auto") and not rows.fits(251, "auto")
    assert rows.fits(10**9, "never") and not rows.fits(1, "always")
    monkeypatch.undo()
    assert 2**20 < rows.available_memory() < 2**50


def _sum(split: Any, results: Any) -> None:
    results.put(float(split.batch(torch.arange(6)).inputs["audio"].sum()))


def test_a_forked_process_opens_the_file_itself(features: Path) -> None:
    with open_features(features) as file:
        split = load(file, "train", task_of(file), stream="always")
    expected = float(split.batch(torch.arange(6)).inputs["audio"].sum())
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    workers = [fork.Process(target=_sum, args=(split, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=60) for _ in workers] == [expected] * 3
    for worker in workers:
        worker.join()


def test_zeros_on_disk_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = rows.zeros_on_disk((3, 4, 5))
    made[1, 2] = 7
    assert made.sum() == 35 and made.dtype == torch.float32 and not list(tmp_path.iterdir())
