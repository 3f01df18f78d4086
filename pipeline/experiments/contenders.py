"""What two models are compared by: a run's answers to the test split, with its params, figures and tags.

Reads MLflow's store and registry, DVC's experiments in git, and for the workspace ``reports/``.
"""

import io
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.core.errors import UserError
from pipeline.core.project import project_root
from pipeline.tracking import dvc_experiments, families, registry
from pipeline.tracking import runs as tracking
from pipeline.tracking.evaluations import EVALUATION_TAG, TEST_DIGEST_TAG
from pipeline.tracking.store import connect, experiment_id, find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

WORKSPACE = "."
PREDICTIONS = "evaluation/predictions.csv"
BUNDLE = "model/artifacts/bundle/bundle.json"
SEED_SD = "seeds/test_accuracy_sd"  # on the parent of a family of seeds
MIN_PREFIX = 4
_PROB = "prob_"
_HEX = re.compile("[0-9a-f]+")


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


def find(name: str) -> Contender:
    """Find what a name stands for.

    Args:
        name: ``.`` (what stands in ``reports/``), a registry version (``3``, ``v3``), an alias (``champion``,
            ``@champion``), a ``models:/`` URI, a run's id, a unique beginning of one, or its name, a DVC experiment,
            or a git revision with ``reports/metrics.json`` in it. Looked for in this order.

    Raises:
        UserError: Nothing, or several things, of that name; or a run without predictions.
    """
    if name == WORKSPACE:
        return of_workspace()
    client = connect()
    if (version := _find_version(client, name)) is not None:
        return of_version(client, version)
    run = find_run(client, name) if _HEX.fullmatch(name) and len(name) == 32 else None
    run = run or _only(name, _runs_beginning_with(client, name))
    run = run or _find_revision(client, name) or _only(name, _runs_named(client, name))
    if run is None:
        raise UserError(_nothing_found(client, name))
    return of_run(client, run)


def of_run(client: "MlflowClient", run: "Run", name: str | None = None) -> Contender:
    """The contender that a run is.

    Args:
        client: Of the store.
        run: With an evaluation.
        name: To call it by; made from its experiment and id if None.

    Raises:
        UserError: It has no predictions.
    """
    run_id, tags = run.info.run_id, run.data.tags
    text = tracking.read_artifact(client, run_id, PREDICTIONS)
    if text is None:
        raise UserError(
            f"run {run_id} has no {PREDICTIONS}: it was not evaluated, or its artifacts are gone. `hyojo sync` in a "
            "workspace with its files puts them there."
        )
    seed_sd, seed_runs = _seed_spread(client, run)
    return Contender(
        name or _title(run), run_id, dict(run.data.params), dict(run.data.metrics), dict(tags),
        read_predictions(text, run_id), _test_digest(client, run), seed_sd=seed_sd, seed_runs=seed_runs,
    )  # fmt: skip


def of_version(client: "MlflowClient", version: "ModelVersion") -> Contender:
    """The contender that a registered version is.

    Raises:
        UserError: Its run is gone, or has no predictions.
    """
    run = find_run(client, version.run_id)
    if run is None:
        raise UserError(
            f"version {version.version} of {registry.MODEL} belongs to run {version.run_id}, which was deleted."
        )
    found = of_run(client, run, f"version {version.version}")
    digest = version.tags.get(TEST_DIGEST_TAG) or found.test_digest
    return Contender(**vars(found) | {"version": int(version.version), "test_digest": digest})


def of_workspace(reports_dir: Path = Path("reports"), train_dir: Path = Path("models/train")) -> Contender:
    """The contender that the workspace's reports are.

    Raises:
        UserError: No reports.
    """
    path = reports_dir / "predictions.csv"
    try:
        result = json.loads((reports_dir / "metrics.json").read_text(encoding="utf-8"))
        predictions = read_predictions(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} not found. Run `dvc repro evaluate` first.") from None
    client = connect()
    run = find_run(client, result["run_id"])
    sidecar = train_dir / "weights.json"
    params = json.loads(sidecar.read_text(encoding="utf-8")).get("params", {}) if sidecar.exists() else {}
    scores = {
        f"{part}/{name}": value for part in ("test", "test_clean") for name, value in result[part].items()
    }
    if run is None:
        return Contender("workspace", "", params, scores, {}, predictions)
    seed_sd, seed_runs = _seed_spread(client, run)
    return Contender(
        "workspace", run.info.run_id, params or dict(run.data.params), dict(run.data.metrics) | scores,
        dict(run.data.tags), predictions, _test_digest(client, run), seed_sd=seed_sd, seed_runs=seed_runs,
    )  # fmt: skip


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
    classes = [name.removeprefix(_PROB) for name in table if name.startswith(_PROB)]
    if set(text) - set(table) or not classes or not len(table):
        raise UserError(f"the predictions of {origin} lack columns or rows: {', '.join(table)}")
    if unknown := (set(table["label"]) | set(table["predicted"])) - set(classes):
        raise UserError(f"the predictions of {origin} have classes without probabilities: {sorted(unknown)}")
    return table


