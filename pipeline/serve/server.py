"""``hyojo serve``: MLflow's scoring app, behind ``guard``, under uvicorn, with a page for people beside it.

The app is the one that ``mlflow models serve`` runs, so its paths behave alike. What is added is a start that is
quicker, threads and processes that fit the machine, and limits on what a client can ask for.
"""

import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from pipeline.core import cores
from pipeline.core.address import open_listener
from pipeline.core.errors import UserError
from pipeline.serve import locate
from pipeline.serve.guard import MB, Guard, Limits

# Rows that a request can't be answered for in this time get an error; MLflow itself would give up on it later.
BUDGET_S, TIMEOUT_S = 60, 600
STOP_S = 30  # in which requests under way are answered when the server is told to stop


class Options(NamedTuple):
    """How a model is served, as ``hyojo serve --help`` has it; port 0 is a free one."""

    host: str = "127.0.0.1"
    port: int = 5001
    workers: int = 1
    threads: int | None = None
    runtime: str | None = None
    page: bool = True
    max_mb: float = 32
    trust: bool = False
    require_signature: str | None = None


def serve(model: str, options: Options) -> None:
    """Serve a model, given as in ``locate.locate``, until SIGINT or SIGTERM; requests under way are answered first.

    Raises:
        UserError: No such model, the port is taken, or an option makes no sense.
    """
    if options.workers < 1 or (options.threads is not None and options.threads < 1) or options.max_mb <= 0:
        raise UserError("--workers and --threads have to be 1 or more, and --max-mb above 0")
    listener = open_listener(options.host, options.port)
    found = locate.locate(model, options.runtime, options.trust, options.require_signature)
    threads = options.threads or max(1, cores.available() // options.workers)
    options = options._replace(port=listener.getsockname()[1], threads=threads)
    if options.workers == 1:
        _run_one(found, options, listener)
    else:
        _run_many(found, options, listener)


def build_app(found: locate.Located, options: Options) -> Guard:
    """The model, loaded and warm, behind its app and its guard."""
    os.environ.setdefault("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", str(TIMEOUT_S))
    # Requests are what is done at once, so each is computed by one thread, as are the faces in it.
    model = locate.open_pyfunc(found, runtime=options.runtime, threads=1, seconds=BUDGET_S)
    from mlflow.pyfunc import scoring_server

    from pipeline.inference.mlflow_server import tame_server
    from pipeline.inference.requests import COLUMN
    from pipeline.tracking.pyfunc import example_picture

    tame_server()
    app = scoring_server.init(model)
    picture = example_picture(found.record.preprocessing)
    for faces in (False, True):  # the nets that find faces are loaded too
        model.predict({COLUMN: [picture]}, params={"faces": faces})
    files: Mapping[str, tuple[bytes, str]] = {}
    if options.page:
        from pipeline.serve.page import render_files

        files = render_files(found, int(options.max_mb * MB))
    # To look for garbage among all that was loaded would hold up requests for a tenth of a second.
    gc.collect()
    gc.freeze()
    return Guard(app, files, options.threads or 1, Limits(body=int(options.max_mb * MB)))


def _run_one(found: locate.Located, options: Options, listener: socket.socket) -> None:
    """Serve in this process."""
    import uvicorn

    # uvicorn raises the signal anew once it has stopped; that the server was told to stop is no failure.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))  # told to stop before the start was over
    app = build_app(found, options)
    server = uvicorn.Server(_config(app, options))
    started = server.startup

    async def startup(sockets: list[socket.socket] | None = None) -> None:
        await started(sockets)
        _announce(found, options)

    server.startup = startup  # type: ignore[method-assign]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])


def _run_many(found: locate.Located, options: Options, listener: socket.socket) -> None:
    """Serve in processes of which this one is the parent; one that dies is replaced."""
    from uvicorn.supervisors import Multiprocess

    class Workers(Multiprocess):
        def init_processes(self) -> None:
            super().init_processes()
            ready = [process.wait_until_ready(60, self.should_exit) for process in self.processes]
            if all(ready) and not self.signal_queue:
                _announce(found, options)

    config = _config(partial(_worker_app, found, options), options)
    config.factory = True
    Workers(config, sockets=[listener]).run()


def _worker_app(found: locate.Located, options: Options) -> Guard:
    """The app of a worker; one that can't be made ends the server, where uvicorn would try again for ever."""
    from uvicorn.config import STARTUP_FAILURE

    try:
        return build_app(found, options)
    except Exception:
        traceback.print_exc()
        sys.exit(STARTUP_FAILURE)


def _config(app: Any, options: Options) -> Any:
    import uvicorn

    return uvicorn.Config(
        app,
        workers=options.workers,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=STOP_S,
        timeout_worker_healthcheck=60,
        backlog=2048,
    )


def _announce(found: locate.Located, options: Options) -> None:
    """Say on stdout that requests are answered from now on, and where."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    what = "page and REST" if options.page else "REST"
    processes = f", {options.workers} processes" if options.workers > 1 else ""
    where = f"http://{host}:{options.port}"
    print(f"Serving {found.title} on {where} ({what}; {options.threads} threads{processes})", flush=True)
