"""The gate: planted regressions are refused, and a model no better than the champion gets by no more than agreed."""

from dataclasses import replace

import numpy as np
import pytest
from builders import TINY_PARAMS

from pipeline.core.params_file import parse_params
from pipeline.experiments.gate import Evidence, find_p_value, judge
from pipeline.metrics.paired import holm, seed_test

CLASSES = ["angry", "happy", "sad"]
LIMITS = parse_params(TINY_PARAMS).promote
TARGETS = np.repeat([0, 1, 2], 300)


def calibrated(preds: np.ndarray, sure: float) -> np.ndarray:
    """Probabilities of which the predicted class has ``sure``."""
    probs = np.full((len(preds), 3), (1 - sure) / 2)
    probs[np.arange(len(preds)), preds] = sure
    return probs


def evidence(accuracy: float, seed: int, targets: np.ndarray = TARGETS, **changes: object) -> Evidence:
    """Answers that are right that often in every class, independent of other seeds, and calibrated."""
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(targets), bool)
    for k in range(3):
        own = np.flatnonzero(targets == k)
        wrong[rng.choice(own, round((1 - accuracy) * len(own)), replace=False)] = True
    preds = np.where(wrong, (targets + 1) % 3, targets)
    probs, files = calibrated(preds, accuracy), [str(row) for row in range(len(targets))]
    about = {"probs": probs, "preds": preds, "test_digest": "7" * 64, "latency_ms": 4.0, "size_mb": 3.0}
    return Evidence(f"seed {seed}", CLASSES, files, targets, **(about | changes))


CHAMPION = evidence(0.70, 1)
GOOD = evidence(0.80, 2)


def reasons(candidate: Evidence, champion: Evidence = CHAMPION, **changes: object) -> str:
    return "; ".join(judge(candidate, champion, LIMITS.model_copy(update=changes)).reasons)


def test_a_better_model_passes_with_its_figures() -> None:
    verdict = judge(GOOD, CHAMPION, LIMITS)
    assert verdict.passed
    figures = verdict.figures
    assert figures["difference"] == pytest.approx(0.1)
    assert figures["difference_low"] < 0.1 < figures["difference_high"]
    assert figures["gained"] - figures["lost"] == 90
    assert figures["p_value"] < 0.001
    assert (figures["latency_ratio"], figures["size_ratio"]) == (1.0, 1.0)


def test_the_same_model_is_not_better_and_a_worse_one_is_refused_by_both_rules() -> None:
    assert "not better beyond chance" in reasons(CHAMPION)
    assert reasons(CHAMPION, rule="not_worse") == ""
    assert "not better" in reasons(CHAMPION, GOOD)
    assert "is worse" in reasons(CHAMPION, GOOD, rule="not_worse")


def test_a_broken_class_is_refused_though_accuracy_rose() -> None:
    # Half of sad goes to happy; all others become right.
    preds = np.where((TARGETS == 2) & (np.arange(900) % 2 == 0), 1, TARGETS)
    broken = replace(GOOD, preds=preds, probs=calibrated(preds, 5 / 6))
    assert "recall of sad fell by 20.0 points on 300 images" in reasons(broken)
    assert reasons(broken, recall_floor=0.25) == ""
    assert reasons(broken, recall_floor=None) == ""
    assert judge(broken, CHAMPION, LIMITS).figures["recall_worst_class"] == "sad"


def test_of_a_rare_class_a_drop_must_be_beyond_chance() -> None:
    targets = np.repeat([0, 1, 2], [400, 400, 8])
    base, better = evidence(0.70, 3, targets), evidence(0.85, 4, targets)

    def with_rare(found: Evidence, right: int) -> Evidence:
        preds = found.preds.copy()
        preds[800:] = [2] * right + [0] * (8 - right)
        return replace(found, preds=preds, probs=calibrated(preds, float((preds == targets).mean())))

    two_fewer = judge(with_rare(better, 4), with_rare(base, 6), LIMITS)
    assert two_fewer.passed
    assert "recall of sad fell by 25.0 points on 8 images (p = 0.25), which may be chance" in two_fewer.notes[0]
    assert "recall of sad fell by 75.0" in reasons(with_rare(better, 0), with_rare(base, 6))


def test_broken_calibration_is_refused() -> None:
    sure = replace(GOOD, probs=calibrated(GOOD.preds, 0.98))
    assert "calibration error rose from 0.0000 to 0.1800" in reasons(sure)
    assert reasons(sure, ece_rise=0.2) == ""


