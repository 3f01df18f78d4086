"""Scores against hand-worked cases, NumPy and scikit-learn's own headline functions."""

import warnings

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, classification_report, f1_score, log_loss

from pipeline.metrics import metrics

# Three classes, six samples, worked by hand. Predicted: 0 0 1 1 1 0; actual: 0 0 0 1 1 2.
TARGETS = np.array([0, 0, 0, 1, 1, 2])
PREDS = np.array([0, 0, 1, 1, 1, 0])
PROBS = np.array(
    [[0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.25, 0.5, 0.25], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1], [0.5, 0.25, 0.25]]
)


def random_case(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Random targets and softmax probabilities, float32 as the engine gives them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k)) * 3
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return rng.integers(0, k, size=n), probs.astype(np.float32)


def test_hand_worked_scores() -> None:
    scores = metrics.classification_metrics(TARGETS, PROBS)
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    # F1: class 0 has 2 hits of 3 called and 3 actual; class 1 has 2 of 3 and 2; class 2 is never called.
    assert scores["macro_f1"] == pytest.approx((4 / 6 + 4 / 5 + 0) / 3)
    # The probabilities of the actual classes are 1/2, 4/5, 1/4, 1/2, 4/5, 1/4.
    assert scores["nll"] == pytest.approx(-np.log(0.5 * 0.8 * 0.25 * 0.5 * 0.8 * 0.25) / 6)
    assert list(scores) == ["accuracy", "balanced_accuracy", "macro_f1", "nll"]
    assert all(type(value) is float for value in scores.values())


def test_hand_worked_table_and_matrix() -> None:
    table = metrics.per_class(TARGETS, PREDS, ["a", "b", "c"])
    assert list(table.columns) == ["class", "precision", "recall", "f1", "support"]
    assert table["class"].tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(table["precision"], [2 / 3, 2 / 3, 0])
    np.testing.assert_allclose(table["recall"], [2 / 3, 1, 0])
    np.testing.assert_allclose(table["f1"], [2 / 3, 4 / 5, 0])
    assert table["support"].tolist() == [3, 2, 1]
    assert metrics.confusion(TARGETS, PREDS, 3).tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]


@pytest.mark.parametrize("seed,n,k", [(0, 500, 7), (1, 40, 2), (2, 30, 25)])
def test_agrees_with_scikit_learn(seed: int, n: int, k: int) -> None:
    targets, probs = random_case(seed, n, k)
    preds = probs.argmax(axis=1)
    scores = metrics.classification_metrics(targets, probs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's remarks on absent classes
        report = classification_report(
            targets,
            preds,
            labels=range(k),
            output_dict=True,
            zero_division=0,
            target_names=list(map(str, range(k))),
        )
        assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(targets, preds))
        assert scores["nll"] == pytest.approx(log_loss(targets, probs, labels=range(k)), rel=1e-5)
    assert scores["accuracy"] == pytest.approx(np.mean(targets == preds))
    assert scores["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"])
    table = metrics.per_class(targets, preds, [str(i) for i in range(k)]).set_index("class")
    for name, row in table.iterrows():
        assert row["precision"] == pytest.approx(report[name]["precision"])
        assert row["recall"] == pytest.approx(report[name]["recall"])
        assert row["f1"] == pytest.approx(report[name]["f1-score"])
        assert row["support"] == report[name]["support"]
    expected = np.zeros((k, k), dtype=int)
    np.add.at(expected, (targets, preds), 1)
    np.testing.assert_array_equal(metrics.confusion(targets, preds, k), expected)


