"""Where the MLflow store is, and how it is opened: one store a project, whichever way DVC runs a stage.

An explicit ``MLFLOW_TRACKING_URI`` wins. Otherwise the store is ``mlflow.db`` and ``mlruns/`` in the project's
root, also for experiments that DVC runs in a temporary copy. mlflow is imported inside functions: it is slow.
"""

import contextlib
import logging
import os
import sqlite3
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from pipeline.core.project import project_lock, project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "hyojo"
RUN_ID_TAG = "hyojo.run_id"
SQLITE = "sqlite:///"
PREFIX = "models:/"  # begins the URI of a registered model
# Tables and columns of MLflow's database that hold absolute locations of artifacts.
LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def tracking_uri(root: Path) -> str:
    """The store's address; a relative sqlite file is anchored to the root, not to where a stage happens to run."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{root / 'mlflow.db'}"
    if uri.startswith(SQLITE) and not uri.startswith(SQLITE + "/"):
        uri = f"{SQLITE}{root / uri.removeprefix(SQLITE)}"
    return uri


def configure_mlflow() -> None:
    """Settle, before mlflow is imported, that it is quiet, asks no network and gives up on a dead server soon."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


@cache
def connect() -> "MlflowClient":
    """Open the store, made on first use under a lock: two processes that make it at once would crash.

    Returns:
        A client of it; mlflow's own functions use the same store from here on.
    """
    configure_mlflow()
    root = project_root()
    uri = tracking_uri(root)
    # mlflow makes ./mlruns beside a new sqlite store, hence the change of folder.
    with project_lock("mlflow"), contextlib.chdir(root):
        import mlflow

        os.environ["MLFLOW_TRACKING_URI"] = uri  # for mlflow's threads and for servers that are started from here
        mlflow.set_tracking_uri(uri)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            # An absolute place, or runs that start in a temporary copy would keep their artifacts there.
            place = (root / "mlruns" / EXPERIMENT).as_uri() if uri.startswith(SQLITE) else None
            client.create_experiment(EXPERIMENT, artifact_location=place)
        elif experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
    if uri == f"{SQLITE}{root / 'mlflow.db'}" and moved_from(root):
        print(
            "warning: the project was moved, so MLflow looks for artifacts where it used to be; "
            "`hyojo sync --relocate` mends that.",
            file=sys.stderr,
        )
    return client


def experiment_id(client: "MlflowClient") -> str:
    """Id of the project's experiment."""
    return client.get_experiment_by_name(EXPERIMENT).experiment_id


def find_run(client: "MlflowClient", run_id: str) -> "Run | None":
    """The run with this id, or the one rebuilt in its stead; deleted runs don't count."""
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):
        run = client.get_run(run_id)
        if run.info.lifecycle_stage == "active":
            return run
    found = client.search_runs([experiment_id(client)], f"tags.`{RUN_ID_TAG}` = '{run_id}'", max_results=1)
    return found[0] if found else None


def moved_from(root: Path) -> str | None:
    """The former root's URI if the default store's artifacts are recorded under another root, else None."""
    database = root / "mlflow.db"
    if not database.exists():
        return None
    with contextlib.closing(sqlite3.connect(database)) as connection, contextlib.suppress(sqlite3.Error):
        row = connection.execute("select artifact_location from experiments where name = ?", (EXPERIMENT,)).fetchone()
        suffix = f"/mlruns/{EXPERIMENT}"
        if row and row[0].endswith(suffix) and row[0] != root.as_uri() + suffix:
            return row[0].removesuffix(suffix)
    return None


def relocate(root: Path) -> int:
    """Point a moved project's store at where its artifacts are now.

    Returns:
        How many entries were changed.
    """
    former = moved_from(root)
    if former is None:
        return 0
    changed = 0
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as connection, connection:
        tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
        for table, column in LOCATIONS:
            if table not in tables:
                continue
            # Both spellings occur: URIs and plain paths.
            for old, new in ((former, root.as_uri()), (_plain(former), str(root))):
                changed += connection.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) where {column} like ? escape '\\'",
                    (new, len(old) + 1, _like(old + "/mlruns/")),
                ).rowcount
    return changed


def _plain(uri: str) -> str:
    """The path of a file URI."""
    return unquote(uri.removeprefix("file://"))


def _like(prefix: str) -> str:
    """A LIKE pattern for what begins with ``prefix``."""
    for char in "\\%_":
        prefix = prefix.replace(char, "\\" + char)
    return prefix + "%"
