"""Image bytes -> expression probabilities, from a bundle. Needs no torch when the bundle holds ONNX.

Used in two ways: imported as ``pipeline.inference.predictor`` (then mlflow stays out of it), and run by MLflow as the
models-from-code file of a logged model, where ``images.py`` and ``faces.py`` lie beside it by ``code_paths``.

One row in, one row out: ``label``, ``probabilities`` by class, ``abstain`` (whether the model is too unsure for its
answer to be relied on), ``error`` (None, or a text for that row); where faces are looked for also ``faces``, with the
answer for each of them. Bad input never raises, because MLflow's server would answer with a stack trace that shows
its own paths.
"""

import base64
import binascii
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

if __package__ == "pipeline.inference":
    from pipeline.inference.faces import DEFAULTS, Face, cut_faces
    from pipeline.inference.images import ImageError, load, resize
else:
    try:  # the copies that ship with the logged model
        from faces import DEFAULTS, Face, cut_faces
        from images import ImageError, load, resize
    except ModuleNotFoundError:  # while the model is being saved, its copies are not there yet
        from pipeline.inference.faces import DEFAULTS, Face, cut_faces
        from pipeline.inference.images import ImageError, load, resize

COLUMN = "image"
BATCH_SIZE = 64  # bounds memory, whatever the size of a request
# What runs a graph, and the file that it wants; the first that is there runs where nothing else is asked for.
RUNTIMES = {"onnx": "model.onnx", "torch": "model.pt2", "int8": "model.int8.onnx"}
# What a server may say otherwise when it loads a model (MLflow's model_config); the values are those of ``Predictor``.
CONFIG: dict[str, Any] = {"runtime": None, "threads": None, "seconds": None}


