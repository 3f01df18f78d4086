"""Whether a version may take the champion's place: pure functions of what is known of both.

The paired test is on the test samples that both answered. A second test asks whether another seed could have made the
difference, by how much the accuracy varies from seed to seed, as known or else assumed; the weaker of the two counts.
"""

from dataclasses import dataclass, field

import numpy as np

from pipeline.core.params import PromoteParams
from pipeline.metrics.calibration import ece
from pipeline.metrics.paired import Alternative, difference_interval, mcnemar, seed_test
from pipeline.metrics.selection import score_all


@dataclass(frozen=True)
class Evidence:
    """What the gate knows of a version.

    Attributes:
        name: Such as ``version 3``.
        class_names: The K classes.
        files: Names of the N test samples.
        targets: Class indices of their labels, integers (N,).
        probs: Calibrated class probabilities, floats (N, K).
        preds: Predicted class indices, integers (N,).
        test_digest: Of the test split.
        parity: Whether export found the served graph to agree with the trained model.
        latency_ms: Of an answer; None where it cannot be had.
        size_mb: Of the served graph; None where it cannot be had.
        seed_sd: Standard deviation of the test accuracy over seeds; None where unknown.
        seed_runs: From how many seeds.
    """

    name: str
    class_names: list[str]
    files: list[str]
    targets: np.ndarray
    probs: np.ndarray
    preds: np.ndarray
    test_digest: str | None
    parity: bool = True
    latency_ms: float | None = None
    size_mb: float | None = None
    seed_sd: float | None = None
    seed_runs: int = 0

    @property
    def right(self) -> np.ndarray:
        """Which answers are right, bool (N,)."""
        return self.preds == self.targets


@dataclass
class Verdict:
    """What the gate decides: refused for ``reasons``, if there are any.

    ``figures`` is all that it looked at, by short names; ``notes`` say what was left undecided. ``foreign``: it
    is of another project or of other classes, or was tested on other data.
    """

    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float | int | str] = field(default_factory=dict)
    foreign: bool = False

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons


def judge(candidate: Evidence, champion: Evidence, params: PromoteParams) -> Verdict:
    """Hold a candidate against the champion; of other data or classes nothing more is computed."""
    verdict = Verdict(figures={"rule": params.rule, "level": params.level})
    if not candidate.parity:
        verdict.reasons.append(
            f"export did not record that the formats of {candidate.name} agree; run `dvc repro export` and "
            "`hyojo register`"
        )
    if mismatch := _mismatch(candidate, champion):
        verdict.reasons.insert(0, mismatch)
        verdict.foreign = True
        return verdict
    _judge_accuracy(verdict, candidate, champion, params)
    _judge_recall(verdict, candidate, champion, params)
    _judge_calibration(verdict, candidate, champion, params)
    both = (candidate, champion)
    _judge_ratio(verdict, "latency_ratio", "as slow", [s.latency_ms for s in both], params.latency_ratio)
    _judge_ratio(verdict, "size_ratio", "as large", [s.size_mb for s in both], params.size_ratio)
    return verdict


def find_p_value(
    ours: np.ndarray,
    theirs: np.ndarray,
    alternative: Alternative,
    sds: tuple[float | None, float | None] = (None, None),
    runs: tuple[int, int] = (0, 0),
) -> float:
    """Return the p-value of the difference in accuracy: of the samples, or if that is weaker, of the seeds.

    Args:
        ours: Which samples the one got right, bool (N,).
        theirs: Which the other got right, bool (N,).
        alternative: As in ``paired.mcnemar``.
        sds: Standard deviation of each side's accuracy over seeds; what is known of one side only is taken for both.
        runs: How many seeds each is from.
    """
    found = mcnemar(ours, theirs, alternative)
    known = [(sd, count) for sd, count in zip(sds, runs) if sd is not None]
    if not known:
        return found
    (sd, count), (other_sd, other_count) = known[0], known[-1]
    difference = float(ours.mean() - theirs.mean())
    return max(found, seed_test(difference, (sd, other_sd), (count, other_count), alternative))


def _mismatch(candidate: Evidence, champion: Evidence) -> str | None:
    """Why the two cannot be compared at all; None if they can."""
    if candidate.class_names != champion.class_names:
        return (
            f"{candidate.name} knows other classes ({', '.join(candidate.class_names)}) than {champion.name} "
            f"({', '.join(champion.class_names)})"
        )
    same = candidate.files == champion.files and np.array_equal(candidate.targets, champion.targets)
    if candidate.test_digest != champion.test_digest or not same:
        return (
            f"{candidate.name} was tested on other data than {champion.name}, so their figures cannot be compared; "
            "evaluate both on the same test split"
        )
    return None


