"""Any labelled faces -> a stream of labelled items: which form a source has is found by looking.

A folder or archive of class folders (``trees``), tables beside pictures (``manifests``), FER2013's CSV with or
without the votes of FER+ (``fer``), Parquet with pictures in it (``embedded``), or a folder of several of these.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.prepare.sources.archive import is_junk
from pipeline.prepare.sources.class_folders import Tree, archive_kind
from pipeline.prepare.sources.fer2013 import FerCsv, holds_pixels, holds_votes
from pipeline.prepare.sources.labels import EXPRESSIONS, fold
from pipeline.prepare.sources.parquet_pictures import Embedded, picture_column
from pipeline.prepare.sources.source import LOOKED_FOR, Item, Source, printable, split_name
from pipeline.prepare.sources.table import ParquetTable, Table, open_table
from pipeline.prepare.sources.table_of_files import Manifest

_TABLES = (".csv", ".tsv", ".parquet")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")
_AROUND_PARQUET = ("data", "default")


@dataclass(frozen=True)
class Reading:
    """How to read a source, where looking does not tell.

    Attributes:
        columns: Columns of tables by role (``path``, ``label``, ...), where their names are not usual.
        person: A column, ``auto`` for one with a usual name, or None.
        soft: Whether votes are passed on, or only what most of them say.
        known: Names of class folders besides those of expressions.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    person: str | None = "auto"
    soft: bool = False
    known: Collection[str] = ()


