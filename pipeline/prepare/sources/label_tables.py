"""Which tables of a source say what its pictures show: told by their cells, which name files of the source."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from pipeline.core.errors import UserError
from pipeline.prepare.sources.archive import Parts
from pipeline.prepare.sources.form import Place
from pipeline.prepare.sources.source import split_name, split_of
from pipeline.prepare.sources.table import ROLES, Table, whole
from pipeline.prepare.sources.tables import SURE

_TRIED = 50  # rows by which it is told what a table is
_ON, _OFF = ("1", "true"), ("0", "false", "")


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

    A table directly in the place may also be one by the names of its columns, though it names no file that is there.
    """
    depth = len(place.inside)
    for parts, table in place.tables_below.items():
        folder = parts[:-1]
        found = look_at(place, table, folder)
        if len(folder) == depth and not found:
            given = {role: name for role, name in place.reading.columns.items() if name.strip() in table.columns}
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
    stem = table.path.stem
    beside = table.path.suffix not in SURE and find_files(place, (stem,), folder)  # notes on one picture
    if beside or "submission" in stem.casefold():
        return None
    by_name = table.roles({}, None)
    other = None if by_name.keys() & {"path", "label"} else table.headless()
    if other and any(find_files(place, split_path(name), folder) for name in table.columns):
        table = other
    if len(table.columns) < 2 and not split_name(stem):
        return None  # a list of files, which says nothing of them
    rows = _sample(table, table.columns)
    found = {}
    for name, cells in zip(table.columns, zip(*rows)):
        asked = place.reading.columns.get("path", name).strip()
        if asked == name or asked not in table.columns:
            dropped = _count_dropped(place, folder, cells, name == by_name.get("path"))
            if dropped is not None:
                found[name] = dropped
    path = by_name.get("path") if by_name.get("path") in found else next(iter(found), None)
    return LabelTable(table, folder, found[path], {"path": path}) if path is not None else None


def find_columns(place: Place, found: LabelTable) -> LabelTable:
    """Its other columns; raises ``UserError`` if none has the labels."""
    table, path = found.table, found.roles["path"]
    roles = table.roles({**place.reading.columns, "path": path}, place.reading.person)
    others = [name for name in table.columns if name not in roles.values()]
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
            f"known to have their labels (looked for {', '.join(ROLES['label'])}). Name it in prepare.columns.label; "
            "set prepare.label to folders if class folders say it all."
        )
    return found._replace(roles=roles)


def split_path(path: str) -> Parts:
    """The parts of a path, written with either kind of slash."""
    return tuple(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))


def find_files(place: Place, parts: Parts, folder: Parts) -> dict[str, Any]:
    """The files of a place that a path in a table in a folder may mean, and their places."""
    if not parts or ".." in parts:
        return {}
    return place.tree.find(parts, place.inside, list(dict.fromkeys((folder, place.inside))))


def _sample(table: Table, columns: Sequence[str]) -> list[list[str]]:
    """The first rows, without bad ones."""
    try:
        return [cells for _, cells in islice(table.rows(columns, lambda _: None), _TRIED)]
    except UserError:
        return []


def _count_dropped(place: Place, folder: Parts, cells: Sequence[str], sure: bool) -> int | None:
    """How many parts to drop before each path so that half of them or more lead to files; None if they do not."""
    paths = [parts for cell in cells if (parts := split_path(cell))]
    # Numbers may well be the names of files by chance.
    if not paths or (not sure and all(map(str.isdecimal, cells)) and len(set(cells)) < 0.9 * len(cells)):
        return None
    for dropped in range(max(map(len, paths))):
        hits = sum(bool(find_files(place, parts[dropped:], folder)) for parts in paths)
        if 2 * hits >= len(paths):
            return dropped
    return None


def _is_hot(rows: Sequence[Sequence[str]]) -> bool:
    """Whether most rows have a single 1 among zeros, as one-hot labels."""
    cells = [[whole(cell.lower()) for cell in row] for row in rows]
    if not cells or len(cells[0]) < 2 or not all(cell in _ON + _OFF for row in cells for cell in row):
        return False
    return 2 * sum(sum(cell in _ON for cell in row) == 1 for row in cells) > len(cells)
