"""A served model: latency in process and by REST, throughput, memory, start; against eager PyTorch and the package fer.

    python benchmarks/serving.py --bundle models/bundle [--former TREE] [--fer-python fer/bin/python]

All take the same test faces of the prepared data, one picture a call, as PNG files. Server and client share a machine,
on 127.0.0.1. Saturation is what 8 clients get that ask again at once. At half of that of the slowest server, requests
come at even intervals whatever the answers do, and count from when they were due. Servers are asked in turns, in every
round each: a bare endpoint of FastAPI and ONNX Runtime (same decoding, its threads are those of Starlette), this one
with a picture's bytes, with JSON, and with batches of one request, and the former server if its tree is given.

``fer`` runs in an environment of its own (pip install fer "opencv-contrib-python<5" "setuptools<80"). It is given
pixels and told that the whole picture is the face, without the 10 px that it would add on each side of a photo, so that
only its classifier counts: its quantised net, which is its default, and its Keras net.
"""

import argparse
import base64
import gc
import http.client
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from sklearn.metrics import f1_score

from pipeline.core.dataset import PREPARED, load_prepared
from pipeline.inference.graphs import RUNTIMES
from pipeline.inference.predictor import Predictor

FER = """
import json, sys, time
import cv2, numpy as np
from fer.fer import FER
faces, results = np.load(sys.argv[1]), {}
for name, quantised in (("fer, quantised", True), ("fer, Keras", False)):
    detector, times, labels = FER(offsets=(0, 0), use_tflite=quantised), [], []
    for i, face in enumerate([*faces[:20], *faces]):
        start = time.perf_counter()
        image = cv2.cvtColor(face, cv2.COLOR_GRAY2BGR)
        found = detector.detect_emotions(image, face_rectangles=[(0, 0, *face.shape[::-1])])
        if i >= 20:
            times.append(time.perf_counter() - start)
            labels.append(max(found[0]["emotions"], key=found[0]["emotions"].get))
    results[name] = times, labels
print("RESULT" + json.dumps(results))
"""

# An endpoint as short as it can be, which gives no more than the probabilities.
BARE = """
import sys
import numpy as np, onnxruntime, uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from pipeline.core.address import open_listener
from pipeline.inference.images import load
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
given = session.get_inputs()[0]
_, size, _, channels = given.shape
app = FastAPI()

def classify(data):
    return session.run(None, {given.name: load(data, size, channels)[None]})[0][0].tolist()

@app.post("/predict")
async def predict(request: Request):
    return {"probabilities": await run_in_threadpool(classify, await request.body())}

listener = open_listener("127.0.0.1", 0)
print(f"Serving on http://127.0.0.1:{listener.getsockname()[1]} ", flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])
"""


def timed(call: Callable[[bytes], object], pictures: Sequence[bytes]) -> np.ndarray:
    """Milliseconds of each call, one after the other, once warm."""
    for picture in pictures[:20]:
        call(picture)
    times = []
    for picture in pictures:
        start = time.perf_counter()
        call(picture)
        times.append(time.perf_counter() - start)
    return np.array(times) * 1e3


def show(name: str, rounds: Sequence[np.ndarray]) -> None:
    """Median and p99 of all calls, with the range of both over rounds."""
    each = np.array([np.percentile(times, (50, 99)) for times in rounds])
    p50, p99 = np.percentile(np.concatenate(rounds), (50, 99))
    print(
        f"{name}: p50 {p50:.2f} ms ({each[:, 0].min():.2f} to {each[:, 0].max():.2f}), p99 {p99:.2f} ms "
        f"({each[:, 1].min():.2f} to {each[:, 1].max():.2f}), {len(rounds)} x {len(rounds[0])} pictures"
    )


def scores(name: str, labels: Sequence[str], truth: Sequence[str]) -> None:
    """Accuracy and macro-F1 on the same faces."""
    right = np.mean([label == true for label, true in zip(labels, truth)])
    print(f"{name}: accuracy {right:.3f}, macro-F1 {f1_score(truth, labels, average='macro'):.3f}, {len(truth)} faces")


class Client:
    """One connection that stays open."""

    def __init__(self, server: "Server") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self._raw = server.raw

    def __call__(self, picture: bytes) -> dict:
        """The server's answer for a picture."""
        if self._raw:
            self._connection.request("POST", "/predict?faces=false", picture, {"Content-Type": "image/png"})
        else:
            row = {"image": base64.b64encode(picture).decode()}
            body = json.dumps({"dataframe_records": [row], "params": {"faces": False}})
            self._connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(text)
        return json.loads(text) if self._raw else json.loads(text)["predictions"][0]