def _indices(names: pd.Series, class_names: list[str]) -> np.ndarray:
    return names.map({name: i for i, name in enumerate(class_names)}).to_numpy(np.int64)


def _find_version(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """The registered version that a number, alias or URI stands for."""
    if name.startswith("models:/"):
        model, at, alias = name.removeprefix("models:/").partition("@")
        model, _, number = (model, "", "") if at else model.partition("/")
        if model != registry.MODEL or not (alias or number):
            raise UserError(
                f"{name} is none of models:/{registry.MODEL}@ALIAS and models:/{registry.MODEL}/VERSION"
            )
        name = f"@{alias}" if at else f"v{number}"
    number = name.removeprefix("v")
    if number.isdecimal() and len(number) < 8:
        found = next((v for v in registry.versions(client) if int(v.version) == int(number)), None)
    else:
        found = registry.version_with_alias(client, name.removeprefix("@"))
    if found is None and (name.startswith("@") or (name.startswith("v") and number.isdecimal())):
        raise UserError(_nothing_found(client, name))
    return found


def _runs_beginning_with(client: "MlflowClient", prefix: str) -> "list[Run]":
    if len(prefix) < MIN_PREFIX or not _HEX.fullmatch(prefix):
        return []
    return list(client.search_runs([experiment_id(client)], f"attributes.run_id LIKE '{prefix}%'"))


def _runs_named(client: "MlflowClient", name: str) -> "list[Run]":
    """Runs that are called so, or that DVC made in an experiment of that name."""
    if "'" in name:
        return []
    fields = ("attributes.run_name", "tags.`hyojo.dvc.exp_name`")
    return [
        run for field in fields for run in client.search_runs([experiment_id(client)], f"{field} = '{name}'")
    ]


def _only(name: str, runs: "list[Run]") -> "Run | None":
    """The one of some runs that was evaluated, or the only one at all; None of none."""
    runs = list({run.info.run_id: run for run in runs}.values())
    evaluated = [run for run in runs if EVALUATION_TAG in run.data.tags] or runs
    if len(evaluated) > 1:
        lines = [f"  {run.info.run_id}  {run.info.run_name}" for run in evaluated[:10]]
        more = [f"  and {len(evaluated) - 10} more"] if len(evaluated) > 10 else []
        raise UserError("\n".join([f"{name} stands for several runs; give the id of one:", *lines, *more]))
    return evaluated[0] if evaluated else None


def _find_revision(client: "MlflowClient", name: str) -> "Run | None":
    """The run that ``reports/metrics.json`` names in a DVC experiment or another revision of git."""
    root = project_root()
    found = dvc_experiments.find_experiments(root).get(name)
    if found is None and not name.startswith("-"):
        found = dvc_experiments.Experiment(name, name, root)  # of which git may know nothing
    try:
        run_id = json.loads(found.text("reports/metrics.json") or "{}").get("run_id") if found else None
    except ValueError:
        run_id = None
    if run_id and find_run(client, run_id) is None:
        raise UserError(
            f"{name} belongs to run {run_id}, which this store lacks. `dvc exp apply {name}` or a checkout, and "
            "`hyojo sync`, rebuild it."
        )
    return find_run(client, run_id) if run_id else None


def _test_digest(client: "MlflowClient", run: "Run") -> str | None:
    """As the evaluation recorded it, or else the bundle."""
    if digest := run.data.tags.get(TEST_DIGEST_TAG):
        return digest
    bundle = tracking.read_artifact(client, run.info.run_id, BUNDLE)
    return json.loads(bundle).get("test_digest") if bundle else None


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


def _nothing_found(client: "MlflowClient", name: str) -> str:
    """That nothing has this name, and which names there are."""
    numbers = sorted(int(version.version) for version in registry.versions(client))
    known: list[tuple[str, list[Any]]] = [
        ("versions", numbers),
        ("experiments", sorted(dvc_experiments.find_experiments(project_root()))),
    ]
    there = "".join(f" {kind.capitalize()}: {', '.join(map(str, names))}." for kind, names in known if names)
    return (
        f"there is no version, alias, run, experiment or git revision {name!r} here.{there} `make ui` shows the runs; "
        "`.` is what stands in reports/."
    )
