"""Pictures -> rows of answers: what ``hyojo predict`` and ``hyojo batch`` share."""

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.inference.descriptors import DESCRIPTORS
from pipeline.inference.images import ImageError

SIDES = ("left", "top", "width", "height")  # of a box
Row = dict[str, Any]
# Encoded pictures in, an answer of ``predictor.Predictor`` for each out.
Predict = Callable[[list[bytes]], list[Row]]
# Reads a picture; raises ``ImageError`` or ``OSError``.
Fetch = Callable[[], bytes]


def answer_pictures(pictures: Sequence[tuple[str, Fetch]], predict: Predict) -> list[Row]:
    """Read and classify some pictures.

    Args:
        pictures: Name of each, and what reads it.
        predict: Classifies them.

    Returns:
        For each picture, and where faces are looked for, for each face of it, the largest first, a dict: ``file``,
        ``box`` (left, top, width, height of the face, px; None if faces are not looked for), ``label`` (str),
        ``probability`` (float, of that label), ``probabilities`` (dict of class to float), ``abstain`` (bool: too
        unsure to be relied on), ``DESCRIPTORS`` where the predictor says them, and ``error`` (None).
        For a bad picture, and one without a face, ``error`` is a text and the others are None.
    """
    contents = [_read(fetch) for _, fetch in pictures]
    answers = iter(predict([data for data in contents if isinstance(data, bytes)]))
    rows: list[Row] = []
    for (file, _), data in zip(pictures, contents, strict=True):
        answer: Row = {"error": data} if isinstance(data, str) else next(answers)
        rows += [_row(file, face) for face in answer.get("faces") or [answer]]
    return rows


def flatten_row(row: Row) -> Row:
    """A row with its box as ``SIDES`` too, and its probabilities as ``prob_<class>``."""
    probs = {f"prob_{name}": prob for name, prob in (row["probabilities"] or {}).items()}
    return row | dict(zip(SIDES, row["box"] or ())) | probs


def _read(fetch: Fetch) -> bytes | str:
    """A picture's file, or why it can't be read."""
    try:
        return fetch()
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"can't be read: {error.strerror or type(error).__name__}"
    except MemoryError:
        return "too large for the memory"


def _row(file: str, answer: Row) -> Row:
    """An answer for a picture or a face, with the file's name and the label's own probability."""
    label, probs = answer.get("label"), answer.get("probabilities")
    return {
        "file": file,
        "box": answer.get("box"),
        "label": label,
        "probability": probs[label] if probs else None,
        "probabilities": probs,
        "abstain": answer.get("abstain"),
        **{name: answer[name] for name in DESCRIPTORS if name in answer},
        "error": answer.get("error"),
    }
