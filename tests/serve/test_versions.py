"""``hyojo serve --follow``: another version takes over while requests go on, or the old one stays."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builders import grey_png, load_script, write_bundle
from running import Running

from pipeline.tracking.pyfunc import build_pyfunc

BRIGHT = grey_png(250)
LABELS = {"load/1": "bright", "load/2": "light"}


class Clients(threading.Thread):
    """One that asks without a pause; what it was told that is not so."""

    def __init__(self, server: Running) -> None:
        super().__init__(daemon=True)
        self.server, self.over, self.faults, self.seen = server, False, [], set()

    def run(self) -> None:
        while not self.over:
            time.sleep(0.02)
            status, text, headers = self.server.send("/predict", BRIGHT, "image/png")
            row = json.loads(text)
            version = row.get("model_version")
            self.seen.add(version)
            if status != 200 or row["label"] != LABELS[version] or headers["x-model-version"] != version:
                self.faults.append((status, text, headers))


@pytest.fixture
def store(tmp_path: Path, pyfunc_dir: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A client of a store with three versions, of which the last can't be loaded; the first is champion."""
    folder, temporary = tmp_path / "store", tmp_path / "tmp"
    folder.mkdir()
    temporary.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    monkeypatch.setenv("TMPDIR", str(temporary))
    build_pyfunc(write_bundle(folder / "bundle", class_names=["light", "dim"]), folder / "second")
    broken = Path(shutil.copytree(pyfunc_dir, folder / "third"))
    (broken / "pyfunc_model.py").write_text("raise RuntimeError('of its own')")
    return load_script("benchmarks/load.py").register(folder, pyfunc_dir, folder / "second", broken)


def wait_for(true: Callable[[], object], seconds: float = 15) -> float:
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds
        time.sleep(0.05)
    return time.monotonic() - start


def read_metric(server: Running, name: str) -> float:
    lines = server.send("/metrics")[1].splitlines()
    return float(next(line for line in lines if line.startswith(name)).rsplit(" ", 1)[1])


def test_versions_take_over_while_requests_go_on(store: object, tmp_path: Path) -> None:
    often = "from pipeline.serve import server; server.LOOK_S = 0.2"
    server = Running("--model", "models:/load@champion", "--follow", prelude=often, cwd=tmp_path)
    client = Clients(server)
    client.start()
    (scratch,) = (tmp_path / "tmp").glob("hyojo-*")

    def serves(version: str) -> bool:
        return json.loads(server.send("/version")[1])["model_version"] == version

    def moves_to(number: int) -> None:
        store.set_registered_model_alias("load", "champion", str(number))

    assert serves("load/1")
    moves_to(2)
    wait_for(lambda: serves("load/2"))
    assert "load/2" in server.send("/")[1]
    wait_for(lambda: len(list(scratch.iterdir())) == 1)  # what was downloaded of the first is gone
    moves_to(3)
    wait_for(lambda: read_metric(server, 'hyojo_reloads_total{result="failed"}'))
    assert serves("load/2")
    store.delete_registered_model_alias("load", "champion")
    wait_for(lambda: read_metric(server, "hyojo_store_failures_total") > 1)
    moves_to(1)
    wait_for(lambda: serves("load/1"))
    client.over = True
    client.join()
    assert client.faults == []
    assert client.seen == {"load/1", "load/2"}
    assert read_metric(server, 'hyojo_reloads_total{result="done"}') == 2
    assert read_metric(server, 'hyojo_reloads_total{result="failed"}') == 1
    status, errors = server.stop()
    assert status == 0
    assert errors.count("load version 3 (champion) does not take over, and load version 2 (champion) stays") == 1
    assert errors.count("no look for a new version") == 1
    assert list((tmp_path / "tmp").glob("hyojo-*")) == []


STUCK = """
import sys, time
from pipeline.inference import predictor
answer = predictor.Predictor.predict_bytes
predictor.Predictor.predict_bytes = lambda self, pictures, *how: (
    time.sleep(60) if pictures[0] == b"hang" else answer(self, pictures, *how)
)
if "serve" in sys.argv:
    from pipeline.serve import places, server
    pass
    server._REFUSE_S = 1
"""


def test_a_server_that_is_stopped_ends_whatever_runs_and_leaves_nothing(
    bright_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a process that is stuck, a client that sends nothing and one that takes nothing."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = Running("--model", str(bright_bundle), prelude=STUCK)
    assert len(list(tmp_path.glob("hyojo-*"))) == 1
    asked: list[tuple[int, str, dict]] = []
    client = threading.Thread(target=lambda: asked.append(server.send("/predict", b"hang", "image/png")))
    client.start()
    idle = socket.create_connection(("127.0.0.1", server.port))
    time.sleep(0.3)
    start = time.monotonic()
    status, _ = server.stop()
    assert status == 0
    assert time.monotonic() - start < 4
    client.join()
    assert (asked[0][0], asked[0][2]["retry-after"]) == (503, "1")
    idle.close()
    assert list(tmp_path.glob("hyojo-*")) == []
