"""MUG: its outer gradient against finite differences, what each phase may touch, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel
from torch import Tensor

from cmc.config import Config
from cmc.planted import Plan, plant
from cmc.pretrain import Given, pretrain
from cmc.strategies import mug
from cmc.strategies.labels import Distributions, Numbers, Target
from cmc.strategies.mug import MUG, Corrector, info_nce, meta_loss
from cmc.train import Material, open_material
from cmc.training import seed_everything
from cmc.trial import open_annotated, recovered
from cmc.unimodal import Head, Unimodal

CONFIG = Config(pretrain="mug", layers=1, heads=2, text="freeze", batch_size=12, pretrain_epochs=3)
TARGETS = [Distributions(3), Numbers(torch.tensor([-0.8, 0.0, 0.8]))]


@pytest.fixture
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def problem(target: Target) -> tuple[Corrector, Callable[[], Tensor]]:
    """A corrector, and the outer loss of what it makes of 6 clips' labels, judged on 5 others."""
    torch.manual_seed(0)
    config = Config(width=4, heads=2)
    head, corrector = target.head(Head(3, config)).eval(), Corrector(4, target)
    h, projected = torch.randn(6, 4), torch.randn(5, 4)
    if isinstance(target, Numbers):
        own, known = torch.randn(6, 1), torch.randn(5, 1)
    else:
        own, known = torch.eye(3)[torch.arange(6) % 3], torch.eye(3)[torch.arange(5) % 3]

    def outer() -> Tensor:
        labels = corrector(h, own)
        return meta_loss(head, target.inner_loss, target.loss, (h, labels), (projected, known), 0.7)

    return corrector, outer


@pytest.mark.parametrize("target", TARGETS, ids=["classes", "numbers"])
def test_the_outer_gradient_is_that_of_finite_differences(target: Target, double: None) -> None:
    corrector, outer = problem(target)
    outer().backward()
    largest = 0.0
    for parameter in corrector.parameters():
        assert parameter.grad is not None
        for place, found in zip(np.ndindex(*parameter.shape), parameter.grad.flatten().tolist(), strict=True):
            expected = difference(parameter, place, outer)
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-8)
            largest = max(largest, abs(expected))
    assert largest > 1e-3, "labels do matter"


def difference(parameter: Tensor, place: tuple[int, ...], outer: Callable[[], Tensor], step: float = 1e-5) -> float:
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter[place] += sign * step
            values.append(float(outer()) if torch.is_grad_enabled() else _with_grad(outer))
            parameter[place] -= sign * step
    return (values[0] - values[1]) / (2 * step)


def _with_grad(outer: Callable[[], Tensor]) -> float:
    with torch.enable_grad():  # the inner step needs it
        return float(outer().detach())


def test_an_absolute_error_in_the_inner_step_would_teach_nothing(double: None) -> None:
    """Why numbers have another inner loss: the gradient of |f − ŷ| does not depend on how far ŷ is."""
    target = TARGETS[1]
    corrector, _ = problem(target)
    head = target.head(Head(3, Config(width=4, heads=2))).eval()
    h, labels = torch.randn(6, 4), torch.randn(6, 1)
    loss = meta_loss(head, target.loss, target.loss, (h, corrector(h, labels)), (h, labels), 0.7)
    grads = torch.autograd.grad(loss, list(corrector.parameters()))
    assert not any(grad.any() for grad in grads)


def test_the_inner_step_leaves_the_head_alone(double: None) -> None:
    target = TARGETS[0]
    _, outer = problem(target)
    first = outer()
    first.backward()
    assert torch.equal(first, outer())