def _judge_accuracy(verdict: Verdict, candidate: Evidence, champion: Evidence, params: PromoteParams) -> None:
    ours, theirs = candidate.right, champion.right
    sds, runs = (candidate.seed_sd, champion.seed_sd), (candidate.seed_runs, champion.seed_runs)
    # Only against a candidate: what is assumed must not excuse a worse one.
    assumed = sds == (None, None) and params.rule == "better" and params.seed_sd is not None
    if assumed:
        sds = (params.seed_sd, params.seed_sd)
    sides: dict[str, Alternative] = {"better": "greater", "not_worse": "less"}
    p = find_p_value(ours, theirs, sides[params.rule], sds, runs)
    low, high = difference_interval(ours, theirs)
    verdict.figures |= {
        "images": len(ours),
        "accuracy": float(ours.mean()),
        "champion_accuracy": float(theirs.mean()),
        "difference": float(ours.mean() - theirs.mean()),
        "difference_low": low,
        "difference_high": high,
        "gained": int((ours & ~theirs).sum()),
        "lost": int((theirs & ~ours).sum()),
        "p_value": p,
        "p_samples": mcnemar(ours, theirs, sides[params.rule]),
    }
    suffixes = ("_assumed", "_assumed") if assumed else ("", "_champion")
    verdict.figures |= {f"seed_sd{suffix}": sd for suffix, sd in zip(suffixes, sds) if sd is not None}
    seeds = "" if sds == (None, None) else ", seeds considered"
    if assumed:
        seeds += f" with an assumed standard deviation of {params.seed_sd:g}"
    points = (
        f"{100 * (ours.mean() - theirs.mean()):+.2f} points of test accuracy to {champion.name} on "
        f"{len(ours):,} images (p = {p:.2g}, level {params.level:g}{seeds})"
    )
    if params.rule == "better" and p > params.level:
        verdict.reasons.append(f"{candidate.name} is not better beyond chance: {points}")
    if params.rule == "not_worse" and p <= params.level:
        verdict.reasons.append(f"{candidate.name} is worse: {points}")


def _judge_recall(verdict: Verdict, candidate: Evidence, champion: Evidence, params: PromoteParams) -> None:
    """Look at each class: of a rare one, few samples make a large drop, so that a drop must also be significant.

    The tests are not corrected for there being several: a broken class that slips through costs more than a refusal,
    which can be overruled.
    """
    ours, theirs, drops = candidate.right, champion.right, {}
    for k, name in enumerate(candidate.class_names):
        own = candidate.targets == k
        if own.any():
            drops[name] = float(theirs[own].mean() - ours[own].mean()), own
    worst = max(drops, key=lambda name: drops[name][0])
    verdict.figures |= {"recall_worst": -drops[worst][0], "recall_worst_class": worst}
    if params.recall_floor is None:
        return
    for name, (drop, own) in drops.items():
        if drop > params.recall_floor:
            p = mcnemar(ours[own], theirs[own], "less")
            fall = f"recall of {name} fell by {100 * drop:.1f} points on {own.sum():,} images (p = {p:.2g})"
            if p <= params.level:
                verdict.reasons.append(f"{fall}; {100 * params.recall_floor:g} are allowed")
            else:
                verdict.notes.append(f"{fall}, which may be chance")


def _judge_calibration(verdict: Verdict, candidate: Evidence, champion: Evidence, params: PromoteParams) -> None:
    ours, theirs = (score_all(ece, side.targets, side.probs) for side in (candidate, champion))
    verdict.figures |= {"ece": ours, "champion_ece": theirs, "ece_rise": ours - theirs}
    if params.ece_rise is not None and ours - theirs > params.ece_rise:
        verdict.reasons.append(
            f"calibration error rose from {theirs:.4f} to {ours:.4f}; {params.ece_rise:g} more is allowed"
        )


def _judge_ratio(verdict: Verdict, name: str, words: str, sides: list[float | None], limit: float | None) -> None:
    ours, theirs = sides
    if not ours or not theirs:
        if limit is not None:
            verdict.notes.append(f"{name.replace('_', ' ')} unknown: it was neither measured nor recorded")
        return
    verdict.figures[name] = ours / theirs
    if limit is not None and ours / theirs > limit:
        verdict.reasons.append(f"it is {ours / theirs:.2f} times {words} as the champion; {limit:g} is allowed")
