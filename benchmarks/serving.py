"""A served model: latency in process and by REST, throughput, memory, start; against eager PyTorch and the package fer.

    python benchmarks/serving.py --bundle models/bundle [--fer-python fer/bin/python]

All take the same test faces of the prepared data, one picture a call, as PNG files. Server and client share a machine,
on 127.0.0.1. Saturation is what 8 clients get that ask again at once; at half of it, requests come at even intervals
whatever the answers do, and count from when they were due. ``fer`` runs in an environment of its own (pip install fer
"opencv-contrib-python<5" "setuptools<80"). It is given pixels and told that the whole picture is the face, without the
10 px that it would add on each side of a photo, so that only its classifier counts: its quantised net, which is its
default, and its Keras net.
"""

import argparse
import base64
import gc
import http.client
import io
import json
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

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def __call__(self, picture: bytes) -> dict:
        """The server's answer for a picture."""
        row = {"image": base64.b64encode(picture).decode()}
        body = json.dumps({"dataframe_records": [row], "params": {"faces": False}})
        self._connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(text)
        return json.loads(text)["predictions"][0]


def saturation(port: int, pictures: Sequence[bytes], seconds: float, clients: int = 8) -> float:
    """Answers a second that clients get who ask again at once."""
    counts, until = [], time.perf_counter() + seconds

    def ask() -> None:
        client, count = Client(port), 0
        while time.perf_counter() < until:
            client(pictures[count % len(pictures)])
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def at_rate(port: int, pictures: Sequence[bytes], rate: float, seconds: float) -> np.ndarray:
    """Milliseconds from when each request was due, at even intervals."""
    local = threading.local()
    first = time.perf_counter() + 0.2

    def ask(number: int) -> float:
        if not hasattr(local, "client"):
            local.client = Client(port)
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


def rest(bundle: Path, pictures: Sequence[bytes], rounds: int, seconds: float, options: list[str]) -> None:
    """Start the server, and measure it."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--model", str(bundle), "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        print(f"start to ready: {time.perf_counter() - start:.1f} s")
        port = int(line.split(" on ")[1].split()[0].rsplit(":", 1)[1])
        show("REST, idle", [timed(Client(port), pictures) for _ in range(rounds)])
        most = [saturation(port, pictures, seconds) for _ in range(rounds)]
        print(f"REST, saturated: {np.median(most):.0f} pictures/s ({min(most):.0f} to {max(most):.0f})")
        rate = float(np.median(most)) / 2
        show(f"REST, {rate:.0f}/s", [at_rate(port, pictures, rate, seconds) for _ in range(rounds)])
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        print(f"memory of the server: {sum(one.memory_info().rss for one in family) / 2**20:.0f} MiB")
    finally:
        server.terminate()
        server.wait()


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
    rest(arguments.bundle, pictures, arguments.rounds, arguments.seconds, arguments.serve)
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