class Server:
    """A server in a process of its own.

    Attributes:
        port: Where it listens.
        raw: Whether a picture's bytes are the request, and not base64 in JSON.
        ready_s: From its start to when it says that it is ready.
    """

    def __init__(self, command: Sequence[str], raw: bool, tree: Path = Path()) -> None:
        start = time.perf_counter()
        environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
        self._process = subprocess.Popen(
            [sys.executable, *command], cwd=tree, stdout=subprocess.PIPE, text=True, env=environment
        )
        line = self._process.stdout.readline()
        self.ready_s, self.raw = time.perf_counter() - start, raw
        self.port = int(line.split(" on ")[1].split()[0].rsplit(":", 1)[1])

    def memory(self) -> float:
        """MiB, of all its processes."""
        process = psutil.Process(self._process.pid)
        return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]) / 2**20

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


def saturate(server: Server, pictures: Sequence[bytes], seconds: float, clients: int = 8) -> np.ndarray:
    """Milliseconds of the answers that clients get who ask again at once, for so long."""
    times, until = [], time.perf_counter() + seconds

    def ask() -> None:
        client, count, now = Client(server), 0, time.perf_counter()
        while now < until:
            client(pictures[count % len(pictures)])
            count, former, now = count + 1, now, time.perf_counter()
            times.append(now - former)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.array(times) * 1e3


def ask_at_rate(server: Server, pictures: Sequence[bytes], rate: float, seconds: float) -> np.ndarray:
    """Milliseconds from when each request was due, at even intervals."""
    local = threading.local()
    first = time.perf_counter() + 0.2

    def ask(number: int) -> float:
        if not hasattr(local, "client"):
            local.client = Client(server)
        due = first + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        local.client(pictures[number % len(pictures)])
        return time.perf_counter() - due

    with ThreadPoolExecutor(16) as pool:
        return np.array(list(pool.map(ask, range(int(rate * seconds))))) * 1e3


def in_process(name: str, predictor: Predictor, pictures: Sequence[bytes], rounds: int) -> None:
    """Measure a predictor that is given one picture a call, and all of them at once."""
    one = [timed(lambda data: predictor.predict_bytes([data], False), pictures) for _ in range(rounds)]
    show(name, one)
    print(f"{name}: {1e3 / np.concatenate(one).mean():.0f} pictures/s one by one")
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        predictor.predict_bytes(pictures, False)
        rates.append(len(pictures) / (time.perf_counter() - start))
    print(f"{name}: {np.median(rates):.0f} pictures/s in batches ({min(rates):.0f} to {max(rates):.0f}), one thread")


def start_servers(bundle: Path, former: Path | None, options: list[str]) -> dict[str, Server]:
    """The server as it is, with picture bytes and with JSON, without batches; a bare endpoint; the former one."""
    serve = ["serve", "--model", str(bundle.resolve()), "--port", "0", *options]
    alone = "from pipeline.serve import pool; pool.BATCH_SIZE = 1; from pipeline.cli import main; main()"
    servers = {
        "bare": Server(["-c", BARE, str(bundle.resolve() / "model.onnx")], True),
        "/predict": Server(["-m", "pipeline.cli", *serve], True),
        "/invocations": Server(["-m", "pipeline.cli", *serve], False),
        "/predict, no batches": Server(["-c", alone, *serve], True),
    }
    if former:
        servers["former /invocations"] = Server(["-m", "pipeline.cli", *serve], False, former)
    return servers


def rest(
    servers: dict[str, Server], predictor: Predictor, pictures: Sequence[bytes], arguments: argparse.Namespace
) -> None:
    """Measure servers in turns, round after round, and print how they compare with a bare endpoint and the former."""
    for name, server in servers.items():
        print(f"{name}: start to ready {server.ready_s:.2f} s")
    idle: dict[str, list[np.ndarray]] = {name: [] for name in ("in process", *servers)}
    full, half = ({name: [] for name in servers} for _ in range(2))
    for _ in range(arguments.rounds):
        idle["in process"].append(timed(lambda data: predictor.predict_bytes([data], False), pictures))
        for name, server in servers.items():
            idle[name].append(timed(Client(server), pictures))
    for _ in range(arguments.rounds):
        for name, server in servers.items():
            full[name].append(saturate(server, pictures, arguments.seconds))
    rate = min(np.median([len(times) for times in full[name]]) for name in servers) / arguments.seconds / 2
    for _ in range(arguments.rounds):
        for name, server in servers.items():
            half[name].append(ask_at_rate(server, pictures, rate, arguments.seconds))
    for name, rounds in idle.items():
        show(f"idle, {name}", rounds)
        over = np.median(np.concatenate(rounds)) - np.median(np.concatenate(idle["in process"]))
        print(f"  {over:+.2f} ms over in process at p50")
    for about, measured in (("saturated", full), (f"{rate:.0f} requests/s, half of the least", half)):
        for name, rounds in measured.items():
            show(f"{about}, {name}", rounds)
            for other in ("bare", "former /invocations"):
                if other in servers and other != name:
                    own, its = (np.percentile(np.concatenate(measured[each]), (50, 99)) for each in (name, other))
                    print(f"  times of {other}: p50 x {own[0] / its[0]:.2f}, p99 x {own[1] / its[1]:.2f}")
            if measured is full:
                print(f"  {np.median([len(times) for times in rounds]) / arguments.seconds:.0f} requests/s")
    for name, server in servers.items():
        print(f"{name}: memory {server.memory():.0f} MiB")


