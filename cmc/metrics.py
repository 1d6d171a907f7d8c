"""Figures of a classifier, and which clips' modalities agree. Pure numpy; every figure says what it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]

DEFINITIONS = {
    "positive": "Has0: positive or not, neutral is not positive; predicted positive where its logit exceeds negative's",
    "negative": "Has0: negative or not, neutral is not negative; predicted negative where its logit is not exceeded",
}
NON0 = "Non0: positive or negative, neutral clips left out; predicted positive where its logit exceeds negative's"


def accuracy(truth: Ints, predicted: Ints) -> float:
    """Share of equal entries, both of shape (N,); NaN where N is 0."""
    return float(np.mean(truth == predicted)) if len(truth) else float("nan")


def weighted_f1(truth: Ints, predicted: Ints) -> float:
    """Mean of the classes' F1, weighted by how often each is true; NaN where N is 0."""
    if not len(truth):
        return float("nan")
    total = 0.0
    for k in np.unique(truth):
        hits = np.sum((truth == k) & (predicted == k))
        total += np.sum(truth == k) * 2 * hits / (np.sum(truth == k) + np.sum(predicted == k))
    return float(total / len(truth))


def confusion(truth: Ints, predicted: Ints, classes: int) -> NDArray[np.int64]:
    """Counts, shape (K, K): row is the truth, column the prediction."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (truth, predicted), 1)
    return counts


def calibration_error(truth: Ints, probabilities: Floats, bins: int = 10) -> float:
    """Expected calibration error of the top class over `bins` equal bins (Guo et al. 2017, arXiv 1706.04599)."""
    if not len(truth):
        return float("nan")
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(right[which == b].sum() - confidence[which == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(truth))


def class_metrics(truth: Ints, logits: Floats, question: str | None) -> dict[str, float]:
    """Accuracy and weighted F1 over the classes; for polarity also the binary figures.

    Args:
        truth: (N,) classes.
        logits: (N, K).
        question: `positive` or `negative` for polarity (K = 3), None for named classes.

    Returns: `accuracy`, `f1`, and for polarity `has0_accuracy`, `has0_f1`, `non0_accuracy`, `non0_f1` by `DEFINITIONS`
    and `NON0`. The published code compares Non0 predictions in {0, 1} with truths in {0, 2}; here 2 counts as 1.
    """
    predicted = logits.argmax(1)
    figures = {"accuracy": accuracy(truth, predicted), "f1": weighted_f1(truth, predicted)}
    if question is None:
        return figures
    positive = (logits[:, 2] > logits[:, 0]).astype(int)
    has0 = (truth == 2 if question == "positive" else truth >= 1).astype(int)
    polar = truth != 1
    non0, positive_non0 = (truth[polar] == 2).astype(int), positive[polar]
    return figures | {
        "has0_accuracy": accuracy(has0, positive),
        "has0_f1": weighted_f1(has0, positive),
        "non0_accuracy": accuracy(non0, positive_non0),
        "non0_f1": weighted_f1(non0, positive_non0),
    }


def majority(truth: Ints, train: Ints, classes: int) -> dict[str, float]:
    """Accuracy and weighted F1 of always answering the training split's most frequent class."""
    answer = np.full(len(truth), np.bincount(train, minlength=classes).argmax())
    return {"accuracy": accuracy(truth, answer), "f1": weighted_f1(truth, answer)}


def consistency(labels: Mapping[str, Ints]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(consistent, conflicting) clips, each (N,): T, A and V agree (D_msc), or they do not (D_msi).

    A clip that lacks one of the three labels (−1) is in neither.
    """
    T, A, V = (np.asarray(labels[key]) for key in "TAV")
    known = (T >= 0) & (A >= 0) & (V >= 0)
    agree = (T == A) & (A == V)
    return known & agree, known & ~agree


def mean_std(rows: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Name → (mean, sample standard deviation) over the rows of runs that differ in their seed."""
    spread = (lambda values: float(np.std(values, ddof=1))) if len(rows) > 1 else (lambda values: 0.0)
    return {name: (float(np.mean([r[name] for r in rows])), spread([r[name] for r in rows])) for name in rows[0]}
