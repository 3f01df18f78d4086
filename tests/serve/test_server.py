"""``hyojo serve`` as clients see it: MLflow's paths, the page, limits, start and stop; and what its imports need."""

import argparse
import asyncio
import base64
import gc
import json
import socket
from pathlib import Path

import pytest
from builders import MALFORMED, ROOT, grey_png, to_base64, write_bundle
from running import Running

from pipeline.cli import ui
from pipeline.core import address
from pipeline.core.errors import UserError
from pipeline.inference.bundle import Bundle
from pipeline.inference.predictor import Predictor
from pipeline.serve import locate, server
from pipeline.serve.guard import Guard, Limits
from pipeline.serve.page import render_files
from pipeline.tracking import pyfunc

BROWSER = "/usr/bin/chromium"


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
    csv = b"image\n" + base64.b64encode(grey_png(30)) + b"\n"
    assert json.loads(running.send("/invocations", csv, "text/csv")[1])["predictions"] == rows[:1]
    assert running.send("/ping")[0] == running.send("/health")[0] == 200
    assert running.send("/version")[1] == __import__("mlflow").__version__


LARGE = [b'{"inputs": [' + b"0," * 70_000 + b"0]}", b'{"inputs": ["' + b"A" * 2**21 + b'"]}']


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
    for path in ("/docs", "/redoc", "/static/../pyproject.toml", "/static/", "/nothing"):
        assert running.send(path)[0] == 404
    assert running.send("/invocations")[0] == 405
    assert running.send("/", b"x")[0] == 405


def test_the_page_needs_nothing_from_elsewhere(running: Running) -> None:
    status, text, headers = running.send("/")
    assert status == 200
    found = text.replace("http://www.w3.org", "")
    assert not [sign for sign in ("http://", "https://", "<style", " style=", " onclick") if sign in found]
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for path in ("/static/app.js", "/static/style.css", "/static/face.svg", "/favicon.ico"):
        assert running.send(path)[0] == 200


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


def test_several_processes_serve_and_stop_together(bright_bundle: Path) -> None:
    several = Running("--model", str(bright_bundle), "--workers", "2", "--no-page")
    assert "2 processes" in several.line
    assert all(several.send("/invocations", body(grey_png(250)))[0] == 200 for _ in range(4))
    assert several.send("/")[0] == 404
    status, errors = several.stop()
    assert (status, errors) == (0, "")


def test_a_registered_model_is_served_with_its_own_code(pyfunc_dir: Path) -> None:
    found = locate.locate(str(pyfunc_dir), trust=True)
    model = locate.open_pyfunc(found, runtime="onnx", threads=1, seconds=5)
    answers = model.predict({"image": [grey_png(250)]})
    assert answers[0]["label"] == "bright"
    assert model._model_impl.python_model.predictor._seconds == 5


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


def ask(guard: Guard, data: bytes, **headers: str) -> tuple[int, dict[bytes, bytes]]:
    """Status and headers of what a guard answers to one request."""
    sent: list[dict] = []
    parts = [{"type": "http.request", "body": data, "more_body": False}]

    async def receive() -> dict:
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(guard({"type": "http", "path": "/invocations", "method": "POST", "headers": pairs}, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def test_the_guard_refuses_only_far_above_saturation_and_forgets_what_is_done() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    guard = Guard(app, {}, 1, Limits(body=100, waiting=1, held=100))
    kind = {"content_type": "application/json"}
    for _ in range(5):
        assert ask(guard, b"x" * 100, **kind)[0] == 200
        assert ask(guard, b"x" * 101, **kind)[0] == 413  # no Content-Length: found while reading
        assert ask(guard, b"", content_length="101", **kind)[0] == 413
    assert (guard._waiting, guard._held) == (0, 0)
    guard._waiting = 1
    status, headers = ask(guard, b"x", **kind)
    assert (status, headers[b"retry-after"]) == (503, b"1")


@pytest.mark.filterwarnings("ignore")
def test_an_app_that_fails_shows_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        raise RuntimeError("secret")

    assert ask(Guard(app, {}, 1, Limits()), b"{}", content_type="application/json")[0] == 400
    assert "secret" in capsys.readouterr().err


def test_an_opened_bundle_has_the_signature_of_a_registered_one(bright_bundle: Path, pyfunc_dir: Path) -> None:
    import mlflow.pyfunc

    registered = mlflow.pyfunc.load_model(str(pyfunc_dir)).metadata
    opened = pyfunc.open_bundle(Bundle(bright_bundle)).metadata
    assert opened.signature.to_dict() == registered.signature.to_dict()


@pytest.fixture(scope="module")
def page(running: Running):
    """The page in Chromium; also gives every message on its console."""
    if not Path(BROWSER).exists():
        pytest.skip(f"{BROWSER} is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page(viewport={"width": 375, "height": 800})
        browser.close()


@pytest.mark.slow
def test_the_page_in_a_browser(page, running: Running, tmp_path: Path) -> None:
    """Choose a picture, a bad file, one too large; then the server is gone."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(running.url)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    if page.locator("#find").count():
        page.uncheck("#find")
    good, bad, large = (tmp_path / name for name in ("good.png", "bad.png", "large.png"))
    good.write_bytes(grey_png(250))
    bad.write_bytes(b"no picture")
    large.write_bytes(bytes(2**20))
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
    page.route("**/invocations", lambda route: route.abort())  # what a browser sees when the server is down
    page.set_input_files("#file", good)
    page.locator("#problem", has_text="doesn't answer").wait_for()


def test_what_was_loaded_is_not_searched_for_garbage_while_requests_wait(bright_bundle: Path) -> None:
    found = locate.locate(str(bright_bundle))
    try:
        server.build_app(found, server.Options(threads=1, page=False, max_mb=1.0))
        assert len(gc.get_objects()) < gc.get_freeze_count() / 100
    finally:
        gc.unfreeze()


def test_small_answers_do_not_wait_for_an_acknowledgement() -> None:
    """Asyncio switches Nagle's algorithm off only where a socket names its protocol: else an answer takes 40 ms."""
    with address.open_listener("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
