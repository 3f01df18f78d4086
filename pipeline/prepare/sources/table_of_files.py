"""A folder with pictures and one or more tables of them (CSV or Parquet) -> labelled files.

A table has at least a path and a label a row. Paths count from the folder, or from any folder in it; what
stands before that in an absolute path is passed over.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.errors import UserError
from pipeline.prepare.sources.archive import Parts
from pipeline.prepare.sources.form import Place, Reading, list_forms, register
from pipeline.prepare.sources.members import Folder
from pipeline.prepare.sources.source import Item, Source, printable, read_split, split_name
from pipeline.prepare.sources.table import Table, read_label, read_weight

_TRIED = 20  # rows whose file is looked for, before none is believed to be there
_MAX_FOLDERS = 1000
_SUFFIXES = ("", ".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".bmp", ".webp", ".tif", ".tiff")


class _Way(NamedTuple):
    """How a table's paths lead to files: parts to drop, a folder to put before, a suffix to add."""

    dropped: int
    before: Parts
    suffix: str

    def follow(self, parts: Parts) -> Parts:
        """The file's path in the folder."""
        *folders, name = parts[self.dropped :]
        return (*self.before, *folders, name + self.suffix)


class TableOfFiles(Source):
    """Tables in a folder of pictures.

    Where there are several tables, each is named after its split (``train.csv``, ``test_labels.csv``), unless it
    has a column of splits.
    """

    form = "a table of pictures"
    numbers_are_names = False

    def __init__(self, path: Path, tables: Sequence[Table], reading: Reading) -> None:
        super().__init__(path)
        self._folder = Folder(path)
        self._tables = [(table, table.roles(reading.columns, reading.person)) for table in tables]
        for table, roles in self._tables:
            if len(tables) > 1 and "split" not in roles and not split_name(table.path.stem):
                names = ", ".join(table.path.name for table in tables)
                raise UserError(
                    f"prepare.source: {path} has several tables ({names}), and {table.path.name} has neither a column "
                    "of splits nor the name of one. Leave one table in the folder, or name them train, val, test."
                )

    def items(self) -> Iterator[Item]:
        for table, roles in self._tables:
            own_split = None if len(self._tables) == 1 else split_name(table.path.stem)
            way = self._find_way(table, roles["path"], own_split)
            names = table.names(roles["label"])
            for where, cells in table.rows(list(roles.values())):
                cell = dict(zip(roles, cells))
                parts = way.follow(_checked_parts(cell["path"], where, way.dropped))
                split = read_split(cell.get("split", ""), where) or own_split
                yield Item(
                    printable(parts), read_label(cell["label"], names, where), split, "/".join(parts),
                    person=cell.get("person") or None, weight=read_weight(cell.get("weight", ""), where),
                )  # fmt: skip

    def fetch(self, places: Iterable[Any]) -> Iterator[Callable[[], bytes]]:
        return (partial(self._folder.read, place) for place in places)

    def _find_way(self, table: Table, column: str, split: str | None) -> _Way:
        """How the first paths that lead anywhere do so."""
        tried = [(where, _parts(cell)) for where, (cell,) in islice(table.rows([column]), _TRIED)]
        if not tried:
            raise UserError(f"{table.path} has no rows. Fill it, or take it away.")
        for folders in ([()], self._subfolders()):
            for _, parts in tried:
                for dropped, suffix in product(range(len(parts)), _SUFFIXES):
                    ways = [_Way(dropped, before, suffix) for before in folders]
                    found = [way for way in ways if self._leads(way, parts)]
                    if len(found) > 1 and split:
                        found = [way for way in found if split in map(split_name, way.before)]
                    if len(found) > 1:
                        places = " and ".join("/".join(way.follow(parts)) for way in found[:2])
                        raise UserError(
                            f"{table.path}: {'/'.join(parts)} may be {places}. Give paths from {self.path} on."
                        )
                    # Names alone may lie in a folder a class; then one way is good for a few of them only.
                    if found and 2 * sum(self._leads(found[0], others) for _, others in tried) >= len(tried):
                        return found[0]
        where, parts = tried[0]
        raise UserError(
            f"{where}: there is no file {'/'.join(parts)!r} in {self.path} or in one folder below with those of most "
            f"rows after it. Give paths from {self.path} on, name their column in prepare.columns.path (now "
            f"{column!r}), or take the table away if class folders say it all."
        )

    def _leads(self, way: _Way, parts: Parts) -> bool:
        """Whether a path leads to a file that way."""
        inside = parts[way.dropped :]
        return bool(inside) and ".." not in inside and os.path.isfile(self.path.joinpath(*way.follow(parts)))

    def _subfolders(self) -> list[Parts]:
        """Folders below, the nearest first."""
        folders = (parts for parts, place in self._folder.members() if place is None and parts)
        found = islice(folders, _MAX_FOLDERS)
        return sorted(found, key=lambda parts: (len(parts), parts))


def _parts(path: str) -> Parts:
    """The parts of a path, written with either kind of slash."""
    return tuple(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))


def _checked_parts(path: str, where: str, dropped: int) -> Parts:
    """The parts of a path that leads on, and never back, after the parts to drop."""
    parts = _parts(path)
    if not parts:
        raise UserError(f"{where}: no path. Fill it in, or take the row out.")
    if len(parts) <= dropped or ".." in parts[dropped:]:
        raise UserError(f"{where}: {path!r} does not lead into the folder as the paths before it do. Mend it.")
    return parts


def _names_files(table: Table, reading: Reading) -> bool:
    """Whether a table has columns of paths and labels."""
    given = {role: name for role, name in reading.columns.items() if name.strip() in table.columns}
    return {"path", "label"} <= table.roles(given, None).keys()


def recognises(place: Place) -> bool:
    """Whether a folder has tables of files; whether a file is any table without pictures."""
    return any(place.path.is_file() or _names_files(table, place.reading) for table in place.tables)


def open_tables(place: Place) -> TableOfFiles:
    """Open a folder's tables; raises ``UserError``, also for a table by itself."""
    tables = [table for table in place.tables if _names_files(table, place.reading)]
    if place.path.is_dir():
        return TableOfFiles(place.path, tables, place.reading)
    if tables:
        raise UserError(
            f"prepare.source: {place.path} is a table of pictures. Give the folder that holds it and the pictures, so "
            "that DVC tracks both."
        )
    raise UserError(
        f"prepare.source: {place.path} is a table with the columns {place.tables[0].named}: no paths and labels "
        f"among them. Name them in prepare.columns. {list_forms()}"
    )


register(
    2,
    {
        "a table and pictures: a folder with `labels.csv`, say (.tsv, .parquet), and pictures in it or below "
        "it": "columns of path and label, and of split, person and weight if there are any"
    },
    recognises,
    open_tables,
)
