"""Class weights: what they are taken from, where they enter, and that a rare class is found more often."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from cmc import run as runs
from cmc import train as training
from cmc.config import Config
from cmc.evaluate import evaluate
from cmc.finetune import Finetuning, frozen_labels
from cmc.planted import Plan, plant
from cmc.strategies.plgm import Pretraining
from cmc.unimodal import Unimodal


@pytest.fixture(scope="module")
def imbalanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven of twelve negative training clips are not labelled, and so left out."""
    path = tmp_path_factory.mktemp("planted") / "features.h5"
    plant(path, Plan({"train": 150, "valid": 60, "test": 120}, signal=1.5, seed=2))
    with h5py.File(path, "r+") as file:
        labels = file["train/regression_labels"]
        negative = np.flatnonzero(labels[:] < 0)
        labels[np.sort(negative[len(negative) // 12 :])] = np.nan
    return path


def config(**settings: object) -> Config:
    return Config(layers=1, text="freeze", pretrain_epochs=4, epochs=6, contrastive=False, **settings)  # type: ignore[arg-type]


def test_recall_of_the_rare_class_rises(imbalanced: Path, tmp_path: Path) -> None:
    recall = {}
    for weights in ("none", "balanced"):
        record = training.train(imbalanced, tmp_path / weights, config(class_weights=weights))
        confusion = np.array(evaluate(tmp_path / weights, imbalanced)["confusion"])
        recall[weights] = confusion[0, 0] / confusion[0].sum()
        assert runs.read(tmp_path / weights).class_weights == record.class_weights
    counts = np.array(record.majority)
    np.testing.assert_allclose(record.class_weights, counts.sum() / (3 * counts), rtol=1e-6)
    assert recall["balanced"] > recall["none"] + 0.2, recall


def test_every_cross_entropy_of_both_stages_is_weighted(imbalanced: Path) -> None:
    weighted = config(class_weights="balanced")
    material = training.open_material(imbalanced, weighted)
    counts = torch.bincount(material.train.label("M"), minlength=3)
    weight = len(material.train) / (3 * counts)
    models = {m: Unimodal(m, material.columns[m], 3, weighted).eval() for m in weighted.modalities}
    stage = Pretraining(models, material.train, material.valid, weighted, material.task)
    batch = material.train.batch(torch.arange(40))
    truth = material.train.label("M")[batch.index]
    outputs, losses = stage._losses("train", batch, models)
    for m, output in outputs.items():
        torch.testing.assert_close(losses[m], functional.cross_entropy(output.logits, truth, weight))
    model = training.Multimodal(material.columns, 3, weighted).eval()
    splits = {"train": material.train, "valid": material.valid}
    states = {name: {m: made.states for m, made in per.items()} for name, per in stage.labels.items()}
    second = Finetuning(model, *splits.values(), frozen_labels(states, splits, weighted), weighted, material.task)
    loss, fused = second.loss("train", batch)
    terms = [functional.cross_entropy(logits, truth, weight) for logits in (fused.logits, *fused.experts.values())]
    torch.testing.assert_close(loss, torch.stack(terms).sum())


def test_reference_mode_has_none() -> None:
    with pytest.raises(ValidationError, match="no class weights"):
        Config(mode="reference", class_weights="balanced")
