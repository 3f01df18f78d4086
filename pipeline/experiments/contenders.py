"""What two models are compared by: a run's answers to the test split, with its params, figures and tags.

Reads MLflow's store and registry, and for the workspace ``reports/``.
"""

import io
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.core.errors import UserError
from pipeline.core.files import unescape_cell
from pipeline.core.paths import REPORTS, TRAINED
from pipeline.core.stage_files import EvaluationFile, WeightsFile
from pipeline.tracking import families
from pipeline.tracking.evaluations import TEST_DIGEST_TAG
from pipeline.tracking.runs import read_artifact
from pipeline.tracking.store import connect, experiment_id, find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

PREDICTIONS, AUDIT = "evaluation/predictions.csv", "audit.json"
SEED_SD = "seeds/test_accuracy_sd"  # on the parent of a family of seeds
_PROB = "prob_"


@dataclass(frozen=True)
class Contender:
    """One side of a comparison.

    Attributes:
        name: What tells it from others, such as ``version 3`` or ``exp wide (1a2b3c4d)``.
        run_id: Its MLflow run, as this store knows it; empty for a workspace whose run the store lacks.
        params: ``prepare.*`` and ``train.*``, flat.
        metrics: Such as ``test/accuracy``, ``cost/latency_ms`` and ``train/time_s``; the latest value of each.
        tags: Of the run.
        predictions: A row a test sample: ``file``, ``label``, ``predicted`` and ``prob_<class>`` for each class.
        test_digest: Of the test split that was predicted; None where nobody recorded it.
        version: In the registry, if it was asked for by that.
        seed_sd: Standard deviation of the test accuracy over trainings with other seeds, where known.
        seed_runs: How many trainings that is from; 0 where unknown.
        corrections: What decisions of people did to the labels of its data, as the audit counts it; None where nobody
            recorded it.
    """

    name: str
    run_id: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    predictions: pd.DataFrame
    test_digest: str | None = None
    version: int | None = None
    seed_sd: float | None = None
    seed_runs: int = 0
    corrections: dict[str, int] | None = None

    @cached_property
    def class_names(self) -> list[str]:
        """The K classes, in the order of the probabilities."""
        return [name.removeprefix(_PROB) for name in self.predictions if name.startswith(_PROB)]

    @cached_property
    def files(self) -> list[str]:
        """Names of the N test samples in the source."""
        return self.predictions["file"].tolist()

    @cached_property
    def targets(self) -> np.ndarray:
        """Class indices of the labels, int64 (N,)."""
        return _indices(self.predictions["label"], self.class_names)

    @cached_property
    def preds(self) -> np.ndarray:
        """Predicted class indices, int64 (N,)."""
        return _indices(self.predictions["predicted"], self.class_names)

    @cached_property
    def probs(self) -> np.ndarray:
        """Calibrated class probabilities, float64 (N, K)."""
        return self.predictions[[_PROB + name for name in self.class_names]].to_numpy(np.float64)

    @cached_property
    def right(self) -> np.ndarray:
        """Which answers are right, bool (N,)."""
        return self.preds == self.targets


def read_run(client: "MlflowClient", run: "Run", name: str | None = None) -> Contender:
    """Read the contender that a run is, by a name that is made from its experiment and id if None.

    Raises:
        UserError: It has no predictions.
    """
    run_id = run.info.run_id
    text = read_artifact(client, run_id, PREDICTIONS)
    if text is None:
        raise UserError(
            f"run {run_id} has no {PREDICTIONS}: it was not evaluated, or its artifacts are gone. `hyojo sync` in a "
            "workspace with its files puts them there."
        )
    return _contender_of(client, run, name or _title(run), read_predictions(text, f"run {run_id}"))


def read_version(client: "MlflowClient", version: "ModelVersion") -> Contender:
    """Read the contender that a registered version is.

    Raises:
        UserError: Its run is gone, or has no predictions.
    """
    run = find_run(client, version.run_id)
    if run is None:
        raise UserError(
            f"version {version.version} of {version.name} belongs to run {version.run_id}, which was deleted."
        )
    found = read_run(client, run, f"version {version.version}")
    digest = version.tags.get(TEST_DIGEST_TAG) or found.test_digest
    return replace(found, version=int(version.version), test_digest=digest)


