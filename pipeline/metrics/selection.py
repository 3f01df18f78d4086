"""The scores that pick weights in training, each for any weighting of the samples.

A score is a function of targets, probabilities and weights, which stand for how often each sample counts: ones give
the score itself, draws of a bootstrap its interval, a mask the score of a part. This is all of ``metrics`` that train
depends on: another score, which picks nothing, belongs into another module.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import xlogy

Score = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
# Half-precision models give rows that sum to 1 only within about 1e-3.
_SUM_TOLERANCE = 1e-2
_EPSILON = np.finfo(np.float64).eps


def selection_scores(targets: np.ndarray, probs: np.ndarray) -> dict[str, float]:
    """Return the scores that weights can be picked by.

    Args:
        targets: Class indices, integers (N,), each in [0, K).
        probs: Class probabilities, floats (N, K); each row sums to 1.

    Returns:
        ``accuracy``, ``balanced_accuracy``, ``macro_f1`` (fractions in [0, 1]) and ``nll``.

    Raises:
        ValueError: As ``check_answers``.
    """
    targets, probs = check_answers(targets, probs)
    functions = (accuracy, balanced_accuracy, macro_f1, nll)
    return {function.__name__: score_all(function, targets, probs) for function in functions}


def score_all(function: Score, targets: np.ndarray, probs: np.ndarray) -> float:
    """Return a score of samples that all count once."""
    return float(function(targets, probs, np.ones((1, len(targets))))[0])


def accuracy(targets: np.ndarray, probs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return how often the likeliest class is the label.

    Args:
        targets: Class indices, integers (N,).
        probs: Class probabilities, floats (N, K).
        weights: How often each sample counts, (R, N).

    Returns:
        Floats (R,).
    """
    return average(probs.argmax(axis=1) == targets, weights)


def balanced_accuracy(targets: np.ndarray, probs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean recall over the classes that the samples hold; arguments as ``accuracy``."""
    matrices = count_confusions(targets, probs, weights)
    right, actual = np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(axis=2)
    with np.errstate(invalid="ignore"):
        recall = np.ascontiguousarray((right / actual)[:, np.unique(targets)])
    return np.asarray(np.nanmean(recall, axis=1))


def macro_f1(targets: np.ndarray, probs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean F1 over all K classes, where one neither present nor predicted is 0; as ``accuracy``."""
    matrices = count_confusions(targets, probs, weights)
    right = np.diagonal(matrices, axis1=1, axis2=2)
    called_or_actual = matrices.sum(axis=2) + matrices.sum(axis=1)
    return np.asarray((2 * right / np.where(called_or_actual > 0, called_or_actual, 1)).mean(axis=1))


def nll(targets: np.ndarray, probs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the negative log-likelihood of the labels, in nats; arguments as ``accuracy``.

    Rows are made to sum to exactly 1, and probabilities are clipped at the float64 epsilon: a certain and wrong answer
    costs 36 nats and not infinity.
    """
    own = probs[np.arange(len(targets)), targets] / probs.sum(axis=1)
    return average(-xlogy(1.0, np.clip(own, _EPSILON, 1 - _EPSILON)), weights)


def average(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return means of values (N,), weighted by (R, N), as (R,); with ones to the last bit ``np.mean``."""
    with np.errstate(invalid="ignore"):
        return np.asarray((weights * values).sum(axis=1) / weights.sum(axis=1))


def count_confusions(targets: np.ndarray, probs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return confusion matrices, float64 (R, K, K): rows are actual classes, columns the likeliest ones."""
    classes = probs.shape[1]
    cells = targets * classes + probs.argmax(axis=1)
    counts = [np.bincount(cells, row, minlength=classes * classes) for row in weights]
    return np.stack(counts).reshape(-1, classes, classes)


def check_answers(targets: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both in int64 and float64.

    Raises:
        ValueError: Shapes disagree, there are no samples, a target is out of range, or a probability is NaN, negative
            or in a row that doesn't sum to 1.
    """
    probs = _check_probs(probs)
    targets = check_labels(targets, probs.shape[1], "targets")
    if len(targets) != len(probs):
        raise ValueError(f"targets has {len(targets)} rows and probs has {len(probs)}")
    return targets, probs


def check_labels(labels: np.ndarray, num_classes: int, name: str) -> np.ndarray:
    """Return class indices in int64; raises ``ValueError`` that says what is wrong with them."""
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


def _check_probs(probs: np.ndarray) -> np.ndarray:
    """Probabilities in float64, or what is wrong with them."""
    probs = np.asarray(probs)
    if probs.ndim != 2 or probs.shape[1] < 2:
        raise ValueError(f"probs must have shape (N, K) with K >= 2, not {probs.shape}")
    if len(probs) == 0:
        raise ValueError("probs is empty: there is nothing to score")
    probs = probs.astype(np.float64)
    bad = ~np.isfinite(probs).all(axis=1)
    if bad.any():
        raise ValueError(f"probs has NaN or infinite values in {bad.sum()} rows, first in row {bad.argmax()}")
    sums = probs.sum(axis=1)
    bad = (probs < 0).any(axis=1) | (np.abs(sums - 1) > _SUM_TOLERANCE)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"probs holds no probabilities in {bad.sum()} rows: row {row} has the smallest value "
            f"{probs[row].min():.6g} and the sum {sums[row]:.6g}"
        )
    return probs
