"""Open the MLflow UI on this project's store."""

import argparse
import os
import sys
from pathlib import Path

from pipeline.cli import options
from pipeline.core.errors import UserError


def add_options(command: argparse.ArgumentParser) -> None:
    options.add_address(command, port=5000)


def run(arguments: argparse.Namespace) -> None:
    from pipeline.core.address import open_listener
    from pipeline.core.project import project_root
    from pipeline.tracking import store, ui

    client = store.connect()
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if uri.startswith("http"):
        raise UserError(f"MLFLOW_TRACKING_URI is a server already: open {ui.runs_page(client, uri)} in a browser.")
    open_listener(arguments.host, arguments.port).close()
    # Background jobs are for MLflow's own LLM features: three processes that nobody here needs.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    # mlflow starts uvicorn by name, which must be the one of this environment.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.chdir(project_root())
    print(f"MLflow UI: {ui.runs_page(client, f'http://{arguments.host}:{arguments.port}')}", flush=True)
    where = ["--backend-store-uri", uri, "--host", arguments.host, "--port", str(arguments.port)]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *where, "--workers", "1"])
