"""Mends MLflow's own scoring server, where that is what runs a model of ours."""

import functools
import sys
from typing import Any

from .requests import COLUMN, payload_rows


def tame_server() -> None:
    """Mend four habits of MLflow's scoring server, where that is what runs this model.

    Its answer to a broken CSV or Parquet body holds a stack trace. It reads no CSV for a column of type Any,
    which our signature has so that a number or null reaches us and not a 400. It turns ``instances`` into columns, so
    that rows without the column vanish and the others move up. And JSON that is nested without end is a 500. What
    isn't there is left alone.
    """
    server: Any = sys.modules.get("mlflow.pyfunc.scoring_server")
    names = ("_handle_serving_error", "parse_csv_input", "infer_and_parse_data", "_decode_json_input")
    originals: list[Any] = [getattr(server, name, None) for name in names]
    if not all(originals) or isinstance(originals[0], functools.partial):
        return
    handle_error, parse_csv, parse_json, decode_json = originals

    def parse(data: dict[str, Any], schema: Any = None) -> Any:
        import pandas as pd  # here, because only the server needs it

        rows = payload_rows(data)
        if rows is None:
            return parse_json(data, schema)
        return pd.DataFrame({COLUMN: pd.Series(rows, dtype=object)})

    def decode(json_input: Any) -> Any:
        try:
            return decode_json(json_input)
        except RecursionError:  # brackets in brackets in brackets; MLflow would answer 500
            # This is no JSON either, and MLflow answers it with a 400.
            return decode_json("brackets nested too deeply")

    server._handle_serving_error = functools.partial(handle_error, include_traceback=False)
    server.parse_csv_input = lambda csv_input, schema=None: parse_csv(csv_input)
    server.infer_and_parse_data = parse
    server._decode_json_input = decode
