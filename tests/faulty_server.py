"""MLflow's own server in a thread of the tests, behind a proxy that answers some requests itself."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest

Fault = Callable[[str, str], tuple[str, str] | None]


@dataclass
class Faulty:
    """A server: ``fault`` answers a request, by method and path, with status and body; None: MLflow answers."""

    url: str = ""
    fault: Fault = lambda method, path: None
    asked: list[str] = field(default_factory=list)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve_mlflow(database: Path, artifacts: Path) -> Iterator[Faulty]:
    """Serve a database; artifacts go through the server."""
    from mlflow.server import app, handlers

    found = Faulty()

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        found.asked.append(f"{method} {path}")
        if (given := found.fault(method, path)) is None:
            return app(environ, start)
        start(given[0], [("Content-Type", "application/json" if given[1].startswith("{") else "text/html")])
        return [given[1].encode()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{database}")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(artifacts))
        patch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        # A server of its own process would tell the whole process where its store is.
        patch.setattr("mlflow.tracking._tracking_service.utils.set_tracking_uri", lambda uri: None)
        patch.setattr("mlflow.tracking._model_registry.utils.set_registry_uri", lambda uri: None)
        patch.setattr(handlers, "_tracking_store", None)
        patch.setattr(handlers, "_model_registry_store", None)
        patch.setattr(handlers, "_artifact_repo", None)
        server = make_server("127.0.0.1", 0, answer, _Server, _Quiet)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found.url = f"http://127.0.0.1:{server.server_port}"
        yield found
        server.shutdown()
        server.server_close()
