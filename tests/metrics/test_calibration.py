"""Calibration against hand-worked cases, and bootstrap scores against scikit-learn on the drawn samples themselves."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    roc_auc_score,
    top_k_accuracy_score,
)

from pipeline.metrics import calibration, intervals

RNG = np.random.default_rng(0)


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
    assert calibration.calibration_error(targets, calibrated) < 0.01
    assert calibration.calibration_error(targets, probs) > 0.1


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
    assert calibration.calibration_error(targets, probs, bins=10) == pytest.approx((2 * 0.45 + 2 * 0.35) / 4)
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


def test_the_chosen_threshold_keeps_to_its_risk() -> None:
    targets, probs = overconfident(5000, 1)
    threshold = calibration.threshold_for(targets, probs, 0.2)
    assert calibration.at_threshold(targets, probs, threshold)["risk"] <= 0.2


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 2, 3]])
def test_scores_of_a_draw_are_scikit_learn_s(labels: list[int]) -> None:
    targets = RNG.choice(labels, 300)
    probs = softmax(RNG.normal(0, 1, (300, 4)) + 1.5 * np.eye(4)[targets], axis=1).round(2)
    probs /= probs.sum(axis=1, keepdims=True)
    drawn = RNG.multinomial(300, np.full(300, 1 / 300), size=3)
    found = intervals._scorer(targets, probs)(drawn)
    for i, times in enumerate(drawn):
        rows = np.repeat(np.arange(300), times)
        t, p = targets[rows], probs[rows]
        preds = p.argmax(axis=1)
        assert found["accuracy"][i] == pytest.approx(accuracy_score(t, preds))
        recalls = [np.mean(preds[t == k] == k) for k in labels]
        assert found["balanced_accuracy"][i] == pytest.approx(np.mean(recalls))
        if len(labels) == 4:
            assert found["balanced_accuracy"][i] == pytest.approx(balanced_accuracy_score(t, preds))
            assert found["auroc"][i] == pytest.approx(roc_auc_score(t, p, multi_class="ovr"))
        assert found["macro_f1"][i] == pytest.approx(
            f1_score(t, preds, labels=range(4), average="macro", zero_division=0)
        )
        assert found["nll"][i] == pytest.approx(log_loss(t, p, labels=range(4)))
        assert found["top2"][i] == pytest.approx(top_k_accuracy_score(t, p, k=2, labels=range(4)), abs=0.02)
        assert found["ece"][i] == pytest.approx(calibration.calibration_error(t, p))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng, hits = np.random.default_rng(3), 0
    for seed in range(100):
        right = rng.random(400) < 0.7
        probs = np.where(right[:, None], [0.8, 0.2], [0.2, 0.8])
        low, high = intervals.bootstrap_intervals(np.zeros(400, int), probs, 300, seed)["accuracy"]
        hits += low <= 0.7 <= high
    assert 88 <= hits <= 100
