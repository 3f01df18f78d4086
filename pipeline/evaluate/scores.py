"""The scores of a classifier: the parts of ``evaluation.json``, and what they are not sure of."""

import time
from collections.abc import Mapping
from typing import Any

from pipeline.core.dataset import Prepared
from pipeline.core.params import EvaluateParams
from pipeline.evaluate.findings import Answers
from pipeline.evaluate.net import Net
from pipeline.metrics import calibration
from pipeline.metrics.table import HEADLINES, METRICS, score
from pipeline.models.model import count_passes


def score_parts(answers: Answers, prepared: Prepared) -> dict[str, dict[str, float]]:
    """Return the scores of val, of test, and of its images without a twin in what was trained on; and the audit."""
    scores = {name: score(targets, answers.probs[name]) for name, targets in answers.targets.items()}
    clean = ~prepared.leaks("test")
    counted: dict[str, float] = {"images": int(clean.sum())}
    if counted["images"]:
        counted |= score(answers.targets["test"], answers.probs["test"], clean)
    return {
        "val": {name: scores["val"][name] for name in HEADLINES},
        "test": scores["test"],
        "test_clean": counted,
        "audit": prepared.audit,
    }


def pick_metrics(result: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return what ``metrics.json`` holds for DVC to compare and git to keep: scores that another model would change.

    All of test, else the headlines; no counts, and nothing that differs where the results are equal.
    """
    shown = {**HEADLINES, "mean_corruption_accuracy": ""}
    picked = {
        part: {name: value for name, value in scores.items() if name in (METRICS if part == "test" else shown)}
        for part, scores in result.items()
    }
    return {part: scores for part, scores in picked.items() if scores}


def assess_trust(answers: Answers, params: EvaluateParams) -> dict[str, Any]:
    """Return what ``calibration.json`` holds: the temperature, when to abstain, and which views are averaged."""
    trust = calibration.calibration_report(answers.targets, answers.plain, answers.temperature, params.risk)
    if params.tta:
        passes = count_passes(params.tta)
        trust["tta"] = {"views": params.tta, "passes": passes, "served": params.serve_tta}
    return trust


def score_beside(net: Net, answers: Answers, params: EvaluateParams) -> tuple[dict[str, Any], float]:
    """Score the mean over views, or the image alone where that mean is what is served.

    Returns:
        A part of ``evaluation.json`` by its name, none without views; and the milliseconds that it took an image.
    """
    if not params.tta:
        return {}, 0.0
    test, served = answers.splits["test"], net.classifier.views
    net.classifier.views = [] if served else params.tta
    start = time.perf_counter()
    probs = net.predict(test.images, "views")
    seconds = time.perf_counter() - start
    passes = count_passes(net.classifier.views)
    net.classifier.views = served
    found = score(test.targets, calibration.temper(probs, answers.temperature))
    name = "test_plain" if served else "test_tta"
    return {name: {"passes": passes} | found}, 1e3 * seconds / len(test)
