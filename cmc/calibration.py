"""From logits to probabilities that mean what they say, and from classes back to the scale of the labels.

Temperature scaling (Guo et al. 2017, arXiv 1706.04599): after training, logits are divided by the one T > 0 that
minimises the negative log-likelihood of the validation split. No decision changes by it. The weights were selected on
the same split, so T errs towards too sure; the test split's figures before and after tell by how much it helped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BOUNDS = (0.1, 10.0)
"""Of T. A validation set whose best T lies beyond says little of how sure to be."""
MIN_CLIPS = 10
"""Fewer validation clips fit no temperature."""
_HALVINGS = 60

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Calibration:
    """What a run stores of it, from training and validation clips only."""

    temperature: float = 1.0
    note: str = "not fitted"
    """How T was found, or why it is 1."""
    class_values: list[float | None] | None = None
    """Mean training label of each class, None for a class without training clips; None where labels are not numbers."""
    mean_value: float | None = None
    """Mean training label: what the baseline answers."""


def calibrate(logits: Floats, truth: Ints, train: Ints, train_values: Floats | None) -> Calibration:
    """Args: validation logits (N, K) and classes (N,); training classes and, where labels are numbers, those (M,)."""
    temperature, note = fit_temperature(logits, truth)
    if train_values is None:
        return Calibration(temperature, note)
    classes = range(logits.shape[1])
    means = [float(train_values[train == k].mean()) if (train == k).any() else None for k in classes]
    return Calibration(temperature, note, means, float(train_values.mean()))


def fit_temperature(logits: Floats, truth: Ints) -> tuple[float, str]:
    """The T within `BOUNDS` that minimises the mean negative log-likelihood of truth (N,), and how it was found.

    That likelihood is convex in 1/T, so its slope is bisected. T stays 1, and the note says why, where there is nothing
    to fit it to: fewer than `MIN_CLIPS` clips, logits that are not finite, or no clip that is classified wrongly (the
    classes are separated, and the likelihood grows for ever as T falls).
    """
    if len(truth) < MIN_CLIPS:
        return 1.0, f"not fitted: {len(truth)} validation clips, fewer than {MIN_CLIPS}"
    if not np.isfinite(logits).all():
        return 1.0, "not fitted: validation logits are not finite"
    logits = np.asarray(logits, np.float64)
    own = logits[np.arange(len(truth)), truth]
    if (own >= logits.max(1)).all():
        return 1.0, "not fitted: every validation clip is classified correctly, so no T is the best"

    def slope(inverse: float) -> float:
        """d NLL / d(1/T): mean over clips of the expected logit minus that of the truth."""
        return float(((probabilities(logits, 1 / inverse) * logits).sum(1) - own).mean())

    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    for bound, beyond in ((low, slope(low) >= 0), (high, slope(high) <= 0)):
        if beyond:
            return 1 / bound, f"at its bound: the best T for {len(truth)} validation clips lies beyond {1 / bound:g}"
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / low, f"fitted to {len(truth)} validation clips, on which the weights were selected too"


def probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    """softmax(logits / T) over the last axis."""
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def negative_log_likelihood(truth: Ints, logits: Floats, temperature: float = 1.0) -> float:
    """Mean of −log p(truth) in nats; NaN where there is no clip."""
    if not len(truth):
        return float("nan")
    scaled = np.asarray(logits, np.float64) / temperature
    top = scaled.max(1)
    log_sum = top + np.log(np.exp(scaled - top[:, None]).sum(1))
    return float((log_sum - scaled[np.arange(len(truth)), truth]).mean())


def expected_values(found: Floats, class_values: list[float | None]) -> Floats:
    """Σ_k p_k·v_k, shape (N,), for probabilities (N, K): v_k is the mean training label of class k.

    A class without training clips has no v_k; the other classes' probabilities are then scaled to sum to 1.
    """
    known = np.array([value is not None for value in class_values])
    values = np.array([value for value in class_values if value is not None])
    return found[:, known] @ values / found[:, known].sum(1)
