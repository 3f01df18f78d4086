"""What stands between clients and the app: limits on what one may send, hold and leave open, and headers.

Whatever a client sends leads to an answer, a 4xx with a short message, or, far above what the machine can do, a 503
that says when to come again; and whatever it does not send ends in time.
"""

import asyncio
import contextlib
import json
import re
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, ClassVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

MB = 2**20
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
PROBES = ("/ping", "/health", "/ready", "/metrics")  # are asked by address, whatever the name
_CODES = {404: "NOT_FOUND", 500: "INTERNAL_ERROR", 503: "TEMPORARILY_UNAVAILABLE"}
_SAID_WITH = {408: {"connection": "close"}, 413: {"connection": "close"}, 503: {"retry-after": "1"}}
_PIECE = 2**16  # bytes of an answer that are sent at once


@dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Attributes:
        body: Bytes of a request.
        values: Commas, brackets and line ends in one of ``/invocations``, of which base64 has none: they bound how many
            values it can hold, and so the memory that reading it takes.
        held: Bytes of the bodies, and of the large answers, of all requests at once. What is made of a body on the way
            to the model comes to it: in all at most ``held`` and 16 times ``body`` above an idle server.
        requests: With a body, at once; most of them wait.
        connections: At once; for each beyond, the one that has asked nothing for the longest time is ended.
        head_s: In which a request's head has to arrive, from its first byte or from the start of the connection.
        pause_s: Between two parts of a body, or of an answer that the client takes.
        upload_s: In which a body has to arrive.
    """

    body: int = 32 * MB
    values: int = 2**16
    held: int = 256 * MB
    requests: int = 512
    connections: int = 1024
    head_s: float = 15.0
    pause_s: float = 20.0
    upload_s: float = 120.0


class Refusal(Exception):
    """A status, and a message for the client."""


class Guard:
    """ASGI middleware, which reads the bodies for its app.

    Args:
        app: The app; its routes are the paths that are counted by themselves, but for files.
        limits: What is taken on.
        hosts: Names by which the server may be called, beside the machine's own; None: any.
        version: Says what answers now.
        observe: Is told path, status and seconds of every request.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        hosts: Collection[str] | None,
        version: Callable[[], str],
        observe: Callable[[str, int, float], object],
    ) -> None:
        self._app, self._limits, self._hosts, self._version, self._observe = app, limits, hosts, version, observe
        paths = (getattr(route, "path", "") for route in getattr(app, "routes", ()))
        self._paths = {path for path in paths if "." not in path}
        self.requests = self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        start, status, state = time.perf_counter(), 499, scope["state"]  # 499, as of nginx: the client left
        connection: Connection = state["connection"]
        given = _header(scope, b"x-request-id")
        state["id"] = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid.uuid4().hex

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, spent = message["status"], (time.perf_counter() - start) * 1e3
                own = {"x-request-id": state["id"], "server-timing": f"app;dur={spent:.1f}", **HEADERS}
                own = {"x-model-version": self._version(), **own, **_SAID_WITH.get(status, {})}
                own_headers = {name.encode(): value.encode() for name, value in own.items()}
                message["headers"] = list((own_headers | dict(message["headers"])).items())
            await self._send(send, message)

        task = asyncio.current_task()
        assert task
        connection.left = task.cancel
        try:
            try:
                await self._pass(scope, receive, reply)
            except Refusal as refusal:
                await answer_error(*refusal.args)(scope, receive, reply)
        except (asyncio.CancelledError, TimeoutError):  # the client left, or does not take its answer
            connection.end()
        finally:
            connection.left = None
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._observe(path, status, time.perf_counter() - start)

    async def _pass(self, scope: Scope, receive: Receive, reply: Send) -> None:
        """Have the app answer, with the whole body at hand; raises ``Refusal``."""
        host = re.sub(r":\d*$", "", _header(scope, b"host", "localhost")).strip("[]").rstrip(".").lower()
        if self._hosts is not None and host not in self._hosts and not is_local(host) and scope["path"] not in PROBES:
            raise Refusal(421, "this server is not called by that name; --allowed-hosts has it taken")
        if scope["method"] == "HEAD":  # uvicorn sends no body for it
            scope = {**scope, "method": "GET"}
        if scope["method"] != "POST" or scope["path"] not in ("/invocations", "/predict"):
            return await self._app(scope, receive, reply)
        self.requests += 1
        scope["state"]["held"] = 0
        try:
            given = [await self._read(scope, receive)]

            async def replay() -> Message:
                return {"type": "http.request", "body": given.pop(), "more_body": False} if given else await receive()

            await self._app(scope, replay, reply)
        finally:
            self.requests -= 1
            self.held -= scope["state"]["held"]

    async def _read(self, scope: Scope, receive: Receive) -> bytearray:
        """The body, which counts as held from its first part on."""
        too_many = Refusal(503, "too many requests at once; try again in a second")
        too_large = Refusal(413, f"the request is larger than {self._limits.body / MB:g} MB")
        length, state = _header(scope, b"content-length"), scope["state"]
        body = bytearray()  # many small parts would leave holes in the memory
        promised = int(length) if length.isdecimal() else 0
        refusal = None
        if sum(name == b"content-type" for name, _ in scope["headers"]) > 1:
            refusal = Refusal(400, "there is more than one Content-Type")
        elif promised > self._limits.body:
            refusal = too_large
        elif self.requests > self._limits.requests or self.held + promised > self._limits.held:
            refusal = too_many
        more = refusal is None or 0 < promised <= 8 * self._limits.body  # many clients listen only once they have sent
        try:
            async with asyncio.timeout(self._limits.upload_s if refusal is None else self._limits.pause_s):
                while more:
                    async with asyncio.timeout(self._limits.pause_s):
                        message = await receive()
                    part, more = message.get("body", b""), message.get("more_body", False)
                    if refusal:
                        continue
                    if len(body) + len(part) > self._limits.body:
                        raise too_large
                    if self.held + len(part) > self._limits.held:
                        raise too_many
                    body += part
                    self.held, state["held"] = self.held + len(part), len(body)
        except TimeoutError:
            refusal = refusal or Refusal(408, "the request did not arrive in time")
        if refusal:
            raise refusal
        if scope["path"] == "/invocations" and sum(map(body.count, b",[{\n\r")) > self._limits.values:
            raise Refusal(413, f"more than {self._limits.values} values in one request; send them in several")
        return body

    async def _send(self, send: Send, message: Message) -> None:
        """Send a large answer in pieces, each once the client has taken those before."""
        body = message.get("body", b"")
        if len(body) <= _PIECE:
            return await send(message)
        self.held += len(body)
        try:
            for at in range(0, len(body), _PIECE):
                async with asyncio.timeout(self._limits.pause_s):
                    more = at + _PIECE < len(body)
                    await send({**message, "body": body[at : at + _PIECE], "more_body": more})
        finally:
            self.held -= len(body)


