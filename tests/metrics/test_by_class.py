"""Tables of classes and mistakes against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from pipeline.metrics import by_class


@pytest.mark.parametrize("seed,n,k,labels", [(0, 500, 7, 7), (1, 40, 2, 2), (2, 30, 25, 25), (3, 90, 9, 4)])
def test_per_class_and_confusion_agree_with_scikit_learn(seed: int, n: int, k: int, labels: int) -> None:
    """Also where classes are missing, which keep their place."""
    rng = np.random.default_rng(seed)
    targets, preds = rng.integers(0, labels, n), rng.integers(0, k, n)
    table = by_class.per_class(targets, preds, [str(i) for i in range(k)])
    assert table["class"].tolist() == [str(i) for i in range(k)]
    expected = precision_recall_fscore_support(targets, preds, labels=range(k), zero_division=0)
    for name, column in zip(("precision", "recall", "f1", "support"), expected):
        np.testing.assert_array_equal(table[name], column)
    matrix = by_class.confusion(targets, preds, k)
    np.testing.assert_array_equal(matrix, confusion_matrix(targets, preds, labels=range(k)))


def test_bad_pairs_are_named() -> None:
    empty = np.array([], dtype=int)
    with pytest.raises(ValueError, match="targets is empty"):
        by_class.confusion(empty, empty, 3)
    with pytest.raises(ValueError, match=r"preds\[1\] is 3"):
        by_class.confusion(np.array([0, 1]), np.array([0, 3]), 3)
    with pytest.raises(ValueError, match="2 rows and preds has 1"):
        by_class.per_class(np.array([0, 1]), np.array([0]), ["a", "b"])


def test_worst_mistakes_are_the_surest_wrong_ones() -> None:
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6], [0.05, 0.95]])
    targets = np.array([1, 1, 0, 0, 0, 1])  # row 5 is right; the wrong ones are sure by .9 .6 .8 .7 .6
    assert by_class.worst_mistakes(targets, probs, 10).tolist() == [0, 2, 3, 1, 4]
    assert by_class.worst_mistakes(targets, probs, 2).tolist() == [0, 2]
    assert by_class.worst_mistakes(targets, probs, 0).tolist() == []
    assert by_class.worst_mistakes(probs.argmax(axis=1), probs, 3).tolist() == []
