"""Scores of a classifier: pure functions of arrays, with scikit-learn underneath.

Every function counts all K classes, also those that a split happens to lack, so that figures of
different splits and experiments have the same shape and meaning.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    recall_score,
)

# Half-precision models give rows that sum to 1 only within about 1e-3.
_SUM_TOLERANCE = 1e-2


def classification_metrics(targets: np.ndarray, probs: np.ndarray) -> dict[str, float]:
    """Return the headline scores of a split.

    Balanced accuracy is the mean recall over the classes that the split holds; macro-F1 is the mean
    over all K classes, where a class neither present nor predicted counts as 0. The negative
    log-likelihood is in nats, with probabilities clipped at the float64 epsilon (a certain and wrong
    answer costs 36 nats and not infinity).

    Args:
        targets: Class indices, integers (N,), each in [0, K).
        probs: Class probabilities, floats (N, K); each row sums to 1.

    Returns:
        ``accuracy``, ``balanced_accuracy``, ``macro_f1`` (fractions in [0, 1]) and ``nll``.

    Raises:
        ValueError: If shapes disagree, the split is empty, a target is out of range, or a
            probability is NaN, negative or in a row that doesn't sum to 1.
    """
    probs = _checked_probs(probs)
    num_classes = probs.shape[1]
    targets = _checked_labels(targets, num_classes, "targets")
    if len(targets) != len(probs):
        raise ValueError(f"targets has {len(targets)} rows and probs has {len(probs)}")
    preds = probs.argmax(axis=1)
    classes = np.arange(num_classes)
    present = np.unique(targets)
    # Not balanced_accuracy_score, which is the same number but warns when an absent class is predicted.
    balanced = recall_score(targets, preds, labels=present, average="macro", zero_division=0)
    return {
        "accuracy": float(accuracy_score(targets, preds)),
        "balanced_accuracy": float(balanced),
        "macro_f1": float(f1_score(targets, preds, labels=classes, average="macro", zero_division=0)),
        "nll": float(log_loss(targets, probs, labels=classes)),
    }


def per_class(targets: np.ndarray, preds: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """Return one row a class, in the order of ``class_names``.

    Args:
        targets: Class indices, integers (N,).
        preds: Predicted class indices, integers (N,).
        class_names: The K class names.

    Returns:
        Columns ``class``, ``precision``, ``recall``, ``f1`` (float64; 0 where undefined) and
        ``support`` (int64: how many of ``targets`` are of the class).

    Raises:
        ValueError: If lengths differ, the split is empty or an index is outside [0, K).
    """
    targets, preds = _checked_pair(targets, preds, len(class_names))
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, preds, labels=np.arange(len(class_names)), average=None, zero_division=0
    )
    return pd.DataFrame(
        {
            "class": list(class_names),
            "precision": precision.astype(np.float64),
            "recall": recall.astype(np.float64),
            "f1": f1.astype(np.float64),
            "support": support.astype(np.int64),
        }
    )


def confusion(targets: np.ndarray, preds: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the confusion matrix, int64 (K, K): rows are actual classes, columns predicted ones.

    Args:
        targets: Class indices, integers (N,).
        preds: Predicted class indices, integers (N,).
        num_classes: K; a class absent from both arrays has a row and a column of zeros.

    Raises:
        ValueError: If lengths differ, the split is empty or an index is outside [0, K).
    """
    targets, preds = _checked_pair(targets, preds, num_classes)
    return confusion_matrix(targets, preds, labels=np.arange(num_classes)).astype(np.int64)


def worst_mistakes(targets: np.ndarray, probs: np.ndarray, count: int) -> np.ndarray:
    """Return the rows of the wrong predictions of which the model was surest, the surest first.

    Args:
        targets: Class indices, integers (N,).
        probs: Class probabilities, floats (N, K).
        count: How many at most.

    Returns:
        Row indices, int64 (M,) with M <= ``count``; equally sure ones stand in the order of rows.
    """
    preds = probs.argmax(axis=1)
    wrong = np.flatnonzero(preds != targets)
    return wrong[np.argsort(-probs[wrong, preds[wrong]], kind="stable")][:count]


def accuracy_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's score interval of an accuracy (95 % by default).

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927. Unlike
    the normal approximation it stays within [0, 1] and holds at 0 % and 100 %.

    Args:
        correct: How many answers were right.
        total: How many there were.
        z: Normal quantile of the wanted coverage.

    Raises:
        ValueError: If ``total`` is not positive or ``correct`` is not in [0, total].
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"no interval for {correct} right of {total}")
    fraction = correct / total
    scale = 1 + z**2 / total
    centre = (fraction + z**2 / (2 * total)) / scale
    half_width = z / scale * (fraction * (1 - fraction) / total + z**2 / (4 * total**2)) ** 0.5
    # Rounding leaves 1e-17 where the formula is exactly 0 (none right) or 1 (all right).
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def _checked_probs(probs: np.ndarray) -> np.ndarray:
    """Return probabilities in float64 with rows that sum to exactly 1, or say what is wrong with them."""
    probs = np.asarray(probs)
    if probs.ndim != 2 or probs.shape[1] < 2:
        raise ValueError(f"probs must have shape (N, K) with K >= 2, not {probs.shape}")
    if len(probs) == 0:
        raise ValueError("probs is empty: there is nothing to score")
    probs = probs.astype(np.float64)
    bad = ~np.isfinite(probs).all(axis=1)
    if bad.any():
        raise ValueError(f"probs has NaN or infinite values in {bad.sum()} rows, first in row {bad.argmax()}")
    sums = probs.sum(axis=1, keepdims=True)
    bad = (probs < 0).any(axis=1) | (np.abs(sums[:, 0] - 1) > _SUM_TOLERANCE)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"probs holds no probabilities in {bad.sum()} rows: row {row} has the smallest value "
            f"{probs[row].min():.6g} and the sum {sums[row, 0]:.6g}"
        )
    return probs / sums


def _checked_labels(labels: np.ndarray, num_classes: int, name: str) -> np.ndarray:
    """Return class indices in int64, or say what is wrong with them."""
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"{name} must have shape (N,), not {labels.shape}")
    if len(labels) == 0:
        raise ValueError(f"{name} is empty: there is nothing to score")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} must hold integer class indices, not {labels.dtype}")
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(f"{name}[{row}] is {labels[row]}, outside [0, {num_classes})")
    return labels.astype(np.int64)


def _checked_pair(targets: np.ndarray, preds: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both label arrays checked, and of one length."""
    targets = _checked_labels(targets, num_classes, "targets")
    preds = _checked_labels(preds, num_classes, "preds")
    if len(targets) != len(preds):
        raise ValueError(f"targets has {len(targets)} rows and preds has {len(preds)}")
    return targets, preds
