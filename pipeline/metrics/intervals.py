"""95 % intervals: of a share by Wilson's formula, of any score by drawing samples anew.

E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927; B. Efron and R. Tibshirani,
"An introduction to the bootstrap", 1993; percentile intervals.
"""

import numpy as np
from scipy.stats import binomtest

from pipeline.metrics.selection import Score, check_answers
from pipeline.metrics.table import METRICS

COVERAGE = 0.95  # how often an interval holds the truth
ALPHA = 0.05  # below which a p-value is called a difference
RESAMPLES = 1000
_BLOCK = 100  # resamples at once: bounds memory


def accuracy_interval(correct: int, total: int) -> tuple[float, float]:
    """Return Wilson's interval of an accuracy, which holds at 0 % and 100 %, too; of nothing a ``ValueError``."""
    found = binomtest(correct, total).proportion_ci(COVERAGE, method="wilson")
    return float(found.low), float(found.high)


def bootstrap_intervals(
    targets: np.ndarray,
    probs: np.ndarray,
    other: np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the interval of every score of ``METRICS``, or of every difference between two classifiers' scores.

    Args:
        targets: Class indices, integers (N,).
        probs: Class probabilities, floats (N, K).
        other: Probabilities of another classifier for the same samples, drawn together with those of this one; its
            scores are subtracted.
        resamples: How many draws of N samples.
        seed: Of the draws.

    Returns:
        Low and high end by the score's name; without those that are defined for no draw.
    """
    rng, draws = np.random.default_rng(seed), []
    sides = [check_answers(targets, side) for side in (probs, other) if side is not None]
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        weights = rng.multinomial(len(targets), np.full(len(targets), 1 / len(targets)), size).astype(float)
        draws.append({name: _score_sides(metric.function, sides, weights) for name, metric in METRICS.items()})
    found = {}
    for name in METRICS:
        values = np.concatenate([draw[name] for draw in draws])
        if np.isfinite(values).any():
            low, high = np.nanquantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
            found[name] = float(low), float(high)
    return found


def _score_sides(function: Score, sides: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray) -> np.ndarray:
    """The score of the only side, or that of the first less that of the second; (R,)."""
    first, *second = (function(*side, weights) for side in sides)
    return np.asarray(first - second[0]) if second else first
