"""Calibration against hand-worked cases."""

import numpy as np
import pytest
from scipy.special import softmax

from pipeline.metrics import calibration
from pipeline.metrics.selection import score_all


def overconfident(count: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from probabilities, and these made too sure by a known temperature."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1.5, (count, 4))
    true = softmax(logits, axis=1)
    targets = (rng.random((count, 1)) > true.cumsum(axis=1)).sum(axis=1)
    return targets, softmax(logits * temperature, axis=1)


def test_the_temperature_that_was_planted_is_found() -> None:
    targets, probs = overconfident(40_000, 2.5)
    temperature = calibration.fit_temperature(targets, probs)
    assert temperature == pytest.approx(2.5, rel=0.03)
    calibrated = calibration.temper(probs, temperature)
    assert np.array_equal(calibrated.argmax(axis=1), probs.argmax(axis=1))
    np.testing.assert_allclose(calibrated.sum(axis=1), 1)
    assert score_all(calibration.ece, targets, calibrated) < 0.01
    assert score_all(calibration.ece, targets, probs) > 0.1


def test_few_samples_leave_probabilities_as_they_are() -> None:
    targets, probs = overconfident(calibration.MIN_SAMPLES - 1, 3)
    assert calibration.fit_temperature(targets, probs) == 1
    assert calibration.temper(probs, 1.0) is probs


def test_certain_and_wrong_answers_stay_finite() -> None:
    probs = np.eye(3)[np.zeros(60, int)]
    targets = np.arange(60) % 2
    calibrated = calibration.temper(probs, calibration.fit_temperature(targets, probs))
    assert np.isfinite(calibrated).all()
    assert (calibrated > 0).all()


def test_calibration_error_by_hand() -> None:
    # Two bins of 10: tops 0.95 (right 1 of 2) and 0.65 (right 2 of 2); gaps 0.45 and 0.35.
    probs = np.array([[0.95, 0.05], [0.05, 0.95], [0.65, 0.35], [0.65, 0.35]])
    targets = np.array([0, 0, 0, 0])
    (error,) = calibration.ece(targets, probs, np.ones((1, 4)), bins=10)
    assert error == pytest.approx((2 * 0.45 + 2 * 0.35) / 4)
    table = calibration.reliability(targets, probs, bins=10)
    assert table["count"].tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0, 2]
    assert table["accuracy"].iloc[9] == 0.5


def test_risk_and_coverage_by_hand() -> None:
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.8, 0.2], [0.6, 0.4]])
    targets = np.array([0, 1, 0, 0])
    curve = calibration.risk_coverage(targets, probs)
    assert curve["threshold"].tolist() == [0.9, 0.8, 0.6]
    assert curve["coverage"].tolist() == [0.25, 0.75, 1.0]
    assert curve["risk"].tolist() == pytest.approx([0, 1 / 3, 1 / 4])
    assert calibration.area_under(curve) == pytest.approx(0.5 / 3 + 0.25 / 4)
    assert calibration.threshold_for(targets, probs, 0.25) == 0.6
    assert calibration.threshold_for(targets, probs, 0.1) == 0.9
    assert calibration.threshold_for(1 - targets[:1], probs[:1], 0.1) is None
    assert calibration.at_threshold(targets, probs, 0.8) == {"coverage": 0.75, "risk": pytest.approx(1 / 3)}
    assert calibration.at_threshold(targets, probs, 0.95) == {"coverage": 0.0}
    targets, probs = overconfident(5000, 1)
    threshold = calibration.threshold_for(targets, probs, 0.2)
    assert calibration.at_threshold(targets, probs, threshold)["risk"] <= 0.2


def test_a_temperature_at_a_bound_is_remarked() -> None:
    targets, probs = overconfident(4000, 2.5)
    assert calibration.remark_bound(calibration.fit_temperature(targets, probs)) == ""
    right = probs.argmax(axis=1)
    assert "nearly all of val is right" in calibration.remark_bound(calibration.fit_temperature(right, probs))
    shuffled = np.random.default_rng(0).permutation(targets)
    sure = calibration.temper(probs, 1e-3)
    assert "next to nothing" in calibration.remark_bound(calibration.fit_temperature(shuffled, sure))
