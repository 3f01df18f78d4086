"""Limits on what clients send, hold and leave open: over sockets, to a small app behind the guard."""

import asyncio
import contextlib
import http.client
import json
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from builders import grey_png
from running import Running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.serve.guard import MB, Connection, Guard, Limits

HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


class Behind:
    """An app that notes what reaches it, and a guard before it, which listens."""

    def __init__(self, hosts: list[str] | None, **limits: float) -> None:
        self.held: list[int] = []
        self.left, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        app = Starlette(
            routes=[
                Route("/invocations", self.answer, methods=["POST"]),
                Route("/ping", self.answer),
                Route("/large", self.answer_much),
            ]
        )
        Connection.limits = Limits(**limits)
        self.guard = Guard(app, Connection.limits, hosts, lambda: "1", lambda *_: None)
        options: dict = {"http": Connection, "lifespan": "off", "ws": "none", "log_level": "error", "port": 0}
        self.server = uvicorn.Server(uvicorn.Config(self.guard, **options))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        self.held.append(self.guard.held)
        try:
            while not self.gate.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.left.set()
            raise
        return Response(str(len(body)))

    async def answer_much(self, _: Request) -> Response:
        return Response(bytes(32 * MB))

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        connection.sendall(sent)
        return connection

    def ask(self, data: bytes, *headers: tuple[str, str], path: str = "/invocations") -> tuple[int, dict, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.putrequest("POST" if data else "GET", path, skip_host=True)
        given = (("Host", "x"), ("Content-Type", "application/json"), ("Content-Length", str(len(data))))
        for name, value in (*given[any(name == "Host" for name, _ in headers) :], *headers):
            connection.putheader(name, value)
        connection.endheaders(data)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()


@pytest.fixture
def behind() -> Iterator[Callable[..., Behind]]:
    made: list[Behind] = []
    former = Connection.limits

    def make(hosts: list[str] | None = None, **limits: float) -> Behind:
        made.append(Behind(hosts, **limits))
        return made[-1]

    yield make
    for one in made:
        one.gate.set()
        one.server.should_exit = True
        one.thread.join(10)
    Connection.limits = former


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server ends the connection."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(2**16):
            found += part
    return found


def wait_for(true: Callable[[], object], seconds: float = 5) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("sent", [b"", b"POST /invoc", HEAD], ids=["nothing", "half a line", "half a head"])
def test_silent_connections_shut_nobody_out_and_end(behind: Callable[..., Behind], sent: bytes) -> None:
    one = behind(connections=20, head_s=3)
    silent = [one.connect(sent) for _ in range(60)]
    start = time.monotonic()
    assert one.ask(b"{}")[0] == 200
    assert time.monotonic() - start < 2.5
    wait_for(lambda: len(one.server.server_state.connections) <= 21)
    for connection in silent:
        assert read_all(connection) == b""


def test_a_head_that_comes_byte_by_byte_ends_too(behind: Callable[..., Behind]) -> None:
    one = behind(head_s=0.5)
    connection, start = one.connect(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"), time.monotonic()
    assert b"200 OK" in connection.recv(2**16)
    with pytest.raises(ConnectionError):  # noqa: PT012
        while time.monotonic() - start < 5:
            connection.sendall(b"G")
            time.sleep(0.1)
    assert time.monotonic() - start < 2


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_NOFILE"), reason="no such limit here")
def test_more_connections_than_files_may_be_open(bright_bundle: Path) -> None:
    one = Running("--model", str(bright_bundle), before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)))
    one.process.send_signal(signal.SIGSTOP)  # so that all of them wait, however fast the server is
    silent = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(300)]
    one.process.send_signal(signal.SIGCONT)
    assert one.send("/predict", grey_png(250), "image/png")[0] == 200
    for connection in silent:
        connection.close()
    assert one.stop() == (0, "")


def test_a_request_has_one_content_type(behind: Callable[..., Behind]) -> None:
    one = behind()
    for kind in ("application/vnd.apache.parquet", "application/json"):
        assert one.ask(b"{}", ("content-TYPE", kind))[0] == 400
    assert one.held == []


