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
VALUE = (
    "MAE, r: predicted label = sum over the classes of probability, at the fitted temperature, times the class's mean "
    "training label"
)
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


def per_class(counts: NDArray[np.integer]) -> list[dict[str, float | None]]:
    """Precision, recall and F1 of every class of a confusion matrix (K, K).

    None where a figure is not defined: precision of a class never predicted, recall of one that is never true.
    """
    figures = []
    for k, hits in enumerate(np.diagonal(counts).tolist()):
        true, predicted = int(counts[k].sum()), int(counts[:, k].sum())
        figures.append(
            {
                "precision": hits / predicted if predicted else None,
                "recall": hits / true if true else None,
                "f1": 2 * hits / (true + predicted) if true + predicted else None,
            }
        )
    return figures


def reliability(truth: Ints, probabilities: Floats, bins: int = 10) -> NDArray[np.float64]:
    """Per equal bin of the top class's probability: clips, sum of that probability, correct clips. Shape (bins, 3)."""
    found = np.zeros((bins, 3))
    if len(truth):
        confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
        which = np.minimum((confidence * bins).astype(int), bins - 1)
        np.add.at(found, which, np.stack([np.ones(len(truth)), confidence, right], 1))
    return found


def calibration_error(found: NDArray[np.floating]) -> float:
    """Expected calibration error of `reliability`'s bins (Guo et al. 2017, arXiv 1706.04599); NaN without a clip."""
    clips = found[:, 0].sum()
    return float(np.abs(found[:, 2] - found[:, 1]).sum() / clips) if clips else float("nan")


def regression_metrics(truth: Floats, predicted: Floats) -> dict[str, float | None]:
    """Mean absolute error and Pearson's r, both (N,); None without a clip, r also where one of both is constant."""
    if not len(truth):
        return {"mae": None, "r": None}
    constant = np.ptp(truth) == 0 or np.ptp(predicted) == 0
    return {
        "mae": float(np.abs(truth - predicted).mean()),
        "r": None if constant else float(np.corrcoef(truth, predicted)[0, 1]),
    }


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
