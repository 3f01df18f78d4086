"""What stands between clients and MLflow's scoring app: limits, short errors in JSON, headers. An ASGI application.

Whatever a client sends leads to an answer, a 4xx with a short message, or, far above what the machine can do, a 503
that says when to come again; no stack trace, no path, no request without end.
"""

import asyncio
import json
import re
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]
File = tuple[bytes, str]  # content and media type

MB = 2**20
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_SCORING = "/invocations"
_PASSED = {"/ping", "/health", "/version", "/openapi.json", _SCORING}
_READ_BY = ("application/json", "text/csv")


@dataclass(frozen=True)
class Limits:
    """What a worker takes on.

    Attributes:
        body: Bytes of a request.
        values: Commas and line ends in it, of which base64 has none: they bound how many values it can hold, and so
            the memory that reading it takes.
        waiting: Requests at once, most of which wait for a thread.
        held: Bytes of their bodies together.
        upload_s: In which a body has to arrive.
    """

    body: int = 32 * MB
    values: int = 2**16
    waiting: int = 2048
    held: int = 1024 * MB
    upload_s: float = 120.0


class Refusal(Exception):
    """A request that isn't passed on."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Guard:
    """Passes requests for MLflow's paths on to its app, serves files of ours, and answers all else by itself.

    Args:
        app: MLflow's.
        files: Content and media type by path, of the page for people.
        threads: That work on requests; the others wait in order.
        limits: What is taken on.
    """

    def __init__(self, app: App, files: Mapping[str, File], threads: int, limits: Limits) -> None:
        self._app, self._files, self._threads, self._limits = app, files, threads, limits
        self._waiting = self._held = 0

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            pool = ThreadPoolExecutor(self._threads, thread_name_prefix="predict")
            asyncio.get_running_loop().set_default_executor(pool)
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            send = _with_headers(send)
            try:
                await self._route(scope, receive, send)
            except Refusal as refusal:
                await _reply(send, refusal.status, refusal.message)

    async def _route(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path in self._files:
            if method not in ("GET", "HEAD"):
                raise Refusal(405, "GET is what this path takes")
            content, kind = self._files[path]
            await _answer(send, 200, content if method == "GET" else b"", kind, {"cache-control": "no-cache"})
        elif path not in _PASSED:
            raise Refusal(404, "there is nothing at this path")
        elif path != _SCORING:
            await self._app(scope, receive, send)
        elif method != "POST":
            raise Refusal(405, "POST is what this path takes")
        else:
            await self._score(scope, receive, send)

    async def _score(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Read a body within the limits, and have MLflow's app answer it."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        kind = headers.get(b"content-type", b"").decode("latin-1").split(";")[0].strip().lower()
        if kind not in _READ_BY:
            await self._drain(headers, receive)
            raise Refusal(415, f"Content-Type has to be {' or '.join(_READ_BY)}")
        if self._waiting >= self._limits.waiting or self._held >= self._limits.held:
            await self._drain(headers, receive)
            raise Refusal(503, "too many requests at once; try again in a second")
        start = time.perf_counter()
        self._waiting += 1
        parts: list[bytes] = []
        try:
            body = await self._read(headers, receive, parts)
            if body is not None:
                await self._pass_on(scope, body, receive, send, start)
        finally:
            self._waiting -= 1
            self._held -= sum(map(len, parts))

    async def _read(self, headers: Mapping[bytes, bytes], receive: Receive, parts: list[bytes]) -> bytes | None:
        """The body, whose parts are kept in ``parts``; None if the client went away."""
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body:
            await self._drain(headers, receive)
            raise self._too_large()
        size = 0
        try:
            async with asyncio.timeout(self._limits.upload_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self._limits.body:
                        raise self._too_large()
                    parts.append(part)
                    self._held += len(part)
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise Refusal(408, "the request did not arrive in time") from None
        body = b"".join(parts)
        if body.count(b",") + body.count(b"\n") > self._limits.values:
            raise Refusal(413, f"more than {self._limits.values} values in one request; send them in several")
        return body

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the request is larger than {self._limits.body / MB:g} MB")

    async def _drain(self, headers: Mapping[bytes, bytes], receive: Receive) -> None:
        """Read and forget a body that is refused: many clients only listen once they have sent all."""
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or int(length) > 8 * self._limits.body:
            return
        try:
            async with asyncio.timeout(self._limits.upload_s / 4):
                while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        except TimeoutError:
            return

    async def _pass_on(self, scope: Mapping[str, Any], body: bytes, receive: Receive, send: Send, start: float) -> None:
        """Have MLflow's app answer; its errors are told in one form."""
        given = False
        failed: list[int] = []
        said: list[bytes] = []

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def listen(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 400:
                    failed.append(message["status"])
                    return
                spent = f"app;dur={(time.perf_counter() - start) * 1e3:.1f}".encode()
                message["headers"] = [*message.get("headers", ()), (b"server-timing", spent)]
            elif failed:
                said.append(message.get("body", b""))
                return
            await send(message)

        try:
            await self._app(scope, replay, listen)
        except Exception:  # for the one who runs the server, not for the client
            traceback.print_exc(limit=-3, file=sys.stderr)
            failed = failed or [500]
        if failed:
            # What fails here fails by what was sent: the model itself answers every row.
            status = {500: 400, 504: 503}.get(failed[0], failed[0])
            await _reply(send, status, _short(b"".join(said)))


def _short(said: bytes) -> str:
    """MLflow's words for an error, in one line without paths."""
    text = said.decode("utf-8", "replace")
    try:
        text = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        text = "" if text == "Internal Server Error" else text
    text = re.sub(r"(?:/[\w.+-]+){2,}", lambda match: match[0].rsplit("/", 1)[1], " ".join(text.split()))
    return (text if len(text) <= 300 else text[:297] + "...") or "the request could not be read"


def _with_headers(send: Send) -> Send:
    """Adds ``HEADERS`` to every answer."""
    extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *extra]
        await send(message)

    return wrapped


async def _reply(send: Send, status: int, message: str) -> None:
    """An error, in the form that MLflow has for them."""
    code = {404: "NOT_FOUND", 503: "TEMPORARILY_UNAVAILABLE"}.get(status, "BAD_REQUEST")
    headers = {"retry-after": "1"} if status == 503 else {}
    headers |= {"connection": "close"} if status in (408, 413) else {}
    content = json.dumps({"error_code": code, "message": message}).encode()
    await _answer(send, status, content, "application/json", headers)


async def _answer(send: Send, status: int, content: bytes, kind: str, headers: Mapping[str, str]) -> None:
    """A whole answer at once."""
    listed = {"content-type": kind, "content-length": str(len(content)), **headers}
    pairs = [(name.encode(), value.encode()) for name, value in listed.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})
