"""What goes onto MLflow runs. One pipeline is one run: train opens it, evaluate and export add to it.

The files that stages write are the truth and MLflow mirrors them: trouble with MLflow is told and never ends a
stage, and ``sync`` rebuilds the mirror. mlflow is imported inside functions: it is slow.
"""

import csv
import getpass
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.project import project_lock
from pipeline.tracking import families
from pipeline.tracking.store import RUN_ID_TAG, connect, experiment_id, find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EVALUATION_TAG = "hyojo.evaluation"
# One value a training job: tells a run that was made, but not written down, when the trainer was killed.
ATTEMPT_TAG = "hyojo.attempt"
BUNDLE_TAG = "hyojo.bundle"
# The data whose labels a run doubts, on a run that is about nothing else.
SUSPECTS_TAG = "hyojo.suspects"
TEST_DIGEST_TAG = "hyojo.test_digest"
REBUILT_TAG = "hyojo.rebuilt"
# What a training started from, as far as it fits on a run.
INPUTS = [Path("params.yaml"), Path("reports/audit.json"), Path("reports/audit.html")]
# A server that is gone costs seconds a try.
RETRY_INTERVAL_S = 60.0
PATCH_LIMIT_BYTES = 1_000_000


def attempt(action: Callable[[], Any], what: str, remedy: str = "`hyojo sync`") -> Any:
    """Do something with MLflow; on any trouble say so on stderr, with the remedy, and return None."""
    try:
        return action()
    except Exception as error:  # a dead server, a full disk, a locked database: none may cost a trained model
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"warning: MLflow: {what} failed ({reason}). {remedy} makes up for it later.", file=sys.stderr)
        return None


class TrainingRun:
    """The MLflow run of a training job, opened or reopened; ``run_id`` stands even when MLflow is out of reach."""

    def __init__(self, params: dict[str, str], tags: dict[str, str], run_id: str | None = None) -> None:
        """Open a run.

        Args:
            params: Flattened prepare and train params.
            tags: Data digest and the like; git's and DVC's are added.
            run_id: The run to go on with, after a crash.
        """
        self._params, self._tags = params, tags
        self._monitor: Any = None
        self._client: MlflowClient | None = None
        self._id: str | None = None
        self._tried_s = time.monotonic()
        self.run_id = run_id or ""
        attempt(self._open, "opening the run")
        if not self.run_id:
            self.run_id = uuid.uuid4().hex

    def _open(self) -> None:
        client = connect()
        run = find_run(client, self.run_id) if self.run_id else None
        if run is None:
            for half_made in _runs_tagged(client, ATTEMPT_TAG, self._tags.get(ATTEMPT_TAG)):
                client.delete_run(half_made.info.run_id)
            run = create_run(client, self._params, self._tags | git_tags(), self.run_id or None)
            _log_files(client, run.info.run_id, {"": INPUTS})
            _log_patch(client, run.info.run_id)
        client.update_run(run.info.run_id, "RUNNING")
        self._client, self._id = client, run.info.run_id
        self.run_id = run.data.tags.get(RUN_ID_TAG) or run.info.run_id

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
        if self._client is None and time.monotonic() - self._tried_s < RETRY_INTERVAL_S:
            return

        def log() -> None:
            if self._client is None:  # the server may be back
                self._tried_s = time.monotonic()
                self._open()
            log_epochs(self._client, self._id, history)

        attempt(log, "logging an epoch")

    def tag(self, name: str, value: str) -> None:
        """Set a tag."""
        if self._client is not None:
            attempt(lambda: self._client.set_tag(self._id, name, value), "setting a tag")

    def finish(
        self, status: str, directory: Path | None = None, metrics: dict[str, float] | None = None
    ) -> None:
        """End the run.

        Args:
            status: FINISHED, FAILED or KILLED.
            directory: What train wrote; logged as ``train/``.
            metrics: Final figures, such as the training time in seconds.
        """
        if self._monitor is not None:
            attempt(self._monitor.finish, "ending the system metrics")
        if self._client is None:
            return
        client, run_id = self._client, self._id

        if directory is not None:
            attempt(lambda: client.log_artifacts(run_id, str(directory), "train"), "logging the weights")
        attempt(lambda: log_metrics(client, run_id, metrics or {}), "logging final figures")
        attempt(lambda: client.set_terminated(run_id, status), "ending the run")


