"""Which tables of a source say what its pictures show: told by their cells, which name files of the source."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from pipeline.core.errors import UserError
from pipeline.prepare.sources.archive import Parts
from pipeline.prepare.sources.form import Place
from pipeline.prepare.sources.source import NAMED, split_name, split_of
from pipeline.prepare.sources.table import Table, whole
from pipeline.prepare.sources.tables import SURE
from pipeline.prepare.sources.tree import MOST_TABLES

TRIED = 50  # rows by which it is told what a table is
LONGEST = 4096  # characters of a path, as in Linux; what is longer may be a picture in base64
_ID = re.compile("(?i)(id|name|file|image|img|picture|photo|face|frame|index|idx|number|no|nr|key)$|^$")
_OFF = ("0", "false", "")


class LabelTable(NamedTuple):
    """A table of pictures, and how it is read."""

    table: Table
    folder: Parts  # that it lies in
    dropped: int  # parts before each path that lead nowhere here
    roles: Mapping[str, str]  # columns by role; at first that of paths alone
    hot: Sequence[str] = ()  # columns that are classes, with a 1 for that of the picture

    @property
    def split(self) -> str | None:
        """The split that it is named after, or that it lies in."""
        return split_name(self.table.path.stem) or split_of(self.folder)


def find_tables(place: Place) -> Iterator[LabelTable]:
    """Tables of pictures that are of the place as a whole, and not of one of several data sets in it.

    One that names no file that is there may be one by its columns: by the usual ones directly in the place, by those
    that are given anywhere.
    """
    depth = len(place.inside)
    for parts, table in place.tables_below.items():
        folder = parts[:-1]
        found = look_at(place, table, folder)
        given = {role: name for role, name in place.reading.columns.items() if name.strip() in table.columns}
        if not found and (given or len(folder) == depth):
            roles = table.roles(given, None)
            if {"path", "label"} <= roles.keys():
                yield LabelTable(table, folder, 0, {"path": roles["path"]})
        elif found:
            own = len(folder) == depth or split_name(folder[depth])
            if own or not look_at(replace(place, inside=folder[: depth + 1]), table, folder):
                yield found


def find_unused(place: Place) -> Table | None:
    """A table of some pictures of a place, for a reader that passes over tables."""
    found = (look_at(place, table, parts[:-1]) for parts, table in place.tables_below.items())
    return next((table.table for table in found if table), None)


def look_at(place: Place, table: Table, folder: Parts) -> LabelTable | None:
    """A table in a folder, if its cells name files of a place; only its column of paths is looked for."""
    stem, crowd = table.path.stem, place.tree.is_crowded(folder, table.path.suffix)
    beside = (crowd or table.path.suffix.lower() not in SURE) and find_files(place, (stem,), folder)
    if beside or "submission" in stem.casefold():  # notes on one picture, or guesses
        return None
    found = find_paths(place, table, folder)
    if found and len(found.table.columns) < 2 and not split_name(stem):
        return None  # a list of files, which says nothing of them
    if found and crowd:
        raise UserError(
            f"{table.path.parent} holds more than {MOST_TABLES} tables, and {table.path.name} names pictures. Make "
            "them one table, or set prepare.label to folders if class folders say it all."
        )
    return found


def find_paths(place: Place, table: Table, folder: Parts) -> LabelTable | None:
    """A table in a folder and its column of paths: one whose cells name files of a place."""
    by_name, given = table.roles({}, None), place.reading.columns.get("path", "").strip()
    other = None if by_name.keys() & {"path", "label"} else table.headless()
    if other and any(find_files(place, split_path(name), folder) for name in table.columns):
        table = other
    given = given if given in table.columns else ""
    usual = given or by_name.pop("path", "") or ("1" if table is other else None)
    found = {}
    for name, cells in zip(table.text_columns, zip(*_sample(table, table.text_columns))):
        # Any number may by chance be the name of a file.
        number = name != usual and all(map(str.isdecimal, cells))
        by_chance = number and (name in by_name.values() or not _ID.search(name) or len(set(cells)) < 0.9 * len(cells))
        dropped = None if by_chance or given not in ("", name) else _count_dropped(place, folder, cells)
        if dropped is not None:
            found[name] = dropped
    path = usual if usual in found else next(iter(found), None)
    return LabelTable(table, folder, found[path], {"path": path}) if path is not None else None


def find_columns(place: Place, found: LabelTable) -> LabelTable:
    """Its other columns; raises ``UserError`` if none has the labels."""
    table, path = found.table, found.roles["path"]
    roles = table.roles({**place.reading.columns, "path": path}, place.reading.person)
    others = [name for name in table.text_columns if name not in roles.values()]
    headless = table.columns == [str(i) for i in range(1, len(table.columns) + 1)]
    if "label" not in roles and headless and len(others) == 1:
        values = {cell for (cell,) in _sample(table, others)}
        if not all(map(split_name, values)):
            roles["label"] = others[0]
    if "label" not in roles and _is_hot(_sample(table, others)):
        return found._replace(roles=roles, hot=others)
    if "label" not in roles:
        shown = f"; its first row is {', '.join(next(iter(_sample(table, table.columns)), []))}" if headless else ""
        raise UserError(
            f"{table.path} names pictures in its column {path!r}, but none of its columns ({table.named}{shown}) is "
            "known to have their labels, as label, emotion or facial_expression. Name it in prepare.columns.label; set "
            "prepare.label to folders if class folders say it all."
        )
    return found._replace(roles=roles)


def is_on(cell: str) -> bool:
    """Whether a one-hot cell says that the picture is of its column's class."""
    return whole(cell.lower()) in ("1", "true")


