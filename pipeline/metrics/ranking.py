"""Scores of the order in which a classifier puts classes or samples, for any weighting of the samples."""

import numpy as np

from pipeline.metrics.selection import average


def top2(targets: np.ndarray, probs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return how often the label is one of the two likeliest classes; arguments as ``selection.accuracy``."""
    best = np.argsort(-probs, axis=1, kind="stable")[:, :2]
    return average((best == targets[:, None]).any(axis=1), weights)


def auroc(targets: np.ndarray, probs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve, one class against the rest; arguments as ``selection.accuracy``.

    The mean over the classes that the samples hold; NaN where all are of one class.
    """
    areas = np.stack([_area(weights, targets == k, probs[:, k]) for k in np.unique(targets)])
    known = np.isfinite(areas)  # a draw may lack a class
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, areas, 0).sum(axis=0) / known.sum(axis=0))


def _area(weights: np.ndarray, positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How often a positive scores above a negative, (R,); ties count half."""
    levels, place = np.unique(scores, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(levels)))
    pos = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    neg = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    below = np.cumsum(neg, axis=1) - neg / 2
    with np.errstate(invalid="ignore"):
        return np.asarray((pos * below).sum(axis=1) / (pos.sum(axis=1) * neg.sum(axis=1)))
