"""Every score of a classifier, once: a new one is a function and a row here.

``evaluate`` reports them with intervals and without twins, ``compare`` their differences, ``seeds`` their spread;
MLflow, the report and the card show what those wrote.
"""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.metrics import calibration, ranking, selection


@dataclass(frozen=True)
class Metric:
    """A score.

    Attributes:
        title: For people.
        function: Of targets, integers (N,), probabilities (N, K) and weights (R, N): the score of each weighting,
            floats (R,), NaN where it is not defined.
        headline: Whether it is among the few that stand for all where there is little room.
        highest: Its largest value; the least is 0.
    """

    title: str
    function: selection.Score
    headline: bool = False
    highest: float = 1.0


# In the order in which they are shown.
METRICS = {
    "accuracy": Metric("accuracy", selection.accuracy, headline=True),
    "macro_f1": Metric("macro-F1", selection.macro_f1, headline=True),
    "balanced_accuracy": Metric("balanced accuracy", selection.balanced_accuracy),
    "nll": Metric("NLL", selection.nll, highest=math.inf),
    "ece": Metric("ECE", calibration.ece),
    "top2": Metric("top-2 accuracy", ranking.top2),
    "auroc": Metric("AUROC", ranking.auroc),
}
TITLES = {name: metric.title for name, metric in METRICS.items()}
HEADLINES = {name: metric.title for name, metric in METRICS.items() if metric.headline}


def score(targets: np.ndarray, probs: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float]:
    """Return every score that is defined for some samples.

    Args:
        targets: Class indices, integers (N,).
        probs: Class probabilities, floats (N, K); each row sums to 1.
        mask: The samples that count, bool (N,); None for all.

    Raises:
        ValueError: As ``selection.check_answers``.
    """
    targets, probs = selection.check_answers(targets, probs)
    weights = np.ones((1, len(targets))) if mask is None else mask[None].astype(np.float64)
    found = {name: float(metric.function(targets, probs, weights)[0]) for name, metric in METRICS.items()}
    return {name: value for name, value in found.items() if np.isfinite(value)}
