"""What a form of source is: how it is told, how it is opened, and what is said of it.

A form is a module that calls ``register``, and a line in ``open.py`` that imports it; nothing else knows of it. Errors
and the documentation's table name the forms that are registered.
"""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.prepare.sources.archive import is_junk
from pipeline.prepare.sources.members import find_archive_kind
from pipeline.prepare.sources.source import Source
from pipeline.prepare.sources.table import ParquetTable, Table, open_table

_TABLES = (".csv", ".tsv", ".parquet")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")


@dataclass(frozen=True)
class Reading:
    """How to read a source, where looking does not tell."""

    columns: Mapping[str, str] = field(default_factory=dict)  # of tables by role (path, label, ...), if not usual names
    person: str | None = "auto"  # a column, a pattern (which tables pass over), auto for a usual name, or None
    soft: bool = False  # whether votes are passed on, or only what most of them say
    known: Collection[str] = ()  # names of class folders besides those of expressions


@dataclass(frozen=True)
class Place:
    """A file or folder that may be a source; what lies in it is looked at once, when it is asked for."""

    path: Path
    reading: Reading = Reading()

    @cached_property
    def folders(self) -> list["Place"]:
        """Folders in the folder, sorted."""
        return [Place(path, self.reading) for path in self._children[0]]

    @cached_property
    def archives(self) -> list["Place"]:
        """Zip and tar archives in the folder, sorted."""
        named = (path for path in self._children[1] if path.name.lower().endswith(_ARCHIVES))
        return [Place(path, self.reading) for path in named if find_archive_kind(path)]

    @cached_property
    def tables(self) -> list[Table]:
        """The table that the file is, or those directly in the folder; without those that hold pictures."""
        return [table for table in self._tables if table not in self.picture_tables]

    @cached_property
    def picture_tables(self) -> list[ParquetTable]:
        """Likewise the tables that hold pictures."""
        given = {} if self.path.is_dir() else self.reading.columns
        return [t for t in self._tables if isinstance(t, ParquetTable) and t.find_pictures(given)]

    @cached_property
    def _tables(self) -> list[Table]:
        files = [path for path in self._children[1] if path.name.lower().endswith(_TABLES)]
        return [table for file in files if (table := open_table(file))]

    @cached_property
    def _children(self) -> tuple[list[Path], list[Path]]:
        """Folders, and files whose suffix says what they are: there may be a million pictures besides."""
        if not self.path.is_dir():
            return [], [self.path]
        folders, files = [], []
        try:
            with os.scandir(self.path) as children:
                for child in children:
                    if is_junk(child.name):
                        continue
                    if child.is_dir():
                        folders.append(Path(child.path))
                    elif child.name.lower().endswith(_TABLES + _ARCHIVES):
                        files.append(Path(child.path))
        except OSError as error:
            raise UserError(f"prepare.source: {self.path} cannot be read ({error.strerror}).") from error
        return sorted(folders), sorted(files)


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
    """Open a place by its form; raises ``UserError``."""
    if form := find_form(place):
        return form.open(place)
    raise UserError(f"prepare.source: {place.path} is of no known form. {list_forms()}")


def list_forms() -> str:
    """What was looked for, as a sentence for errors."""
    return f"Looked for: {'; '.join(about for form in reversed(_FORMS) for about in form.about)}."


def render_forms() -> str:
    """All forms as a table in Markdown."""
    rows = (row for form in reversed(_FORMS) for row in form.about.items())
    return "\n".join(["| form | labels and splits |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])
