"""``hyojo serve`` as clients see it: MLflow's paths, the page, limits, start and stop; and what its imports need."""

import argparse
import base64
import json
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from builders import MALFORMED, ROOT, grey_png, to_base64, write_bundle
from running import Running

from pipeline.cli import ui
from pipeline.core import address
from pipeline.core.errors import UserError
from pipeline.inference.predictor import Predictor
from pipeline.serve import locate, server, watch
from pipeline.serve.page import render_files

if TYPE_CHECKING:
    from starlette.testclient import TestClient


def body(*pictures: bytes, **params: object) -> bytes:
    rows = [{"image": to_base64(data)} for data in pictures]
    return json.dumps({"dataframe_records": rows} | ({"params": params} if params else {})).encode()


def test_rest_answers_as_the_model_itself(running: Running, bright_bundle: Path) -> None:
    expected = Predictor(bright_bundle).predict_bytes([grey_png(30), b"junk", grey_png(250)])
    status, text, headers = running.send("/invocations", body(grey_png(30), b"junk", grey_png(250)))
    assert status == 200
    rows = json.loads(text)["predictions"]
    assert [row["label"] for row in rows] == ["dark", None, "bright"]
    assert rows[0]["probabilities"] == pytest.approx(expected[0]["probabilities"])
    assert rows[1]["error"] == expected[1]["error"]
    assert headers["server-timing"].startswith("app;dur=")
    assert headers["x-model-version"] == json.loads(text)["model_version"] == "b" * 12
    csv = b"image\n" + base64.b64encode(grey_png(30)) + b"\n"
    assert json.loads(running.send("/invocations", csv, "text/csv")[1])["predictions"] == rows[:1]
    assert running.send("/ping")[0] == running.send("/health")[0] == 200
    assert running.send("/ready")[0] == 200
    about = json.loads(running.send("/version")[1])
    assert (about["run_id"], about["digest"], about["classes"]) == ("a" * 32, "b" * 64, ["bright", "dark"])


@pytest.mark.parametrize("kind", ["image/png", "text/plain", "application/x-www-form-urlencoded", "image/jpeg", ""])
def test_the_bytes_of_a_picture_decide_its_format(running: Running, kind: str) -> None:
    status, text, _ = running.send("/predict?faces=false", grey_png(250), kind)
    row = json.loads(text)
    assert (status, row["label"], row["error"], row["model_version"]) == (200, "bright", None, "b" * 12)
    assert "brightness" not in row
    assert json.loads(running.send("/predict?describe=true", grey_png(250), kind)[1])["brightness"] == 250
    assert json.loads(running.send("/predict", b"junk", kind)[1])["error"]
    assert running.send("/predict?faces=perhaps", grey_png(250), kind)[0] == 400


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_predict_says_what_it_takes(running: Running, kind: str) -> None:
    status, text, _ = running.send("/predict", b"{}", kind)
    assert status == 415
    assert "--data-binary" in json.loads(text)["message"]


SPLIT = {"columns": ["id", "image"], "data": [[1, to_base64(grey_png(250))], [2, "junk"], [3, None]]}


@pytest.mark.parametrize(
    "request_body",
    [
        {"dataframe_split": SPLIT},
        {"dataframe_records": [{"image": to_base64(grey_png(30))}, {"image": "%"}, {"other": 1}]},
        {"inputs": {"image": [to_base64(grey_png(30)), to_base64(grey_png(250))]}},
        {"inputs": [to_base64(grey_png(30))], "params": {"faces": False}},
        {"inputs": [to_base64(grey_png(30))], "params": {"json": True}},
        {"dataframe_records": [{"image": to_base64(grey_png(30))}], "params": None},
    ],
    ids=str,
)
def test_mlflows_own_server_answers_the_same(running: Running, scoring_app: "TestClient", request_body: dict) -> None:
    own = json.loads(running.send("/invocations", json.dumps(request_body).encode())[1])
    theirs = scoring_app.post("/invocations", json=request_body)
    assert theirs.status_code == 200
    assert own["predictions"] == theirs.json()["predictions"]


