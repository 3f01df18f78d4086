"""Intervals against the formula and against samples drawn one by one."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from pipeline.metrics.intervals import accuracy_interval, bootstrap_intervals
from pipeline.metrics.table import METRICS


@pytest.mark.parametrize("correct,total", [(0, 10), (10, 10), (1, 1), (2337, 3589), (7, 9)])
def test_accuracy_interval_is_wilsons_formula(correct: int, total: int) -> None:
    z, share = 1.959964, correct / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    assert accuracy_interval(correct, total) == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert 0 <= accuracy_interval(correct, total)[0] < accuracy_interval(correct, total)[1] <= 1


def test_bootstrap_intervals_of_a_difference_are_those_of_samples_drawn_with_both_answers() -> None:
    rng = np.random.default_rng(0)
    targets = rng.choice(3, 400, p=[0.6, 0.3, 0.1])
    ours, theirs = (np.where(rng.random(400) < p, targets, rng.integers(0, 3, 400)) for p in (0.7, 0.5))
    found = bootstrap_intervals(targets, np.eye(3)[ours], np.eye(3)[theirs])
    assert list(found) == list(METRICS)
    drawn = []
    for _ in range(400):
        rows = rng.integers(0, 400, 400)
        scores = [f1_score(targets[rows], side[rows], average="macro") for side in (ours, theirs)]
        drawn.append(scores[0] - scores[1])
    assert found["macro_f1"] == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.02)
    same = bootstrap_intervals(targets, np.eye(3)[ours], np.eye(3)[ours])
    assert set(same.values()) == {(0.0, 0.0)}
