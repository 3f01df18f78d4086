"""Items whose labels cannot be classes are refused before any picture is decoded."""

import re
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.prepare.sources.labels import check_kind, fold
from pipeline.prepare.sources.tree import ARCHIVES, may_be_picture, suffix_of

_SOME = 1000  # files by whose names a pattern is suggested


def check_labels(base: sqlite3.Connection, path: Path, class_map: Mapping[str, str | None], names: bool) -> None:
    """Refuse labels without pictures, those that look like people, and numbers that may stand for several things.

    Args:
        base: Has the table ``items``.
        path: The source, for messages.
        class_map: As the parameter.
        names: Whether a number may stay the name of its class.
    """
    mapped = {fold(key): value for key, value in class_map.items()}
    numbered = []
    for (root,) in base.execute("SELECT DISTINCT root FROM items").fetchall():
        labels = list(_column(base, "SELECT DISTINCT label FROM items WHERE root IS ?", root))
        files = _column(base, f"SELECT file FROM items WHERE root IS ? LIMIT {_SOME}", root)
        check_kind(labels, class_map, f"{path}/{root}" if root else path, files)
        numbers = {label for label in labels if re.fullmatch("-?[0-9]+", label)}
        numbered += [root] * any(label in mapped or not names for label in numbers)
    _check_files(base, path, {label for label, value in mapped.items() if value is None})
    if len(numbered) > 1:
        raise UserError(
            f"prepare.source: the labels of {' and '.join(numbered)} in {path} are numbers, which need not mean the "
            f"same. Say it of each: prepare.class_map={{{numbered[0]}/0: angry, {numbered[1]}/0: neutral, ...}}."
        )


def _check_files(base: sqlite3.Connection, path: Path, left_out: set[str]) -> None:
    """Refuse a source without items, and classes of which no file can be a picture."""
    without = dict(base.execute("SELECT label, MIN(file) FROM items GROUP BY label"))
    if not without:
        raise UserError(f"prepare.source: {path} has no labelled images.")
    without = {label: file for label, file in without.items() if fold(label) not in left_out}
    for label, file in base.execute("SELECT label, file FROM items"):
        if not without:
            return
        if label in without and may_be_picture(file):
            del without[label]
    if without:
        label, file = min(without.items(), key=lambda pair: suffix_of(pair[1]) not in ARCHIVES)
        raise UserError(
            f"prepare.source: no file of class {label!r} in {path} is a picture by its suffix, such as {file!r}. "
            f"Unpack archives; take other files out, or leave the class out: prepare.class_map={{{label}: null}}."
        )


def _column(base: sqlite3.Connection, query: str, root: str | None) -> Iterator[str]:
    return (value for (value,) in base.execute(query, (root,)))
