"""The database file of an MLflow store, before MLflow opens it: refused if it is none, copied if it will be changed.

mlflow is imported inside functions: it is slow.
"""

import contextlib
import sqlite3
import sys
from importlib import import_module
from pathlib import Path

from pipeline.core.files import replacing
from pipeline.tracking.trouble import TrackingError

LOCKED_S = 5.0


def prepare_database(path: Path) -> None:
    """Bring an older database to the schema of the MLflow that is installed, after a copy was made beside it.

    MLflow would change it in place without a word.

    Raises:
        TrackingError: It is of a newer MLflow, or another program's.
        sqlite3.Error: It is no database, damaged, or locked.
    """
    if not path.exists() or not path.stat().st_size:
        return
    with contextlib.closing(sqlite3.connect(path, timeout=LOCKED_S)) as connection:
        tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
        found = connection.execute("select version_num from alembic_version") if "alembic_version" in tables else ()
        revision = next((version for (version,) in found), None)
        if revision is None and tables - {"alembic_version"}:
            raise TrackingError(f"{path} is no database of MLflow's; set MLFLOW_TRACKING_URI to another file.")
        if revision is None:
            return
        import mlflow
        from alembic.script import ScriptDirectory

        tools = import_module("mlflow.store.db.utils")  # which says nothing of types
        scripts = ScriptDirectory.from_config(tools._get_alembic_config(""))
        if revision == scripts.get_current_head():
            return
        if revision not in {script.revision for script in scripts.walk_revisions()}:
            raise TrackingError(
                f"{path} has schema {revision}, which MLflow {mlflow.__version__} does not know; use the newer MLflow "
                "that made it, or set MLFLOW_TRACKING_URI to another file."
            )
        copy = path.with_name(f"{path.name}.{revision}")
        if not copy.exists():  # of a migration that was killed the first copy is the good one
            with replacing(copy) as scratch, contextlib.closing(sqlite3.connect(scratch)) as target:
                connection.backup(target)
    print(
        f"{path} is of an older MLflow: it is brought to the schema of {mlflow.__version__}; as it was, it is kept as "
        f"{copy.name}.",
        file=sys.stderr,
    )
    engine = tools.create_sqlalchemy_engine(f"sqlite:///{path}")
    tools._upgrade_db(engine)
    engine.dispose()
