"""Bundles on MLflow runs: the served model, its card and its costs."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import telling
from pipeline.core.paths import BUNDLE
from pipeline.core.stage_files import BundleFile
from pipeline.inference.bundle import Bundle, BundleError
from pipeline.tracking.attempts import attempt
from pipeline.tracking.inputs import log_params
from pipeline.tracking.pyfunc import name_origin
from pipeline.tracking.runs import log_metrics
from pipeline.tracking.store import connect, find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

BUNDLE_TAG, VERSIONS_TAG = "hyojo.bundle", "mlflow.modelVersions"


def read_bundle(folder: Path | None = None) -> BundleFile:
    """Read the record of a bundle, every file of which is checked.

    Args:
        folder: Where it is; None: where export leaves it.

    Raises:
        UserError: It is not as it was exported.
    """
    with telling(BundleError):
        bundle = Bundle(folder or BUNDLE)
        bundle.check()
    return BundleFile.parse(bundle.content, str(bundle.folder / BundleFile.FILE))


def log_bundle(
    bundle_dir: Path, pyfunc_dir: Path, metrics: dict[str, float] | None = None, params: dict[str, str] | None = None
) -> None:
    """Put the served model, its card and its costs onto a run: a logged model of MLflow's for each bundle digest.

    A registered version is what lies in its logged model, and has to stay what it is. ``metrics`` are those that no
    file holds, such as latency; ``params`` are export's.
    """
    bundle = BundleFile.load(bundle_dir)

    def log() -> None:
        client = connect()
        run = find_run(client, bundle.run_id)
        if run is None:
            raise LookupError(f"no run {bundle.run_id}")
        run_id = run.info.run_id
        log_metrics(client, run_id, bundle_costs(bundle) | (metrics or {}))
        log_params(client, run, params or {})
        if find_model(client, run, bundle.digest) is None:
            client.log_artifact(run_id, str(bundle_dir / "MODEL_CARD.md"))
            _log_model(client, client.get_run(run_id), bundle.digest, pyfunc_dir)

    attempt(log, "logging the bundle")


def name_model(digest: str) -> str:
    """Return what MLflow calls the logged model of a bundle: ``runs:/<run id>/<name>`` leads to it."""
    return f"model-{digest[:12]}"


def find_digests(client: "MlflowClient", run: "Run") -> list[str]:
    """Find the digests of the bundles that a run has, the newest first."""
    order = [{"field_name": "creation_time", "ascending": False}]
    asked = f"source_run_id = '{run.info.run_id}'"
    found = client.search_logged_models([run.info.experiment_id], asked, order_by=order)
    return [each.tags[BUNDLE_TAG] for each in found if BUNDLE_TAG in each.tags]


def find_model(client: "MlflowClient", run: "Run", digest: str) -> "LoggedModel | None":
    """Find the served model of a bundle on its run; None if the run lacks it, or its files."""
    return next((each for each in _find_models(client, run, digest) if _is_whole(client, each)), None)


def _find_models(client: "MlflowClient", run: "Run", digest: str) -> "list[LoggedModel]":
    """Models of this digest on a run, also those that were cut short."""
    asked = f"name = '{name_model(digest)}' AND source_run_id = '{run.info.run_id}'"
    return list(client.search_logged_models([run.info.experiment_id], asked))


def _is_whole(client: "MlflowClient", model: "LoggedModel") -> bool:
    """Whether a model was logged to its end, and its files are still there."""
    return str(model.status) == "READY" and bool(client.list_logged_model_artifacts(model.model_id))


def _log_model(client: "MlflowClient", run: "Run", digest: str, pyfunc_dir: Path) -> None:
    """Log a model, with the params and test scores of its run; one that was cut short is gone on with."""
    from mlflow.entities import LoggedModelOutput, Metric

    run_id = run.info.run_id
    begun = _find_models(client, run, digest)
    about: dict[str, Any] = {"tags": {BUNDLE_TAG: digest}, "params": run.data.params, "model_type": "classifier"}
    name = name_model(digest)
    model = begun[0] if begun else client.create_logged_model(run.info.experiment_id, name, run_id, **about)
    client.log_model_artifacts(model.model_id, str(pyfunc_dir))
    with tempfile.TemporaryDirectory(prefix="hyojo-model-") as scratch:
        named = name_origin(pyfunc_dir, Path(scratch), run_id, model.model_id)
        client.log_model_artifact(model.model_id, str(named))
    points = [
        point
        for name in run.data.metrics
        if name.startswith("test/")
        for point in client.get_metric_history(run_id, name)[-1:]
    ]
    # The very points of the run, which has them once.
    client.log_batch(run_id, [Metric(p.key, p.value, p.timestamp, p.step, model_id=model.model_id) for p in points])
    if model.model_id not in [each.model_id for each in (run.outputs.model_outputs if run.outputs else [])]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    client.finalize_logged_model(model.model_id, "READY")


def link_version(client: "MlflowClient", model: "LoggedModel", version: "ModelVersion") -> None:
    """Have a logged model's page lead to the version that was made of it."""
    known, new = json.loads(model.tags.get(VERSIONS_TAG, "[]")), {"name": version.name, "version": str(version.version)}
    if new not in known:
        client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps([*known, new])})


def bundle_costs(bundle: BundleFile) -> dict[str, float]:
    """Return the costs that a ``bundle.json`` tells of, by the names of their metrics."""
    cost = bundle.cost
    found = {f"cost/{name}": cost[name] for name in ("parameters", "flops") if name in cost}
    return found | ({"cost/size_mb": cost["size_bytes"] / 1e6} if "size_bytes" in cost else {})
