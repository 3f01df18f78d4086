"""``hyojo serve``: from its options to a server that answers, and to its end."""

import asyncio
import contextlib
import gc
import os
import resource
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import uvicorn

from pipeline.core import cores
from pipeline.core.address import open_listener
from pipeline.core.errors import UserError
from pipeline.serve import locate, places
from pipeline.serve.app import build_app
from pipeline.serve.guard import MB, Connection, Guard, Limits, is_local
from pipeline.serve.metrics import RequestLog
from pipeline.serve.page import render_files
from pipeline.serve.pool import Pool
from pipeline.serve.versions import SCRATCH, Version, Versions

STOP_S = 30  # in which a server that is told to stop has ended, whatever it does
_REFUSE_S, _CANCEL_S = 20, 24  # of them: then requests under way are refused, then cut
LOOK_S = 2  # between looks for another version
_WAITING, _AT_ONCE = 1024, 32  # connections that wait to be taken, and that are taken at once
_SETTINGS: dict[str, Any] = {
    "ws": "none", "lifespan": "off", "proxy_headers": False, "server_header": False, "log_level": "error",
    "access_log": False, "timeout_keep_alive": 75, "timeout_graceful_shutdown": _CANCEL_S, "backlog": _AT_ONCE,
}  # fmt: skip


class Options(NamedTuple):
    """How a model is served, as ``hyojo serve --help`` has it; port 0 is a free one."""

    host: str = "127.0.0.1"
    port: int = 5001
    workers: int | None = None
    threads: int = 1
    runtime: str | None = None
    page: bool = True
    max_mb: float = 32
    trust: bool = False
    require_signature: str | None = None
    follow: bool = False
    log_requests: str | None = None
    allowed_hosts: list[str] | None = None


def serve(model: str, options: Options) -> None:
    """Serve a model, given as in ``locate.locate``, until SIGINT or SIGTERM; requests under way are answered first.

    Raises:
        UserError: No such model, it can't be loaded, the port is taken, or an option makes no sense.
    """
    workers = max(1, cores.available() // max(1, options.threads)) if options.workers is None else options.workers
    if workers < 1 or options.threads < 1 or options.max_mb <= 0:
        raise UserError("--workers and --threads have to be 1 or more, and --max-mb above 0")
    if options.follow and not places.is_alias(model):
        raise UserError(f"--follow needs an alias, as of --model champion or models:/NAME@champion; {model} is none.")
    listener = open_listener(options.host, options.port)
    options = options._replace(port=listener.getsockname()[1], workers=workers)
    log = RequestLog(options.log_requests) if options.log_requests else None

    def find() -> locate.Located:
        return locate.locate(model, options.runtime, options.trust, options.require_signature)

    def open_version(found: locate.Located, observe: Callable[[int], object]) -> Version:
        pool = Pool(found, options.runtime, workers, options.threads, observe)
        return Version(found, pool, render_files(found, int(options.max_mb * MB), options.page))

    with _scratch():
        versions = Versions(find(), open_version, log)
        try:

            def follow(loop: asyncio.AbstractEventLoop) -> None:
                while True:
                    time.sleep(LOOK_S)
                    versions.look(lambda: places.look_up(model), find, loop)

            server = Server(versions, options, follow)
            for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises it anew at the end; it is no failure
                signal.signal(number, lambda *_: None)
            server.run(sockets=[listener])
        finally:
            versions.stop()
    if server.error:
        raise server.error


class Server(uvicorn.Server):
    """uvicorn, with a start that waits for the model while probes are answered, and an end that comes in time."""

    def __init__(
        self, versions: Versions, options: Options, follow: Callable[[asyncio.AbstractEventLoop], None]
    ) -> None:
        hosts = options.allowed_hosts or ([] if is_local(options.host) else None)
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # a connection is one
        # asyncio takes connections twice more before the file of one too many is free.
        room = max(16, min(Limits.connections, files - 64 - 3 * _AT_ONCE))
        limits = Connection.limits = Limits(body=int(options.max_mb * MB), connections=room)
        guard = Guard(build_app(versions), limits, hosts, lambda: versions.current.name, versions.metrics.add_request)
        super().__init__(uvicorn.Config(guard, http=Connection, **_SETTINGS))
        self.error: UserError | None = None
        self._versions, self._options, self._follow = versions, options, follow

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and load meanwhile."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_WAITING)
        self._loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        try:
            await self._versions.begin()
        except UserError as error:
            self.error, self.should_exit = error, True
            return
        # To look for garbage among all that was loaded would hold up requests for a tenth of a second.
        gc.collect()
        gc.freeze()
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        what, title = "page and REST" if self._options.page else "REST", self._versions.current.found.title
        counts = f"{self._options.workers} processes of {self._options.threads} threads"
        print(f"Serving {title} on http://{host}:{self._options.port} ({what}; {counts})", flush=True)
        if self._options.follow:
            threading.Thread(target=self._follow, args=(asyncio.get_running_loop(),), daemon=True).start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests be answered, for a while."""
        asyncio.get_running_loop().call_later(_REFUSE_S, self._versions.stop)
        await super().shutdown(sockets)
        self._versions.stop()

    def handle_exit(self, sig: int, frame: object) -> None:
        """Begin to stop; what holds that up is ended."""
        if not self.should_exit:
            last = threading.Timer(STOP_S - 2, _end_at_once)
            last.daemon = True
            last.start()
        super().handle_exit(sig, frame)  # type: ignore[arg-type]


def _end_at_once() -> None:
    """The processes with the model end with this one."""
    if SCRATCH in (tempfile.tempdir or ""):
        shutil.rmtree(tempfile.tempdir or "", ignore_errors=True)
    os._exit(0)


@contextlib.contextmanager
def _scratch() -> Iterator[None]:
    """Have all temporary files of this process, and of those that it starts, in one folder, which goes with it."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # nothing can be written; a bundle's folder needs nothing
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True))
            stack.callback(setattr, tempfile, "tempdir", tempfile.tempdir)
            tempfile.tempdir = folder
        yield
