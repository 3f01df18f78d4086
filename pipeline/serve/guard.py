"""What stands between clients and MLflow's scoring app: limits, short errors in JSON, headers. An ASGI application.

Whatever a client sends leads to an answer, a 4xx with a short message, or, far above what the machine can do, a 503
that says when to come again; no stack trace, no path, no request without end.
"""

import asyncio
import contextlib
import json
import re
import sys
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
_CODES = {404: "NOT_FOUND", 503: "TEMPORARILY_UNAVAILABLE"}
_SAID_WITH = {408: {"connection": "close"}, 413: {"connection": "close"}, 503: {"retry-after": "1"}}


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


class Guard:
    """Passes requests for MLflow's paths on to its app, serves files of ours, and answers all else by itself.

    Args:
        app: MLflow's.
        files: Content and media type by path, of the page for people.
        threads: That work on requests; the others wait in order.
        limits: What is taken on.
    """

    def __init__(self, app: ASGIApp, files: Mapping[str, tuple[bytes, str]], threads: int, limits: Limits) -> None:
        self._app, self._files, self._threads, self._limits = app, files, threads, limits
        self._waiting = self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            pool = ThreadPoolExecutor(self._threads, thread_name_prefix="predict")
            asyncio.get_running_loop().set_default_executor(pool)
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                answer = await self._answer(Request(scope, receive))
            except ClientDisconnect:
                return
            except HTTPException as refusal:  # in the form that MLflow has for errors
                status = refusal.status_code
                said = json.dumps({"error_code": _CODES.get(status, "BAD_REQUEST"), "message": refusal.detail})
                answer = Response(said, status, _SAID_WITH.get(status), "application/json")
            await answer(scope, receive, _with_headers(send))

    async def _answer(self, request: Request) -> ASGIApp:
        """What answers a request; raises ``HTTPException``."""
        path, method = request.scope["path"], request.method
        if path in self._files:
            if method not in ("GET", "HEAD"):
                raise HTTPException(405, "GET is what this path takes")
            content, kind = self._files[path]
            return Response(content if method == "GET" else b"", 200, {"cache-control": "no-cache"}, kind)
        if path not in _PASSED:
            raise HTTPException(404, "there is nothing at this path")
        if path != _SCORING:
            return self._app
        if method != "POST":
            raise HTTPException(405, "POST is what this path takes")
        await self._refuse(request)
        start = time.perf_counter()
        self._waiting += 1
        parts: list[bytes] = []
        try:
            return await self._score(request, await self._read(request, parts), start)
        finally:
            self._waiting -= 1
            self._held -= sum(map(len, parts))

    async def _refuse(self, request: Request) -> None:
        """Refuse what its head and the load speak against; its body is read, as many clients listen only after it."""
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        length = request.headers.get("content-length", "")
        size = int(length) if length.isdecimal() else 0
        if kind not in _READ_BY:
            refusal = HTTPException(415, f"Content-Type has to be {' or '.join(_READ_BY)}")
        elif self._waiting >= self._limits.waiting or self._held >= self._limits.held:
            refusal = HTTPException(503, "too many requests at once; try again in a second")
        elif size > self._limits.body:
            refusal = self._too_large()
        else:
            return
        if length.isdecimal() and size <= 8 * self._limits.body:
            with contextlib.suppress(TimeoutError, ClientDisconnect):
                async with asyncio.timeout(self._limits.upload_s / 4):
                    async for _ in request.stream():
                        pass
        raise refusal

    async def _read(self, request: Request, parts: list[bytes]) -> bytes:
        """The body, whose parts are kept in ``parts``."""
        size = 0
        try:
            async with asyncio.timeout(self._limits.upload_s):
                async for part in request.stream():
                    size += len(part)
                    if size > self._limits.body:
                        raise self._too_large()
                    parts.append(part)
                    self._held += len(part)
        except TimeoutError:
            raise HTTPException(408, "the request did not arrive in time") from None
        body = b"".join(parts)
        if body.count(b",") + body.count(b"\n") > self._limits.values:
            raise HTTPException(413, f"more than {self._limits.values} values in one request; send them in several")
        return body

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the request is larger than {self._limits.body / MB:g} MB")

    async def _score(self, request: Request, body: bytes, start: float) -> Response:
        """What MLflow's app answers; its errors are told in one form."""
        given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Message] = []

        async def replay() -> Message:
            return given.pop() if given else await request.receive()

        async def keep(message: Message) -> None:
            sent.append(message)

        try:
            await self._app(request.scope, replay, keep)
        except Exception:  # for the one who runs the server, not for the client
            traceback.print_exc(limit=-3, file=sys.stderr)
            raise HTTPException(400, _short(b"")) from None
        status: int = sent[0]["status"]
        said = b"".join(message.get("body", b"") for message in sent[1:])
        if status >= 400:  # what fails here fails by what was sent: the model itself answers every row
            raise HTTPException({500: 400, 504: 503}.get(status, status), _short(said))
        answer = Response(said, status)
        spent = f"app;dur={(time.perf_counter() - start) * 1e3:.1f}".encode()
        answer.raw_headers = [*sent[0]["headers"], (b"server-timing", spent)]
        return answer


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