def open_source(path: Path | str, reading: Reading = Reading()) -> Source:
    """Open a source of whatever form.

    Raises:
        UserError: There is nothing, or nothing of a known form; it is damaged, or not to be trusted.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"prepare.source: {path} does not exist. {LOOKED_FOR}")
    return _open_folder(path, reading) if path.is_dir() else _open_file(path, reading)


class Merged(Source):
    """Several sources as one; the name of each stands before those of its items."""

    def __init__(self, path: Path, roots: Mapping[str, Source]) -> None:
        super().__init__(path)
        self._roots = roots
        self.form = "; ".join(f"{name}: {root.form}" for name, root in roots.items())
        self.numbers_are_names = any(root.numbers_are_names for root in roots.values())
        self.later_wins = all(root.later_wins for root in roots.values())
        self.vote_labels = {label for root in roots.values() for label in root.vote_labels}
        self.empty = {place for root in roots.values() for place in root.empty}

    def items(self) -> Iterator[Item]:
        for name, root in self._roots.items():
            for item in root.items():
                inner = f"{name}/{item.root}" if item.root else name
                yield replace(item, file=f"{name}/{item.file}", place=[name, item.place], root=inner)
            self.left_out += root.left_out
            self.ignored += [f"{name}/{file}" for file in root.ignored]
            self.ignored_count += root.ignored_count

    def fetch(self, places: Iterable[Any]) -> Iterator[Callable[[], bytes]]:
        for name, run in groupby(places, key=lambda place: place[0]):
            yield from self._roots[name].fetch(place for _, place in run)

    def close(self) -> None:
        for root in self._roots.values():
            root.close()


def _open_file(path: Path, reading: Reading) -> Source:
    """An archive or a table."""
    table = open_table(path)
    if table is None:
        if archive_kind(path):
            return Tree(path, reading.known)
        raise UserError(f"prepare.source: {path} is of no known form. {LOOKED_FOR}")
    if holds_pixels(table):
        return FerCsv(path, table, None, reading.soft, reading.columns)
    if isinstance(table, ParquetTable) and picture_column(table, reading.columns):
        return Embedded(path, [table], reading.columns, reading.person)
    if holds_votes(table):
        raise UserError(
            f"prepare.source: {path} has the votes of FER+ and no pictures. Put it into one folder with fer2013.csv, "
            "and give the folder."
        )
    if _is_manifest(table, reading):
        raise UserError(
            f"prepare.source: {path} is a table of pictures. Give the folder that holds it and the pictures, so that "
            "DVC tracks both."
        )
    raise UserError(
        f"prepare.source: {path} is a table with the columns {table.named}: no paths and labels "
        f"among them. Name them in prepare.columns. {LOOKED_FOR}"
    )


def _open_folder(path: Path, reading: Reading) -> Source:
    """Tables first, then several sources, then class folders."""
    folders, tables = _look_into(path)
    if source := _open_tables(path, tables, reading):
        return source
    if parquet := _parquet_in(path):
        return Embedded(path, parquet, reading.columns, reading.person)
    known = EXPRESSIONS | set(map(fold, reading.known))
    are_classes = sum(fold(child.name) in known for child in folders) > 1
    are_splits = any(split_name(child.name) for child in folders)
    archives = [] if are_classes or are_splits else _archives_in(path)
    if archives or (
        not (are_classes or are_splits) and any(_has_tables(child, reading) for child in folders)
    ):
        roots: dict[str, Source] = {}
        try:
            for child in sorted(folders + archives):
                roots[printable([child.name])] = open_source(child, reading)
        except BaseException:
            Merged(path, roots).close()
            raise
        return Merged(path, roots)
    return Tree(path, reading.known)


def _open_tables(path: Path, tables: list[Table], reading: Reading) -> Source | None:
    """What the tables directly in a folder make of it, if anything."""
    pixels = [table for table in tables if holds_pixels(table)]
    votes = [table for table in tables if holds_votes(table)]
    if pixels:
        labelled = [table for table in pixels if "label" in table.roles({}, None)] or pixels[:1]
        _check_only(path, labelled)
        _check_only(path, votes)
        return FerCsv(path, labelled[0], votes[0] if votes else None, reading.soft, reading.columns)
    if votes:
        raise UserError(
            f"prepare.source: {votes[0].path} has the votes of FER+, but no CSV with FER2013's pixels lies beside it. "
            "Put fer2013.csv into the folder."
        )
    pictures = [table for table in tables if isinstance(table, ParquetTable) and picture_column(table, {})]
    manifests = [table for table in tables if table not in pictures and _is_manifest(table, reading)]
    return Manifest(path, manifests, reading.columns, reading.person) if manifests else None


def _check_only(path: Path, tables: list[Table]) -> None:
    """Refuse two tables that say the same."""
    if len(tables) > 1:
        names = ", ".join(table.path.name for table in tables)
        raise UserError(
            f"prepare.source: {path} has several tables of the same kind ({names}). Leave one there."
        )


def _is_manifest(table: Table, reading: Reading) -> bool:
    """Whether a table has columns of paths and labels."""
    given = {role: name for role, name in reading.columns.items() if name.strip() in table.columns}
    return {"path", "label"} <= table.roles(given, None).keys()


def _look_into(path: Path) -> tuple[list[Path], list[Table]]:
    """Folders and tables in a folder, sorted; it may hold a million pictures besides."""
    folders, files = [], []
    try:
        with os.scandir(path) as children:
            for child in children:
                if is_junk(child.name):
                    continue
                if child.is_dir():
                    folders.append(Path(child.path))
                elif child.name.lower().endswith(_TABLES):
                    files.append(Path(child.path))
    except OSError as error:
        raise UserError(f"prepare.source: {path} cannot be read ({error.strerror}).") from error
    return sorted(folders), [table for file in sorted(files) if (table := open_table(file))]


def _archives_in(path: Path) -> list[Path]:
    """Archives in a folder, sorted."""
    with os.scandir(path) as children:
        named = [Path(child.path) for child in children if child.name.lower().endswith(_ARCHIVES)]
    return sorted(file for file in named if not is_junk(file.name) and archive_kind(file))


def _parquet_in(path: Path, depth: int = 2) -> list[ParquetTable]:
    """Parquet with pictures in a folder, and in its folders of splits."""
    folders, tables = _look_into(path)
    found = [table for table in tables if isinstance(table, ParquetTable) and picture_column(table, {})]
    for folder in folders if depth else []:
        if split_name(folder.name) or folder.name in _AROUND_PARQUET:
            found += _parquet_in(folder, depth - 1)
    return found


def _has_tables(folder: Path, reading: Reading) -> bool:
    """Whether a folder is a source by its tables."""
    _, tables = _look_into(folder)
    return any(holds_pixels(table) or _is_manifest(table, reading) for table in tables) or bool(
        _parquet_in(folder)
    )
