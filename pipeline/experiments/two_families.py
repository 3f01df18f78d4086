"""Two families of seeds, found by name in MLflow's store, compared by their answers to one test split."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.errors import UserError
from pipeline.experiments import contenders
from pipeline.experiments.two_models import compare_recalls, list_corrections, list_differing
from pipeline.metrics.intervals import ALPHA
from pipeline.metrics.seed_anova import GroupDifference, compare_groups
from pipeline.tracking import families
from pipeline.tracking.store import connect, experiment_id, find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class Family:
    """A family's answers: ``right`` is bool (S, N), a row a seed; ``samples`` are file and label of each column.

    ``corrections`` are as in ``Contender``, of the last seed: all have the same data.
    """

    name: str
    run_id: str
    seeds: list[int]
    right: np.ndarray
    samples: list[tuple[str, str]]
    test_digests: set[str]
    corrections: dict[str, int] | None

    @property
    def accuracies(self) -> np.ndarray:
        """Each seed's, floats (S,)."""
        return self.right.mean(axis=1)

    def as_dict(self) -> dict[str, Any]:
        """What tells it from another, for JSON."""
        about = {"name": self.name, "run_id": self.run_id, "seeds": self.seeds}
        return about | {"test_accuracy": self.accuracies.tolist()}


@dataclass(frozen=True)
class FamilyComparison:
    """Two families; differences are B's mean over seeds and test images minus A's.

    Attributes:
        a: The one.
        b: The other.
        accuracy: The difference in test accuracy.
        classes: A row a class with its recalls, their difference with interval, and ``p``, corrected by Holm.
        params: Rows of name, A's value, B's value, of those that differ.
        corrections: As in ``Comparison``.
    """

    a: Family
    b: Family
    accuracy: GroupDifference
    classes: list[dict[str, Any]]
    params: list[tuple[str, str, str]]
    corrections: list[tuple[str, int | None, int | None]]

    @property
    def verdict(self) -> str:
        """Which is better, if the interval leaves out zero."""
        if self.accuracy.p_value >= ALPHA:
            return "indistinguishable"
        return f"{(self.b if self.accuracy.difference > 0 else self.a).name} is better"

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {
            "a": self.a.as_dict(),
            "b": self.b.as_dict(),
            "samples": len(self.a.samples),
            "accuracy": asdict(self.accuracy),
            "classes": self.classes,
            "params": [dict(zip(("name", "a", "b"), row)) for row in self.params],
            "corrections": [dict(zip(("name", "a", "b"), row)) for row in self.corrections],
            "verdict": self.verdict,
        }

    def summary(self) -> list[str]:
        """What was found of the accuracy, in lines."""
        found, lines = self.accuracy, []
        for side, family in (("A", self.a), ("B", self.b)):
            accuracy = family.accuracies
            lines.append(
                f"{side}: {family.name}, {len(accuracy)} seeds: "
                f"test accuracy {accuracy.mean():.4f} (sd {accuracy.std(ddof=1):.4f})"
            )
        lines += [
            f"B - A: {found.difference:+.4f} (95 % interval {found.low:+.4f} to {found.high:+.4f}, "
            f"p = {found.p_value:.3g}), "
            f"over seeds and {len(self.a.samples):,} test images",
            f"standard error {found.standard_error:.4f}: {found.from_seeds**0.5:.4f} from seeds, "
            f"{found.from_images**0.5:.4f} from images",
            f"verdict: {self.verdict}",
        ]
        return lines


def find_pair(a: str, b: str) -> tuple["Run", "Run"] | None:
    """The parent runs that two names, ids or run names of families stand for; None if neither is of a family.

    Raises:
        UserError: One is a family and the other is not.
    """
    client = connect()
    found = [_find_family(client, name) for name in (a, b)]
    if found == [None, None]:
        return None
    for name, run in zip((a, b), found):
        if run is None:
            raise UserError(f"{name} is no family of seeds, and the other is; `hyojo seeds` makes families.")
    return found[0], found[1]


def compare(a: "Run", b: "Run") -> FamilyComparison:
    """Compare two families.

    Raises:
        UserError: A family of one seed, a seed without predictions, or other test samples.
    """
    client = connect()
    one, other = _read_family(client, a), _read_family(client, b)
    if one.samples != other.samples or len(one.test_digests | other.test_digests) > 1:
        raise UserError(f"{one.name} and {other.name} were not tested on the same samples.")
    labels = np.array([label for _, label in one.samples])
    # What images do to a score shows from two on.
    classes = {str(name): labels == name for name in np.unique(labels) if (labels == name).sum() > 1}
    return FamilyComparison(
        a=one,
        b=other,
        accuracy=compare_groups(other.right, one.right),
        classes=compare_recalls(other.right, one.right, classes, _compare_class),
        params=list_differing(a.data.params, b.data.params),
        corrections=list_corrections(one.corrections, other.corrections),
    )


def _compare_class(b: np.ndarray, a: np.ndarray) -> tuple[float, float, float]:
    """Interval and p of the difference in one class's recall."""
    found = compare_groups(b, a)
    return found.low, found.high, found.p_value


def _find_family(client: "MlflowClient", name: str) -> "Run | None":
    run = find_run(client, name) if len(name) == 32 and "'" not in name else None
    if run is not None:
        return run if families.is_family(run) else None
    found = client.search_runs([experiment_id(client)], f"tags.`{families.KIND_TAG}` = 'seeds'")
    named = [run for run in found if name in (run.data.tags.get(families.NAME_TAG), run.info.run_name)]
    return named[0] if named else None


def _read_family(client: "MlflowClient", parent: "Run") -> Family:
    """The answers of every member; samples in the order of their names."""
    name, members = parent.data.tags[families.NAME_TAG], families.members(parent)
    if len(members) < 2:
        raise UserError(
            f"{name} has {len(members)} seeds; what seeds do to a score shows from two on. "
            "`hyojo seeds` with a larger number adds some."
        )
    rows, samples, digests = [], [], set()
    for seed, run_id in members.items():
        run = find_run(client, run_id)
        if run is None:
            raise UserError(f"seed {seed} of {name}: its run {run_id} is gone. Run `hyojo seeds` again.")
        found = contenders.read_run(client, run)
        order = sorted(range(len(found.files)), key=found.files.__getitem__)
        labels = found.predictions["label"].tolist()
        samples.append([(found.files[i], labels[i]) for i in order])
        rows.append(found.right[order])
        digests |= {found.test_digest} - {None}
    if any(one != samples[0] for one in samples):
        raise UserError(f"the seeds of {name} were not tested on the same samples. Run `hyojo seeds` again.")
    about = name, parent.info.run_id, list(members), np.array(rows), samples[0]
    return Family(*about, test_digests=digests, corrections=found.corrections)
