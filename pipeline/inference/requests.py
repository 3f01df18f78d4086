"""What a request holds -> one value a row -> a picture's bytes."""

import base64
import binascii
from typing import Any

import numpy as np

COLUMN = "image"


def rows_of(model_input: Any) -> list[Any]:
    """Give the values of column ``image``, from any shape in which a request comes.

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


def to_bytes(value: Any) -> bytes | str:
    """Give the encoded picture that a value stands for, or (str) what is wrong with it."""
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
    text = "".join(text.split())
    if not text.isascii():  # in which each character may take four bytes
        return "not base64"
    text = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    if not text:
        return "the image is empty"
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return "not base64"


def _flat(column: Any) -> list[Any]:
    """A column's values; pyfunc's ``predict({"image": [...]})`` comes as the one cell of a one-row frame."""
    if isinstance(column, str | bytes | dict) or not hasattr(column, "__len__"):
        return [column]
    values = list(column)
    if len(values) == 1 and isinstance(values[0], list | tuple | np.ndarray):
        return list(values[0])
    return values