def create_run(
    client: "MlflowClient", params: dict[str, str], tags: dict[str, str], logical_id: str | None = None
) -> "Run":
    """Make a run with its params; ``logical_id`` is the id that DVC's files know it by, if it has one."""
    from mlflow.entities import Param

    name = " ".join(filter(None, (params.get("train.backbone"), os.environ.get("DVC_EXP_NAME"))))
    own = {
        "mlflow.user": user(),
        "mlflow.source.name": "dvc.yaml",
        "mlflow.source.type": "PROJECT",
    }
    run = client.create_run(
        experiment_id(client), tags=own | families.environment_tags() | tags, run_name=name
    )
    run_id = run.info.run_id
    client.set_tag(run_id, RUN_ID_TAG, logical_id or run_id)
    client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()])
    _log_dataset(client, run_id, params["prepare.source"], tags["hyojo.data_digest"])
    return client.get_run(run_id)


def _log_dataset(client: "MlflowClient", run_id: str, source: str, digest: str) -> None:
    """Name the data in the UI's column for them; MLflow wants a digest of at most 36 characters."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=Path(source).name, digest=digest[:32], source_type="local", source=json.dumps({"uri": source})
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def log_epochs(client: "MlflowClient", run_id: str, history: list[dict[str, float]]) -> None:
    """Log the rows of a history that a run lacks, one call an epoch."""
    from mlflow.entities import Metric

    known = {point.step for point in client.get_metric_history(run_id, "train/loss")}
    for row in history:
        epoch = int(row["epoch"])
        if epoch not in known:
            now = int(time.time() * 1000)
            client.log_batch(
                run_id, metrics=[Metric(k, float(v), now, epoch) for k, v in row.items() if k != "epoch"]
            )


def log_metrics(client: "MlflowClient", run_id: str, metrics: dict[str, float]) -> None:
    """Log single figures, skipping those that the run has with the same value."""
    from mlflow.entities import Metric

    known = client.get_run(run_id).data.metrics
    now = int(time.time() * 1000)
    new = [Metric(k, float(v), now, 0) for k, v in metrics.items() if known.get(k) != float(v)]
    if new:
        client.log_batch(run_id, metrics=new)


def evaluation_run(train_dir: Path, key: str) -> str:
    """The run that an evaluation belongs to.

    The training's own run, if it has no evaluation yet or this one; else a child run of its own, so that no
    figures are overwritten; a run missing from this store is rebuilt from the files. The run is claimed for this
    evaluation at once: another one of the same weights, at the same time, gets a run of its own.

    Args:
        train_dir: What train wrote.
        key: Digest of all that determines the evaluation.

    Returns:
        The id that files know the run by.
    """
    own = json.loads((train_dir / "run.json").read_text())["run_id"]

    def locate() -> str:
        client = connect()
        with project_lock("evaluation"):
            run = find_run(client, own) or rebuild(client, train_dir)
            claimed = run.data.tags.get(EVALUATION_TAG)
            if claimed is None:
                client.set_tag(run.info.run_id, EVALUATION_TAG, key)
            if claimed in (None, key):
                return own
            children = client.search_runs(
                [experiment_id(client)],
                f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and tags.`{EVALUATION_TAG}` = '{key}'",
                max_results=1,
            )
            if children:
                return children[0].data.tags.get(RUN_ID_TAG, children[0].info.run_id)
            child = _populated_run(
                client, train_dir, {"mlflow.parentRunId": run.info.run_id, EVALUATION_TAG: key}
            )
            return child.info.run_id

    return attempt(locate, "finding the run") or own


def log_evaluation(
    train_dir: Path,
    run_id: str,
    metrics: dict[str, float],
    files: dict[str, list[Path]],
    tags: dict[str, str],
) -> None:
    """Put an evaluation onto its run; a child run that this store lacks is made again.

    Args:
        train_dir: What train wrote.
        run_id: From ``evaluation_run``.
        metrics: Such as ``test/accuracy``.
        files: Artifact folder to local files; ``""`` is the top.
        tags: Such as the evaluation's key, under ``hyojo.evaluation``.
    """

    def log() -> None:
        client = connect()
        run = find_run(client, run_id)
        if run is None:
            own = json.loads((train_dir / "run.json").read_text())["run_id"]
            parent = find_run(client, own) or rebuild(client, train_dir)
            run = parent
            if run_id != own:
                run = _populated_run(client, train_dir, {"mlflow.parentRunId": parent.info.run_id}, run_id)
        _log_files(client, run.info.run_id, files)
        log_metrics(client, run.info.run_id, metrics)
        for name, value in tags.items():
            client.set_tag(run.info.run_id, name, value)
        if families.NOTE_TAG not in run.data.tags:  # people may have written one
            client.set_tag(run.info.run_id, families.NOTE_TAG, describe(metrics, run.data.tags))

    attempt(log, "logging the evaluation")


def describe(metrics: dict[str, float], tags: dict[str, str]) -> str:
    """A run's description for MLflow's page, Markdown: headline scores, data, and how to have it again.

    Args:
        metrics: Of the evaluation, such as ``test/accuracy``.
        tags: Of the run.
    """
    named = {
        "test/accuracy": "accuracy", "test/macro_f1": "macro-F1", "test_clean/accuracy": "accuracy without twins",
    }  # fmt: skip
    scores = ", ".join(f"{label} {metrics[name]:.3f}" for name, label in named.items() if name in metrics)
    lines = [f"Test: **{scores}**." if scores else "No test scores."]
    if digest := tags.get("hyojo.data_digest"):
        lines.append(f"Data: `{digest[:12]}`.")
    experiment, commit = tags.get("hyojo.dvc.exp_name"), tags.get("mlflow.source.git.commit")
    if experiment:
        lines.append(f"Again: `dvc exp apply {experiment}`.")
    elif commit:
        changed = " with the changes in `git.patch`" if tags.get("hyojo.git_dirty") == "true" else ""
        lines.append(f"Again: `git checkout {commit[:12]}`{changed}, then `dvc repro`.")
    return "\n\n".join(lines)


def log_bundle(
    run_id: str, bundle_dir: Path, pyfunc_dir: Path, metrics: dict[str, float] | None = None
) -> None:
    """Put the served model, its card and its costs onto a run, the files once for each bundle digest.

    The first model of a run lies in ``model/``, another one in a folder of its own: a registered version is what
    lies in its folder, and has to stay what it is.

    Args:
        run_id: The id that files know the run by.
        bundle_dir: What export wrote.
        pyfunc_dir: What MLflow is to serve.
        metrics: Figures that no file holds, such as ``cost/latency_ms``.
    """
    bundle = json.loads((bundle_dir / "bundle.json").read_text())
    digest = bundle["digest"]

    def log() -> None:
        client = connect()
        run = find_run(client, run_id)
        if run is None:
            raise LookupError(f"no run {run_id}")
        log_metrics(client, run.info.run_id, bundle_costs(bundle) | (metrics or {}))
        known = find_model(run, digest)
        if known and client.list_artifacts(run.info.run_id, known):
            return
        tag, folder = _model_places(digest)[known is None and BUNDLE_TAG in run.data.tags]
        client.log_artifacts(run.info.run_id, str(pyfunc_dir), known or folder)
        client.log_artifact(run.info.run_id, str(bundle_dir / "MODEL_CARD.md"))
        if known is None:
            client.set_tag(run.info.run_id, tag, digest)

    attempt(log, "logging the bundle")


def find_model(run: "Run", digest: str) -> str | None:
    """Find the artifact folder in which a run holds the served model of a bundle; None if it lacks it."""
    return next((folder for tag, folder in _model_places(digest) if run.data.tags.get(tag) == digest), None)


def _model_places(digest: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Tag and folder of a bundle's model on a run: as its first model, and as a later one."""
    short = digest[:12]
    return (BUNDLE_TAG, "model"), (f"{BUNDLE_TAG}.{short}", f"model-{short}")


