"""Malformed requests to MLflow's scoring application with our model in it: an answer a row or a 4xx, and no more."""

import base64
import functools
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIGNS = ("Traceback", "stack_trace", "site-packages", 'File \\"', str(Path(__file__).parent.parent))
KINDS = (
    "application/json", "application/json; charset=utf-8", "application/json; charset=latin-1", "text/csv",
    "text/plain", "application/vnd.apache.parquet", "multipart/form-data; boundary=x", "application/octet-stream",
    "", "x" * 2000,
)  # fmt: skip
FORMS = ("dataframe_records", "dataframe_split", "instances", "inputs")


def png(value: int = 200, size: tuple[int, int] = (20, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@functools.cache
def bomb() -> str:
    """A small file of 400 million pixels."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return text_of(buffer.getvalue())


def value(rng: np.random.Generator, depth: int = 0) -> object:
    """What a client may put where a picture belongs."""
    good = png(int(rng.integers(256)))
    cut = int(rng.integers(1, len(good)))
    spoilt = bytearray(good)
    spoilt[int(rng.integers(len(good)))] ^= int(rng.integers(1, 256))
    plain = [
        text_of(good), text_of(good[:cut]), text_of(bytes(spoilt)), text_of(rng.bytes(200)), "", " ", "=", "%%%",
        "\\ud800", "😀" * 50, "data:image/png;base64," + text_of(good), "data:,", None, True, 0, -1, 1e308,
        float("nan"), float("inf"),
        10**400, "A" * 100_000, "../../etc/passwd", "image", {"image": text_of(good)}, {"b64": text_of(good)},
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
        columns = [["image"], [name], ["id", name], name, [], [["image"]], [1], ["image", "image"]][
            rng.integers(8)
        ]
        rows = [[item] * int(rng.integers(3)) if rng.random() < 0.1 else [item] for item in values]
        return {"columns": columns, "data": rows, **({"index": [0]} if rng.random() < 0.1 else {})}
    kinds = [[{name: item} for item in values], values, {name: values}, {name: value(rng)}, value(rng)]
    return kinds[rng.integers(len(kinds))]


def body(rng: np.random.Generator) -> bytes:
    """JSON, CSV or something that was once like it."""
    form = str(rng.choice(FORMS))
    request: dict[str, object] = {form: content(rng, form)}
    if rng.random() < 0.3:
        request["params"] = [{"faces": value(rng)}, value(rng), {"json": value(rng)}, {"other": 1}][
            rng.integers(4)
        ]
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
        b"null", b"1e999", b"image\n" + text_of(png()).encode() + b"\njunk\n",
    ]  # fmt: skip
    return others[rng.integers(len(others))]


@pytest.fixture(scope="module")
def client(pyfunc_dir: Path):
    import mlflow.pyfunc
    from mlflow.pyfunc import scoring_server
    from starlette.testclient import TestClient

    app = scoring_server.init(mlflow.pyfunc.load_model(str(pyfunc_dir)))
    return TestClient(app, raise_server_exceptions=False)


def attack(client, seed: int, cases: int) -> dict[int, int]:
    """Send so many malformed requests and some good ones between; statuses and their counts."""
    statuses: dict[int, int] = {}
    faults = []
    good = json.dumps({"inputs": [text_of(png())]})
    for i in range(cases):
        rng = np.random.default_rng([seed, i])
        data, kind = body(rng), KINDS[0] if rng.random() < 0.7 else str(rng.choice(KINDS))
        method = (
            "POST"
            if rng.random() < 0.95
            else str(rng.choice(["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]))
        )
        path = (
            "/invocations"
            if rng.random() < 0.97
            else str(rng.choice(["/", "/ping", "/version", "/invocations/..", "/%00"]))
        )
        start = time.monotonic()
        response = client.request(method, path, content=data, headers={"Content-Type": kind})
        seconds = time.monotonic() - start
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        shown = [sign for sign in SIGNS if sign in response.text]
        if response.status_code >= 500 or shown or seconds > 5:
            faults.append(
                (i, response.status_code, method, path, kind[:40], data[:150], response.text[:200], seconds)
            )
        if i % 20 == 0:
            answer = client.post("/invocations", content=good, headers={"Content-Type": KINDS[0]})
            assert answer.json()["predictions"][0]["label"] == "bright"
    assert not faults, f"{len(faults)} faults; statuses {statuses}; the first: " + "\n".join(
        map(str, faults[:12])
    )
    return statuses


def test_hundreds_of_malformed_requests(client) -> None:
    statuses = attack(client, 0, 300)
    assert statuses[200] > 50
    assert statuses[400] > 50


@pytest.mark.slow
def test_thousands_of_malformed_requests(client, capsys: pytest.CaptureFixture[str]) -> None:
    statuses = attack(client, 1, 5000)
    with capsys.disabled():
        print(f"\nstatuses: {dict(sorted(statuses.items()))}")