def split_path(path: str) -> Parts:
    """The parts of a path, written with either kind of slash."""
    return tuple(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))


def find_files(place: Place, parts: Parts, folder: Parts) -> dict[str, Any]:
    """The files of a place that a path in a table in a folder may mean, and their places."""
    if not parts or ".." in parts:
        return {}
    return place.tree.find(parts, place.inside, list(dict.fromkeys((folder, place.inside))))


def find_row(place: Place, labels: LabelTable, path: str, split: str | None, where: str) -> list[tuple[str, Any]]:
    """The file that a row of a split names, by its path in the tree, and its place; none if it is missing.

    Raises:
        UserError: There is no path, or it leads out of the place, or to several files.
    """
    parts = split_path(path)
    if not parts:
        raise UserError(f"{where}: no path. Fill it in, or take the row out.")
    if len(parts) <= labels.dropped or ".." in parts[labels.dropped :]:
        raise UserError(f"{where}: {path!r} does not lead into the folder as the paths before it do. Mend it.")
    found = find_files(place, parts[labels.dropped :], labels.folder)
    if len(found) > 1 and (hint := split or labels.split):
        found = {file: at for file, at in found.items() if split_of(file.split("/")[:-1]) == hint} or found
    if len(found) > 1:
        raise UserError(
            f"{where}: {path} may be {' and '.join(sorted(found)[:NAMED])}. Give paths from {place.path} on, or "
            "take the others out of the source."
        )
    return list(found.items())


def _sample(table: Table, columns: Sequence[str]) -> list[list[str]]:
    """The first rows, without bad ones."""
    try:
        return [cells for _, cells in islice(table.rows(columns, lambda _: None), TRIED)]
    except UserError:
        return []


def _count_dropped(place: Place, folder: Parts, cells: Sequence[str]) -> int | None:
    """How many parts to drop before each path so that half of them or more lead to files; None if they do not."""
    paths = [parts for cell in cells if len(cell) <= LONGEST and (parts := split_path(cell))]
    for dropped in range(max(map(len, paths), default=0)):
        hits = sum(bool(find_files(place, parts[dropped:], folder)) for parts in paths)
        if 2 * hits >= len(paths):
            return dropped
    return None


def _is_hot(rows: Sequence[Sequence[str]]) -> bool:
    """Whether most rows have a single 1 among zeros, as one-hot labels."""
    cells = (cell for row in rows for cell in row)
    if not rows or len(rows[0]) < 2 or not all(is_on(cell) or whole(cell.lower()) in _OFF for cell in cells):
        return False
    return 2 * sum(sum(map(is_on, row)) == 1 for row in rows) > len(rows)