@pytest.mark.parametrize("text", ['{"inputs": ["\\ud800", "GOOD"]}', '{"inputs": ["GOOD", {"\\udfff": 1}]}'])
def test_a_lone_surrogate_is_an_error_of_its_own_row(running: Running, text: str) -> None:
    status, answer, _ = running.send("/invocations", text.replace("GOOD", to_base64(grey_png(250))).encode())
    rows = json.loads(answer)["predictions"]
    assert status == 200
    assert sorted(row["label"] or "" for row in rows) == ["", "bright"]


def test_csv_of_every_kind_of_line_end(running: Running) -> None:
    good = to_base64(grey_png(250))
    for end in ("\n", "\r", "\r\n"):
        text = f"id,image{end}1,{good}{end}{end}2,{end}3{end}"
        rows = json.loads(running.send("/invocations", text.encode(), "text/csv")[1])["predictions"]
        assert [row["label"] for row in rows] == ["bright", None, None]
        assert running.send("/invocations", f"image{end}".encode() + end.encode() * 70_000, "text/csv")[0] == 413


LARGE = [
    b'{"inputs": [' + b"0," * 70_000 + b"0]}",
    b'{"inputs": [' + b"[" * 70_000 + b"]" * 70_000 + b"]}",
    b'{"inputs": ["' + b"A" * 2**21 + b'"]}',
]


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [*MALFORMED, *((data, "application/json", 413) for data in LARGE)],
    ids=lambda value: str(value[:24]) if isinstance(value, bytes) else None,
)
def test_what_cannot_be_answered_is_a_short_4xx(running: Running, data: bytes, kind: str, status: int) -> None:
    found, text, headers = running.send("/invocations", data, kind)
    assert found == status
    assert set(json.loads(text)) == {"error_code", "message"}
    assert len(text) < 500
    assert not [sign for sign in ("Traceback", "site-packages", str(ROOT)) if sign in text]
    assert headers["content-type"] == "application/json"
    assert running.send("/invocations", body(grey_png()))[0] == 200


def test_paths_that_lead_nowhere(running: Running) -> None:
    for path in ("/redoc", "/static/../pyproject.toml", "/static/", "/nothing", "/ping/", "/docs/oauth2-redirect"):
        status, text, _ = running.send(path)
        assert (status, json.loads(text)["error_code"]) == (404, "NOT_FOUND")
    assert running.send("/invocations")[0] == 405
    assert running.send("/", b"x")[0] == 405


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_pages_need_nothing_from_elsewhere(running: Running, path: str) -> None:
    status, text, headers = running.send(path)
    assert status == 200
    found = text.replace("http://www.w3.org", "")
    assert not [sign for sign in ("http://", "https://", "<style", " style=", " onclick") if sign in found]
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for path in ("/static/app.js", "/static/style.css", "/static/face.svg", "/favicon.ico"):
        assert running.send(path)[0] == 200


def test_the_page_says_before_a_picture_is_taken_that_an_ai_system_infers(running: Running) -> None:
    """Regulation (EU) 2024/1689, Art. 50(3)."""
    page = running.send("/")[1]
    notice = page[page.index('id="notice"') :]
    assert "AI system" in notice[: notice.index("</p>")]
    assert "b" * 12 in notice[: notice.index("</p>")]
    assert 'href="#card"' in notice[: notice.index("</p>")]
    assert page.index('id="notice"') < page.index('type="file"')


def test_every_path_is_in_the_description(running: Running) -> None:
    api = json.loads(running.send("/openapi.json")[1])
    assert set(api["paths"]) == {"/invocations", "/predict", "/ping", "/ready", "/version", "/metrics"}
    page = running.send("/docs")[1]
    assert all(f" {path}</code>" in page for path in api["paths"])