class Connection(H11Protocol):
    """A connection that is ended when it has been silent for long; ``left`` is called when the client has left."""

    limits: ClassVar[Limits] = Limits()
    _idle: ClassVar[dict["Connection", None]] = {}  # those without a request, from the longest on

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app_state = self.app_state | {"connection": self}
        self.left: Callable[[], object] | None = None
        self._alarm: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """End it, and what it has not sent."""
        self._stop_waiting()
        self.transport.abort()

    timeout_keep_alive_handler = end  # where uvicorn would wait until the client has taken its answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            next(iter(self._idle), self).end()
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            self._idle[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
        if self.left:
            self.left()

    def _wait(self) -> None:
        self._idle[self] = None
        self._alarm = self._alarm or self.loop.call_later(self.limits.head_s, self.end)

    def _stop_waiting(self) -> None:
        self._idle.pop(self, None)
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None


def answer_error(status: int, message: str) -> ASGIApp:
    """An answer in the form that MLflow has for errors: one line, without control characters."""
    text = " ".join("".join(char if char.isprintable() else " " for char in message).split())
    said = json.dumps({"error_code": _CODES.get(status, "BAD_REQUEST"), "message": text[:300]}).encode()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(said))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": said})

    return answer


def is_local(name: str) -> bool:
    """Whether a name or an address, without brackets, is one that a machine has for itself."""
    with contextlib.suppress(ValueError):
        return ip_address(name).is_loopback
    return name == "localhost" or name.endswith(".localhost")


def _header(scope: Scope, wanted: bytes, otherwise: str = "") -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), otherwise)
