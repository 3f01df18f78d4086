"""Image bytes -> expression probabilities, from a bundle. Needs no torch when the bundle holds ONNX.

One row in, one row out: ``label``, ``probabilities`` by class, ``abstain`` (whether the model is too unsure for its
answer to be relied on), ``error`` (None, or a text for that row); where faces are looked for also ``faces``, with the
answer for each of them. Bad input never raises, because MLflow's server would answer with a stack trace that shows
its own paths.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle
from .descriptors import DESCRIPTORS, measure_brightness, measure_sharpness
from .faces import DEFAULTS, Face, cut_faces
from .graphs import load_graph, served_file
from .images import ImageError, load, resize
from .requests import rows_of, to_bytes

BATCH_SIZE = 64  # bounds memory, whatever the size of a request
# What a server may say otherwise when it loads a model (MLflow's model_config); the values are those of ``Predictor``.
CONFIG: dict[str, Any] = {"runtime": None, "threads": None, "seconds": None}


class Predictor:
    """A bundle ready to classify pictures.

    Args:
        bundle: The folder with ``bundle.json`` and ``model.onnx`` or ``model.pt2``, or what was read of it before: then
            its files have to be those that belong to that.
        runtime: One of ``graphs.RUNTIMES``; None: the first whose file is there.
        threads: That compute one batch; None: as many as ONNX Runtime or torch takes by itself.
        seconds: After which a call gives the pictures that it has not come to an error; None: never.
        trust: Whether ``model.pt2`` may run code of its own.

    Raises:
        BundleError: The bundle is not as it was exported, or its graph would run code and is not trusted.
        FileNotFoundError: It has no graph for that runtime.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        runtime: str | None = None,
        threads: int | None = None,
        seconds: float | None = None,
        trust: bool = False,
    ) -> None:
        bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        path = served_file(bundle.folder, runtime)[1]
        content = bundle.read(path.name)
        bundle.check(path.name)
        self.bundle = bundle.record
        self.class_names: list[str] = self.bundle["class_names"]
        self.img_size: int = self.bundle["preprocessing"]["img_size"]
        self.channels: int = self.bundle["preprocessing"]["channels"]
        # How faces were cut out of photos before the model was trained; None if it was trained on pictures of faces.
        self.faces: dict[str, Any] | None = self.bundle["preprocessing"].get("faces")
        # Least top probability of an answer that counts; None: all do.
        self.threshold: float | None = self.bundle.get("abstain", {}).get("threshold")
        self._seconds = seconds
        self._run = load_graph(path, threads, content, trust)

    def predict_bytes(
        self, pictures: Sequence[bytes], faces: bool | None = None, describe: bool = False
    ) -> list[dict[str, Any]]:
        """Classify encoded pictures (JPEG, PNG, WebP, ...) of any size and mode.

        Args:
            pictures: Contents of files.
            faces: Whether to find the faces in each and classify those, or to take each picture for a face; None:
                as the model was trained.
            describe: Whether to say ``DESCRIPTORS`` of each picture or face that is answered: ``brightness`` (0 to
                255), ``sharpness``, and ``face_size`` (longer side, px; None where faces are not looked for).

        Returns:
            A dict for each picture: ``label`` (str), ``probabilities`` (dict of class to float, in [0, 1]),
            ``abstain`` (bool: the top one is below the threshold that evaluate chose) and ``error`` (None); for a bad
            picture ``error`` is a text and the others are None. Where faces are looked
            for, these are of the largest one, and ``faces`` is a list, the largest first, of dicts with ``box``
            (left, top, width, height, px of the upright picture), ``score`` (probability of a face), ``label``,
            ``probabilities`` and ``abstain``.
        """
        look = bool(self.faces) if faces is None else faces
        until = float("inf") if self._seconds is None else time.monotonic() + self._seconds
        rows: list[dict[str, Any]] = []
        for start in range(0, len(pictures), BATCH_SIZE):
            rows += self._predict_batch(pictures[start : start + BATCH_SIZE], look, describe, until)
        return rows

    def predict_values(
        self, values: Sequence[Any], faces: bool | None = None, describe: bool = False
    ) -> list[dict[str, Any]]:
        """Classify what a request's column holds: base64 text, ``data:`` URLs, or bytes.

        Returns:
            As ``predict_bytes``; whatever else a value may be gives an error for its row.
        """
        pictures = [to_bytes(value) for value in values]
        look = bool(self.faces) if faces is None else faces
        rows: list[dict[str, Any]] = [build_failure(data, look) if isinstance(data, str) else {} for data in pictures]
        answers = iter(self.predict_bytes([data for data in pictures if isinstance(data, bytes)], look, describe))
        return [row or next(answers) for row in rows]

    def answer(self, model_input: Any, params: Any = None) -> list[dict[str, Any]] | list[str]:
        """Answer a request of any shape, and never raise.

        Args:
            model_input: As in ``requests.rows_of``.
            params: The request's parameters: ``faces`` and ``describe`` as in ``predict_bytes``; ``json``: whether
                each row is to be a JSON text, because Spark has no other type for rows of which some are errors.

        Returns:
            As ``predict_bytes``.
        """
        params = params if isinstance(params, dict) else {}
        try:
            faces = params.get("faces")
            rows = self.predict_values(
                rows_of(model_input), None if faces is None else bool(faces), params.get("describe") is True
            )
        except Exception:
            rows = [build_failure("the request could not be read")]
        return [json.dumps(row) for row in rows] if params.get("json") is True else rows

    def _predict_batch(
        self, pictures: Sequence[bytes], look: bool, describe: bool, until: float
    ) -> list[dict[str, Any]]:
        """Decode and classify one batch; the good pictures of it, or their faces, go through the graph together."""
        loaded = [
            self._load(data, look) if time.monotonic() < until else "the request takes too long; send fewer pictures"
            for data in pictures
        ]
        images = [image for parts in loaded if not isinstance(parts, str) for _, image in parts]
        answers = iter(self._classify(images))
        rows = []
        for parts in loaded:
            if isinstance(parts, str):
                rows.append(build_failure(parts, look))
                continue
            found = [(face, next(answers) | (_describe(face, image) if describe else {})) for face, image in parts]
            faces = [
                {"box": list(face.box), "score": face.score}
                | {name: answer[name] for name in ("label", "probabilities", "abstain", *DESCRIPTORS) if name in answer}
                for face, answer in found
                if face
            ]
            rows.append(found[0][1] | ({"faces": faces} if look else {}))
        return rows

    def _classify(self, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Answers for images, each uint8 (S, S, C)."""
        answers: list[dict[str, Any]] = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            try:
                answers += [self._success(row) for row in self._run(np.stack(batch))]
            except Exception:
                answers += [build_failure("the model could not be run on this picture")] * len(batch)
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
            return build_failure("the model gave no finite probabilities for this picture")
        probabilities = {name: float(prob) for name, prob in zip(self.class_names, probs, strict=True)}
        return {
            "label": self.class_names[int(probs.argmax())],
            "probabilities": probabilities,
            "abstain": self.threshold is not None and bool(probs.max() < self.threshold),
            "error": None,
        }


def _describe(face: Face | None, image: np.ndarray) -> dict[str, float | None]:
    """``DESCRIPTORS`` of a picture or a face as the model sees it, uint8 (S, S, C)."""
    measured = (float(measure(image[None])[0]) for measure in (measure_brightness, measure_sharpness))
    return dict(zip(DESCRIPTORS, (*measured, max(face.box[2:]) if face else None), strict=True))


def build_failure(error: str, look: bool = False) -> dict[str, Any]:
    """The answer for a row that can't be classified; without faces where they were looked for."""
    row = {"label": None, "probabilities": None, "abstain": None, "error": error}
    return row | ({"faces": []} if look else {})
