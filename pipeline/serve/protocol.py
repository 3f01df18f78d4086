"""The body of ``POST /invocations``, in MLflow's forms: https://mlflow.org/docs/latest/ml/deployment/."""

import codecs
import csv
import json
import re
from typing import Any, NamedTuple

from pipeline.inference.requests import COLUMN, rows_of, to_bytes

FORMS = ("dataframe_records", "dataframe_split", "inputs", "instances")
KINDS = ("application/json", "text/csv")
_FLAGS = ("faces", "describe", "json")

_MARK = "\xef\xbb\xbf"  # of UTF-8, with which spreadsheets begin a file
_LINE = re.compile("[^\r\n]*(?:\r\n?|\n|$)")


class Malformed(Exception):
    """A request that can't be read; the message says why."""


class Asked(NamedTuple):
    """What a request asks: each row's picture, or what is wrong with it, and its params, as in ``Predictor.answer``."""

    pictures: list[bytes | str]
    faces: bool | None = None
    describe: bool = False
    json: bool = False


def check_kind(header: str) -> str | None:
    """The media type of a Content-Type that is taken, else None: charsets other than UTF-8 are not."""
    kind, *options = (part.strip().lower() for part in header.split(";"))
    is_taken = kind in KINDS and all(option in ("charset=utf-8", 'charset="utf-8"') for option in options if option)
    return kind if is_taken else None


def parse(kind: str, given: list[bytearray]) -> Asked:
    """Read the one body in a list, of one of ``KINDS``, which is then empty; raises ``Malformed``."""
    try:
        text = _decode(given.pop())
        values, params = (_csv_rows(text), {}) if kind == "text/csv" else _json_rows(json.loads(text))
        del text
    except RecursionError:
        raise Malformed("brackets are nested too deeply") from None
    except UnicodeDecodeError:
        raise Malformed("the request is no UTF-8") from None
    except csv.Error as error:
        raise Malformed(f"no CSV: {error}") from None
    except json.JSONDecodeError as error:
        raise Malformed(f"no JSON: {error}") from None
    except ValueError:
        raise Malformed("a number has too many digits") from None
    return Asked([to_bytes(value) for value in values], **params)


def _decode(body: bytearray) -> str:
    """UTF-8 taken for Latin-1, which is the same in base64; with others, each character would take up to four bytes."""
    for _ in codecs.iterdecode((bytes(body[at : at + 2**16]) for at in range(0, len(body), 2**16)), "utf-8"):
        pass
    return body.decode("latin-1").removeprefix(_MARK)


def _json_rows(given: Any) -> tuple[list[Any], dict[str, Any]]:
    """One value for each row of a JSON request, and its params."""
    forms = [form for form in FORMS if form in given] if isinstance(given, dict) else []
    if len(forms) != 1:
        raise Malformed(f"the request has to be a JSON object with exactly one of {', '.join(FORMS)}")
    params = given.get("params") or {}
    if not isinstance(params, dict) or not all(isinstance(params.get(name), bool | None) for name in _FLAGS):
        raise Malformed(f"params has to be an object, in which {', '.join(_FLAGS)} are true or false")
    params = {name: params[name] for name in _FLAGS if params.get(name) is not None}
    form, content = forms[0], given[forms[0]]
    if form == "dataframe_split":
        return _split_rows(content), params
    if form == "dataframe_records" and not isinstance(content, list):
        raise Malformed("dataframe_records has to be a list of objects")
    return rows_of(content), params


def _split_rows(content: Any) -> list[Any]:
    """The pictures of pandas' form ``split``."""
    try:
        columns = list(content["columns"])
        at = columns.index(COLUMN) if COLUMN in columns else len(columns)
        return [row[at] if len(row) == len(columns) > at else None for row in content["data"]]
    except (KeyError, TypeError):
        raise Malformed("dataframe_split has to be an object with the lists columns and data") from None


def _csv_rows(text: str) -> list[Any]:
    """The pictures of a CSV with a line of names; an empty field is none, and so is a line that is too short."""
    csv.field_size_limit(2**31 - 1)
    lines = (line for line in csv.reader((line[0] for line in _LINE.finditer(text)), strict=True) if line)
    names = next(lines, None)
    if names is None:
        raise Malformed("no CSV: there is no line of names")
    at = names.index(COLUMN) if COLUMN in names else len(names)
    rows = []
    for number, line in enumerate(lines, 1):
        if len(line) > len(names):
            raise Malformed(f"no CSV: row {number} has {len(line)} fields, and there are {len(names)} names")
        rows.append(line[at] or None if at < len(line) else None)
    return rows
