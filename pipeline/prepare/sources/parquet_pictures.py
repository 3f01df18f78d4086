"""Parquet with the pictures in it, as Hugging Face's datasets store them -> labelled pictures.

    train-00000-of-00002.parquet, train-00001-of-00002.parquet, test-00000-of-00001.parquet

A picture is a struct of ``bytes`` and ``path``, or plain binary; a label is a name, or a number whose name stands
in the file's metadata. Files are named after their split, or lie in a folder that is.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.core.errors import UserError
from pipeline.inference.images import ImageError
from pipeline.prepare.sources.form import Place, Reading, refuse_packed, register
from pipeline.prepare.sources.parquet_table import ParquetTable
from pipeline.prepare.sources.source import Faults, Item, Source, printable, read_split, split_name, split_of
from pipeline.prepare.sources.table import ROLES, read_label, read_weight

_AROUND_PARQUET = ("data", "default")


class ParquetPictures(Source):
    """Parquet files with pictures in them, read from start to end."""

    form = "Parquet with pictures in it"
    numbers_are_names = False

    def __init__(self, path: Path, tables: Sequence[ParquetTable], reading: Reading) -> None:
        super().__init__(path)
        self._tables = tables
        self._pictures = [str(table.find_pictures(reading.columns)) for table in tables]
        others = {role: column for role, column in reading.columns.items() if role != "path"}
        self._roles = [table.roles(others, reading.person) for table in tables]
        for table, roles, picture in zip(tables, self._roles, self._pictures):
            if "label" not in roles:
                raise UserError(
                    f"{table.path}: no column of labels (looked for {', '.join(ROLES['label'])}; there are "
                    f"{', '.join(table.columns)}). Name it in prepare.columns.label; pictures without labels are for "
                    "`hyojo predict`."
                )
            roles.pop("path", None)
            if table.has_inner(picture, "path"):
                roles["path"] = f"{picture}.path"

    def items(self) -> Iterator[Item]:
        faults = Faults()
        for number, (table, roles) in enumerate(zip(self._tables, self._roles)):
            name = name_table(table, self.path)
            own_split = _split_of(PurePosixPath(name))
            labels = table.names(roles["label"])
            places = (
                [number, row_group, row] for row_group, rows in enumerate(table.row_groups) for row in range(rows)
            )
            rows = table.rows(list(roles.values()))
            for i, ((where, cells), place) in enumerate(zip(rows, places)):
                cell = dict(zip(roles, cells))
                item = None
                with faults.gathered():
                    item = Item(
                        name_row(name, i, cell.get("path")),
                        read_label(cell["label"], labels, where),
                        read_split(cell.get("split", ""), where) or own_split,
                        place, person=cell.get("person") or None, weight=read_weight(cell.get("weight", ""), where),
                    )  # fmt: skip
                if item:
                    yield item
        faults.raise_all()

    def fetch(self, places: Iterable[Any]) -> Iterator[Callable[[], bytes]]:
        for (number, row_group), run in groupby(places, key=lambda place: tuple(place[:2])):
            table, picture = self._tables[number], self._pictures[number]
            at, rows = -1, table.pictures(picture, row_group)
            for *_, row in run:
                # In order of name, so that rows only ever lie ahead.
                data = next(islice(rows, row - at - 1, None))
                at = row
                yield partial(check_bytes, data)


def name_table(table: ParquetTable, root: Path) -> str:
    """A table's name within its source."""
    return table.path.relative_to(root).as_posix() if root.is_dir() else table.path.name


def name_row(table: str, row: int, own: str | None) -> str:
    """A picture's name: its table's, its row's number, and the name that the row has for it, if any."""
    own = PurePosixPath((own or "").replace("\\", "/")).name
    return printable([table, f"{row:07d}" + (f"-{own}" if own else "")])


def check_bytes(data: bytes | None) -> bytes:
    """A picture's bytes; raises ``ImageError`` if its row has none."""
    if data is None:
        raise ImageError("no bytes in its row")
    return data


def _split_of(name: PurePosixPath) -> str | None:
    """The split that a file is named after (``train-00000-of-00002``), or the nearest folder around it."""
    own = split_name(re.split(r"[-.]", name.name)[0])
    return own or split_of(name.parts[:-1])


def _find_tables(place: Place, depth: int = 2) -> list[ParquetTable]:
    """The file, or those in a folder and in its folders of splits."""
    found = list(place.picture_tables)
    for folder in place.folders if depth else []:
        if split_name(folder.inside[-1]) or folder.inside[-1] in _AROUND_PARQUET:
            found += _find_tables(folder, depth - 1)
    return found


def open_pictures(place: Place) -> ParquetPictures:
    """Open the Parquet files; raises ``UserError``."""
    tables = _find_tables(place)
    refuse_packed(place, tables[0])
    return ParquetPictures(place.path, tables, place.reading)


register(
    3,
    {
        "Parquet with pictures in it, as Hugging Face has it: a file, or a folder of "
        "`train-00000-of-00002.parquet`, ...": "text, or numbers with names in the file's metadata; the file's "
        "name, or a column"
    },
    lambda place: bool(_find_tables(place)),
    open_pictures,
)
