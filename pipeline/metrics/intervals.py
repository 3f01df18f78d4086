"""95 % bootstrap intervals of scores: samples are drawn anew, with all scores of each draw computed at once.

B. Efron and R. Tibshirani, "An introduction to the bootstrap", 1993; percentile intervals.
"""

import numpy as np

from pipeline.metrics.calibration import BINS, top2_hits

LEVEL = 0.95
RESAMPLES = 1000
_BLOCK = 100  # resamples at once: bounds memory


def bootstrap_intervals(
    targets: np.ndarray, probs: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the interval of every headline score.

    Args:
        targets: Class indices, integers (N,).
        probs: Class probabilities, floats (N, K).
        resamples: How many draws of N samples.
        seed: Of the draws.

    Returns:
        Low and high end of ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``nll``, ``ece``, ``top2`` and, with two
        classes or more in ``targets``, ``auroc``.
    """
    rng, draws = np.random.default_rng(seed), []
    score = _scorer(targets, np.asarray(probs, np.float64))
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        draws.append(score(rng.multinomial(len(targets), np.full(len(targets), 1 / len(targets)), size)))
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {
        name: tuple(
            float(end) for end in np.nanquantile(np.concatenate([draw[name] for draw in draws]), ends)
        )
        for name in draws[0]
    }


def _scorer(targets: np.ndarray, probs: np.ndarray):
    """A function of how often each sample was drawn, integers (R, N), that gives scores, each (R,)."""
    count, classes = probs.shape
    rows = np.arange(count)
    preds, top = probs.argmax(axis=1), probs.max(axis=1)
    cells = np.eye(classes * classes, dtype=np.float32)[targets * classes + preds]
    bins = np.eye(BINS)[np.clip(np.ceil(top * BINS).astype(int) - 1, 0, BINS - 1)]
    gaps = bins * (top - (preds == targets))[:, None]
    nll = -np.log(np.maximum(probs[rows, targets], np.finfo(np.float64).eps))
    second = top2_hits(targets, probs)
    present = np.unique(targets)

    def score(drawn: np.ndarray) -> dict[str, np.ndarray]:
        drawn = drawn.astype(np.float64)
        matrix = (drawn @ cells).reshape(-1, classes, classes)
        right, actual = np.diagonal(matrix, axis1=1, axis2=2), matrix.sum(axis=2)
        with np.errstate(invalid="ignore"):
            recall = right / actual
        f1 = 2 * right / np.maximum(actual + matrix.sum(axis=1), 1)
        found = {
            "accuracy": right.sum(axis=1) / count,
            "balanced_accuracy": np.nanmean(recall[:, present], axis=1),
            "macro_f1": f1.mean(axis=1),
            "nll": drawn @ nll / count,
            "ece": np.abs(drawn @ gaps).sum(axis=1) / count,
            "top2": drawn @ second / count,
        }
        if len(present) > 1:
            areas = np.stack([_area(drawn, targets == k, probs[:, k]) for k in present])
            known = np.isfinite(areas)  # a draw may lack a class
            with np.errstate(invalid="ignore"):
                found["auroc"] = np.where(known, areas, 0).sum(axis=0) / known.sum(axis=0)
        return found

    return score


def _area(drawn: np.ndarray, positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each draw, (R,): how often a positive scores above a negative; ties count half."""
    levels, place = np.unique(scores, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(levels)))
    pos = np.add.reduceat((drawn * positive)[:, order], starts, axis=1)
    neg = np.add.reduceat((drawn * ~positive)[:, order], starts, axis=1)
    below = np.cumsum(neg, axis=1) - neg / 2
    with np.errstate(invalid="ignore"):
        return (pos * below).sum(axis=1) / (pos.sum(axis=1) * neg.sum(axis=1))