def test_info_nce_by_hand() -> None:
    """Two clips, h at right angles: own 0.6 and other 0.8, τ = 0.2, so −log e³/(e³ + e⁴) = log(1 + e); and 4 and 3."""
    h = torch.eye(2)
    projected = torch.tensor([[0.6, 0.8], [0.6, 0.8]])
    expected = (np.log1p(np.e) + np.log1p(np.exp(-1))) / 2
    assert info_nce(projected, h, 0.2).item() == pytest.approx(expected, rel=1e-6)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of each phase."""
    monkeypatch.setattr(mug, "STEPS", 1)
    monkeypatch.setattr(mug, "EPOCHS", 2)


@pytest.fixture(scope="module", params=[3, 4], ids=["numbers", "classes"])
def features(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mug") / "f.h5"
    plan = Plan({"train": 40, "valid": 16, "test": 6}, signal=4.0, missing=0.2, classes=request.param)
    plant(path, plan)
    return path


def stage_of(material: Material) -> MUG:
    seed_everything(0)
    models = {m: Unimodal(m, material.columns[m], material.task.classes, CONFIG) for m in CONFIG.modalities}
    return MUG(models, material.train, material.valid, CONFIG, material.task)


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def test_what_each_phase_may_touch(features: Path, quick: None) -> None:
    material = open_material(features, CONFIG)
    stage = stage_of(material)
    assert not set(stage.held_out.tolist()) & set(stage.taught.tolist())
    assert len(stage.held_out) == 8 and len(stage.taught) == 32, "of the 40 training clips"
    order = torch.Generator().manual_seed(0)
    moved = []
    for epoch in range(1, 7):
        before = weights(stage.networks), weights(stage.corrector)
        stage.train_epoch(epoch, material.train.batches(12, order), 4)
        after = weights(stage.networks), weights(stage.corrector)
        moved.append(tuple(not torch.equal(b, a) for b, a in zip(before, after, strict=True)))
        stage.validate(epoch)
        assert bool(stage.corrected) == (epoch >= 4)
    assert moved == [(True, False)] * 2 + [(False, True)] * 2 + [(True, False)] * 2
    for split in ("train", "valid"):
        own = stage.target.labels(stage.splits[split])
        for m, labels in stage.corrected[split].items():
            absent = ~stage.splits[split].present(m)
            assert torch.equal(labels[absent], own[absent])
            assert not torch.equal(labels, own) and labels.isfinite().all()
            states = stage.states(split)[m]
            torch.testing.assert_close(states.sum(1), torch.ones(len(own)))
    kind = stage.values("train")
    assert len(kind) == (3 if material.task.is_polarity else 0)


def test_validation_labels_teach_nothing(features: Path, quick: None) -> None:
    """With other validation labels, the training clips get the very same ones."""
    found = []
    for shift in (0, 1):
        material = open_material(features, CONFIG)
        valid = material.valid
        assert valid.labels is not None
        labels = valid.labels | {"M": (valid.label("M") + shift) % material.task.classes}
        values = None if valid.values is None else valid.values.roll(shift)
        stage = stage_of(replace(material, valid=replace(valid, labels=labels, values=values)))
        order = torch.Generator().manual_seed(0)
        for epoch in range(1, 5):
            stage.train_epoch(epoch, material.train.batches(12, order), 4)
            stage.validate(epoch)
        found.append(stage.corrected)
    for m in CONFIG.modalities:
        assert torch.equal(found[0]["train"][m], found[1]["train"][m])
        assert not torch.equal(found[0]["valid"][m], found[1]["valid"][m])


@pytest.mark.parametrize(("classes", "corrupt", "seeds"), [(3, 0.1, 5), (4, 0.0, 3)])
def test_planted_labels_are_found(classes: int, corrupt: float, seeds: int, tmp_path: Path) -> None:
    copied, found = [], []
    for seed in range(seeds):
        path = tmp_path / f"{seed}.h5"
        clips = {"train": 90, "valid": 12, "test": 6}
        plant(path, Plan(clips, conflict=0.6, signal=5.0, seed=seed, classes=classes, corrupt=corrupt))
        config = CONFIG.model_copy(update={"seed": seed, "pretrain_epochs": 1, "batch_size": 16})
        material = open_annotated(path, config, path.with_name(f"{seed}_truth.csv"))
        seed_everything(seed)
        models = {m: Unimodal(m, material.columns[m], classes, config) for m in config.modalities}
        kept = pretrain(Given(models, material.train, material.valid, config, material.task))
        shares = recovered(material.train, kept.states["train"])
        copied.append(np.mean([share["copying M"] for share in shares.values()]))
        found.append(np.mean([share["pseudo labels"] for share in shares.values()]))
    assert ttest_rel(found, copied, alternative="greater").pvalue < 0.05, (found, copied)