def log_suspects(
    train_dir: Path, data_digest: str, params: dict[str, str], metrics: dict[str, float], files: list[Path]
) -> None:
    """Put doubted training labels beside the model: onto the run of its training, if it has learnt these data.

    Otherwise they go onto a run of their own, one for the same data.

    Args:
        train_dir: What train wrote, if it has.
        data_digest: Of the prepared data.
        params: Flattened prepare and train params, for a run of their own.
        metrics: Such as ``suspects/doubted``.
        files: For the artifact folder ``suspects``.
    """

    def log() -> None:
        client = connect()
        sidecar = train_dir / "weights.json"
        if sidecar.exists() and json.loads(sidecar.read_text())["data_digest"] == data_digest:
            own = json.loads((train_dir / "run.json").read_text())["run_id"]
            run = find_run(client, own) or rebuild(client, train_dir)
        elif known := _runs_tagged(client, SUSPECTS_TAG, data_digest):
            run = known[0]
        else:
            about = {"hyojo.data_digest": data_digest, SUSPECTS_TAG: data_digest}
            run = create_run(client, params, git_tags() | about | {"mlflow.source.name": "hyojo suspects"})
            client.set_terminated(run.info.run_id, "FINISHED")
        _log_files(client, run.info.run_id, {"suspects": files})
        log_metrics(client, run.info.run_id, metrics)

    attempt(log, "logging the suspects")


