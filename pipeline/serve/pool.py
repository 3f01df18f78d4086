"""Processes that hold one model: requests wait for them in a line, and those that wait go on together.

A request that comes while a process is free never waits. A process that ends, or takes too long, is replaced by one
that loads the same bytes; a request that was alone in it is refused, others are asked anew, each alone.
"""

import asyncio
import contextlib
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence

from pipeline.core.errors import UserError
from pipeline.inference.predictor import BATCH_SIZE, build_failure
from pipeline.serve.answers import Row
from pipeline.serve.locate import Located
from pipeline.serve.worker import BUDGET_S, HEAD

SHARE = 16  # pictures of one request that go on together: others need not wait for all of a large one
BATCH_BYTES = 2**24  # beyond which nothing is added to a batch
HUNG_S = BUDGET_S + 15  # a process that gave no answer by then is ended
STUCK_S = 20  # a server whose processes all have been at it for so long is not ready for more
RETRY_S = 30  # at most between attempts to start a process


class Unanswered(Exception):
    """A request that can't be answered now; the message is for the client."""


class Job:
    """A request's pictures, and what is known of them; ``how`` is whether to find faces, and to describe them."""

    def __init__(self, pictures: Sequence[bytes], how: tuple[bool | None, bool]) -> None:
        self.pictures, self.how = pictures, how
        self.rows: list[Row] = [{}] * len(pictures)
        self.todo = deque(range(i, min(i + SHARE, len(pictures))) for i in range(0, len(pictures), SHARE))
        self.left, self.until = len(pictures), time.monotonic() + BUDGET_S
        self.alone = False  # a process ended with it and others in it
        self.done: asyncio.Future[list[Row]] = asyncio.get_running_loop().create_future()

    def fill(self, part: range, rows: Sequence[Row]) -> None:
        """Take the rows of some of the pictures."""
        self.rows[part.start : part.stop] = rows
        self.left -= len(part)
        if not self.left and not self.done.done():
            self.done.set_result(self.rows)

    def refuse(self, why: str) -> None:
        """Have the client told that there is no answer."""
        if not self.done.done():
            self.done.set_exception(Unanswered(why))

    def expire(self) -> None:
        """Give an error to the pictures that nobody has begun with; a request with nothing but those is refused."""
        if sum(map(len, self.todo)) == len(self.pictures):
            self.refuse("too many requests at once; try again in a second")
        failure = build_failure("the request takes too long; send fewer pictures", bool(self.how[0]))
        while self.todo:
            part = self.todo.popleft()
            self.fill(part, [failure] * len(part))


class Pool:
    """Processes for one model.

    Args:
        found: The model.
        runtime: As in ``locate.locate``.
        workers: How many processes.
        threads: That compute a batch in each.
        observe: Is told how many pictures each batch has.
    """

    def __init__(
        self, found: Located, runtime: str | None, workers: int, threads: int, observe: Callable[[int], object]
    ) -> None:
        self.loading, self._observe = pickle.dumps((found, runtime, threads), 5), observe
        self._waiting: deque[Job] = deque()
        self._jobs, self._stopping = 0, False
        self._replacing: set[asyncio.Task[None]] = set()
        self.workers = {Worker(self) for _ in range(workers)}

    @property
    def is_ready(self) -> bool:
        """Whether a process is free, or was not long ago."""
        return any(one.ready and (not one.batch or time.monotonic() - one.since < STUCK_S) for one in self.workers)

    async def start(self) -> None:
        """Wait until all processes are ready; raises ``UserError`` if one can't be, and ends the others."""
        try:
            await asyncio.gather(*(worker.connect() for worker in self.workers))
        except BaseException:
            self.kill()
            raise

    async def answer(self, pictures: Sequence[bytes], faces: bool | None, describe: bool) -> list[Row]:
        """Have a request's pictures classified, as by ``Predictor.predict_bytes``.

        Raises:
            Unanswered: The request was alone in a process that ended, or waited too long.
        """
        if not pictures:
            return []
        job = Job(pictures, (faces, describe))
        self._jobs += 1
        self._waiting.append(job)
        self.dispatch()
        alarm = asyncio.get_running_loop().call_later(BUDGET_S, self.dispatch)  # there may be no process any more
        try:
            return await job.done
        finally:
            self._jobs -= 1
            alarm.cancel()

    async def drain(self) -> None:
        """End, once all requests are answered."""
        while self._jobs:
            await asyncio.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        """End all processes at once; who still waits for an answer is refused."""
        self._stopping = True
        for task in self._replacing:
            task.cancel()
        for worker in list(self.workers):
            self.lose(worker)
        while self._waiting:
            self._waiting.popleft().refuse("the server is stopping")

    def dispatch(self) -> None:
        """Give what waits to processes that are free."""
        free = [worker for worker in self.workers if worker.ready and not worker.batch]
        while self._waiting:
            if self._waiting[0].done.done() or time.monotonic() >= self._waiting[0].until:
                self._waiting.popleft().expire()
            elif free:
                free.pop().send(self._gather())
            else:
                break

    def _gather(self) -> "list[tuple[Job, range]]":
        """A share of the first request, and of others that want the same of theirs; who has more is then the last."""
        head, parts, passed, count, size = self._waiting[0], [], [], 0, 0
        while self._waiting and count < BATCH_SIZE and size < BATCH_BYTES:
            job = self._waiting.popleft()
            if job is not head and (job.how != head.how or job.alone or head.alone or job.done.done()):
                passed.append(job)
                continue
            parts.append((job, part := job.todo.popleft()))
            count, size = count + len(part), size + sum(len(job.pictures[i]) for i in part)
        self._waiting.extendleft(reversed(passed))
        self._waiting.extend(job for job, _ in parts if job.todo)
        self._observe(count)
        return parts

    def lose(self, worker: "Worker") -> None:
        """End and replace a process; what was in it is asked anew, but for a request that was alone in it."""
        if worker not in self.workers:
            return
        self.workers.discard(worker)
        worker.end()
        for job, part in worker.batch:
            if len(worker.batch) == 1 or self._stopping:
                job.refuse("the process that worked on this request has ended")
            job.alone = True
            job.todo.appendleft(part)
            if job not in self._waiting:
                self._waiting.appendleft(job)
        if worker.ready and not self._stopping:
            task = asyncio.get_running_loop().create_task(self._replace())
            self._replacing.add(task)
            task.add_done_callback(self._replacing.discard)

    async def _replace(self) -> None:
        """Start a process in place of one that has ended, and again if that fails."""
        delay = 0.5
        while True:
            try:
                self.workers.add(worker := Worker(self))
                return await worker.connect()
            except (UserError, OSError) as error:
                print(f"error: a process that ended can't be replaced: {error}", file=sys.stderr, flush=True)
            await asyncio.sleep(delay := min(2 * delay, RETRY_S))