def test_a_slow_or_a_large_one_is_refused() -> None:
    assert "3.00 times as slow" in reasons(replace(GOOD, latency_ms=12.0))
    assert "5.00 times as large" in reasons(replace(GOOD, size_mb=15.0))
    assert reasons(replace(GOOD, latency_ms=12.0, size_mb=15.0), latency_ratio=None, size_ratio=None) == ""
    unknown = judge(replace(GOOD, latency_ms=None), CHAMPION, LIMITS)
    assert unknown.passed
    assert "latency ratio unknown" in unknown.notes[0]


def test_other_data_other_classes_and_unchecked_formats_are_refused() -> None:
    assert "other data" in reasons(replace(GOOD, test_digest="8" * 64))
    assert "other data" in reasons(replace(GOOD, files=GOOD.files[::-1]))
    assert "other data" in reasons(evidence(0.9, 5, TARGETS[::-1].copy()))
    assert "other classes (angry, happy, sorry)" in reasons(replace(GOOD, class_names=["angry", "happy", "sorry"]))
    assert "formats" in reasons(replace(GOOD, parity=False))


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_of_models_no_better_no_more_are_promoted_than_the_level(level: float) -> None:
    rng = np.random.default_rng(0)
    better = worse = 0
    # 500 samples of varying difficulty, which two equally good models answer by themselves.
    chances = rng.beta(2, 1, 500)
    for _ in range(2000):
        ours, theirs = rng.random((2, 500)) < chances
        better += find_p_value(ours, theirs, "greater") <= level
        worse += find_p_value(ours, theirs, "less") <= level
    # 2 standard errors of 2,000 draws: the true rate may not be above the level.
    slack = 2 * (level * (1 - level) / 2000) ** 0.5
    assert level / 3 < better / 2000 <= level + slack
    assert worse / 2000 <= level + slack


def test_models_that_vary_with_the_seed_need_the_seeds_considered() -> None:
    """Each seed's true accuracy differs: McNemar's test is right about the models and wrong about the recipe."""
    rng = np.random.default_rng(0)
    naive = considered = 0
    sd = (0.02**2 + 0.7 * 0.3 / 2000) ** 0.5  # what many seeds on the one test set show
    for _ in range(1000):
        ours, theirs = (rng.random(2000) < accuracy for accuracy in rng.normal(0.7, 0.02, 2))
        naive += find_p_value(ours, theirs, "greater") <= 0.05
        considered += find_p_value(ours, theirs, "greater", (sd, None), (30, 0)) <= 0.05
    assert naive / 1000 > 0.15
    assert considered / 1000 <= 0.05 + 0.014


def test_seed_test_by_hand() -> None:
    # sqrt(0.03^2 + 0.04^2) = 0.05: a difference of 0.0822 is 1.645 of it.
    assert seed_test(0.08224, (0.03, 0.04), (0, 0), "greater") == pytest.approx(0.05, abs=1e-4)
    assert seed_test(0.08224, (0.03, 0.04), (0, 0)) == pytest.approx(0.1, abs=2e-4)
    # Equal spreads of 5 seeds each: 8 degrees of freedom, of which 1.860 is the 95 % point.
    assert seed_test(1.8595 * 2**0.5, (1.0, 1.0), (5, 5), "greater") == pytest.approx(0.05, abs=1e-4)
    assert seed_test(-0.1, (0.0, 0.0), (5, 5), "greater") == 1.0
    assert seed_test(0.1, (0.0, 0.0), (5, 5), "greater") == 0.0


def test_holm_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.9, 0.5])) == pytest.approx([1.0, 1.0])


def test_an_assumed_spread_of_seeds_holds_a_candidate_up_and_excuses_none() -> None:
    """0.028 in accuracy over two nets whose accuracy varies by 0.02: z is 1, however many images there are."""
    targets = np.repeat(TARGETS, 20)
    champion, candidate = evidence(0.70, 1, targets), evidence(0.728, 2, targets)
    assert judge(candidate, champion, LIMITS).passed
    wide = LIMITS.model_copy(update={"seed_sd": 0.02})
    verdict = judge(candidate, champion, wide)
    assert verdict.figures["p_value"] == pytest.approx(0.161, abs=0.001)
    assert verdict.figures["seed_sd_assumed"] == 0.02
    assert "assumed standard deviation of 0.02" in verdict.reasons[0]
    known = replace(candidate, seed_sd=0.007, seed_runs=30)
    assert judge(known, champion, wide).passed  # what is known counts
    assert judge(candidate, champion, LIMITS.model_copy(update={"seed_sd": None})).passed
    assert not judge(champion, candidate, wide.model_copy(update={"rule": "not_worse"})).passed
