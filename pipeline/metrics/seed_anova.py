"""Two settings, several seeds of each, one test set: is the difference of their means real? Pure functions.

Two things are drawn by chance, the seeds and the test images, and either alone gives intervals that are too short:
a paired test on images of one seed each calls reruns of one setting different, and a t-test on seeds speaks of
these images only. The calculation is that of readers (here seeds, nested in the group) who all judge the same cases.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from pipeline.metrics.intervals import COVERAGE


@dataclass(frozen=True)
class MeanInterval:
    """A mean, its standard deviation and its t interval; the interval is NaN for a single value."""

    mean: float
    sd: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class GroupDifference:
    """Mean score of one group minus that of the other, with what makes it uncertain.

    ``from_seeds`` and ``from_images`` are the two parts of the difference's variance; ``df`` the degrees of freedom.
    """

    difference: float
    low: float
    high: float
    p_value: float
    df: float
    from_seeds: float = 0.0
    from_images: float = 0.0

    @property
    def standard_error(self) -> float:
        """Square root of the difference's variance."""
        return math.sqrt(self.from_seeds + self.from_images)


def mean_interval(values: np.ndarray, coverage: float = COVERAGE, highest: float = math.inf) -> MeanInterval:
    """Return the mean of values with Student's interval for it.

    Args:
        values: One figure a seed, floats (S,), from 0 up to ``highest``: nor does the interval leave that range.
        coverage: Of the interval, in (0, 1).
        highest: 1 for a share.

    Raises:
        ValueError: If there is no value, or one is not a number.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"values must be finite numbers (S,) with S > 0, not {values}")
    count, mean = len(values), float(values.mean())
    if count == 1:
        return MeanInterval(mean, math.nan, math.nan, math.nan, 1)
    sd = float(values.std(ddof=1))
    half = float(student.ppf((1 + coverage) / 2, count - 1)) * sd / math.sqrt(count)
    return MeanInterval(mean, sd, max(0.0, mean - half), min(highest, mean + half), count)


def compare_groups(ours: np.ndarray, theirs: np.ndarray, coverage: float = COVERAGE) -> GroupDifference:
    """Return the difference of two groups' mean scores, its interval and a two-sided p-value.

    Analysis of variance of a fully crossed set of test samples, with seeds nested in groups: Obuchowski and Rockette,
    "Hypothesis testing of diagnostic accuracy for multiple readers and multiple tests", 1995; for readers nested in
    tests, and the degrees of freedom, Hillis, "A marginal-mean ANOVA approach for analyzing multireader multicase
    radiological imaging data", Statistics in Medicine 33, 2014. Of binary scores it estimates what Gallas, Pennello
    and Myers do, "Multireader multicase variance analysis for binary data", JOSA A 24, 2007.

    With group g's S_g seeds and N samples, the variance of the difference is the sum over g of s_g^2 / S_g, where s_g^2
    is the variance of the seeds' means, and max(0, D / N - sum over g of R_g / (S_g N)), where D is the
    variance over samples of the difference of the two groups' mean scores, and R_g the residual mean square of
    group g's table of seeds by samples. R_g stands in both s_g^2 and D; hence the subtraction.

    Args:
        ours: One group's scores, such as right or wrong, bool or floats (S, N); a row is a seed, S at least 2.
        theirs: The other's, (S', N), of the same samples in the same order.
        coverage: Of the interval, in (0, 1).

    Raises:
        ValueError: Fewer than 2 seeds or samples, or other samples in the one than in the other.
    """
    tables = [np.asarray(table, dtype=float) for table in (ours, theirs)]
    for name, table in zip(("ours", "theirs"), tables):
        if table.ndim != 2 or min(table.shape) < 2 or not np.isfinite(table).all():
            raise ValueError(f"{name} must be finite scores (S, N) of 2 or more seeds and samples, not {table.shape}")
    if tables[0].shape[1] != tables[1].shape[1]:
        raise ValueError(f"ours has {tables[0].shape[1]} samples and theirs {tables[1].shape[1]}")
    count = tables[0].shape[1]
    difference = float(tables[0].mean() - tables[1].mean())
    parts = [float(table.mean(axis=1).var(ddof=1)) / len(table) for table in tables]
    shared = sum(_residual_mean_square(table) / (len(table) * count) for table in tables)
    spread = float((tables[0].mean(axis=0) - tables[1].mean(axis=0)).var(ddof=1)) / count
    from_seeds, from_images = sum(parts), max(0.0, spread - shared)
    variance = from_seeds + from_images
    if variance <= 0:  # every seed answered alike, in both groups
        p_value = 1.0 if difference == 0 else 0.0
        return GroupDifference(difference, difference, difference, p_value, math.inf)
    # Of the images' part the degrees of freedom are so many that only the seeds' count.
    shares = sum(part**2 / (len(table) - 1) for part, table in zip(parts, tables))
    df = variance**2 / shares if shares else math.inf
    error = math.sqrt(variance)
    half = float(student.ppf((1 + coverage) / 2, df)) * error
    p_value = float(2 * student.sf(abs(difference) / error, df))
    low, high = difference - half, difference + half
    return GroupDifference(difference, low, high, p_value, df, from_seeds=from_seeds, from_images=from_images)


def _residual_mean_square(table: np.ndarray) -> float:
    """Of a two-way table (S, N) without replicates: what neither seeds' nor samples' means explain."""
    rows, columns = table.shape
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    return float((rest**2).sum() / ((rows - 1) * (columns - 1)))