class Predictor:
    """A bundle ready to classify pictures.

    Args:
        bundle_dir: Holds ``bundle.json`` and ``model.onnx`` or ``model.pt2``.
        runtime: One of ``RUNTIMES``; None: the first whose file is there.
        threads: That compute one batch; None: as many as ONNX Runtime or torch takes by itself.
        seconds: After which a call gives the pictures that it has not come to an error; None: never.

    Raises:
        FileNotFoundError: If one of them is missing.
    """

    def __init__(
        self,
        bundle_dir: str | Path,
        runtime: str | None = None,
        threads: int | None = None,
        seconds: float | None = None,
    ) -> None:
        folder = Path(bundle_dir)
        self.bundle: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        self.class_names: list[str] = self.bundle["class_names"]
        self.img_size: int = self.bundle["preprocessing"]["img_size"]
        self.channels: int = self.bundle["preprocessing"]["channels"]
        # How faces were cut out of photos before the model was trained; None if it was trained on pictures of faces.
        self.faces: dict[str, Any] | None = self.bundle["preprocessing"].get("faces")
        # Least top probability of an answer that counts; None: all do.
        self.threshold: float | None = self.bundle.get("abstain", {}).get("threshold")
        self._seconds = seconds
        self._run = load_graph(folder, runtime, threads)

    def predict_bytes(self, pictures: Sequence[bytes], faces: bool | None = None) -> list[dict[str, Any]]:
        """Classify encoded pictures (JPEG, PNG, WebP, ...) of any size and mode.

        Args:
            pictures: Contents of files.
            faces: Whether to find the faces in each and classify those, or to take each picture for a face; None:
                as the model was trained.

        Returns:
            A dict for each picture: ``label`` (str), ``probabilities`` (dict of class to float, in [0, 1]),
            ``abstain`` (bool: the top one is below the threshold that evaluate chose) and ``error`` (None); for a bad
            picture ``error`` is a text and the others are None. Where faces are looked
            for, these are of the largest one, and ``faces`` is a list, the largest first, of dicts with ``box``
            (left, top, width, height, px of the upright picture), ``score`` (probability of a face), ``label``,
            ``probabilities`` and ``abstain``.
        """
        look = self._looks(faces)
        until = float("inf") if self._seconds is None else time.monotonic() + self._seconds
        rows: list[dict[str, Any]] = []
        for start in range(0, len(pictures), BATCH_SIZE):
            rows += self._predict_batch(pictures[start : start + BATCH_SIZE], look, until)
        return rows

    def predict_values(self, values: Sequence[Any], faces: bool | None = None) -> list[dict[str, Any]]:
        """Classify what a request's column holds: base64 text, ``data:`` URLs, or bytes.

        Returns:
            As ``predict_bytes``; whatever else a value may be gives an error for its row.
        """
        pictures = [_to_bytes(value) for value in values]
        look = self._looks(faces)
        rows: list[dict[str, Any]] = [
            _failure(data, look) if isinstance(data, str) else {} for data in pictures
        ]
        answers = iter(self.predict_bytes([data for data in pictures if isinstance(data, bytes)], look))
        return [row or next(answers) for row in rows]

    def _looks(self, faces: bool | None) -> bool:
        """Whether faces are looked for: as asked, or else as the model was trained."""
        return bool(self.faces) if faces is None else faces

    def _predict_batch(self, pictures: Sequence[bytes], look: bool, until: float) -> list[dict[str, Any]]:
        """Decode and classify one batch; the good pictures of it, or their faces, go through the graph together."""
        loaded = [
            self._load(data, look)
            if time.monotonic() < until
            else "the request takes too long; send fewer pictures"
            for data in pictures
        ]
        images = [image for parts in loaded if not isinstance(parts, str) for _, image in parts]
        answers = iter(self._classify(images))
        rows = []
        for parts in loaded:
            if isinstance(parts, str):
                rows.append(_failure(parts, look))
                continue
            found = [(face, next(answers)) for face, _ in parts]
            row = dict(found[0][1])
            if look:
                row["faces"] = [
                    {"box": list(face.box), "score": face.score}
                    | {name: answer[name] for name in ("label", "probabilities", "abstain")}
                    for face, answer in found
                ]
            rows.append(row)
        return rows

    def _classify(self, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Answers for images, each uint8 (S, S, C)."""
        answers: list[dict[str, Any]] = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            try:
                answers += [self._success(row) for row in self._run(np.stack(batch))]
            except Exception:
                answers += [_failure("the model could not be run on this picture")] * len(batch)
        return answers

    def _load(self, data: bytes, look: bool) -> list[tuple[Face | None, np.ndarray]] | str:
        """The picture or its faces as uint8 (S, S, C), or what is wrong with it."""
        try:
            if not look:
                return [(None, load(data, self.img_size, self.channels))]
            found = cut_faces(data, self.channels, self.faces or DEFAULTS)
            return [(face, resize(image, self.img_size)) for face, image in found]
        except (ImageError, ModuleNotFoundError) as error:  # not installed: what finds faces
            return str(error)
        except Exception:  # MemoryError, or a decoder's surprise
            return "the picture could not be decoded"

    def _success(self, probs: np.ndarray) -> dict[str, Any]:
        """The answer for one row of probabilities, (K,)."""
        if not np.isfinite(probs).all():  # NaN would also be invalid JSON
            return _failure("the model gave no finite probabilities for this picture")
        probabilities = {name: float(prob) for name, prob in zip(self.class_names, probs, strict=True)}
        return {
            "label": self.class_names[int(probs.argmax())],
            "probabilities": probabilities,
            "abstain": self.threshold is not None and bool(probs.max() < self.threshold),
            "error": None,
        }


def rows_of(model_input: Any) -> list[Any]:
    """The values of column ``image``, from any shape in which a request comes.

    Args:
        model_input: A DataFrame, Series, dict of columns, list of records or of values, array, or one value.

    Returns:
        One value for each row; None where a row has no such column.
    """
    if isinstance(model_input, dict):
        if COLUMN in model_input:
            return _flat(model_input[COLUMN])
        lengths = [len(column) for column in model_input.values() if isinstance(column, list)]
        return [None] * max(lengths, default=1)
    if hasattr(model_input, "columns"):
        # MLflow drops columns that are not in the signature, and with the last of them all rows.
        return _flat(model_input[COLUMN]) if COLUMN in model_input else [None] * max(len(model_input), 1)
    if isinstance(model_input, str | bytes) or not hasattr(model_input, "__len__"):
        return [model_input]
    return [value.get(COLUMN) if isinstance(value, dict) else value for value in list(model_input)]


def answer(predictor: Predictor, model_input: Any, params: Any = None) -> list[dict[str, Any]] | list[str]:
    """Answer a request of any shape, and never raise.

    Args:
        predictor: The loaded bundle.
        model_input: As in ``rows_of``.
        params: The request's parameters: ``faces`` as in ``Predictor.predict_bytes``; ``json``: whether each row is to
            be a JSON text, because Spark has no other type for rows of which some are errors.

    Returns:
        As ``Predictor.predict_bytes``.
    """
    params = params if isinstance(params, dict) else {}
    try:
        faces = params.get("faces")
        rows = predictor.predict_values(rows_of(model_input), None if faces is None else bool(faces))
    except Exception:
        rows = [_failure("the request could not be read")]
    return [json.dumps(row) for row in rows] if params.get("json") is True else rows


def served_file(folder: Path, runtime: str | None = None) -> tuple[str, Path]:
    """What runs a bundle, one of ``RUNTIMES``, and the file that it runs.

    Args:
        folder: A bundle.
        runtime: As in ``Predictor``.

    Raises:
        FileNotFoundError: The bundle has no such file.
    """
    wanted = RUNTIMES if runtime is None else {runtime: RUNTIMES[runtime]}
    for name, file in wanted.items():
        if (folder / file).exists():
            return name, folder / file
    raise FileNotFoundError(f"{folder} holds no {' and no '.join(wanted.values())}")


def load_graph(
    folder: Path, runtime: str | None = None, threads: int | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Load a bundle's graph: a function from uint8 images (B, S, S, C) to probabilities, float32 (B, K).

    Raises:
        FileNotFoundError: As ``served_file``.
    """
    name, path = served_file(folder, runtime)
    return _load_torch(path, threads) if name == "torch" else _load_onnx(path, threads)


def _load_onnx(path: Path, threads: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """A graph in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    # Threads that wait by spinning take the cores from other requests, which decode meanwhile.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _load_torch(path: Path, threads: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """A graph of torch.export."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    module = torch.export.load(str(path)).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return run


def _flat(column: Any) -> list[Any]:
    """A column's values; pyfunc's ``predict({"image": [...]})`` comes as the one cell of a one-row frame."""
    if isinstance(column, str | bytes | dict) or not hasattr(column, "__len__"):
        return [column]
    values = list(column)
    if len(values) == 1 and isinstance(values[0], list | tuple | np.ndarray):
        return list(values[0])
    return values


def _to_bytes(value: Any) -> bytes | str:
    """The encoded picture that a value stands for, or (str) what is wrong with it."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and value != value):
        return f"no image was given in column '{COLUMN}'"
    if not isinstance(value, str):
        return f"expected base64 text, found {type(value).__name__}"
    text = value.strip()
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            return "a data: URL has to be base64"
    text = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    if not text:
        return "the image is empty"
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return "not base64"


def _failure(error: str, look: bool = False) -> dict[str, Any]:
    """The answer for a row that can't be classified; without faces where they were looked for."""
    row = {"label": None, "probabilities": None, "abstain": None, "error": error}
    return row | ({"faces": []} if look else {})


def tame_server() -> None:
    """Mend four habits of MLflow's scoring server, where that is what runs this model.

    Its answer to a broken CSV or Parquet body holds a stack trace. It reads no CSV for a column of type Any,
    which our signature has so that a number or null reaches us and not a 400. It turns ``instances`` into columns, so
    that rows without the column vanish and the others move up. And JSON that is nested without end is a 500. What
    isn't there is left alone.
    """
    server = sys.modules.get("mlflow.pyfunc.scoring_server")
    names = ("_handle_serving_error", "parse_csv_input", "infer_and_parse_data", "_decode_json_input")
    originals = [getattr(server, name, None) for name in names]
    if not all(originals) or isinstance(originals[0], functools.partial):
        return
    handle_error, parse_csv, parse_json, decode_json = originals

    def parse(data: dict[str, Any], schema: Any = None) -> Any:
        import pandas as pd  # here, because only the server needs it

        rows = _payload_rows(data)
        return (
            parse_json(data, schema)
            if rows is None
            else pd.DataFrame({COLUMN: pd.Series(rows, dtype=object)})
        )

    def decode(json_input: Any) -> Any:
        try:
            return decode_json(json_input)
        except RecursionError:  # brackets in brackets in brackets; MLflow would answer 500
            return decode_json(
                "brackets nested too deeply"
            )  # no JSON either, which MLflow answers with a 400

    server._handle_serving_error = functools.partial(handle_error, include_traceback=False)
    server.parse_csv_input = lambda csv_input, schema=None: parse_csv(csv_input)
    server.infer_and_parse_data = parse
    server._decode_json_input = decode


def _payload_rows(data: dict[str, Any]) -> list[Any] | None:
    """One value for each row of a JSON request; None if it is malformed, which MLflow then explains."""
    if len(data) != 1:
        return None
    ((form, content),) = data.items()
    if form == "dataframe_split":
        try:
            columns = list(content["columns"])
            position = columns.index(COLUMN) if COLUMN in columns else len(columns)
            return [row[position] if len(row) == len(columns) > position else None for row in content["data"]]
        except (KeyError, TypeError):
            return None
    if form == "dataframe_records" and not isinstance(content, list):
        return None
    return rows_of(content)


if __package__ != "pipeline.inference":  # MLflow runs this file by itself
    import mlflow

    class ExpressionModel(mlflow.pyfunc.PythonModel):
        """The pyfunc: column ``image`` in, one row of ``label``, ``probabilities``, ``error`` for each out."""

        # MLflow would have predict annotated, to check requests itself, and raise; this also keeps it from asking.
        _skip_type_hint_validation = True

        def load_context(self, context: Any) -> None:
            """Load the bundle that was logged with the model."""
            given = {name: (context.model_config or {}).get(name) for name in CONFIG}
            self.predictor = Predictor(context.artifacts["bundle"], **given)
            tame_server()

        def predict(self, context, model_input, params=None):
            """Answer a request; no input raises."""
            return answer(self.predictor, model_input, params)

    mlflow.models.set_model(ExpressionModel())