def eager(train_dir: Path, predictor: Predictor) -> Callable[[bytes], object]:
    """The trained net in PyTorch, float32, on one thread as well, with the same decoding and the same views."""
    import torch

    from pipeline.inference import images
    from pipeline.models.weights import load_classifier

    torch.set_num_threads(1)
    classifier = load_classifier(train_dir, "cpu").eval()
    classifier.views = predictor.bundle.get("views", [])

    def call(picture: bytes) -> object:
        with torch.inference_mode():
            image = images.load(picture, predictor.img_size, predictor.channels)
            return classifier(torch.from_numpy(image[None])).numpy()

    return call


def fer(python: str, faces: np.ndarray, truth: list[str]) -> None:
    """The package fer in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "faces.npy"
        np.save(path, faces)
        done = subprocess.run([python, "-c", FER, str(path)], capture_output=True, text=True, check=False)
    if "RESULT" not in done.stdout:
        sys.exit(f"fer failed: {done.stderr[-500:]}")
    for name, (times, labels) in json.loads(done.stdout.split("RESULT")[1]).items():
        show(name, np.array_split(np.array(times) * 1e3, 3))
        print(f"{name}: {len(times) / sum(times):.0f} pictures/s one by one")
        scores(name, labels, truth)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="models/bundle", type=Path, help="(%(default)s)")
    parser.add_argument("--train", default="models/train", type=Path, help="for eager PyTorch (%(default)s)")
    parser.add_argument("--prepared", default=PREPARED, type=Path, help="(%(default)s)")
    parser.add_argument("--n", default=1000, type=int, help="faces (%(default)s)")
    parser.add_argument("--rounds", default=3, type=int, help="(%(default)s)")
    parser.add_argument("--seconds", default=4.0, type=float, help="of each round under load (%(default)s)")
    parser.add_argument("--fer-python", help="a Python that has the package fer")
    parser.add_argument("--former", type=Path, help="a tree of this project with another server, to compare with")
    parser.add_argument("serve", nargs="*", help="options of hyojo serve, behind --")
    arguments = parser.parse_args()
    prepared = load_prepared(arguments.prepared)
    test = prepared.split("test")
    chosen = np.sort(np.random.default_rng(0).permutation(len(test.targets))[: arguments.n])
    faces = np.asarray(test.images[chosen])
    truth = [prepared.class_names[target] for target in test.targets[chosen]]
    pictures = []
    for face in faces:
        buffer = io.BytesIO()
        Image.fromarray(face.squeeze()).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    gc.freeze()  # a collection of all that is loaded here would count as the server's time
    runtimes = ["onnx", "int8"] if (arguments.bundle / RUNTIMES["int8"]).exists() else [None]
    for runtime in runtimes:
        predictor = Predictor(arguments.bundle, runtime, threads=1)
        in_process("in process" + (", int8" if runtime == "int8" else ""), predictor, pictures, arguments.rounds)
        scores("served model", [row["label"] for row in predictor.predict_bytes(pictures, False)], truth)
    servers = start_servers(arguments.bundle, arguments.former, arguments.serve)
    try:
        rest(servers, Predictor(arguments.bundle, threads=1), pictures, arguments)
    finally:
        for server in servers.values():
            server.stop()
    if (arguments.train / "weights.pt").exists():
        call = eager(arguments.train, predictor)
        show("eager PyTorch", [timed(call, pictures) for _ in range(arguments.rounds)])
    if arguments.fer_python:
        fer(
            arguments.fer_python,
            faces[..., 0] if faces.shape[-1] == 1 else faces.mean(-1).astype(np.uint8),
            truth,
        )


if __name__ == "__main__":
    main()
