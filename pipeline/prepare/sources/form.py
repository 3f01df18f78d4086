"""What a form of source is: how it is told, how it is opened, and what is said of it.

A form is a module that calls ``register``, and a line in ``open.py`` that imports it; nothing else knows of it. Errors
and the documentation's table name the forms that are registered.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.params import PrepareParams
from pipeline.prepare.sources.archive import Parts
from pipeline.prepare.sources.members import find_archive_kind
from pipeline.prepare.sources.parquet_table import ParquetTable
from pipeline.prepare.sources.source import Source
from pipeline.prepare.sources.table import Table
from pipeline.prepare.sources.tree import Tree


@dataclass(frozen=True)
class Reading:
    """How to read a source, where looking does not tell."""

    columns: Mapping[str, str] = field(default_factory=dict)  # of tables by role (path, label, ...), if not usual names
    person: str | None = "auto"  # a column, a pattern (which tables pass over), auto for a usual name, or None
    soft: bool = False  # whether votes are passed on, or only what most of them say
    class_map: Mapping[str, str | None] = field(default_factory=dict)  # by labels; they are known to be no people
    label: str = "auto"  # from tables, else class folders; folders: from these alone; or a pattern in file names
    conflicts: str = "majority"  # of rows that give a file different labels: majority, drop, or keep for an error
    max_missing: float = 0.01  # part of a table's rows whose file may be missing

    @classmethod
    def of(cls, params: PrepareParams) -> "Reading":
        """What the parameters say of it."""
        columns, soft = {str(role): name for role, name in params.columns.items()}, params.labels == "soft"
        rules = params.label, params.conflicts, params.max_bad_fraction
        # People who are not kept apart are counted nevertheless.
        return cls(columns, params.person or "auto", soft, params.class_map, *rules)

    @property
    def pattern(self) -> str | None:
        """The pattern of labels in file names, if they stand there."""
        return None if self.label in ("auto", "folders") else self.label


@dataclass(frozen=True)
class Place:
    """A file or folder that may be a source: a tree, or a folder in one."""

    tree: Tree
    reading: Reading = Reading()
    inside: Parts = ()

    @property
    def path(self) -> Path:
        """Where it is; inside an archive no such folder exists."""
        return self.tree.path.joinpath(*self.inside)

    @property
    def holds_files(self) -> bool:
        """Whether it is a folder or an archive."""
        return self.tree.holds_files

    @property
    def is_useful(self) -> bool:
        """Whether files in it or below may be pictures, tables or archives."""
        depth = len(self.inside)
        return any(folder[:depth] == self.inside for folder in self.tree.useful)

    @cached_property
    def folders(self) -> list["Place"]:
        """Folders in it, sorted."""
        return [replace(self, inside=(*self.inside, name)) for name in sorted(self.tree.folders.get(self.inside, ()))]

    @cached_property
    def archives(self) -> list[Path]:
        """Zip and tar archives in the folder, sorted."""
        paths = sorted(parts for parts in self.tree.archives if parts[:-1] == self.inside)
        return [path for parts in paths if find_archive_kind(path := self.tree.path.joinpath(*parts))]

    @property
    def sheets(self) -> list[Parts]:
        """Spreadsheets in it or below, which are not read."""
        depth = len(self.inside)
        return [parts for parts in self.tree.sheets if parts[:depth] == self.inside]

    @cached_property
    def tables(self) -> list[Table]:
        """The table that the file is, or those directly in the folder; without those that hold pictures."""
        return [table for parts, table in self.tables_below.items() if parts[:-1] == self.inside]

    @cached_property
    def tables_below(self) -> dict[Parts, Table]:
        """Likewise those in the folder or below it, by their paths in the tree."""
        return {parts: table for parts, table in self._tables.items() if table not in self.picture_tables}

    @cached_property
    def picture_tables(self) -> list[ParquetTable]:
        """The tables directly in the folder that hold pictures."""
        given = {} if self.holds_files else self.reading.columns
        own = (table for parts, table in self._tables.items() if parts[:-1] == self.inside)
        return [table for table in own if isinstance(table, ParquetTable) and table.find_pictures(given)]

    @cached_property
    def _tables(self) -> dict[Parts, Table]:
        if self.reading.label != "auto":
            return {}
        depth = len(self.inside)
        return {parts: table for parts, table in self.tree.tables.items() if parts[:depth] == self.inside}


@dataclass(frozen=True)
class Form:
    """A form in which labelled faces come."""

    rank: int  # forms are asked in this order
    about: Mapping[str, str]  # what it looks like, and where its labels and splits come from; for several variants
    recognises: Callable[[Place], bool]  # whether a place has this form, or nearly, so that ``open`` says what is wrong
    open: Callable[[Place], Source]


_FORMS: list[Form] = []


def register(
    rank: int, about: Mapping[str, str], recognises: Callable[[Place], bool], open: Callable[[Place], Source]
) -> None:
    """Have sources opened that have this form, which is as ``Form`` says."""
    _FORMS.append(Form(rank, about, recognises, open))
    _FORMS.sort(key=lambda form: form.rank)


def find_form(place: Place, below: float = float("inf")) -> Form | None:
    """The first form that recognises a place, of those with a rank below that."""
    return next((form for form in _FORMS if form.rank < below and form.recognises(place)), None)


def open_place(place: Place) -> Source:
    """Open a place by its form, with its tree, which is closed with the source; raises ``UserError``."""
    try:
        if form := find_form(place):
            source = form.open(place)
            source.tree = place.tree
            return source
        raise UserError(f"prepare.source: {place.path} is of no known form. {list_forms()}")
    except BaseException:
        place.tree.close()
        raise


def refuse_packed(place: Place, table: Table) -> None:
    """Raise ``UserError`` for a table in an archive whose pictures are read here and there in it."""
    if place.holds_files and not place.tree.path.is_dir():
        inner = table.path.relative_to(place.tree.path).as_posix()
        raise UserError(f"prepare.source: {place.tree.path} holds {inner}: unpack it, and give that.")


def list_forms() -> str:
    """What was looked for, as a sentence for errors."""
    return f"Looked for: {'; '.join(about for form in reversed(_FORMS) for about in form.about)}."


def render_forms() -> str:
    """All forms as a table in Markdown."""
    rows = (row for form in reversed(_FORMS) for row in form.about.items())
    return "\n".join(["| form | labels and splits |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])