def test_class_missing_from_the_split_keeps_its_place() -> None:
    targets, probs = np.array([0, 0, 2]), np.array([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an absent class that is predicted is ordinary, and no warning
        scores = metrics.classification_metrics(targets, probs)
        table = metrics.per_class(targets, probs.argmax(axis=1), ["a", "b", "c"])
    assert scores["balanced_accuracy"] == pytest.approx((1 / 2 + 1) / 2)  # over the two classes present
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)  # over all three
    assert scores["macro_f1"] == pytest.approx(f1_score(targets, [0, 1, 2], average="macro", zero_division=0))
    assert table["support"].tolist() == [2, 0, 1]
    assert metrics.confusion(targets, probs.argmax(axis=1), 4).tolist() == [
        [1, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 0],
    ]


@pytest.mark.parametrize("target,expected", [(1, 1.0), (0, 0.0)])
def test_one_sample(target: int, expected: float) -> None:
    scores = metrics.classification_metrics(np.array([target]), np.array([[0.25, 0.75]]))
    assert scores["accuracy"] == scores["balanced_accuracy"] == expected
    assert scores["macro_f1"] == expected / 2  # the other of the two classes counts as 0
    assert scores["nll"] == pytest.approx(-np.log([0.25, 0.75][target]))


def test_certain_and_wrong_is_finite() -> None:
    scores = metrics.classification_metrics(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]], np.float32))
    assert scores["nll"] == pytest.approx(-np.log(np.finfo(np.float64).eps) / 2)


def test_rounded_rows_are_normalised() -> None:
    # Half precision: the rows sum to 0.996 and 1.004.
    rounded = np.array([[0.498, 0.498], [0.251, 0.753]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = metrics.classification_metrics(np.array([0, 1]), rounded)
    assert scores["nll"] == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 2)


@pytest.mark.parametrize(
    "targets,probs,message",
    [
        ([0], [0.5, 0.5], r"shape \(N, K\).*\(2,\)"),
        ([0], [[1.0]], r"K >= 2"),
        ([[0]], [[0.5, 0.5]], r"shape \(N,\).*\(1, 1\)"),
        ([0, 1], [[0.5, 0.5]], "2 rows and probs has 1"),
        ([0, 1], [[0.5, 0.5], [np.nan, 1]], "NaN.*1 rows, first in row 1"),
        ([0], [[np.inf, 0]], "infinite"),
        ([0], [[2.0, -1.0]], "smallest value -1"),
        ([0], [[3.0, 1.5]], "sum 4.5"),
        ([2], [[0.5, 0.5]], r"targets\[0\] is 2, outside \[0, 2\)"),
        ([-1], [[0.5, 0.5]], r"targets\[0\] is -1"),
        ([0.0], [[0.5, 0.5]], "integer class indices, not float64"),
    ],
)
def test_bad_input_is_named(targets: list, probs: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.classification_metrics(np.array(targets), np.array(probs))


def test_bad_pairs_are_named() -> None:
    empty = np.array([], dtype=int)
    with pytest.raises(ValueError, match="targets is empty"):
        metrics.confusion(empty, empty, 3)
    with pytest.raises(ValueError, match="probs is empty"):
        metrics.classification_metrics(empty, np.empty((0, 3)))
    with pytest.raises(ValueError, match=r"preds\[1\] is 3"):
        metrics.confusion(np.array([0, 1]), np.array([0, 3]), 3)
    with pytest.raises(ValueError, match="2 rows and preds has 1"):
        metrics.per_class(np.array([0, 1]), np.array([0]), ["a", "b"])


@pytest.mark.parametrize("correct,total", [(0, 10), (10, 10), (1, 1), (2337, 3589), (7, 9)])
def test_interval_agrees_with_scipy(correct: int, total: int) -> None:
    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert metrics.accuracy_interval(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize("correct,total", [(0, 0), (3, 2), (-1, 2)])
def test_interval_of_nothing_is_refused(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"{correct} right of {total}"):
        metrics.accuracy_interval(correct, total)


def test_worst_mistakes_are_the_surest_wrong_ones() -> None:
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6], [0.05, 0.95]])
    targets = np.array([1, 1, 0, 0, 0, 1])  # row 5 is right; the wrong ones are sure by .9 .6 .8 .7 .6
    assert metrics.worst_mistakes(targets, probs, 10).tolist() == [0, 2, 3, 1, 4]
    assert metrics.worst_mistakes(targets, probs, 2).tolist() == [0, 2]
    assert metrics.worst_mistakes(targets, probs, 0).tolist() == []
    assert metrics.worst_mistakes(probs.argmax(axis=1), probs, 3).tolist() == []