@pytest.mark.parametrize("mark", [",", "\n", "\r", "\r\n", "[", "{", ",["])
def test_values_are_counted_whatever_parts_them(behind: Callable[..., Behind], mark: str) -> None:
    one = behind(values=100)
    assert one.ask(mark.encode() * (100 // len(mark)))[0] == 200
    assert one.ask(mark.encode() * 101)[0] == 413
    assert len(one.held) == 1


def send_chunked(one: Behind, size: int) -> socket.socket:
    connection = one.connect(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    part = b"10000\r\n" + bytes(2**16) + b"\r\n"
    with contextlib.suppress(OSError):
        connection.sendall(part * (size // 2**16) + b"0\r\n\r\n")
    return connection


@pytest.mark.parametrize("length", [True, False], ids=["Content-Length", "chunked"])
def test_what_is_held_never_passes_its_limit(behind: Callable[..., Behind], length: bool) -> None:
    """Twelve clients at once, with four times as much as may be held."""
    one = behind(body=MB, held=3 * MB)
    one.gate.clear()
    answers: list[bytes] = []

    def ask() -> None:
        if length:
            connection = one.connect(HEAD + b"Content-Length: %d\r\n\r\n" % MB)
            with contextlib.suppress(OSError):
                connection.sendall(bytes(MB))
        else:
            connection = send_chunked(one, MB)
        answers.append(connection.recv(2**16))

    clients = [threading.Thread(target=ask) for _ in range(12)]
    for client in clients:
        client.start()
    wait_for(lambda: len(answers) + len(one.held) == 12)
    assert 1 <= len(one.held) <= 3
    assert max(one.held) <= 3 * MB
    assert all(b"503" in answer and b"retry-after: 1" in answer for answer in answers)
    one.gate.set()
    for client in clients:
        client.join()
    wait_for(lambda: (one.guard.held, one.guard.requests) == (0, 0))
    assert one.ask(bytes(MB))[0] == 200


def test_a_body_that_stops_is_given_up(behind: Callable[..., Behind]) -> None:
    one = behind(pause_s=0.3)
    for sent in (b"Content-Length: 10\r\n\r\n12345", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"):
        assert b" 408 " in read_all(one.connect(HEAD + sent)).split(b"\r\n")[0]
    assert (one.guard.held, one.held) == (0, [])


def test_too_large_a_body_is_refused_once_it_is_sent(behind: Callable[..., Behind]) -> None:
    """Many clients listen only then; they would take an end of the connection before for a failure."""
    one = behind(body=MB)
    status, headers, text = one.ask(bytes(MB + 1))
    assert (status, headers["connection"]) == (413, "close")
    assert "larger than 1 MB" in json.loads(text)["message"]
    assert b" 413 " in read_all(send_chunked(one, 2 * MB)).split(b"\r\n")[0]
    assert one.guard.held == 0


def test_an_answer_that_nobody_takes_is_given_up(behind: Callable[..., Behind]) -> None:
    one = behind(pause_s=0.5)
    connection = one.connect(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    wait_for(lambda: one.guard.held == 32 * MB)
    wait_for(lambda: one.guard.held == 0)
    wait_for(lambda: not one.server.server_state.connections)
    connection.close()


def test_what_a_client_that_left_asked_is_given_up(behind: Callable[..., Behind]) -> None:
    one = behind()
    one.gate.clear()
    connection = one.connect(HEAD + b"Content-Length: 2\r\n\r\n{}")
    wait_for(lambda: one.held)
    connection.close()
    assert one.left.wait(5)
    wait_for(lambda: (one.guard.held, one.guard.requests) == (0, 0))


LOCAL = ("localhost", "localhost:5001", "127.0.0.1:5001", "127.8.8.8", "[::1]:5001", "a.localhost.", "LOCALHOST")
FOREIGN = ("evil.example", "evil.example:5001", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.1.2", "")


def test_names_by_which_the_server_is_called(behind: Callable[..., Behind]) -> None:
    """A page of elsewhere whose name is made to lead here would else be let in (DNS rebinding)."""
    here, team, anywhere = behind([]), behind(["faces.team.example"]), behind(None)
    for name in (*LOCAL, *FOREIGN):
        expected = 200 if name in LOCAL else 421
        assert (name, here.ask(b"{}", ("Host", name))[0]) == (name, expected)
        assert (name, team.ask(b"{}", ("Host", name))[0]) == (name, expected)
        assert anywhere.ask(b"{}", ("Host", name))[0] == 200
        assert here.ask(b"", ("Host", name), path="/ping")[0] == 200
    assert team.ask(b"{}", ("Host", "faces.team.example:80"))[0] == 200


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 421), ("0.0.0.0", 200)])
def test_which_names_count_hangs_on_the_address(bright_bundle: Path, host: str, status: int) -> None:
    one = Running("--model", str(bright_bundle), "--host", host)
    one.url = one.url.replace("0.0.0.0", "127.0.0.1")
    assert one.send("/version", Host="faces.example")[0] == status
    assert one.stop() == (0, "")
