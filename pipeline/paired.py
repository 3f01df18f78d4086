"""Two classifiers on the same samples: is the difference real? Pure functions on which answers were right.

Samples on which both are right, or both wrong, say nothing about which is better; all lies in the others.
"""

import numpy as np
from scipy.stats import binomtest


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the two-sided p-value of McNemar's exact test: both classifiers err equally often.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", 1947;
    exact, from the binomial distribution of the samples that only one of them got right.

    Args:
        ours: Which samples the one got right, bool (N,).
        theirs: Which the other got right, bool (N,).

    Raises:
        ValueError: If they are not two boolean arrays of one positive length.
    """
    ours, theirs = _checked(ours, theirs)
    gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return 1.0 if gained + lost == 0 else float(binomtest(gained, gained + lost).pvalue)


def difference_interval(
    ours: np.ndarray, theirs: np.ndarray, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap percentile interval of the accuracy of ``ours`` minus that of ``theirs``.

    Samples are drawn with both answers to them. Only the numbers gained and lost matter, so a resample of N samples is
    one draw from a multinomial distribution.

    Args:
        ours: Which samples the one got right, bool (N,).
        theirs: Which the other got right, bool (N,).
        level: Coverage, in (0, 1).
        resamples: How many are drawn.
        seed: Of the draws.

    Raises:
        ValueError: If they are not two boolean arrays of one positive length.
    """
    ours, theirs = _checked(ours, theirs)
    count = len(ours)
    gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    shares = np.array([gained, lost, count - gained - lost]) / count
    drawn = np.random.default_rng(seed).multinomial(count, shares, size=resamples)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / count, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, if they are of one kind."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    for name, array in (("ours", ours), ("theirs", theirs)):
        if array.dtype != bool or array.ndim != 1 or len(array) == 0:
            raise ValueError(f"{name} must be a boolean array (N,), not {array.dtype} {array.shape}")
    if len(ours) != len(theirs):
        raise ValueError(f"ours has {len(ours)} samples and theirs {len(theirs)}")
    return ours, theirs
