"""How far probabilities can be believed, and when to say nothing: pure functions of arrays.

Temperature scaling and the expected calibration error are those of C. Guo et al., "On calibration of modern neural
networks", 2017, https://arxiv.org/abs/1706.04599; selective classification follows Y. Geifman and R. El-Yaniv,
"Selective classification for deep neural networks", 2017, https://arxiv.org/abs/1705.08500.

Everywhere ``targets`` are class indices, integers (N,), and ``probs`` class probabilities, floats (N, K).
"""

from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from pipeline.metrics.selection import score_all

BINS = 15
# Fewer samples say too little about how sure a net should be.
MIN_SAMPLES = 50
_TINY = np.finfo(np.float32).tiny
LEAST, MOST = 0.05, 20.0  # temperatures that are looked at


def temper(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits behind probabilities by a temperature; the order of the classes stays.

    Returns:
        float64 (N, K), rows summing to 1, less sure above temperature 1; ``probs`` itself at temperature 1.
    """
    if temperature == 1:
        return probs
    logits = np.log(np.maximum(probs, _TINY, dtype=np.float64)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def fit_temperature(targets: np.ndarray, probs: np.ndarray) -> float:
    """Find the temperature under which probabilities explain the labels best (least NLL), not of the training's.

    Returns:
        The temperature, rounded to 4 places; 1 with fewer than ``MIN_SAMPLES`` samples.
    """
    if len(targets) < MIN_SAMPLES:
        return 1.0
    rows = np.arange(len(targets))
    logits = np.log(np.maximum(probs, _TINY, dtype=np.float64))

    def nll(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        top = scaled.max(axis=1)
        return float(np.mean(top + np.log(np.exp(scaled - top[:, None]).sum(axis=1)) - scaled[rows, targets]))

    found = minimize_scalar(nll, bounds=(np.log(LEAST), np.log(MOST)), method="bounded", options={"xatol": 1e-5})
    return round(float(np.exp(found.x)), 4) if found.fun < nll(0.0) else 1.0


def remark_bound(temperature: float) -> str:
    """What it means that no temperature within the bounds was best; empty if this one was."""
    if temperature < LEAST * 1.01:
        return "no lower one is tried: nearly all of val is right, so val says little about how sure the net may be"
    if temperature > MOST / 1.01:
        return "no higher one is tried: the answers say next to nothing about val's labels"
    return ""


def calibration_report(
    targets: dict[str, np.ndarray], plain: dict[str, np.ndarray], temperature: float, risk: float
) -> dict[str, Any]:
    """Put together ``reports/calibration.json``.

    Args:
        targets: Of ``val``, on which all is chosen, and of ``test``.
        plain: Probabilities of both as the net gives them.
        temperature: From ``fit_temperature``.
        risk: The part of answers that may be wrong.

    Returns:
        ``temperature``; ``ece`` of both splits ``before`` and ``after`` it; ``abstain`` with the wanted ``risk``, the
        ``threshold`` for it (None if there is none) and, at it, ``coverage`` and ``risk`` of both; ``aurc`` of test.
    """
    after = {name: temper(probs, temperature) for name, probs in plain.items()}
    threshold = threshold_for(targets["val"], after["val"], risk)
    at = {} if threshold is None else {n: at_threshold(targets[n], after[n], threshold) for n in targets}
    return {
        "temperature": temperature,
        "ece": {
            name: {when: score_all(ece, own, sides[name]) for when, sides in (("before", plain), ("after", after))}
            for name, own in targets.items()
        },
        "abstain": {"risk": risk, "threshold": threshold, **at},
        "aurc": area_under(risk_coverage(targets["test"], after["test"])),
    }


def reliability(targets: np.ndarray, probs: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """Tell for each of ``bins`` equal ranges of the top probability how often the model is right there.

    Returns:
        A row a bin: ``low``, ``high``, ``count`` (int64), ``confidence`` (mean top probability) and ``accuracy``, both
        NaN in empty bins.
    """
    top = probs.max(axis=1)
    place = _bin_of(top, bins)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, top, bins) / count
        accuracy = np.bincount(place, probs.argmax(axis=1) == targets, bins) / count
    edges = np.linspace(0, 1, bins + 1)
    columns = {"low": edges[:-1], "high": edges[1:], "count": count}
    return pd.DataFrame(columns | {"confidence": confidence, "accuracy": accuracy})


def ece(targets: np.ndarray, probs: np.ndarray, weights: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the expected calibration error: the mean gap of confidence and accuracy, weighted by the bins' counts.

    Arguments as ``selection.accuracy``, and how many ``bins``.
    """
    top, right = probs.max(axis=1), probs.argmax(axis=1) == targets
    place = _bin_of(top, bins)
    count, confidence, accuracy = (
        np.stack([np.bincount(place, row * values, bins) for row in weights])
        for values in (np.ones(len(top)), top, right)
    )
    with np.errstate(invalid="ignore"):
        gaps = np.abs(confidence / count - accuracy / count) * count
        return np.asarray(np.nansum(gaps, axis=1) / weights.sum(axis=1))


def _bin_of(top: np.ndarray, bins: int) -> np.ndarray:
    """In which of equal ranges of the top probability each sample is, (N,)."""
    return np.asarray(np.clip(np.ceil(top * bins).astype(int) - 1, 0, bins - 1))


def risk_coverage(targets: np.ndarray, probs: np.ndarray) -> pd.DataFrame:
    """Tell how often the model errs if it answers only where it is sure enough, for every such threshold.

    Returns:
        A row for each distinct ``threshold`` on the top probability, falling: ``coverage``, the part of samples that
        it answers, and ``risk``, the part of these answers that is wrong.
    """
    top = probs.max(axis=1)
    order = np.argsort(-top, kind="stable")
    wrong = np.cumsum(probs.argmax(axis=1)[order] != targets[order])
    last = np.flatnonzero(np.append(np.diff(top[order]) != 0, True))  # equally sure samples go together
    answered = last + 1
    return pd.DataFrame(
        {"threshold": top[order][last], "coverage": answered / len(top), "risk": wrong[last] / answered}
    )


def area_under(curve: pd.DataFrame) -> float:
    """Return the mean risk over all coverages: 0 is perfect, the plain error rate no better than chance."""
    steps = np.diff(curve["coverage"], prepend=0.0)
    return float((curve["risk"] * steps).sum())


def threshold_for(targets: np.ndarray, probs: np.ndarray, risk: float) -> float | None:
    """Find the lowest threshold on the top probability whose answers are wrong no more often than a risk.

    Rounded down to 6 places; None if no threshold keeps to the risk.
    """
    curve = risk_coverage(targets, probs)
    allowed = curve[curve["risk"] <= risk]
    return None if allowed.empty else float(np.floor(allowed["threshold"].iloc[-1] * 1e6) / 1e6)


def at_threshold(targets: np.ndarray, probs: np.ndarray, threshold: float) -> dict[str, float]:
    """Return ``coverage`` and ``risk`` of answering where the top probability is at least a threshold.

    ``risk`` is missing where nothing is answered.
    """
    answered = probs.max(axis=1) >= threshold
    found = {"coverage": float(answered.mean())}
    if answered.any():
        found["risk"] = float((probs.argmax(axis=1) != targets)[answered].mean())
    return found
