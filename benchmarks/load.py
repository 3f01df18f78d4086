"""A served model at saturation: are all requests answered, how long do they take, and does its memory grow?

    python benchmarks/load.py [--bundle models/bundle] [--seconds 600] [--clients 32] [--promote 30]
        [-- options of hyojo serve]

Starts ``hyojo serve`` and as many clients as asked, on 127.0.0.1, who ask again at once: mostly for one picture, now
and then for 20 of which one is broken, over connections that they keep and now and then give up. Every answer is held
against what the model says in process. Prints a line for each tenth of the time. Fails if one answer is not right, or
if the server's memory grows, from the second tenth to the last, by more than --growth.

With --promote the bundle is registered twice, in a store of this program's own, with other names for the classes the
second time, and the server follows the alias champion, which moves to the other version so many seconds after one has
taken over. An answer is right if it is that of the version that it names.
"""

import argparse
import base64
import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from mlflow import MlflowClient
from PIL import Image

from pipeline.inference.bundle import RECORD, seal
from pipeline.inference.predictor import Predictor
from pipeline.tracking.pyfunc import build_pyfunc

PICTURES, MANY, PARTS = 64, 20, 10
MODEL, ALIAS = "load", "champion"
OTHER = " (2)"  # behind the names of the second version's classes

Request = tuple[bytes, list[str | None]]


class Client(threading.Thread):
    """Asks until the time is over.

    Attributes:
        times: When each answer came, and the seconds it took.
        faults: Answers that were not as they should be.
        pictures: How many were answered.
    """

    def __init__(self, port: int, until: float, requests: list[Request], seed: int) -> None:
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
        found, behind = None, OTHER if answer.headers.get("x-model-version", "").endswith("/2") else ""
        if answer.status == 200:
            found = [row["label"] for row in json.loads(text)["predictions"]]
        if found != [label and label + behind for label in labels]:
            self.faults.append(f"{answer.status}: {text[:200]!r}")
        self.pictures += len(labels)
        return True


def make_requests(predictor: Predictor) -> list[Request]:
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


def register(folder: Path, *models: Path) -> MlflowClient:
    """Make a store in a folder, with a version of each model as MLflow keeps it; the first is champion."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    client.create_registered_model(MODEL)
    for model in models:
        client.create_model_version(MODEL, model.as_uri())
    client.set_registered_model_alias(MODEL, ALIAS, "1")
    return client


def register_twice(folder: Path, bundle: Path) -> MlflowClient:
    """Register a bundle, and again with ``OTHER`` behind the names of its classes."""
    other = Path(shutil.copytree(bundle, folder / "other"))
    record = json.loads((other / RECORD).read_text())
    record["class_names"] = [name + OTHER for name in record["class_names"]]
    (other / RECORD).write_text(json.dumps(seal(other, record)))
    models = [folder / "one", folder / "two"]
    for source, model in zip((bundle, other), models):
        build_pyfunc(source, model)
    return register(folder, *models)


def promote(client: MlflowClient, port: int, every: float, until: float) -> list[float]:
    """Move the alias from one version to the other until the time is over; the seconds until each answered."""
    took: list[float] = []
    while time.monotonic() + every < until:
        time.sleep(every)
        number, start = 2 - len(took) % 2, time.monotonic()
        client.set_registered_model_alias(MODEL, ALIAS, str(number))
        while read_version(port) != f"{MODEL}/{number}":
            time.sleep(0.1)
            if time.monotonic() > start + 60:
                raise TimeoutError(f"version {number} does not take over")
        took.append(time.monotonic() - start)
    return took


def read_version(port: int) -> str:
    """The version that answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/version", timeout=60) as answer:
        return json.load(answer)["model_version"]


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
    parser.add_argument("--promote", default=0.0, type=float, metavar="S", help="seconds from one version to the other")
    parser.add_argument("serve", nargs="*", help="options of hyojo serve, behind --")
    arguments = parser.parse_args()
    requests = make_requests(Predictor(arguments.bundle))
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        client = None
        model = [str(arguments.bundle)]
        if arguments.promote:
            client = register_twice(Path(folder), arguments.bundle)
            model = [f"models:/{MODEL}@{ALIAS}", "--follow"]
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        command = [sys.executable, "-m", "pipeline.cli", "serve", "--port", "0", "--model", *model, *arguments.serve]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            problems = load(server, requests, client, arguments)
        finally:
            server.terminate()
            status = server.wait(60)
    print(f"the server stopped with {status}")
    if problems or status:
        sys.exit("\n".join(problems[:10]) or "the server did not stop well")


def load(
    server: subprocess.Popen, requests: list[Request], client: MlflowClient | None, arguments: argparse.Namespace
) -> list[str]:
    """Have clients ask the server, and versions promoted; what was not as it should be."""
    line = server.stdout.readline()
    print(line, end="")
    port = int(line.split(" on ")[1].split()[0].rsplit(":", 1)[1])
    threading.Thread(target=server.stdout.read, daemon=True).start()
    process, start = psutil.Process(server.pid), time.monotonic()
    until, length = start + arguments.seconds, arguments.seconds / PARTS
    with ThreadPoolExecutor(1) as pool:
        moves = pool.submit(promote, client, port, arguments.promote, until) if client else None
        clients = [Client(port, until, requests, seed) for seed in range(arguments.clients)]
        for one in clients:
            one.start()
        memory: list[list[float]] = []
        for part in range(PARTS):
            end, found = start + (part + 1) * length, []
            while time.monotonic() < end:
                time.sleep(max(0.0, min(1.0, length / 5, end - time.monotonic())))
                found.append(memory_mb(process))
            memory.append(found)
            report(part, start, length, clients, found)
        for one in clients:
            one.join(60)
    stuck = sum(one.is_alive() for one in clients)
    faults = [fault for one in clients for fault in one.faults]
    growth = np.median(memory[-1]) / np.median(memory[1]) - 1
    print(
        f"{sum(len(one.times) for one in clients):,} requests, {sum(one.pictures for one in clients):,} pictures, "
        f"{len(faults)} faults, {stuck} clients stuck; memory {growth:+.1%}"
    )
    if stuck:
        faults.append("a client was stuck")
    if growth > arguments.growth:
        faults.append(f"memory grew by {growth:.1%}; {arguments.growth:.0%} is allowed")
    if moves:
        took = moves.result()
        print(f"{len(took)} promotions, each in {min(took):.1f} to {max(took):.1f} s, half in {np.median(took):.1f}")
    return faults


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