def bundle_costs(bundle: dict[str, Any]) -> dict[str, float]:
    """The costs that a ``bundle.json`` tells of, by the names of their metrics."""
    cost = bundle.get("cost", {})
    found = {f"cost/{name}": cost[name] for name in ("parameters", "flops") if name in cost}
    return found | ({"cost/size_mb": cost["size_bytes"] / 1e6} if "size_bytes" in cost else {})


def read_artifact(client: "MlflowClient", run_id: str, path: str) -> bytes | None:
    """Content of a file that a run holds; None if it does not."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if path not in [item.path for item in client.list_artifacts(run_id, str(Path(path).parent))]:
        return None
    with tempfile.TemporaryDirectory(prefix="hyojo-artifact-") as scratch:
        return Path(client.download_artifacts(run_id, path, scratch)).read_bytes()


def fetch(client: "MlflowClient", run_id: str, path: str, dest: Path) -> Path:
    """Copy a folder that a run holds into ``dest``; raises what MLflow or the file system raises."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    dest.mkdir(parents=True, exist_ok=True)
    return Path(client.download_artifacts(run_id, path, str(dest)))


def rebuild(client: "MlflowClient", train_dir: Path) -> "Run":
    """Make the run of a training that this store does not know, from the files that train wrote."""
    own = json.loads((train_dir / "run.json").read_text())["run_id"]
    tags = {REBUILT_TAG: "true"} | families.parent_tags(client, own)
    return _populated_run(client, train_dir, tags, own)


def read_history(train_dir: Path) -> list[dict[str, float]]:
    """Rows of ``history.csv``."""
    with (train_dir / "history.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def git_tags() -> dict[str, str]:
    """Commit, state of the work tree and DVC experiment, as tags; empty outside a git repository."""
    tags = {}
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit.strip()
        tags["hyojo.git_dirty"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    for tag, variable in (("dvc.exp_name", "DVC_EXP_NAME"), ("dvc.exp_baseline", "DVC_EXP_BASELINE_REV")):
        if os.environ.get(variable):
            tags[f"hyojo.{tag}"] = os.environ[variable]
    return tags


def _populated_run(
    client: "MlflowClient", train_dir: Path, tags: dict[str, str], logical_id: str | None = None
) -> "Run":
    """A finished run with all that a training's own run has, made from its files; its git tags are of now."""
    sidecar = json.loads((train_dir / "weights.json").read_text())
    about = {"hyojo.data_digest": sidecar["data_digest"], "hyojo.weights_sha256": sidecar["weights_sha256"]}
    run = create_run(client, sidecar["params"], about | git_tags() | tags, logical_id)
    log_epochs(client, run.info.run_id, read_history(train_dir))
    client.log_artifacts(run.info.run_id, str(train_dir), "train")
    _log_files(client, run.info.run_id, {"": INPUTS})
    client.set_terminated(run.info.run_id, "FINISHED")
    return run


def _runs_tagged(client: "MlflowClient", tag: str, value: str | None) -> "list[Run]":
    """The runs with a tag of this value; none for no value."""
    if not value:
        return []
    return list(client.search_runs([experiment_id(client)], f"tags.`{tag}` = '{value}'"))


def _log_files(client: "MlflowClient", run_id: str, files: dict[str, list[Path]]) -> None:
    """Log those of the files that exist; ``""`` is the top folder."""
    for folder, paths in files.items():
        for path in paths:
            if path.exists():
                client.log_artifact(run_id, str(path), folder or None)


def _log_patch(client: "MlflowClient", run_id: str) -> None:
    """Keep what the commit does not hold: the work tree's changes, unless they are huge."""
    patch = _git("diff", "HEAD") or ""
    if patch and len(patch) <= PATCH_LIMIT_BYTES:
        client.log_text(run_id, patch, "git.patch")


def user() -> str:
    """Who runs this; a container's user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
