"""PLGM: the update by hand, its edge cases, and which schedules let a label turn."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from cmc.config import PRESETS
from cmc.pseudo_labels import PseudoLabels, generate, momentum


def test_update_by_hand() -> None:
    p = torch.tensor([[0.1, 0.2, 0.7]])
    made = generate(torch.tensor([0]), p)
    gap_base = math.sqrt(0.9**2 + 0.2**2 + 0.7**2)
    gap_reversed = math.sqrt(0.1**2 + 0.2**2 + 0.3**2)
    alpha = (gap_base - gap_reversed) / (gap_base + gap_reversed)
    torch.testing.assert_close(made, torch.tensor([[1 - alpha, 0.0, alpha]]))
    labels = PseudoLabels(torch.tensor([1, 0]), 3)
    labels.update(torch.tensor([1]), p.log(), m=0.8)
    expected = 0.8 * torch.tensor([1.0, 0, 0]) + 0.2 * torch.tensor([1 - alpha, 0.0, alpha])
    torch.testing.assert_close(labels.states, torch.stack([torch.tensor([0.0, 1, 0]), expected]))


def test_model_that_agrees_completely_gives_the_base_label() -> None:
    """0/0 in α: NaN in the published code."""
    made = generate(torch.tensor([2]), torch.tensor([[0.0, 0.0, 1.0]]))
    assert made.tolist() == [[0, 0, 1]]


def test_tie_goes_to_the_lowest_class() -> None:
    made = generate(torch.tensor([2]), torch.tensor([[0.4, 0.4, 0.2]]))
    assert made[0, 0] > 0 and made[0, 1] == 0


@given(
    st.lists(st.lists(st.floats(-30, 30), min_size=4, max_size=4), min_size=1, max_size=8),
    st.integers(0, 3),
)
@example([[0.0, 0.0, 0.0, -3.6779977575751275]], 2)  # a tie, whose distances differ by rounding
def test_states_stay_distributions(logits: list[list[float]], base: int) -> None:
    labels = PseudoLabels(torch.full((len(logits),), base), 4)
    for _ in range(3):
        labels.update(torch.arange(len(logits)), torch.tensor(logits), 0.5)
    assert (labels.states >= 0).all()
    torch.testing.assert_close(labels.states.sum(1), torch.ones(len(logits)))


def test_momentum() -> None:
    assert momentum(0.8, 0.5, 1) == pytest.approx(0.8)
    assert momentum(0.8, 0.5, 4) == pytest.approx(0.9)
    assert momentum(0.8, 0.0, 50) == pytest.approx(0.8)


def visits_until_turned(mode: str, modality: int) -> int | None:
    """Epochs of certain contradiction until the hard label turns, at most 100."""
    preset = PRESETS[mode]
    labels = PseudoLabels(torch.tensor([0]), 3)
    certain = torch.tensor([[-50.0, -50.0, 50.0]])
    for epoch in range(1, 101):
        labels.update(
            torch.tensor([0]), certain, momentum(preset["label_momentum"][modality], preset["label_gamma"], epoch)
        )
        if labels.hard().item() == 2:
            return epoch
    return None


def test_published_audio_and_vision_labels_never_turn() -> None:
    assert visits_until_turned("reference", 1) is None
    assert visits_until_turned("reference", 2) is None


@pytest.mark.parametrize("modality", range(3))
def test_calibrated_labels_turn(modality: int) -> None:
    assert visits_until_turned("calibrated", modality) == 4


def test_calibrated_labels_do_not_turn_on_a_weak_contradiction() -> None:
    labels = PseudoLabels(torch.tensor([0]), 3)
    weak = torch.tensor([[0.25, 0.15, 0.6]]).log()
    for _ in range(500):
        labels.update(torch.tensor([0]), weak, 0.8)
    assert labels.hard().item() == 0