def test_a_card_cannot_bring_markup_into_the_page(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    (folder / "MODEL_CARD.md").write_text(
        "# Card\n\n<script>alert(1)</script> ![x](https://example.org/x.png)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    page = render_files(locate.locate(str(folder)), 2**20)["/"][0].decode()
    assert "<h1>Card</h1>" in page
    assert "<td>2</td>" in page
    # Nor is a path of the server's anybody's business.
    assert not [sign for sign in (str(tmp_path), "<script>alert", "<img src=") if sign in page]


FREEZES = "import gc, sys\nfreeze = gc.freeze\ngc.freeze = lambda: (freeze(), print('frozen', file=sys.stderr))"


def test_several_processes_serve_and_stop_together(bright_bundle: Path) -> None:
    """What was loaded is not searched for garbage while requests wait: neither in the server nor in its processes."""
    several = Running("--model", str(bright_bundle), "--workers", "2", "--no-page", prelude=FREEZES)
    assert "2 processes" in several.line
    assert all(several.send("/invocations", body(grey_png(250)))[0] == 200 for _ in range(4))
    assert several.send("/")[0] == 404
    assert several.send("/docs")[0] == 200
    status, errors = several.stop()
    assert (status, errors) == (0, "frozen\n" * 3)


def test_a_registered_model_is_served_with_its_own_code(pyfunc_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pyfunc_dir, tmp_path / "model"))
    code = folder / "code" / "hyojo_inference" / "predictor.py"
    code.write_text(code.read_text().replace('"error": None,', '"error": None, "own": 1,'))
    one = Running("--model", str(folder), "--trust")
    row = json.loads(one.send("/predict", grey_png(250), "image/png")[1])
    assert (row["label"], row["own"]) == ("bright", 1)
    assert one.stop() == (0, "")


def test_the_log_of_requests_has_answers_and_no_pictures(bright_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    one = Running("--model", str(bright_bundle), "--log-requests", str(log))
    _, text, headers = one.send("/invocations", body(grey_png(250), b"junk"), **{"X-Request-Id": "mine-1"})
    assert headers["x-request-id"] == "mine-1"
    assert "brightness" not in text
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["request"], line["row"], line["label"]) for line in lines] == [
        ("mine-1", 0, "bright"),
        ("mine-1", 1, None),
    ]
    assert set(lines[0]) == {
        "time", "request", "version", "row", "label", "probability", "abstain", "brightness", "sharpness", "face_size",
        "error", "ms",
    }  # fmt: skip
    assert (lines[0]["brightness"], lines[0]["sharpness"], lines[0]["face_size"]) == (250, 0, None)
    assert (lines[1]["probability"], lines[1]["brightness"]) == (None, None)
    assert len(log.read_text()) < 1000
    assert set(watch.read_answers(log).table.columns) == set(watch.COLUMNS)
    assert one.stop() == (0, "")


def test_metrics_count_what_was_answered(bright_bundle: Path) -> None:
    one = Running("--model", str(bright_bundle))
    for _ in range(3):
        one.send("/invocations", body(grey_png(250), grey_png(5), b"junk"))
    one.send("/nothing")
    found = dict(line.rsplit(" ", 1) for line in one.send("/metrics")[1].splitlines() if not line.startswith("#"))
    values = {name: float(value) for name, value in found.items()}
    assert values['hyojo_requests_total{path="/invocations",status="200"}'] == 3
    assert values['hyojo_requests_total{path="other",status="404"}'] == 1
    assert values['hyojo_request_seconds_count{path="/invocations"}'] == 3
    assert (values["hyojo_rows_total"], values["hyojo_row_errors_total"]) == (9, 3)
    assert values['hyojo_answers_total{label="dark"}'] == values['hyojo_answers_total{label="bright"}'] == 3
    assert values["hyojo_confidence_count"] == 6
    assert (values["hyojo_batch_pictures_count"], values["hyojo_batch_pictures_sum"]) == (3, 9)
    assert values["hyojo_abstentions_total"] == 0
    assert all(values[f'hyojo_memory_bytes{{process="{name}"}}'] > 2**20 for name in ("server", "models"))
    assert any(name.startswith("hyojo_version_info{") and "b" * 64 in name for name in values)
    assert one.stop() == (0, "")


