"""Self-MM's label generation: its formulas by hand, what each epoch does, and what it finds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel
from torch import Tensor

from cmc.cli import main
from cmc.config import Config
from cmc.planted import Plan, plant
from cmc.pretrain import Given, pretrain
from cmc.strategies.ulgm import ULGM, lean, moved, reached
from cmc.train import Material, open_material
from cmc.training import seed_everything
from cmc.trial import open_annotated, recovered
from cmc.unimodal import Unimodal

CONFIG = Config(pretrain="ulgm", layers=1, heads=2, text="freeze", batch_size=12, pretrain_epochs=14)


def test_the_formulas_by_hand() -> None:
    # Stream: (3, 4) is 5 from the positive centre (0, 0) and 4 from the negative one (3, 0): Δ = (4 − 5)/5 = −0.2.
    of_stream = lean(torch.tensor([[3.0, 4.0]]), (torch.zeros(2), torch.tensor([3.0, 0.0])))
    # Fusion: (0, 2) is 2 from (0, 0) and 3 from (0, 5): Δ = (3 − 2)/2 = 0.5.
    of_M = lean(torch.tensor([[0.0, 2.0]]), (torch.zeros(2), torch.tensor([0.0, 5.0])))
    assert of_stream.item() == pytest.approx(-0.2, abs=1e-5) and of_M.item() == pytest.approx(0.5, abs=1e-5)
    # y = 0.6: new = ½·(−0.2/0.5)·0.6 + ½·(0.6 − 0.2 − 0.5) = −0.12 − 0.05 = −0.17.
    own = torch.tensor([0.6])
    # Epoch 2: 1/3·0.6 + 2/3·(−0.17) = 0.2 − 0.11333 = 0.08667.
    second = moved(own, own, of_stream, of_M, 2, 1.0)
    assert second.item() == pytest.approx(0.0866667, abs=1e-5)
    # Epoch 3: 2/4·0.08667 + 2/4·(−0.17) = −0.04167.
    assert moved(second, own, of_stream, of_M, 3, 1.0).item() == pytest.approx(-0.0416667, abs=1e-5)
    # y = 1, Δ_s = 3, Δ_M = 0.5: ½·6 + ½·3.5 = 4.75 is beyond H = 1 and within H = 5; epoch 2 from 1: 1/3 + 2/3·new.
    one, three, half = torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([0.5])
    assert moved(one, one, three, half, 2, 1.0).item() == pytest.approx(1.0, abs=1e-5)
    assert moved(one, one, three, half, 2, 5.0).item() == pytest.approx(3.5, abs=1e-4)


def test_guards_of_the_formulas() -> None:
    centre = torch.tensor([1.0, 2.0])
    assert lean(centre[None], (centre, centre)).isfinite().all(), "a feature at both centres"
    for of_M in (0.0, -1e-6):  # the second is −ε
        found = moved(torch.zeros(1), torch.zeros(1), torch.ones(1), torch.tensor([of_M]), 2, 1.0)
        assert found.isfinite().all()


@pytest.mark.parametrize(
    ("label", "own", "of", "expected"),
    [
        (0.7, 0.6, 2, 2),
        (0.1, 0.6, 2, 2),  # more than half the way to neutral, and not there
        (0.0, 0.6, 2, 1),
        (-0.4, 0.6, 2, 1),
        (-0.5, 0.6, 2, 0),
        (0.4, 0.0, 1, 1),
        (0.5, 0.0, 1, 2),
        (-0.9, 0.0, 1, 0),
    ],
)
def test_a_class_is_left_when_another_is_reached(label: float, own: float, of: int, expected: int) -> None:
    means = torch.tensor([-0.5, 0.0, 0.5])
    one = lambda value: torch.tensor([value])  # noqa: E731
    assert reached(one(label), one(own), one(of), means).item() == expected
    if expected != 2:
        without = torch.tensor([-0.5, 0.0, math.inf])  # no clip has the last class
        assert reached(one(label), one(own), one(of), without).item() == expected


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ulgm") / "f.h5"
    plant(path, Plan({"train": 36, "valid": 12, "test": 6}, signal=4.0, missing=0.2, seed=3))
    return path


def stage_of(material: Material, config: Config = CONFIG) -> ULGM:
    seed_everything(0)
    models = {m: Unimodal(m, material.columns[m], 3, config) for m in config.modalities}
    return ULGM(models, material.train, material.valid, config, material.task)


def test_labels_stay_in_epoch_1_and_move_by_the_rule_from_epoch_2(features: Path) -> None:
    material = open_material(features, CONFIG)
    stage = stage_of(material)
    own = material.train.values
    assert own is not None and stage.limit == 1.0
    trained = stage.train_epoch(1, material.train.batches(12, torch.Generator().manual_seed(0)), 3)
    assert trained["M"] > 0 and trained["text"] == trained["audio"] == 0.0, "tanh|l − y| is 0 as long as l is y"
    assert all(torch.equal(labels, own) for labels in stage.labels["train"].values())
    stage.validate(1)
    assert torch.equal(stage.labels["valid"]["text"], stage.own["valid"])
    batch = material.train.batch(torch.arange(12))
    stage.train_epoch(2, [batch], 1)
    for m in ("text", "audio", "vision"):
        found = stage.labels["train"][m]
        expected = own.clone()
        delta, of_M = (plain_delta(stage.features[name], own, there(material, name)) for name in (m, "M"))
        for row in range(12):
            if there(material, m)[row]:
                new = 0.5 * delta[row] / of_M[row] * own[row] + 0.5 * (own[row] + delta[row] - of_M[row])
                expected[row] = own[row] / 3 + 2 / 3 * max(-1.0, min(1.0, float(new)))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        assert not torch.equal(found, own)


def there(material: Material, stream: str) -> Tensor:
    return torch.ones(36, dtype=torch.bool) if stream == "M" else material.train.present(stream)


def plain_delta(features: Tensor, labels: Tensor, known: Tensor) -> list[float]:
    """Δ of every clip, the centres as means over loops."""
    rows = [k for k in range(len(labels)) if known[k]]
    positive = sum(features[k] for k in rows if labels[k] > 0) / sum(bool(labels[k] > 0) for k in rows)
    negative = sum(features[k] for k in rows if labels[k] < 0) / sum(bool(labels[k] < 0) for k in rows)
    to_positive = [float((f - positive).square().sum().sqrt()) for f in features]
    to_negative = [float((f - negative).square().sum().sqrt()) for f in features]
    return [(n - p) / p for p, n in zip(to_positive, to_negative, strict=True)]


def test_the_loss_weighs_a_modality_by_how_far_its_label_is_its_own(features: Path) -> None:
    stage = stage_of(open_material(features, CONFIG))
    batch = stage.splits["train"].batch(torch.arange(2))
    stage.own["train"][:2] = torch.tensor([0.6, -0.2])
    stage.labels["train"]["text"][:2] = torch.tensor([0.1, -0.2])
    numbers = {"M": torch.tensor([0.5, 0.0])} | dict.fromkeys(("text", "audio", "vision"), torch.tensor([0.4, 0.7]))
    losses = stage._losses("train", batch, numbers)
    assert losses["M"].item() == pytest.approx(0.15)  # (0.1 + 0.2)/2
    assert losses["text"].item() == pytest.approx(math.tanh(0.5) * 0.3 / 2)  # the second clip's label is M's


def test_without_negative_clips_nothing_moves_and_nothing_is_nan(features: Path) -> None:
    stage = stage_of(open_material(features, CONFIG))
    for split, own in stage.own.items():
        own.abs_()
        for labels in stage.labels[split].values():
            labels.abs_()
    for epoch in (1, 2, 3):
        losses = stage.train_epoch(epoch, stage.splits["train"].batches(12), 3) | stage.validate(epoch)
        assert all(math.isfinite(loss) for loss in losses.values())
    assert all(torch.equal(labels, stage.own["train"]) for labels in stage.labels["train"].values())


def test_named_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(tmp_path / "f.h5", Plan({"train": 12, "valid": 6, "test": 6}, classes=4))
    call = ["train", str(tmp_path / "f.h5"), "-o", str(tmp_path / "run"), "--text", "freeze", "--pretrain", "ulgm"]
    assert main(call) == 2
    assert "named classes have no sign" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_planted_labels_are_found(tmp_path: Path) -> None:
    copied, found = [], []
    for seed in range(5):
        path = tmp_path / f"{seed}.h5"
        plant(path, Plan({"train": 150, "valid": 60, "test": 6}, conflict=0.6, signal=5.0, seed=seed))
        config = CONFIG.model_copy(update={"seed": seed, "batch_size": 16})
        material = open_annotated(path, config, path.with_name(f"{seed}_truth.csv"))
        seed_everything(seed)
        models = {m: Unimodal(m, material.columns[m], 3, config) for m in config.modalities}
        kept = pretrain(Given(models, material.train, material.valid, config, material.task))
        assert all(len(values) == 150 for values in kept.values["train"].values())
        shares = recovered(material.train, kept.states["train"])
        copied.append(np.mean([share["copying M"] for share in shares.values()]))
        found.append(np.mean([share["pseudo labels"] for share in shares.values()]))
    assert ttest_rel(found, copied, alternative="greater").pvalue < 0.05, (found, copied)
