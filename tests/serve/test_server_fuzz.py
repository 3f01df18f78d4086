"""Malformed requests to ``hyojo serve``, over sockets.

An answer for each row or a 4xx, and no more: no stack trace, no path, no request that takes long.
"""

import contextlib
import functools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from builders import encode, grey_png, to_base64
from PIL import Image
from running import ROOT, Running

from pipeline.serve.guard import Limits

SIGNS = ("Traceback", "stack_trace", "site-packages", 'File \\"', str(Path(__file__).parents[2]))
KINDS = (
    "application/json", "application/json; charset=utf-8", "application/json; charset=latin-1", "text/csv",
    "text/plain", "application/vnd.apache.parquet", "multipart/form-data; boundary=x", "application/octet-stream",
    "", "x" * 2000,
)  # fmt: skip
METHODS = ("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
PATHS = (
    "/predict",
    "/predict?faces=true",
    "/predict?faces=%00",
    "/docs",
    "/metrics",
    "/ready",
    "/",
    "/ping",
    "/version",
    "/invocations/..",
    "/%00",
)
FORMS = ("dataframe_records", "dataframe_split", "instances", "inputs")


@functools.cache
def bomb() -> str:
    """A small file of 400 million pixels."""
    return to_base64(encode(Image.new("1", (20_000, 20_000))))


def value(rng: np.random.Generator, depth: int = 0) -> object:
    """What a client may put where a picture belongs."""
    good = grey_png(int(rng.integers(256)))
    cut = int(rng.integers(1, len(good)))
    spoilt = bytearray(good)
    spoilt[int(rng.integers(len(good)))] ^= int(rng.integers(1, 256))
    plain = [
        *map(to_base64, (good, good[:cut], bytes(spoilt), rng.bytes(200))), "", " ", "=", "%%%",
        "\\ud800", "😀" * 50, "data:image/png;base64," + to_base64(good), "data:,", None, True, 0, -1, 1e308,
        float("nan"), float("inf"),
        10**400, "A" * 100_000, "../../etc/passwd", "image", {"image": to_base64(good)}, {"b64": to_base64(good)},
        bomb(),
    ]  # fmt: skip
    if depth < 6 and rng.random() < 0.2:
        inner = [value(rng, depth + 1) for _ in range(rng.integers(4))]
        return inner if rng.random() < 0.5 else {str(i): item for i, item in enumerate(inner)}
    return plain[rng.integers(len(plain))]


def content(rng: np.random.Generator, form: str) -> object:
    """Rows in one of the forms, right or nearly so."""
    values = [value(rng) for _ in range(rng.choice([0, 1, 2, 5, 300], p=[0.1, 0.4, 0.3, 0.18, 0.02]))]
    name = str(rng.choice(["image", "img", "", "Image", "\u202e"], p=[0.7, 0.1, 0.05, 0.1, 0.05]))
    if form == "dataframe_split":
        columns = [["image"], [name], ["id", name], name, [], [["image"]], [1], ["image", "image"]][rng.integers(8)]
        rows = [[item] * int(rng.integers(3)) if rng.random() < 0.1 else [item] for item in values]
        return {"columns": columns, "data": rows, **({"index": [0]} if rng.random() < 0.1 else {})}
    kinds = [[{name: item} for item in values], values, {name: values}, {name: value(rng)}, value(rng)]
    return kinds[rng.integers(len(kinds))]


def body(rng: np.random.Generator) -> bytes:
    """JSON, CSV or something that was once like it."""
    form = str(rng.choice(FORMS))
    request: dict[str, object] = {form: content(rng, form)}
    if rng.random() < 0.3:
        request["params"] = [{"faces": value(rng)}, value(rng), {"json": value(rng)}, {"other": 1}][rng.integers(4)]
    if rng.random() < 0.05:
        request[str(rng.choice(FORMS))] = value(rng)
    data = json.dumps(request, ensure_ascii=bool(rng.random() < 0.5)).encode("utf-8", "surrogatepass")
    kind = rng.random()
    if kind < 0.6:
        return data
    if kind < 0.7:
        return data[: int(rng.integers(len(data) + 1))]
    if kind < 0.8:
        spoilt = bytearray(data)
        for at in rng.integers(0, len(spoilt), 3):
            spoilt[at] = int(rng.integers(256))
        return bytes(spoilt)
    others = [
        b"", b"\xff\xfe", data.decode("utf-8", "replace").encode("utf-16"), b"[" * 50_000, b'{"inputs":' * 3000,
        b"image\n", rng.bytes(500), b'image\n"' + data, b"image,image\n1,2\n3\n", b"PAR1" + rng.bytes(100) + b"PAR1",
        b"null", b"1e999", b"image\n" + to_base64(grey_png()).encode() + b"\njunk\n",
    ]  # fmt: skip
    return others[rng.integers(len(others))]


def attack(request: Callable[..., Any], seed: int, cases: int) -> Counter[int]:
    """Send so many malformed requests and some good ones between; statuses and their counts."""
    statuses: Counter[int] = Counter()
    faults = []
    good = json.dumps({"inputs": [to_base64(grey_png())]}).encode()
    for i in range(cases):
        rng = np.random.default_rng([seed, i])
        data, kind = body(rng), KINDS[0] if rng.random() < 0.7 else str(rng.choice(KINDS))
        method = "POST" if rng.random() < 0.95 else str(rng.choice(METHODS))
        path = "/invocations" if rng.random() < 0.9 else str(rng.choice(PATHS))
        start = time.monotonic()
        response = request(method, path, data, {"Content-Type": kind})
        seconds = time.monotonic() - start
        statuses[response.status_code] += 1
        shown = [sign for sign in SIGNS if sign in response.text]
        if response.status_code >= 500 or shown or seconds > 5:
            faults.append((i, response.status_code, method, path, kind[:40], data[:150], response.text[:200], seconds))
        if i % 20 == 0:
            answer = request("POST", "/invocations", good, {"Content-Type": KINDS[0]})
            assert answer.json()["predictions"][0]["label"] == "bright"
    assert not faults, f"{len(faults)} faults; statuses {statuses}; the first: " + "\n".join(map(str, faults[:12]))
    return statuses


def raw_attack(url: str, seed: int, cases: int) -> Counter[str]:
    """Send what is hardly HTTP, and look whether good requests are answered between; how the server took it."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    head = b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    body = json.dumps({"inputs": [to_base64(grey_png())]}).encode()
    length = b"Content-Length: %d\r\n\r\n"
    outcomes: Counter[str] = Counter()
    for i in range(cases):
        rng = np.random.default_rng([seed, i])
        cut = int(rng.integers(1, len(body)))
        sent = [
            head + length % len(body) + body[:cut],
            head + length % (10**12) + body,
            head + b"Content-Length: -1\r\n\r\n" + body,
            head + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\n" + body,
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body,
            head + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
            head + b"Expect: 100-continue\r\n" + length % len(body),
            head + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
            head[: int(rng.integers(len(head)))],
            head.replace(b"1.1", b"9.9") + b"\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00",
            rng.bytes(int(rng.integers(1, 2000))),
            (head + length % len(body) + body) * 20 + head + b"Connection: close\r\n" + length % len(body) + body,
        ][i % 15]
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            with contextlib.suppress(OSError):  # the server may have hung up before all was sent
                connection.sendall(sent)
                if i % 15 != 14:  # the last asks for nothing more; behind the others nothing more will come
                    connection.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(65536):
                    answer += part
        text = answer.decode("latin-1")
        assert not [sign for sign in SIGNS if sign in text], (i, sent[:100], text[:500])
        status = text[9:12] if text.startswith("HTTP/") else "hung up"
        assert not status.startswith("5"), (i, sent[:100], text[:500])
        outcomes[status] += 1
        if i % 5 == 0:
            good = requests.post(f"{url}/invocations", json={"inputs": [to_base64(grey_png())]}, timeout=10)
            assert good.json()["predictions"][0]["label"] == "bright"
    return outcomes


THOUSANDS = pytest.param(5000, marks=pytest.mark.slow)


@pytest.mark.parametrize("cases", [200, THOUSANDS])
def test_malformed_requests(running: Running, cases: int) -> None:
    with requests.Session() as session:

        def request(method: str, path: str, data: bytes, headers: dict[str, str]) -> object:
            return session.request(method, running.url + path, data=data, headers=headers, timeout=30)

        statuses = attack(request, cases, cases)
    assert statuses[200] > 20
    assert statuses[400] > 20
    outcomes = raw_attack(running.url, cases, max(45, cases * 3 // 10))
    assert outcomes["400"] >= 9
    assert outcomes["200"] >= 3


@pytest.mark.parametrize(
    ("seconds", "promote"),
    [(5, 0), pytest.param(300, 2, marks=pytest.mark.slow), pytest.param(600, 30, marks=pytest.mark.slow)],
)
def test_under_load_all_is_answered_and_memory_stays(
    bright_bundle: Path, seconds: int, promote: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Many clients at once, without a pause, while versions take over; a short run can't tell memory's growth."""
    growth = "0.1" if seconds > 500 else "1"
    command = [sys.executable, "benchmarks/load.py", "--bundle", str(bright_bundle), "--growth", growth]
    command += ["--seconds", str(seconds), "--promote", str(promote), "--", "--no-page"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 faults, 0 clients stuck" in done.stdout
    if promote:
        assert int(re.search(r"(\d+) promotions", done.stdout)[1]) >= 15
        with capsys.disabled():
            print("\n" + done.stdout)


def bombs() -> list[tuple[bytes, bytes]]:
    """Kinds and bodies of 32 MB that take far more memory when they are read."""
    size = 2**25 - 100
    return [
        (b"application/json", b'{"inputs": ["' + b"A" * size + b'"]}'),
        (b"application/json", b'{"inputs": ["' + "😀".encode() + b"A" * (size - 10) + b'"]}'),
        (b"application/json", b'{"inputs": [' + b"[" * (size // 2) + b"]" * (size // 2) + b"]}"),
        (b"application/json", b'{"inputs": [' + b"1," * (size // 2) + b"1]}"),
        (b"application/json", b'{"inputs": ["' + b"\\u0041" * (size // 6) + b'"]}'),
        (b"text/csv", b"image\r" + b"A\r" * (size // 2)),
        (b"text/csv", b'image\n"' + b"A" * size + b'"'),
        (b"application/json\r\nContent-Type: application/vnd.apache.parquet", b"PAR1" + bytes(size)),
    ]


@pytest.mark.slow
def test_attacks_leave_the_server_as_it_was(bright_bundle: Path) -> None:
    """Thirty-two clients with bombs, one of them chunked, and 300 that are silent."""
    server = Running("--model", str(bright_bundle))
    process = psutil.Process(server.process.pid)
    before = peak = process.memory_info().rss
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
    answers: list[bytes] = []

    def attack_with(kind: bytes, body: bytes, chunked: bool) -> None:
        head = b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: " + kind + b"\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            with contextlib.suppress(OSError):
                if chunked:
                    connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body))
                    connection.sendall(body)
                    connection.sendall(b"\r\n0\r\n\r\n")
                else:
                    connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
                    connection.sendall(body)
            with contextlib.suppress(ConnectionError):
                answers.append(connection.recv(2**16))

    given = [(*bomb, i % 4 == 3) for i in range(4) for bomb in bombs()]
    clients = [threading.Thread(target=attack_with, args=one) for one in given]
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.02)
    statuses = Counter(answer[9:12] for answer in answers)
    assert set(statuses) <= {b"200", b"400", b"413", b"503"}, statuses
    assert all(b"retry-after" in answer for answer in answers if answer[9:12] == b"503")
    assert peak - before < Limits.held + 16 * Limits.body
    assert server.send("/ready")[0] == 200
    assert server.send("/predict", grey_png(250), "image/png")[0] == 200
    for connection in silent:
        connection.close()
    assert server.stop() == (0, "")
