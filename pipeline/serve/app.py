"""The paths of the server, as OpenAPI has them."""

import asyncio
import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from pipeline.reporting import html
from pipeline.serve.guard import answer_error
from pipeline.serve.page import HTML
from pipeline.serve.pool import Unanswered
from pipeline.serve.protocol import KINDS, Asked, Malformed, check_kind, parse
from pipeline.serve.versions import Versions

# Bytes of a request that is read beside the others, and rows of an answer that is written so.
_LARGE, _MANY = 2**18, 256
_ABOUT = """What faces in pictures look like, not what somebody feels. Each answer names the model's version, in the
header x-model-version too. Errors have an error_code and a message. A bad picture is an error of its own row."""
# For the description.
_ROW = {"label": "happy", "probabilities": {"happy": 0.9, "sad": 0.1}, "abstain": False, "error": None}
_ROWS = {"predictions": [_ROW], "model_version": "hyojo/3"}
_BODIES = {
    "application/json": {"dataframe_records": [{"image": "iVBORw0KGgo..."}], "params": {"faces": False}},
    "text/csv": "image\niVBORw0KGgo...\n",
}
# Status, of some their own, and message.
_ERRORS: tuple[tuple[type[Exception], int, str], ...] = (
    (HTTPException, 0, ""),
    (Malformed, 400, ""),
    (RequestValidationError, 400, "faces and describe have to be true or false"),
    (Unanswered, 503, ""),
    (Exception, 500, "the server has a fault; its log says which"),
)


def _describe(answer: Any, bodies: dict[str, Any]) -> dict[str, Any]:
    """Examples of an answer and of bodies by their kinds, for OpenAPI."""
    asked = {kind: {"example": example} for kind, example in bodies.items()}
    told = {"200": {"description": "", "content": {"application/json": {"example": answer}}}}
    return {"responses": told, "requestBody": {"required": True, "content": asked}}


def build_app(versions: Versions) -> FastAPI:
    """The app over whatever version answers."""
    app = FastAPI(
        title="hyojo",
        description=_ABOUT,
        docs_url=None,  # FastAPI's own page loads scripts from another host
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    _add_answers(app, versions)
    _add_probes(app, versions)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(html.render("api.html", api=app.openapi()), media_type=HTML)

    async def file(request: Request) -> Response:
        content, kind = versions.current.files[request.url.path]
        return Response(content, 200, {"cache-control": "no-cache"}, kind)

    for path in versions.current.files:
        app.add_api_route(path, file, include_in_schema=False)
    for error, status, message in _ERRORS:
        app.add_exception_handler(error, _teller(status, message))
    return app


def _add_answers(app: FastAPI, versions: Versions) -> None:
    reading = asyncio.Semaphore(1)  # what is made of a large request takes several times its memory

    @app.post("/invocations", openapi_extra=_describe(_ROWS, _BODIES))
    async def invocations(request: Request) -> Response:
        """Answer rows in MLflow's protocol: pictures in base64 in the column image."""
        kind = check_kind(request.headers.get("content-type", ""))
        if kind is None:
            raise HTTPException(415, f"Content-Type has to be {' or '.join(KINDS)}, in UTF-8")
        given = [(await request.receive())["body"]]  # which is in the memory no longer than it has to
        if len(given[0]) < _LARGE:
            asked = parse(kind, given)
        else:
            async with reading:
                asked = await asyncio.to_thread(parse, kind, given)
        rows, version = await versions.answer(asked, request.state.id)
        told = {"predictions": [json.dumps(row) for row in rows] if asked.json else rows, "model_version": version}
        text = json.dumps(told) if len(rows) < _MANY else await asyncio.to_thread(json.dumps, told)
        return _tell(text, version)

    @app.post(
        "/predict", openapi_extra=_describe(_ROW | {"model_version": "hyojo/3"}, {"image/*": "the bytes of a file"})
    )
    async def predict(request: Request, faces: bool | None = None, describe: bool = False) -> Response:
        """Answer one picture, whose file is the body. Faces are looked for as in training, or as asked for."""
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind in ("application/json", "multipart/form-data"):
            example = "curl --data-binary @face.jpg -H 'Content-Type: image/jpeg' ADDRESS/predict"
            raise HTTPException(415, f"/predict takes the bytes of a picture, not {kind}: {example}")
        rows, version = await versions.answer(
            Asked([bytes((await request.receive())["body"])], faces, describe), request.state.id
        )
        return _tell(json.dumps(rows[0] | {"model_version": version}), version)


def _add_probes(app: FastAPI, versions: Versions) -> None:
    @app.get("/ping")
    @app.get("/health", include_in_schema=False)
    async def ping() -> Response:
        """Say that the server lives."""
        return Response("\n")

    @app.get("/ready")
    async def ready() -> Response:
        """Say whether requests would be answered now: 200, or 503 while the model is loaded or all of it is stuck."""
        if not versions.is_ready:
            raise HTTPException(503, "the model is being loaded, or does not answer")
        return Response("\n")

    @app.get("/version")
    async def version() -> Response:
        """Say which version answers, and what it knows."""
        return _tell(json.dumps(versions.current.about), versions.current.name)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Tell Prometheus."""
        return Response(versions.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _tell(text: str, version: str) -> Response:
    return Response(text, 200, {"x-model-version": version}, "application/json")


def _teller(status: int, message: str) -> Any:
    """Tells an error in the one form, and nothing of what is inside."""

    async def tell(_: Request, error: Any) -> ASGIApp:
        return answer_error(status or error.status_code, message or getattr(error, "detail", str(error)))

    return tell
