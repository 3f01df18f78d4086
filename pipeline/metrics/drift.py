"""Whether what a model sees and says has shifted, and how right it still is: pure functions of tables and arrays.

A table of answers has a row an answer: ``label`` (text), ``probability`` (calibrated, of that label), and whatever
describes pictures (numbers, NaN where unknown). Every shift has a size from 0 to 1: with very many pictures any
difference is significant, and with few a large one is not.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from scipy import stats

from pipeline.metrics.intervals import ALPHA
from pipeline.metrics.paired import holm

MIN_ANSWERS = 30  # fewer say too little of a distribution


@dataclass(frozen=True)
class Shift:
    """How one column differs between a reference and now.

    Attributes:
        name: Of the column.
        reference: Its mean, as ``now``; NaN for labels.
        size: From 0 to 1: total variation distance of labels, Kolmogorov and Smirnov's distance of numbers, which is
            the difference of shares where these are 0 or 1.
        p: How likely chance makes it so large, by a chi-squared test or by Kolmogorov and Smirnov's, corrected by Holm
            for there being several columns.
    """

    name: str
    reference: float
    now: float
    size: float
    p: float

    def is_shifted(self, least: float) -> bool:
        """Whether it is beyond chance, and at least so large."""
        return self.p < ALPHA and self.size >= least


def find_shifts(reference: pd.DataFrame, now: pd.DataFrame) -> list[Shift]:
    """Compare every column that both have, with ``MIN_ANSWERS`` known values or more on either side.

    Returns:
        The shifts, in the order of the reference's columns.
    """
    found = []
    for name in reference.columns.intersection(now.columns, sort=False):
        sides = [side[name].dropna() for side in (reference, now)]
        if min(map(len, sides)) >= MIN_ANSWERS:
            compare = _compare_numbers if is_numeric_dtype(sides[0]) else _compare_labels
            found.append((name, *compare(*sides)))
    corrected = holm(np.array([p for *_, p in found]))
    return [Shift(*values[:-1], float(p)) for values, p in zip(found, corrected)]


def estimate_accuracy(reference: np.ndarray, right: np.ndarray, now: np.ndarray) -> tuple[float, float, float]:
    """Estimate from confidences how many answers are right where nobody knows the labels.

    The reference's accuracy and the difference of mean confidences: D. Guillory et al., "Predicting with confidence on
    unseen distributions", 2021, https://arxiv.org/abs/2107.03315. It holds as far as a shift makes the model less sure
    by as much as it makes it worse.

    Args:
        reference: Confidence of each answer to M labelled pictures, (M,).
        right: Whether it was right, (M,).
        now: Confidence of each answer, (N,).

    Returns:
        The estimate and its 95 % interval, which is of the sampling alone.
    """
    slack = right.astype(np.float64) - reference
    estimate = float(now.mean() + slack.mean())
    error = float(stats.norm.ppf(1 - ALPHA / 2) * np.sqrt(now.var() / len(now) + slack.var() / len(slack)))
    return min(1.0, max(0.0, estimate)), max(0.0, estimate - error), min(1.0, estimate + error)


def _compare_labels(reference: "pd.Series[str]", now: "pd.Series[str]") -> tuple[float, float, float, float]:
    counts = pd.DataFrame({"reference": reference.value_counts(), "now": now.value_counts()}).fillna(0)
    shares = counts / counts.sum()
    p = float(stats.chi2_contingency(counts).pvalue) if len(counts) > 1 else 1.0
    return np.nan, np.nan, float((shares["reference"] - shares["now"]).abs().sum() / 2), p


def _compare_numbers(reference: "pd.Series[float]", now: "pd.Series[float]") -> tuple[float, float, float, float]:
    sides = [side.to_numpy(np.float64) for side in (reference, now)]
    found = stats.ks_2samp(*sides, method="asymp")
    return float(sides[0].mean()), float(sides[1].mean()), float(found.statistic), float(found.pvalue)
