"""Metrics against scikit-learn, and the binary ones against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from cmc.metrics import (
    calibration_error,
    class_metrics,
    confusion,
    consistency,
    majority,
    mean_std,
    per_class,
    regression_metrics,
    reliability,
    weighted_f1,
)


@pytest.fixture(scope="module")
def answers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 3, 200), rng.standard_normal((200, 3))


def test_class_metrics_agree_with_sklearn(answers: tuple[np.ndarray, np.ndarray]) -> None:
    truth, logits = answers
    found = class_metrics(truth, logits, "positive")
    predicted = logits.argmax(1)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert found["f1"] == pytest.approx(f1_score(truth, predicted, average="weighted"))
    assert (confusion(truth, predicted, 3) == confusion_matrix(truth, predicted)).all()


@pytest.mark.parametrize("question", ["positive", "negative"])
def test_binary_metrics(answers: tuple[np.ndarray, np.ndarray], question: str) -> None:
    truth, logits = answers
    found = class_metrics(truth, logits, question)
    positive = logits[:, 2] > logits[:, 0]
    has0 = truth == 2 if question == "positive" else truth >= 1
    assert found["has0_accuracy"] == pytest.approx(accuracy_score(has0, positive))
    assert found["has0_f1"] == pytest.approx(f1_score(has0, positive, average="weighted"))
    polar = truth != 1
    assert found["non0_accuracy"] == pytest.approx(accuracy_score(truth[polar] == 2, positive[polar]))
    assert found["non0_f1"] == pytest.approx(f1_score(truth[polar] == 2, positive[polar], average="weighted"))


def test_non0_of_a_perfect_model_is_one() -> None:
    """The published code compares {0, 1} with {0, 2} there, and gets the share of negatives."""
    truth = np.array([0, 2, 2, 2, 1])
    assert class_metrics(truth, np.eye(3)[truth], "positive")["non0_accuracy"] == 1


def test_weighted_f1_with_a_class_never_predicted() -> None:
    truth, predicted = np.array([0, 0, 1, 2]), np.array([0, 0, 0, 0])
    assert weighted_f1(truth, predicted) == pytest.approx(
        f1_score(truth, predicted, average="weighted", zero_division=0)
    )


def test_empty_group() -> None:
    empty = class_metrics(np.zeros(0, int), np.zeros((0, 3)), "positive")
    assert all(math.isnan(value) for value in empty.values())


def test_calibration_error() -> None:
    probabilities = np.array([[0.9, 0.1]] * 10)
    assert calibration_error(reliability(np.array([0] * 9 + [1]), probabilities)) == pytest.approx(0)
    assert calibration_error(reliability(np.array([0] * 4 + [1] * 6), probabilities)) == pytest.approx(0.5)
    assert math.isnan(calibration_error(reliability(np.zeros(0, int), np.zeros((0, 2)))))


def test_reliability_counts_every_clip_once_in_its_bin() -> None:
    found = reliability(np.array([0, 1, 0]), np.array([[1.0, 0.0], [0.55, 0.45], [0.6, 0.4]]))
    assert found[9].tolist() == [1, 1, 1], "a probability of 1 is in the last bin"
    assert found[5].tolist() == [1, 0.55, 0] and found[6].tolist() == [1, 0.6, 1]
    assert found[:, 0].sum() == 3


def test_per_class_agrees_with_sklearn_where_it_is_defined(answers: tuple[np.ndarray, np.ndarray]) -> None:
    truth, logits = answers
    predicted = logits.argmax(1)
    expected = precision_recall_fscore_support(truth, predicted)[:3]
    found = per_class(confusion(truth, predicted, 3))
    np.testing.assert_allclose([[f[key] for f in found] for key in ("precision", "recall", "f1")], expected)


def test_per_class_says_what_is_not_defined() -> None:
    """Class 1 is never predicted, class 2 is never true, class 3 is neither."""
    found = per_class(confusion(np.array([0, 1]), np.array([0, 2]), 4))
    assert found[1] == {"precision": None, "recall": 0, "f1": 0}
    assert found[2] == {"precision": 0, "recall": None, "f1": 0}
    assert found[3] == {"precision": None, "recall": None, "f1": None}


def test_regression_metrics() -> None:
    truth, predicted = np.array([-1.0, 0.0, 2.0]), np.array([-0.5, 0.5, 1.0])
    found = regression_metrics(truth, predicted)
    assert found["mae"] == pytest.approx(2 / 3) and found["r"] == pytest.approx(np.corrcoef(truth, predicted)[0, 1])
    assert regression_metrics(truth, np.ones(3))["r"] is None, "a constant correlates with nothing"
    assert regression_metrics(truth[:0], truth[:0]) == {"mae": None, "r": None}


def test_consistency_leaves_out_what_is_not_annotated() -> None:
    labels = {"T": np.array([0, 0, 2, -1]), "A": np.array([0, 1, 2, 0]), "V": np.array([0, 0, 2, 0])}
    agree, conflict = consistency(labels)
    assert agree.tolist() == [True, False, True, False]
    assert conflict.tolist() == [False, True, False, False]


def test_majority_is_of_the_training_split() -> None:
    assert majority(np.array([0, 1, 1]), np.array([0, 0, 1]), 3)["accuracy"] == pytest.approx(1 / 3)


def test_mean_std() -> None:
    mean, spread = mean_std([{"x": 1.0}, {"x": 3.0}])["x"]
    assert (mean, spread) == (2.0, pytest.approx(math.sqrt(2)))
    assert mean_std([{"x": 1.0}])["x"] == (1.0, 0.0)
