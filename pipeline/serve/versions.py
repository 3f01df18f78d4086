"""The version that answers, and the one that takes over from it while requests go on."""

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.terminal import show
from pipeline.inference.descriptors import DESCRIPTORS
from pipeline.inference.predictor import build_failure
from pipeline.serve.answers import Row
from pipeline.serve.locate import Located
from pipeline.serve.metrics import Metrics, RequestLog
from pipeline.serve.pool import Pool, Unanswered
from pipeline.serve.protocol import Asked

SCRATCH = "hyojo-serve-"  # begins the name of the folder with all that a server leaves for itself

Files = dict[str, tuple[bytes, str]]


class Version:
    """A model with its processes and its page, and what ``/version`` says of it."""

    def __init__(self, found: Located, pool: Pool, files: Files) -> None:
        self.found, self.pool, self.files, self.name, record = found, pool, files, found.version, found.record
        self.about: dict[str, Any] = {
            "model_version": found.version,
            "title": found.title,
            "run_id": record.run_id,
            "digest": record.digest,
            "classes": record.class_names,
            "abstains_below": record.abstain.get("threshold"),
            "finds_faces": bool(record.preprocessing.get("faces")),
        }


class Versions:
    """What answers now.

    Args:
        found: The first version; its processes begin to load.
        open_version: Starts the processes of a version, which tell the size of each batch.
        log: Where answers are noted.
    """

    def __init__(
        self,
        found: Located,
        open_version: Callable[[Located, Callable[[int], object]], Version],
        log: RequestLog | None = None,
    ) -> None:
        self.metrics, self._open_version, self._log = Metrics(self.describe), open_version, log
        self.current = open_version(found, self.metrics.batches.observe)
        self._there, self._is_loaded = {self.current}, False
        self._tried, self._said = self.current.name, ""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_ready(self) -> bool:
        """Whether a request would be answered."""
        return self._is_loaded and self.current.pool.is_ready

    async def begin(self) -> None:
        """Wait for the first version; raises ``UserError`` if it can't be loaded."""
        await self.current.pool.start()
        self._is_loaded = True

    async def answer(self, asked: Asked, request_id: str) -> tuple[list[Row], str]:
        """Answer a request; all its rows are of one version, whose name is given with them.

        Raises:
            Unanswered: It can't be answered now.
        """
        if not self._is_loaded:
            raise Unanswered("the model is being loaded")
        start, version = time.perf_counter(), self.current
        good = [picture for picture in asked.pictures if isinstance(picture, bytes)]
        answers = iter(await version.pool.answer(good, asked.faces, asked.describe or self._log is not None))
        look = bool(version.about["finds_faces"] if asked.faces is None else asked.faces)
        rows = [build_failure(each, look) if isinstance(each, str) else next(answers) for each in asked.pictures]
        self.metrics.add_rows(rows)
        if self._log:
            self._log.add(rows, request_id, version.name, (time.perf_counter() - start) * 1e3)
        if self._log and not asked.describe:
            rows = [_without_descriptors(row) for row in rows]
        return rows, version.name

    def describe(self) -> tuple[dict[str, str], list[int]]:
        """The present version for Prometheus, and the processes with models."""
        labels = {name: str(self.current.about[name]) for name in ("model_version", "run_id", "digest")}
        return labels, [worker.process.pid for version in self._there for worker in version.pool.workers]

    def stop(self) -> None:
        """End all processes; requests that they work on are refused."""
        for version in self._there:
            version.pool.kill()

    def look(self, look_up: Callable[[], str], locate: Callable[[], Located], loop: asyncio.AbstractEventLoop) -> None:
        """Have another version take over, if there is one; one that failed is not tried again until the alias moves.

        It may take long, beside the requests: a store that hangs or is away holds nobody up.

        Args:
            look_up: Names the version that is to answer.
            locate: Fetches it.
            loop: That of the requests.
        """
        try:
            name = look_up()
            if name in (self._tried, self.current.name):
                self._tried, self._said = name, ""
                return
            found = locate()
        except Exception as error:
            self.metrics.store_failures.inc()
            return self._say(f"no look for a new version: {error}")
        self._tried, former = found.version, self.current.found.title
        try:
            asyncio.run_coroutine_threadsafe(self._switch(found), loop).result()
        except Exception as error:
            self.metrics.reloads.labels("failed").inc()
            self._say(f"{found.title} does not take over, and {former} stays: {error}")
        else:
            self.metrics.reloads.labels("done").inc()
            print(f"{found.title} took over from {former}", flush=True)

    def _say(self, text: str) -> None:
        """Say it once, not at each look."""
        if text != self._said:
            print(f"warning: {show(text.splitlines()[0])}", file=sys.stderr, flush=True)
        self._said = text

    async def _switch(self, found: Located) -> None:
        """Have a version answer once it is loaded; raises ``UserError`` if it can't be, and the old one stays."""
        new, old = self._open_version(found, self.metrics.batches.observe), self.current
        self._there.add(new)
        try:
            await new.pool.start()
        except UserError:
            await self._end(new)
            raise
        self.current = new
        task = asyncio.create_task(self._end(old))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, version: Version) -> None:
        """Let a version answer what it was asked, end it, and remove what was downloaded of it."""
        await version.pool.drain()
        self._there.discard(version)
        scratch = Path(tempfile.tempdir or "")
        if scratch.name.startswith(SCRATCH) and version.found.path.is_relative_to(scratch):
            folder = scratch / version.found.path.relative_to(scratch).parts[0]
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _without_descriptors(row: Row) -> Row:
    """A row as it is if nobody asked for a description."""
    row = {name: value for name, value in row.items() if name not in DESCRIPTORS}
    return row | ({"faces": [_without_descriptors(face) for face in row["faces"]]} if row.get("faces") else {})
