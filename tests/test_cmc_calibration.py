"""Temperature against a search over a grid, its stated fallbacks, and labels as numbers against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmc.calibration import (
    BOUNDS,
    Calibration,
    calibrate,
    expected_values,
    fit_temperature,
    negative_log_likelihood,
    probabilities,
)


def drawn(seed: int, clips: int, classes: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `scale` times those that the truth is drawn from: their best T is about `scale`."""
    rng = np.random.default_rng(seed)
    honest = 2 * rng.standard_normal((clips, classes))
    truth = (honest + rng.gumbel(size=honest.shape)).argmax(1)
    return scale * honest, truth


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_temperature_undoes_a_scale(scale: float) -> None:
    logits, truth = drawn(0, 4000, 5, scale)
    temperature, note = fit_temperature(logits, truth)
    assert temperature == pytest.approx(scale, rel=0.06) and "4000 validation clips" in note


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 8), scale=st.floats(0.2, 6))
def test_no_temperature_of_a_grid_is_better(seed: int, classes: int, scale: float) -> None:
    logits, truth = drawn(seed, 40, classes, scale)
    temperature, note = fit_temperature(logits, truth)
    if note.startswith("not fitted"):
        return
    best = negative_log_likelihood(truth, logits, temperature)
    for other in np.geomspace(*BOUNDS, 60):
        assert best <= negative_log_likelihood(truth, logits, other) + 1e-9


def test_likelihood_is_torchs() -> None:
    logits, truth = drawn(1, 50, 4, 1.0)
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits / 0.7), torch.tensor(truth))
    assert negative_log_likelihood(truth, logits, 0.7) == pytest.approx(float(expected))
    huge = np.array([[1e4, 0.0]])
    assert negative_log_likelihood(np.array([1]), huge) == pytest.approx(1e4), "no overflow, no log of 0"


def test_where_there_is_nothing_to_fit_it_stays_one_and_says_why() -> None:
    logits, truth = drawn(2, 40, 3, 1.0)
    for answer, why in (
        (fit_temperature(logits[:9], truth[:9]), "fewer than 10"),
        (fit_temperature(np.eye(3)[truth], truth), "every validation clip is classified correctly"),
        (fit_temperature(np.where(logits > 3, np.nan, logits), truth), "not finite"),
    ):
        assert answer[0] == 1 and answer[1].startswith("not fitted") and why in answer[1]


def test_it_is_bounded() -> None:
    truth = np.zeros(40, int)
    wrong = np.tile([0.0, 1.0], (40, 1))
    temperature, note = fit_temperature(wrong, truth)
    assert temperature == BOUNDS[1] and "at its bound" in note, "always wrong: the flatter the better"
    nearly = np.tile([0.01, 0.0], (40, 1))
    nearly[0] = [-1e-6, 0.0]
    temperature, note = fit_temperature(nearly, truth)
    assert temperature == BOUNDS[0] and "at its bound" in note


def test_class_values_are_of_training_clips_only() -> None:
    logits, truth = drawn(3, 20, 3, 1.0)
    train, values = np.array([0, 0, 2]), np.array([-1.0, -0.5, 3.0], np.float32)
    found = calibrate(logits, truth, train, values)
    assert found.class_values == [-0.75, None, 3.0] and found.mean_value == pytest.approx(0.5)
    named = calibrate(logits, truth, train, None)
    assert (named.class_values, named.mean_value) == (None, None)
    assert Calibration().temperature == 1 and Calibration().note == "not fitted"


def test_expected_values() -> None:
    found = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(expected_values(found, [-1.0, 0.0, 2.0]), [0.8, -1.0])
    np.testing.assert_allclose(expected_values(found[:1], [-1.0, None, 2.0]), [(-0.2 + 1.0) / 0.7])
    assert probabilities(np.array([[1000.0, 0.0]])).tolist() == [[1.0, 0.0]]
