"""The MLflow run of a training. One pipeline is one run: train opens it, evaluate and export add to it.

The files that stages write are the truth and MLflow mirrors them: trouble with MLflow is told and never ends a
stage, and ``sync`` rebuilds the mirror. mlflow is imported inside functions: it is slow.
"""

import csv
import os
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.paths import PARAMS, REPORTS, TRAINED
from pipeline.core.stage_files import RunFile, WeightsFile
from pipeline.tracking import families
from pipeline.tracking.attempts import Patience, attempt
from pipeline.tracking.inputs import DIGEST_TAG, JOB_TAG, log_data, log_params, name_run
from pipeline.tracking.origin import PATCH, origin_tags, read_patch
from pipeline.tracking.store import RUN_ID_TAG, connect, experiment_id, find_run
from pipeline.tracking.trouble import TrackingError, told

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# One value a training job: tells a run that was made, but not written down, when the trainer was killed.
ATTEMPT_TAG = "hyojo.attempt"
REBUILT_TAG = "hyojo.rebuilt"
# What a training started from, as far as it fits on a run.
INPUTS = [PARAMS, REPORTS / "audit.json", REPORTS / "audit.html"]


class TrainingRun:
    """The MLflow run of a training job, opened or reopened; ``run_id`` stands even when MLflow is out of reach."""

    def __init__(self, params: dict[str, str], tags: dict[str, str], run_id: str | None = None) -> None:
        """Open a run with flat params and tags. After a crash, go on with that of ``run_id``."""
        self._params, self._tags, self._is_new = params, tags, False
        self._monitor: Any = None
        self._client: MlflowClient | None = None
        self._id = ""
        self._known: set[int] | None = None  # the epochs that the run has; None: not asked yet
        self._patience = Patience()
        self.run_id = run_id or ""
        self._patience.attempt(self._open, "opening the run")
        self._log_inputs()
        if not self.run_id:
            self.run_id = uuid.uuid4().hex

    def _open(self) -> None:
        client = connect()
        run = find_run(client, self.run_id) if self.run_id else None
        if run is None:
            for half_made in find_tagged_runs(client, ATTEMPT_TAG, self._tags.get(ATTEMPT_TAG)):
                client.delete_run(half_made.info.run_id)
            run = create_run(client, self._params, self._tags, self.run_id or None)
            self._is_new = True
        client.update_run(run.info.run_id, "RUNNING")
        self._client, self._id = client, run.info.run_id
        self.run_id = run.data.tags.get(RUN_ID_TAG) or run.info.run_id

    def _log_inputs(self) -> None:
        """Log what a training starts from, with MLflow's own patience: files may be slow."""
        client, run_id = self._client, self._id
        if client is None or not self._is_new:
            return
        self._is_new = False

        def log() -> None:
            log_files(client, run_id, {"": INPUTS})
            if patch := read_patch():
                client.log_text(run_id, patch, PATCH)

        attempt(log, "logging what the training starts from")

    def start_monitor(self) -> None:
        """Record CPU, memory and GPU use until ``finish``."""

        def start() -> None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self._id, resume_logging=True)
            self._monitor.start()

        if self._id:
            attempt(start, "system metrics")

    def log_history(self, history: list[dict[str, float]]) -> None:
        """Log the epochs that the run does not have yet; none is ever logged twice."""

        def log() -> None:
            if self._client is None:  # the server may be back
                self._open()
            known, self._known = self._known, None  # an answer that got lost may have been a yes
            self._known = log_epochs(self._client, self._id, history, known)

        self._patience.attempt(log, "logging an epoch")
        self._log_inputs()

    def finish(self, status: str) -> None:
        """End the run as FAILED, KILLED, or FINISHED with all that the files of the training tell."""
        self._patience.attempt(
            lambda: self._client.get_run(self._id) if self._client else self._open(), "ending the run", at_once=True
        )
        client, run_id = self._client, self._id
        if client is None or self._patience.lost:  # which has been told
            return
        self._log_inputs()
        if self._monitor is not None:
            attempt(self._monitor.finish, "ending the system metrics")

        def end() -> None:
            if status == "FINISHED":
                complete_run(client, client.get_run(run_id))
            client.set_terminated(run_id, status)

        attempt(end, "ending the run")


def create_run(
    client: "MlflowClient",
    params: dict[str, str],
    tags: dict[str, str],
    logical_id: str | None = None,
    started_s: float | None = None,
) -> "Run":
    """Make a run with its params; ``logical_id`` is the id that DVC's files know it by, if it has one.

    It began at ``started_s``, seconds since 1970; None: now.
    """
    tags = {"mlflow.source.name": "dvc.yaml", "mlflow.source.type": "PROJECT"} | families.environment_tags() | tags
    if logical_id:  # at once: a run that was cut short is found again by it
        tags |= {RUN_ID_TAG: logical_id}
    run = client.create_run(experiment_id(client), _to_ms(started_s), tags, name_run(params, tags))
    if not logical_id:
        client.set_tag(run.info.run_id, RUN_ID_TAG, run.info.run_id)
    log_params(client, run, params)
    log_data(client, run, params.get("prepare.source"))
    return client.get_run(run.info.run_id)


def log_epochs(
    client: "MlflowClient", run_id: str, history: list[dict[str, float]], known: set[int] | None = None
) -> set[int]:
    """Log the rows of a history that a run lacks, one call an epoch.

    Returns the epochs that the run has then; ``known`` are those that it had, None if that is to be asked.
    """
    from mlflow.entities import Metric

    if known is None:
        known = {point.step for point in client.get_metric_history(run_id, "train/loss")}
    for row in history:
        epoch = int(row["epoch"])
        if epoch not in known:
            now = int(time.time() * 1000)
            client.log_batch(run_id, metrics=[Metric(k, float(v), now, epoch) for k, v in row.items() if k != "epoch"])
            known = known | {epoch}
    return known


