"""Two classifiers on the same samples: is the difference real? Pure functions on which answers were right.

Samples on which both are right, or both wrong, say nothing about which is better; all lies in the others. Everywhere
``ours`` and ``theirs`` are the samples that either got right, bool (N,); a ``ValueError`` says that they are not.
"""

from typing import Literal

import numpy as np
from scipy.stats import binomtest, norm, t

from pipeline.metrics.intervals import COVERAGE

Alternative = Literal["two-sided", "greater", "less"]


def mcnemar(ours: np.ndarray, theirs: np.ndarray, alternative: Alternative = "two-sided") -> float:
    """Return the p-value of McNemar's exact test: both classifiers err equally often.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", 1947;
    exact, from the binomial distribution of the samples that only one of them got right.

    Args:
        ours: The one's right answers.
        theirs: The other's.
        alternative: ``greater``: the one is right more often; ``less``: less often; or either.
    """
    ours, theirs = _checked(ours, theirs)
    gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    if gained + lost == 0:
        return 1.0
    return float(binomtest(gained, gained + lost, alternative=alternative).pvalue)


def seed_test(
    difference: float, sds: tuple[float, float], runs: tuple[int, int], alternative: Alternative = "two-sided"
) -> float:
    """Return the p-value of a difference in accuracy that other seeds of both trainings might have made.

    On one test split, the difference of two trainings of two recipes that are equally good on average has the
    variance of both recipes' accuracies over seeds, summed. Welch's t where it is known how many seeds they are
    estimated from, else the normal distribution.

    Args:
        difference: Of the test accuracies.
        sds: Standard deviation of the test accuracy over seeds, of each side.
        runs: How many seeds each is from; fewer than 2: unknown.
        alternative: As in ``mcnemar``.
    """
    variances = [sd**2 for sd in sds]
    if not sum(variances):
        return 1.0 if difference == 0 else float((difference > 0) != (alternative == "greater"))
    z = difference / sum(variances) ** 0.5
    law = norm
    if min(runs) >= 2:
        law = t(sum(variances) ** 2 / sum(v**2 / (n - 1) for v, n in zip(variances, runs)))
    tails = {"greater": law.sf(z), "less": law.cdf(z), "two-sided": 2 * law.sf(abs(z))}
    return float(tails[alternative])


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values, floats (M,), corrected for there being M of them.

    S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values, kind="stable")
    raised = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    corrected = np.empty_like(raised)
    corrected[order] = np.minimum(raised, 1.0)
    return corrected


def difference_interval(
    ours: np.ndarray, theirs: np.ndarray, coverage: float = COVERAGE, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap percentile interval of the accuracy of ``ours`` minus that of ``theirs``.

    Samples are drawn with both answers to them. Only the numbers gained and lost matter, so a resample of N samples is
    one draw from a multinomial distribution.
    """
    ours, theirs = _checked(ours, theirs)
    count = len(ours)
    gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    shares = np.array([gained, lost, count - gained - lost]) / count
    drawn = np.random.default_rng(seed).multinomial(count, shares, size=resamples)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / count, [(1 - coverage) / 2, (1 + coverage) / 2])
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
