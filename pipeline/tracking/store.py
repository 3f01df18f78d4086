"""Where the MLflow store is, and how it is opened: one store a project, whichever way DVC runs a stage.

An explicit ``MLFLOW_TRACKING_URI`` wins. Otherwise the store is ``mlflow.db`` and ``mlruns/`` in the project's
root, also for experiments that DVC runs in a temporary copy. mlflow is imported inside functions: it is slow.
"""

import contextlib
import functools
import logging
import os
import sqlite3
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from pipeline.core.errors import UserError
from pipeline.core.params_file import read_project_name
from pipeline.core.project import project_lock, project_root
from pipeline.tracking.database import prepare_database
from pipeline.tracking.trouble import TrackingError, told

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

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
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


class _Told:
    """MLflow's client, whose every trouble is a ``TrackingError``."""

    def __init__(self, client: "MlflowClient", uri: str, registry_uri: str) -> None:
        self._client, self._uri, self._registry_uri = client, uri, registry_uri

    def __getattr__(self, name: str) -> Any:
        method, uri = getattr(self._client, name), self._registry_uri if "model" in name else self._uri

        @functools.wraps(method)
        def ask(*args: Any, **kwargs: Any) -> Any:
            with told(uri):
                return method(*args, **kwargs)

        return ask


def open_client(uri: str) -> "MlflowClient":
    """A client of a store; mlflow's own functions use the same store from here on."""
    configure_mlflow()
    with told(uri):
        import mlflow

        os.environ["MLFLOW_TRACKING_URI"] = uri  # for mlflow's threads and for servers that are started from here
        mlflow.set_tracking_uri(uri)
        # Not even its errors: they are raised too, and told once.
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        return cast("MlflowClient", _Told(mlflow.MlflowClient(), uri, mlflow.get_registry_uri()))


@cache
def open_reader() -> "MlflowClient":
    """Open the store to read what is in it: nothing is made or locked, and where the store is named, no project needed.

    Raises:
        TrackingError: It cannot be opened.
        UserError: Outside of any project, and ``MLFLOW_TRACKING_URI`` names no store.
    """
    try:
        root = project_root()
    except UserError as error:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise UserError(f"{error} Or set MLFLOW_TRACKING_URI to the store that has the model.") from None
        root = Path.cwd()
    uri = tracking_uri(root)
    database = _database(uri)
    if database:
        if not database.exists():
            raise TrackingError(
                f"nothing is registered: there is no store yet ({database}). `dvc repro` and `hyojo register` make it."
            )
        configure_mlflow()
        with told(uri):
            prepare_database(database)
    return open_client(uri)


@cache
def connect() -> "MlflowClient":
    """Open the project's store, made on first use under a lock: two processes that make it at once would crash.

    Returns:
        A client of it, every trouble of which is a ``TrackingError``.

    Raises:
        TrackingError: It cannot be opened.
    """
    root = project_root()
    uri = tracking_uri(root)
    database = _database(uri)
    # mlflow makes ./mlruns beside a new sqlite store, hence the change of folder.
    with project_lock("mlflow"), contextlib.chdir(root):
        if database:
            configure_mlflow()
            with told(uri):
                prepare_database(database)
        client, name = open_client(uri), experiment_name()
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            # An absolute place, or runs that start in a temporary copy would keep their artifacts there; and one beside
            # the database, which several projects may share.
            place = (database.parent / "mlruns" / name.replace("/", "_")).as_uri() if database else None
            client.create_experiment(name, artifact_location=place)
        elif experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
    if database == root / "mlflow.db" and moved_from(root):
        print(
            "warning: the project was moved, so MLflow looks for artifacts where it used to be; "
            "`hyojo sync --relocate` mends that.",
            file=sys.stderr,
        )
    return client


def experiment_name() -> str:
    """Name of the project's experiment: ``MLFLOW_EXPERIMENT_NAME`` if that is set, else the project's."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or project_name()


@cache
def project_name() -> str:
    """Name of the project around the working folder, and so of its registered model; the default's outside of any."""
    try:
        root = project_root()
    except UserError:
        return read_project_name(None)
    return read_project_name(root)


def experiment_id(client: "MlflowClient") -> str:
    """Id of the project's experiment."""
    return client.get_experiment_by_name(experiment_name()).experiment_id


def find_run(client: "MlflowClient", run_id: str) -> "Run | None":
    """The run with this id, or the one rebuilt in its stead; deleted runs don't count."""
    if not run_id:
        return None
    try:
        run = client.get_run(run_id)
        if run.info.lifecycle_stage == "active":
            return run
    except TrackingError as error:
        # A server with users says of a run that is not there that one may not read it.
        if not (error.is_missing or error.is_denied):
            raise
    experiment = client.get_experiment_by_name(experiment_name())  # whoever only reads makes none
    if experiment is None:
        return None
    found = client.search_runs([experiment.experiment_id], f"tags.`{RUN_ID_TAG}` = '{run_id}'", max_results=1)
    return found[0] if found else None


def moved_from(root: Path) -> str | None:
    """The former root's URI if the default store's artifacts are recorded under another root, else None.

    Raises:
        TrackingError: The database cannot be read.
    """
    database = root / "mlflow.db"
    if not database.exists():
        return None
    suffix, own = f"/mlruns/{experiment_name()}", root.as_uri()
    with told(f"{SQLITE}{database}"), contextlib.closing(sqlite3.connect(database)) as connection:
        if "experiments" not in _tables(connection):
            return None
        asked = "select artifact_location from experiments where name = ?"
        row = connection.execute(asked, (experiment_name(),)).fetchone()
    former = str(row[0]) if row else ""
    return former.removesuffix(suffix) if former.endswith(suffix) and former != own + suffix else None


def relocate(root: Path) -> int:
    """Point a moved project's store at where its artifacts are now.

    Returns:
        How many entries were changed.
    """
    former = moved_from(root)
    if former is None:
        return 0
    changed = 0
    database = root / "mlflow.db"
    with told(f"{SQLITE}{database}"), contextlib.closing(sqlite3.connect(database)) as connection, connection:
        tables = _tables(connection)
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


def _database(uri: str) -> Path | None:
    """The file of a store that is one."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def _tables(connection: sqlite3.Connection) -> set[str]:
    """Names of a database's tables."""
    return {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}


def _plain(uri: str) -> str:
    """The path of a file URI."""
    return unquote(uri.removeprefix("file://"))


def _like(prefix: str) -> str:
    """A LIKE pattern for what begins with ``prefix``."""
    for char in "\\%_":
        prefix = prefix.replace(char, "\\" + char)
    return prefix + "%"