def test_clear_errors(bright_bundle: Path, tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} .*--port"):
            server.serve(str(bright_bundle), server.Options(port=port))
        with pytest.raises(UserError, match=rf"port {port} .*--port"):
            ui.run(argparse.Namespace(host="127.0.0.1", port=port))
    with pytest.raises(UserError, match=r"port 70000 .*--port"):  # which getaddrinfo takes for 4464
        server.serve(str(bright_bundle), server.Options(port=70000))
    with pytest.raises(UserError, match="--host"):
        server.serve(str(bright_bundle), server.Options(host="no.such.host.invalid", port=0))
    with pytest.raises(UserError, match="--workers"):
        server.serve(str(bright_bundle), server.Options(workers=0))
    for model in (str(bright_bundle), "3", "models:/hyojo/3"):
        with pytest.raises(UserError, match=r"--follow needs an alias.*models:/NAME@champion"):
            server.serve(model, server.Options(port=0, follow=True))
    with pytest.raises(UserError, match="--log-requests"):
        server.serve(str(bright_bundle), server.Options(port=0, log_requests=str(tmp_path)))
    with pytest.raises(UserError, match=r"bundle\.json is missing"):
        locate.locate(str(tmp_path))
    with pytest.raises(UserError, match=r"holds no model\.pt2.*--runtime onnx"):
        locate.locate(str(bright_bundle), "torch")
    for model in ("models:/hyojo@champion", "3", "v3", "champion", "@champion", "models:/other/1"):
        with pytest.raises(UserError, match="nothing is registered"):
            locate.locate(model)
    monkeypatch.setattr(locate.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed here"):
        locate.locate(str(bright_bundle), "torch")


def test_pictures_beyond_the_time_of_a_request_get_an_error(bright_bundle: Path) -> None:
    rows = Predictor(bright_bundle, seconds=0).predict_bytes([grey_png(), grey_png()])
    assert [row["label"] for row in rows] == [None, None]
    assert "too long" in rows[0]["error"]
    assert Predictor(bright_bundle, threads=1, seconds=30).predict_bytes([grey_png(250)])[0]["label"] == "bright"


@pytest.mark.slow
def test_the_page_in_a_browser(page, running: Running, tmp_path: Path) -> None:
    """Choose a picture, a bad file, one too large; then the server is gone."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(running.url)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.getElementById('card').open")
    page.keyboard.press("Shift+Tab")
    page.focus("a[href='#card']")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    if page.locator("#find").count():
        page.uncheck("#find")
    good, bad, large = (tmp_path / name for name in ("good.png", "bad.png", "large.png"))
    good.write_bytes(grey_png(250))
    bad.write_bytes(b"no picture")
    large.write_bytes(bytes(2**20 + 1))
    page.set_input_files("#file", good)
    page.wait_for_selector("#outcome:not([hidden])")
    assert "bright" in page.inner_text("#faces")
    assert "bright" in page.inner_text("#status")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    for file, word in ((bad, "not a picture"), (large, "smaller")):
        page.set_input_files("#file", file)
        page.locator("#problem", has_text=word).wait_for()
        assert not page.is_visible("#outcome")
    assert said == []
    page.route("**/predict*", lambda route: route.abort())  # what a browser sees when the server is down
    page.set_input_files("#file", good)
    page.locator("#problem", has_text="doesn't answer").wait_for()


def test_small_answers_do_not_wait_for_an_acknowledgement() -> None:
    """Asyncio switches Nagle's algorithm off only where a socket names its protocol: else an answer takes 40 ms."""
    with address.open_listener("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
