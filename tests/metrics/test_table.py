"""Every score of the table against scikit-learn, and what weights mean to it."""

import warnings

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as reference

from pipeline.metrics.table import METRICS, score

# What scikit-learn has for a score, given labels, probabilities and the number of classes; of ECE, which it has not,
# test_calibration has a hand-worked case.
REFERENCES = {
    "accuracy": lambda t, p, k: reference.accuracy_score(t, p.argmax(axis=1)),
    "macro_f1": lambda t, p, k: reference.f1_score(
        t, p.argmax(axis=1), labels=range(k), average="macro", zero_division=0
    ),
    "balanced_accuracy": lambda t, p, k: reference.balanced_accuracy_score(t, p.argmax(axis=1)),
    "nll": lambda t, p, k: reference.log_loss(t, p, labels=range(k)),
    "top2": lambda t, p, k: np.mean([label in np.argsort(-row, kind="stable")[:2] for label, row in zip(t, p)]),
    "auroc": lambda t, p, k: np.mean([reference.roc_auc_score(t == j, p[:, j]) for j in np.unique(t)]),
}


def answers(labels: list[int], count: int = 300, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Targets among some classes and probabilities, with ties, that know something of them."""
    rng = np.random.default_rng(len(labels))
    targets = rng.choice(labels, count)
    probs = softmax(rng.normal(0, 1, (count, classes)) + 1.5 * np.eye(classes)[targets], axis=1).round(2)
    return targets, probs / probs.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 2, 3], [0, 1]])
def test_metrics_agree_with_scikit_learn(labels: list[int]) -> None:
    targets, probs = answers(labels)
    found = score(targets, probs)
    assert list(found) == list(METRICS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's remarks on absent classes
        for name, expected in REFERENCES.items():
            assert found[name] == pytest.approx(expected(targets, probs, 4), abs=1e-12), name


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 2, 3]])
def test_integer_weights_are_repeated_rows(name: str, labels: list[int]) -> None:
    targets, probs = answers(labels)
    weights = np.random.default_rng(0).multinomial(300, np.full(300, 1 / 300), size=5)
    weights[4] = np.where(targets == labels[0], 0, weights[4])  # a draw may lack a class
    found = METRICS[name].function(targets, probs, weights)
    for value, times in zip(found, weights, strict=True):
        rows = np.repeat(np.arange(300), times)
        once = np.ones((1, len(rows)))
        assert value == pytest.approx(METRICS[name].function(targets[rows], probs[rows], once)[0], abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_scale_of_weights_and_order_of_samples_say_nothing(name: str) -> None:
    targets, probs = answers([0, 1, 2, 3])
    weights = np.random.default_rng(0).random((2, 300))
    found = METRICS[name].function(targets, probs, weights)
    assert METRICS[name].function(targets, probs, 7 * weights) == pytest.approx(found)
    turned = METRICS[name].function(targets[::-1], probs[::-1], weights[:, ::-1])
    assert turned == pytest.approx(found)


def test_score_of_a_mask_is_that_of_its_samples() -> None:
    targets, probs = answers([0, 2, 3])
    mask = np.random.default_rng(0).random(300) < 0.3
    assert score(targets, probs, mask) == pytest.approx(score(targets[mask], probs[mask]), abs=1e-12)
    lone = targets == 2
    assert score(targets, probs, lone).keys() == METRICS.keys() - {"auroc"}  # of one class alone there is none