class Worker(asyncio.Protocol):
    """A process that was started; it computes one batch at a time.

    Attributes:
        ready: Whether it has loaded the model.
        batch: What it computes: requests, and which of their pictures. Empty: it is free.
        since: When the batch was sent.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool, self.ready, self._buffer, self.since = pool, False, bytearray(), 0.0
        self.batch: list[tuple[Job, range]] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._socket, theirs = socket.socketpair()
        own = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        own |= {"TMPDIR": tempfile.tempdir} if tempfile.tempdir else {}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.serve.worker"],
                env=os.environ | own,
                stdin=theirs.fileno(),
                start_new_session=True,  # an interrupt at the keyboard is not for it
            )
        self._socket.sendall(pool.loading)

    async def connect(self) -> None:
        """Wait until the model is loaded; raises ``UserError`` if it can't be."""
        loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[str] = loop.create_future()
        self._transport = (await loop.create_connection(lambda: self, sock=self._socket))[0]
        if said := await self._loaded:
            self._pool.lose(self)
            raise UserError(said)
        self.ready = True
        self._pool.dispatch()

    def send(self, batch: "list[tuple[Job, range]]") -> None:
        """Pass a batch on."""
        assert self._transport
        self.batch, self.since = batch, time.monotonic()
        self._alarm = asyncio.get_running_loop().call_later(HUNG_S, self._pool.lose, self)
        pictures = [job.pictures[i] for job, part in batch for i in part]
        self._transport.write(pickle.dumps((pictures, *batch[0][0].how), 5))

    def end(self) -> None:
        """End it at once."""
        if self._alarm:
            self._alarm.cancel()
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        if self._transport:
            self._transport.abort()
        else:
            self._socket.close()

    def data_received(self, data: bytes) -> None:
        """A part of an answer, or the last one."""
        self._buffer += data
        if len(self._buffer) < HEAD.size or len(self._buffer) < HEAD.size + HEAD.unpack_from(self._buffer)[0]:
            return
        message = pickle.loads(memoryview(self._buffer)[HEAD.size :])
        self._buffer = bytearray()
        if not self.ready:
            return self._loaded.set_result(message)
        if self._alarm:
            self._alarm.cancel()
        (batch, self.batch), at = (self.batch, []), 0
        for job, part in batch:
            job.fill(part, message[at : at + len(part)])
            at += len(part)
        self._pool.dispatch()

    def connection_lost(self, _: Exception | None) -> None:
        """The process has ended."""
        if not self._loaded.done():
            self._loaded.set_result("its process has ended")
        self._pool.lose(self)
