"""A served model at saturation: are all requests answered, how long do they take, and does its memory grow?

    python benchmarks/load.py [--bundle models/bundle] [--seconds 600] [--clients 32] [-- options of hyojo serve]

Starts ``hyojo serve`` and as many clients as asked, on 127.0.0.1, who ask again at once: mostly for one picture, now
and then for 20 of which one is broken, over connections that they keep and now and then give up. Every answer is held
against what the model says in process. Prints a line for each tenth of the time. Fails if one answer is not right, or
if the server's memory grows, from the second tenth to the last, by more than --growth.
"""

import argparse
import base64
import http.client
import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from pipeline.inference.predictor import Predictor

PICTURES, MANY, PARTS = 64, 20, 10


class Client(threading.Thread):
    """Asks until the time is over.

    Attributes:
        times: When each answer came, and the seconds it took.
        faults: Answers that were not as they should be.
        pictures: How many were answered.
    """

    def __init__(self, port: int, until: float, requests: list[tuple[bytes, list[str | None]]], seed: int) -> None:
        super().__init__(daemon=True)
        self._port, self._until, self._requests = port, until, requests
        self._rng = np.random.default_rng(seed)
        self.times: list[tuple[float, float]] = []
        self.faults: list[str] = []
        self.pictures = 0

    def run(self) -> None:
        """Keep a connection for some hundred requests, then open another."""
        while time.monotonic() < self._until:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            for _ in range(self._rng.integers(1, 400)):
                if time.monotonic() > self._until or not self._ask(connection):
                    break
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> bool:
        """One request; whether the connection can be gone on with."""
        body, labels = self._requests[self._rng.integers(len(self._requests))]
        start = time.monotonic()
        try:
            connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.faults.append(f"{type(error).__name__}: {error}")
            return False
        end = time.monotonic()
        self.times.append((end, end - start))
        found = None
        if answer.status == 200:
            found = [row["label"] for row in json.loads(text)["predictions"]]
        if found != labels:
            self.faults.append(f"{answer.status}: {text[:200]!r}")
        self.pictures += len(labels)
        return True


def make_requests(predictor: Predictor) -> list[tuple[bytes, list[str | None]]]:
    """Bodies of requests, and the labels that are right for them: nine of one picture to one of many."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        coarse = rng.integers(0, 256, (6, 6), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    groups = [[picture] for picture in pictures]
    for start in range(0, PICTURES, 9):
        chosen = [pictures[i % PICTURES] for i in range(start, start + MANY - 1)]
        groups.append([*chosen, b"no picture"])
    requests = []
    for group in groups:
        labels = [row["label"] for row in predictor.predict_bytes(group, False)]
        rows = [{"image": base64.b64encode(picture).decode()} for picture in group]
        body = json.dumps({"dataframe_records": rows, "params": {"faces": False}}).encode()
        requests.append((body, labels))
    return requests


def memory_mb(process: psutil.Process) -> float:
    """Resident memory of a server and its workers, MB."""
    return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]) / 1e6


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="models/bundle", type=Path, help="(%(default)s)")
    parser.add_argument("--seconds", default=600.0, type=float, help="(%(default)s)")
    parser.add_argument("--clients", default=32, type=int, help="(%(default)s)")
    parser.add_argument("--growth", default=0.1, type=float, help="of memory that is allowed (%(default)s)")
    parser.add_argument("serve", nargs="*", help="options of hyojo serve, behind --")
    arguments = parser.parse_args()
    requests = make_requests(Predictor(arguments.bundle))
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--model", str(arguments.bundle), "--port", "0"]
    server = subprocess.Popen([*command, *arguments.serve], stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        print(line, end="")
        port = int(line.split(" on ")[1].split()[0].rsplit(":", 1)[1])
        process = psutil.Process(server.pid)
        start = time.monotonic()
        clients = [Client(port, start + arguments.seconds, requests, seed) for seed in range(arguments.clients)]
        for client in clients:
            client.start()
        memory: list[list[float]] = []
        for part in range(PARTS):
            until, found = start + (part + 1) * arguments.seconds / PARTS, []
            while time.monotonic() < until:
                time.sleep(max(0.0, min(1.0, arguments.seconds / PARTS / 5, until - time.monotonic())))
                found.append(memory_mb(process))
            memory.append(found)
            report(part, start, arguments.seconds / PARTS, clients, found)
        for client in clients:
            client.join(60)
        stuck = sum(client.is_alive() for client in clients)
    finally:
        server.terminate()
        status = server.wait(60)
    faults = [fault for client in clients for fault in client.faults]
    growth = np.median(memory[-1]) / np.median(memory[1]) - 1
    print(
        f"{sum(len(client.times) for client in clients):,} requests, {sum(client.pictures for client in clients):,} "
        f"pictures, {len(faults)} faults, {stuck} clients stuck; memory {growth:+.1%}; the server stopped with {status}"
    )
    if faults or stuck or status:
        sys.exit("\n".join(faults[:10]) or "a client was stuck, or the server did not stop well")
    if growth > arguments.growth:
        sys.exit(f"memory grew by {growth:.1%}; {arguments.growth:.0%} is allowed")


def report(part: int, start: float, length: float, clients: list[Client], memory: list[float]) -> None:
    """Print what happened in one part of the time."""
    first = start + part * length
    took = [seconds for client in clients for end, seconds in list(client.times) if first <= end < first + length]
    p50, p99 = np.percentile(took, (50, 99)) * 1e3 if took else (np.nan, np.nan)
    print(
        f"{part * length:5.0f} to {(part + 1) * length:.0f} s: {len(took) / length:.0f} requests/s, p50 {p50:.0f} ms, "
        f"p99 {p99:.0f} ms, slowest {max(took, default=np.nan) * 1e3:.0f} ms, memory {np.median(memory):.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
