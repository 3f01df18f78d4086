"""Two contenders on the same test samples: what differs, by how much, and whether that is more than chance."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.core.errors import UserError
from pipeline.experiments import gate
from pipeline.experiments.contenders import Contender
from pipeline.metrics import table
from pipeline.metrics.intervals import ALPHA, bootstrap_intervals
from pipeline.metrics.paired import difference_interval, holm, mcnemar
from pipeline.prepare.catalogue import SPLITS

# Titles and metrics.
COSTS = {
    "parameters": "cost/parameters",
    "FLOPs": "cost/flops",
    "size, MB": "cost/size_mb",
    "latency, ms": "cost/latency_ms",
    "training, s": "train/time_s",
    "training, PFLOP": "train/pflop",
}
# What a run was made from besides its params.
ORIGIN = {"training data": "hyojo.data_digest", "git commit": "mlflow.source.git.commit"}


@dataclass(frozen=True)
class Comparison:
    """What is known of two contenders; differences are B minus A.

    Attributes:
        a: The one.
        b: The other, with its classes in the order of ``a``.
        verdict: In a sentence.
        scores: For each score ``a``, ``b``, ``difference`` and its bootstrap interval, ``low`` and ``high``.
        test: Of the accuracy: ``p`` (McNemar's exact test), ``p_seeds`` (with the seeds considered, if known),
            ``gained`` and ``lost`` samples.
        classes: A row a class with its recalls, their difference with interval, and ``p``, corrected by Holm.
        params: Rows of name, A's value, B's value, of those that differ.
        corrections: Rows of what decisions of people did to the labels, and how many images of A's and of B's data
            that is (None: not recorded); none where there were no decisions.
        costs: Rows of title, A's figure, B's figure (None: not recorded) and their ratio.
        samples: Rows of the test split by what became of them: ``fixed``, ``broken``, ``still wrong``.
    """

    a: Contender
    b: Contender
    verdict: str
    scores: dict[str, dict[str, float]]
    test: dict[str, float]
    classes: list[dict[str, Any]]
    params: list[tuple[str, str, str]]
    corrections: list[tuple[str, int | None, int | None]]
    costs: list[tuple[str, float | None, float | None, float | None]]
    samples: dict[str, np.ndarray]

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON; of the samples their files."""
        return {
            "a": {"name": self.a.name, "run_id": self.a.run_id, "version": self.a.version},
            "b": {"name": self.b.name, "run_id": self.b.run_id, "version": self.b.version},
            "images": len(self.a.targets),
            "verdict": self.verdict,
            "scores": self.scores,
            "test": self.test,
            "classes": self.classes,
            "params": [dict(zip(("name", "a", "b"), row)) for row in self.params],
            "corrections": [dict(zip(("name", "a", "b"), row)) for row in self.corrections],
            "costs": [dict(zip(("name", "a", "b", "ratio"), row)) for row in self.costs],
            "samples": {name: [self.a.files[row] for row in rows] for name, rows in self.samples.items()},
        }


def compare(a: Contender, b: Contender) -> Comparison:
    """Compare two contenders sample by sample.

    Raises:
        UserError: They did not answer the same samples, or know other classes.
    """
    b = _paired(a, b)
    scores = _scores(a, b)
    test = {
        "p": mcnemar(b.right, a.right),
        "gained": int((b.right & ~a.right).sum()),
        "lost": int((a.right & ~b.right).sum()),
    }
    sds = (b.seed_sd, a.seed_sd)
    if sds != (None, None):
        test["p_seeds"] = gate.find_p_value(b.right, a.right, "two-sided", sds, (b.seed_runs, a.seed_runs))
    classes = {name: a.targets == k for k, name in enumerate(a.class_names) if (a.targets == k).any()}
    return Comparison(
        a=a,
        b=b,
        verdict=verdict_text(scores[table.TITLES["accuracy"]], test, len(a.targets)),
        scores=scores,
        test=test,
        classes=compare_recalls(b.right, a.right, classes, lambda b, a: (*difference_interval(b, a), mcnemar(b, a))),
        params=_params(a, b),
        corrections=list_corrections(a.corrections, b.corrections),
        costs=_costs(a, b),
        samples=_sort_samples(a, b),
    )


def verdict_text(accuracy: dict[str, float], test: dict[str, float], images: int) -> str:
    """Return the verdict on B in a sentence."""
    points = 100 * accuracy["difference"]
    found = (
        f"95 % interval {100 * accuracy['low']:.2f} to {100 * accuracy['high']:.2f}, p = {test['p']:.2g}, "
        f"{images:,} images"
    )
    if test["p"] > ALPHA:
        return f"Indistinguishable on these {images:,} images: B - A is {points:+.2f} points ({found})."
    better = "better" if points > 0 else "worse"
    text = f"B is {better} by {abs(points):.2f} points of accuracy (difference: {found})"
    if (p := test.get("p_seeds", 0)) > ALPHA:
        return f"{text}, but no more than another seed might make it (p = {p:.2g})."
    return f"{text}."


def _paired(a: Contender, b: Contender) -> Contender:
    """``b``, with its classes in the order of ``a``, if the two answered the same samples."""
    if sorted(a.class_names) != sorted(b.class_names):
        raise UserError(
            f"{a.name} and {b.name} know different classes: {', '.join(a.class_names)} and {', '.join(b.class_names)}."
        )
    if (a.test_digest and b.test_digest and a.test_digest != b.test_digest) or (
        a.files != b.files or a.predictions["label"].tolist() != b.predictions["label"].tolist()
    ):
        params = [row for row in _params(a, b) if row[0].startswith("prepare.")]
        labels = [row for row in list_corrections(a.corrections, b.corrections) if row[1] != row[2]]
        changed = [f"{name} ({ours} and {theirs})" for name, ours, theirs in (*params, *labels)]
        why = f" Their data were prepared otherwise: {', '.join(changed)}." if changed else ""
        raise UserError(
            f"{a.name} and {b.name} were tested on different data, so they cannot be compared sample by sample.{why} "
            "Evaluate both on the same test split."
        )
    columns = ["file", "label", "predicted", *(f"prob_{name}" for name in a.class_names)]
    return b if a.class_names == b.class_names else replace(b, predictions=b.predictions[columns])


def _scores(a: Contender, b: Contender) -> dict[str, dict[str, float]]:
    """Both sides' scores by title, their difference and its interval, of those that both have."""
    ours, theirs = (table.score(side.targets, side.probs) for side in (a, b))
    found = {}
    for name, (low, high) in bootstrap_intervals(a.targets, b.probs, a.probs).items():
        sides = {"a": ours[name], "b": theirs[name], "difference": theirs[name] - ours[name]}
        found[table.TITLES[name]] = sides | {"low": low, "high": high}
    return found


def compare_recalls(
    ours: np.ndarray,
    theirs: np.ndarray,
    classes: Mapping[str, np.ndarray],
    compare: Callable[[np.ndarray, np.ndarray], tuple[float, float, float]],
) -> list[dict[str, Any]]:
    """Return a row a class: recalls, their difference with its interval, and ``p``, corrected by Holm.

    Args:
        ours: B's right answers, bool (..., N).
        theirs: A's.
        classes: Which samples are of a class, bool (N,), by its name; none without samples.
        compare: Gives low and high end of the interval and p for right answers to one class.
    """
    rows = []
    for name, own in classes.items():
        b, a = ours[..., own], theirs[..., own]
        low, high, p = compare(b, a)
        found = {"a": float(a.mean()), "b": float(b.mean()), "difference": float(b.mean() - a.mean())}
        rows.append({"class": name, "images": int(own.sum())} | found | {"low": low, "high": high, "p": p})
    for row, p in zip(rows, holm(np.array([row["p"] for row in rows]))):
        row["p"] = float(p)
    return rows


def _params(a: Contender, b: Contender) -> list[tuple[str, str, str]]:
    ours = a.params | {name: a.tags[tag][:12] for name, tag in ORIGIN.items() if tag in a.tags}
    theirs = b.params | {name: b.tags[tag][:12] for name, tag in ORIGIN.items() if tag in b.tags}
    return list_differing(ours, theirs)


def list_differing(ours: dict[str, str], theirs: dict[str, str]) -> list[tuple[str, str, str]]:
    """Return rows of name and both values, of those that are not the same; ``-`` where one has none."""
    names = dict.fromkeys([*ours, *theirs])
    return [(name, ours.get(name, "-"), theirs.get(name, "-")) for name in names if ours.get(name) != theirs.get(name)]


def list_corrections(
    ours: dict[str, int] | None, theirs: dict[str, int] | None
) -> list[tuple[str, int | None, int | None]]:
    """Return rows of what decisions of people did to labels and both counts of images, but where both are 0.

    The counts are those of the audit; None where nobody recorded them.
    """
    rows = []
    for name, about in {"relabelled": "labels changed", "dropped": "left out"}.items():
        for split in SPLITS:
            a, b = (side if side is None else side.get(f"{name}_{split}", 0) for side in (ours, theirs))
            if a or b:
                rows.append((f"{about} in {split}", a, b))
    return rows


def _costs(a: Contender, b: Contender) -> list[tuple[str, float | None, float | None, float | None]]:
    rows = []
    for title, metric in COSTS.items():
        values = [side.metrics.get(metric) for side in (a, b)]
        shown = [value if value is not None and math.isfinite(value) else None for value in values]
        rows.append((title, *shown, shown[1] / shown[0] if shown[0] and shown[1] is not None else None))
    return rows


def _sort_samples(a: Contender, b: Contender) -> dict[str, np.ndarray]:
    """Each kind with the most telling first: the largest change of the label's probability, or B's surest mistakes."""
    every = np.arange(len(a.targets))
    change = np.abs(b.probs[every, a.targets] - a.probs[every, a.targets])
    kinds = {
        "fixed": (~a.right & b.right, change),
        "broken": (a.right & ~b.right, change),
        "still wrong": (~a.right & ~b.right, b.probs[every, b.preds]),
    }
    rows = {name: np.flatnonzero(mask) for name, (mask, _) in kinds.items()}
    return {name: own[np.argsort(-kinds[name][1][own], kind="stable")] for name, own in rows.items()}
