"""SupCon against a hand-computed example and against its definition, row by row."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from cmc.losses import balanced_weights, contrast_groups, cross_entropy, supcon, supcon_published


def test_supcon_by_hand() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    groups = torch.tensor([0, 0, 1])
    # s01 = 0, s02 = 0.6, s12 = 0.8 and τ = 1; rows 0 and 1 are each other's only positive, row 2 has none.
    row_0 = -math.log(1 / (1 + math.exp(0.6)))
    row_1 = -math.log(1 / (1 + math.exp(0.8)))
    assert supcon(features, groups, temperature=1.0).item() == pytest.approx((row_0 + row_1) / 2, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_supcon_by_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = functional.normalize(torch.randn(17, 8, generator=generator, dtype=torch.float64), dim=1)
    groups = torch.randint(0, 3, (17,), generator=generator)
    terms = []
    for i in range(17):
        own = [p for p in range(17) if p != i and groups[p] == groups[i]]
        if own:
            power = [math.exp(float(features[i] @ features[a]) / 0.07) for a in range(17)]
            terms.append(-math.log(sum(power[p] for p in own) / (sum(power) - power[i])))
    expected = sum(terms) / len(terms)
    assert supcon(features, groups).item() == pytest.approx(expected, rel=1e-9)
    assert supcon_published(features, groups).item() == pytest.approx(expected, rel=1e-9)


def test_supcon_without_positives_is_zero_and_differentiable() -> None:
    features = functional.normalize(torch.randn(3, 4), dim=1).requires_grad_()
    loss = supcon(features, torch.tensor([0, 1, 2]))
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(features.grad).all()


def test_supcon_survives_a_small_temperature() -> None:
    features = functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.isfinite(supcon(features, groups, temperature=1e-3))
    assert not torch.isfinite(supcon_published(features, groups, temperature=1e-3))  # e^1000


def test_contrast_groups() -> None:
    classes = torch.tensor([0, 1, 2])
    assert contrast_groups(classes, "positive").tolist() == [0, 0, 1]
    assert contrast_groups(classes, "negative").tolist() == [0, 1, 1]
    assert contrast_groups(classes, None).tolist() == [0, 1, 2]


def test_cross_entropy_skips_unknown_labels() -> None:
    logits = torch.randn(4, 3)
    labels = torch.tensor([0, -1, 2, -1])
    assert torch.equal(cross_entropy(logits, labels), functional.cross_entropy(logits[[0, 2]], labels[[0, 2]]))
    assert cross_entropy(logits, torch.full((4,), -1)).item() == 0


def test_weighted_cross_entropy_is_torchs() -> None:
    logits, weight = torch.randn(5, 3), torch.tensor([0.5, 2.0, 1.0])
    labels = torch.tensor([0, -1, 2, 1, 0])
    expected = functional.cross_entropy(logits[labels >= 0], labels[labels >= 0], weight=weight)
    torch.testing.assert_close(cross_entropy(logits, labels, weight), expected)
    assert expected.item() != pytest.approx(cross_entropy(logits, labels).item())


def test_balanced_weights() -> None:
    weights = balanced_weights(torch.tensor([0, 1, 1, 1, 1, 1, 2, 2]), 3)
    torch.testing.assert_close(weights, torch.tensor([8 / 3, 8 / 15, 8 / 6]))
    torch.testing.assert_close(weights * torch.tensor([1, 5, 2]), torch.full((3,), 8 / 3))  # all count alike
    assert torch.isfinite(balanced_weights(torch.tensor([0, 0]), 3)).all()