def log_metrics(client: "MlflowClient", run_id: str, metrics: dict[str, float]) -> None:
    """Log single figures, skipping those that the run has with the same value."""
    from mlflow.entities import Metric

    known = client.get_run(run_id).data.metrics
    now = int(time.time() * 1000)
    new = [Metric(k, float(v), now, 0) for k, v in metrics.items() if known.get(k) != float(v)]
    if new:
        client.log_batch(run_id, metrics=new)


def read_artifact(client: "MlflowClient", run_id: str, path: str) -> bytes | None:
    """Return the content of a file that a run holds; None if it does not."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if path not in [item.path for item in client.list_artifacts(run_id, str(Path(path).parent))]:
        return None
    with tempfile.TemporaryDirectory(prefix="hyojo-artifact-") as scratch:
        return Path(client.download_artifacts(run_id, path, scratch)).read_bytes()


def fetch(uri: str, dest: Path, file: bool = False) -> Path | None:
    """Copy the folder or file behind a URI of MLflow's into ``dest``; None if there is none.

    Raises:
        TrackingError: The store, or that of the files, does not answer.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        with told(uri):
            import mlflow.artifacts

            around, _, name = uri.rpartition("/")
            there = mlflow.artifacts.list_artifacts(artifact_uri=around if file else uri)
            if not (any(item.path.endswith(name) for item in there) if file else there):
                return None
            dest.mkdir(parents=True, exist_ok=True)
            return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(dest)))
    except TrackingError as error:
        if error.is_missing:
            return None
        raise


def find_or_rebuild(client: "MlflowClient") -> "Run":
    """Find the run of the training, or make it from the files that train wrote if this store does not know it."""
    own = RunFile.load()
    found = find_run(client, own.run_id)
    if found is None:
        return rebuild_run(client, {REBUILT_TAG: "true"} | families.parent_tags(client, own.run_id), own)
    if REBUILT_TAG in found.data.tags:  # which may have been cut short
        complete_run(client, found)
    return found


def read_history() -> list[dict[str, float]]:
    """Read the rows of ``history.csv``."""
    with (TRAINED / "history.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def rebuild_run(
    client: "MlflowClient", tags: dict[str, str], own: RunFile | None = None, logical_id: str | None = None
) -> "Run":
    """Make a finished run with all that a training's run has, from its files.

    With its file ``own`` it is the training's, of then and by whoever trained; else one of now, under ``logical_id`` if
    files know it by that.
    """
    origin = (own.origin if own else {}) or origin_tags()
    run = create_run(
        client,
        WeightsFile.load().params,
        origin | tags | _file_tags(),
        own.run_id if own else logical_id,
        own.started_s if own else None,
    )
    complete_run(client, run)
    finish_run(client, run)
    return run


def finish_run(client: "MlflowClient", run: "Run") -> None:
    """Mark a run as finished; the training's own, by the id that its file gives, when that ended."""
    own = RunFile.load()
    is_own = own.run_id in (run.info.run_id, run.data.tags.get(RUN_ID_TAG))
    client.set_terminated(run.info.run_id, "FINISHED", _to_ms(own.ended_s) if is_own else None)


def complete_run(client: "MlflowClient", run: "Run") -> None:
    """Log what a training starts from and leaves and the run lacks: params, files, epochs, figures, digests.

    Whatever was cut short, here or in the training, is made whole; doing it twice changes nothing.
    """
    sidecar = WeightsFile.load()
    log_params(client, run, sidecar.params)
    log_data(client, run, sidecar.params.get("prepare.source"))
    there = {item.path: item.file_size for item in client.list_artifacts(run.info.run_id)}
    # What is there counts: params.yaml may have been edited since.
    log_files(client, run.info.run_id, {"": [path for path in INPUTS if path.name not in there]})
    there = {item.path: item.file_size for item in client.list_artifacts(run.info.run_id, "train")}
    left = {f"train/{path.name}": path.stat().st_size for path in TRAINED.iterdir() if path.is_file()}
    if not left.items() <= there.items():
        client.log_artifacts(run.info.run_id, str(TRAINED), "train")
    log_epochs(client, run.info.run_id, read_history())
    log_metrics(client, run.info.run_id, RunFile.load().figures)
    for name, value in _file_tags().items():
        if run.data.tags.get(name) != value:
            client.set_tag(run.info.run_id, name, value)


def _file_tags() -> dict[str, str]:
    """Digests of data, weights and job, as tags."""
    sidecar, job = WeightsFile.load(), RunFile.load().job
    tags = {DIGEST_TAG: sidecar.data_digest, "hyojo.weights_sha256": sidecar.weights_sha256}
    return tags | ({JOB_TAG: job} if job else {})


def _to_ms(seconds: float | None) -> int | None:
    """A time as MLflow has it."""
    return None if seconds is None else round(seconds * 1000)


def find_tagged_runs(client: "MlflowClient", tag: str, value: str | None) -> "list[Run]":
    """Find the runs with a tag of this value; none for no value."""
    if not value:
        return []
    return list(client.search_runs([experiment_id(client)], f"tags.`{tag}` = '{value}'"))


def log_files(client: "MlflowClient", run_id: str, files: dict[str, list[Path]]) -> None:
    """Log those of the files that exist; ``""`` is the top folder."""
    for folder, paths in files.items():
        for path in paths:
            if path.exists():
                client.log_artifact(run_id, str(path), folder or None)
