"""Items whose labels cannot be classes are refused before any picture is decoded."""

import re
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.prepare.sources.labels import check_kind, fold

_SOME = 1000  # files by whose names a pattern is suggested


def check_labels(base: sqlite3.Connection, path: Path, class_map: Mapping[str, str | None], names: bool) -> None:
    """Refuse labels that look like people or parts of a data set, and numbers that may stand for several things.

    Args:
        base: Has the table ``items``.
        path: The source, for messages.
        class_map: As the parameter.
        names: Whether a number may stay the name of its class.
    """
    mapped = set(map(fold, class_map))
    numbered = []
    for (root,) in base.execute("SELECT DISTINCT root FROM items").fetchall():
        labels = list(_column(base, "SELECT DISTINCT label FROM items WHERE root IS ?", root))
        files = _column(base, f"SELECT file FROM items WHERE root IS ? LIMIT {_SOME}", root)
        check_kind(labels, class_map, f"{path}/{root}" if root else path, files)
        numbers = {label for label in labels if re.fullmatch("-?[0-9]+", label)}
        numbered += [root] * any(label in mapped or not names for label in numbers)
    if len(numbered) > 1:
        raise UserError(
            f"prepare.source: the labels of {' and '.join(numbered)} in {path} are numbers, which need not mean the "
            f"same. Say it of each: prepare.class_map={{{numbered[0]}/0: angry, {numbered[1]}/0: neutral, ...}}."
        )


def _column(base: sqlite3.Connection, query: str, root: str | None) -> Iterator[str]:
    return (value for (value,) in base.execute(query, (root,)))
