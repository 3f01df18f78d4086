"""Shifts of answers: found where planted, silent where there is none; accuracy estimated without labels."""

import numpy as np
import pandas as pd
import pytest

from pipeline.metrics.drift import MIN_ANSWERS, estimate_accuracy, find_shifts


def draw(count: int, seed: int, shares: tuple[float, ...] = (0.5, 0.3, 0.2), light: float = 100.0) -> pd.DataFrame:
    """Answers whose labels and brightness come from known distributions."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(["angry", "happy", "sad"], count, p=shares)
    bright = rng.normal(light, 20, count)
    return pd.DataFrame({"label": labels, "brightness": bright, "face_size": np.nan, "abstain": bright > 130})


def test_planted_shifts_are_found_with_their_size() -> None:
    label, bright, abstain = find_shifts(draw(4000, 0), draw(4000, 1, (0.2, 0.3, 0.5), 120))
    assert [shift.name for shift in (label, bright, abstain)] == ["label", "brightness", "abstain"]
    assert label.size == pytest.approx(0.3, abs=0.03)  # half of 0.3 + 0 + 0.3
    # Of two normals a standard deviation apart the distance is 2 Phi(1/2) - 1.
    assert bright.size == pytest.approx(0.383, abs=0.03)
    assert (bright.reference, bright.now) == pytest.approx((100, 120), abs=1.5)
    assert abstain.size == pytest.approx(abstain.now - abstain.reference)
    assert all(shift.p < 1e-9 and shift.is_shifted(0.1) for shift in (label, bright, abstain))


def test_equal_distributions_are_called_shifted_no_more_often_than_chance() -> None:
    alarms = [any(s.p < 0.05 for s in find_shifts(draw(300, 2 * i), draw(300, 2 * i + 1))) for i in range(200)]
    assert np.mean(alarms) < 0.09  # 0.05 and two standard errors of 200 draws; Holm is for all columns together


def test_small_shifts_of_many_and_few_pictures_are_no_alarm() -> None:
    (label, *_) = find_shifts(draw(200_000, 0), draw(200_000, 1, (0.48, 0.31, 0.21)))
    assert label.p < 1e-9
    assert not label.is_shifted(0.1)
    assert find_shifts(draw(4000, 0), draw(MIN_ANSWERS - 1, 1, (0, 0, 1))) == []


def test_accuracy_is_estimated_where_confidences_tell_it() -> None:
    """Labels drawn from confidences: the accuracy is their mean, whatever the pictures."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        before, after = rng.uniform(0.4, 1, 500), rng.uniform(0.2, 0.8, 500)
        right = rng.random(500) < before - 0.1  # too sure by 0.1, then as now
        truth = 0.5 - 0.1
        estimate, low, high = estimate_accuracy(before, right, after)
        assert estimate == pytest.approx(truth, abs=0.1)
        inside += low <= truth <= high
    assert 180 <= inside <= 199