def read_workspace() -> Contender:
    """Read the contender that the workspace's reports are.

    Raises:
        UserError: No reports.
    """
    path, result = REPORTS / "predictions.csv", EvaluationFile.load()
    if not path.exists():
        raise UserError(f"{path} not found. Run `dvc repro evaluate` first.")
    predictions = read_predictions(path.read_bytes(), str(path))
    client = connect()
    run = find_run(client, result.run_id)
    params = WeightsFile.load().params if (TRAINED / WeightsFile.FILE).exists() else {}
    parts = {"test": result.test, "test_clean": result.test_clean}
    scores = {f"{part}/{name}": float(value) for part in parts for name, value in parts[part].items()}
    audit = REPORTS / AUDIT
    corrections = _read_corrections(audit.read_bytes()) if audit.exists() else None
    if run is None:
        return Contender("workspace", "", params, scores, {}, predictions=predictions, corrections=corrections)
    found = _contender_of(client, run, "workspace", predictions)
    if corrections is None:
        corrections = found.corrections
    return replace(found, params=found.params | params, metrics=found.metrics | scores, corrections=corrections)


def _contender_of(client: "MlflowClient", run: "Run", name: str, predictions: pd.DataFrame) -> Contender:
    """What a run knows, with predictions."""
    seed_sd, seed_runs = _seed_spread(client, run)
    digest = run.data.tags.get(TEST_DIGEST_TAG)
    known = name, run.info.run_id, dict(run.data.params), dict(run.data.metrics), dict(run.data.tags)
    return Contender(
        *known,
        predictions=predictions,
        corrections=_read_corrections(read_artifact(client, run.info.run_id, AUDIT)),
        test_digest=digest,
        seed_sd=seed_sd,
        seed_runs=seed_runs,
    )


def _read_corrections(audit: bytes | None) -> dict[str, int] | None:
    return None if audit is None else json.loads(audit).get("corrections", {})


def read_predictions(content: bytes, origin: str) -> pd.DataFrame:
    """Read what evaluate wrote as ``predictions.csv``; names stay text even where they look like numbers.

    Raises:
        UserError: It is no such table; ``origin`` stands in the message.
    """
    text = {"file": str, "label": str, "predicted": str}
    try:
        table = pd.read_csv(io.BytesIO(content), dtype=text, keep_default_na=False)
    except ValueError as error:
        raise UserError(f"the predictions of {origin} cannot be read: {error}") from None
    for name in set(text) & set(table):
        table[name] = table[name].map(unescape_cell)
    classes = [name.removeprefix(_PROB) for name in table if name.startswith(_PROB)]
    if set(text) - set(table) or not classes or not len(table):
        raise UserError(f"the predictions of {origin} lack columns or rows: {', '.join(table)}")
    if unknown := (set(table["label"]) | set(table["predicted"])) - set(classes):
        raise UserError(f"the predictions of {origin} have classes without probabilities: {sorted(unknown)}")
    return table


def _indices(names: pd.Series, class_names: list[str]) -> np.ndarray:
    return names.map({name: i for i, name in enumerate(class_names)}).to_numpy(np.int64)


def _seed_spread(client: "MlflowClient", run: "Run") -> tuple[float | None, int]:
    """How much the test accuracy varies over the trainings that a run is one of, and how many those are."""
    while parent_id := run.data.tags.get(families.PARENT_TAG):
        run = find_run(client, parent_id)
        if run is None:
            break
        if families.is_family(run) and SEED_SD in run.data.metrics:
            children = f"tags.`{families.PARENT_TAG}` = '{run.info.run_id}'"
            return run.data.metrics[SEED_SD], len(client.search_runs([experiment_id(client)], children))
    return None, 0


def _title(run: "Run") -> str:
    experiment = run.data.tags.get("hyojo.dvc.exp_name")
    return f"{f'exp {experiment}' if experiment else 'run'} ({run.info.run_id[:8]})"
