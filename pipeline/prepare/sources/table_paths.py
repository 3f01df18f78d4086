"""The pictures that a table names, without labels: found as ``prepare`` does it, or where their paths stand."""

import os
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Any

from pipeline.core.errors import UserError
from pipeline.prepare.sources.form import Place, Reading
from pipeline.prepare.sources.label_tables import TRIED, LabelTable, find_paths, find_row, split_path
from pipeline.prepare.sources.source import Opened, printable, split_name
from pipeline.prepare.sources.table import Table
from pipeline.prepare.sources.tree import Tree


class TablePaths(Opened):
    """The pictures that a table names: as ``prepare`` finds them, or else as their paths stand, also out of the folder.

    Args:
        table: In the folder from which its paths count.
        column: Of the paths; None to look for it.
    """

    def __init__(self, table: Table, column: str | None) -> None:
        self._folder, self._table = table.path.parent, table
        self._reading = Reading(columns={"path": column} if column else {})
        self._named = column or table.roles({}, None).get("path")

    def find_all(self) -> Iterator[tuple[str, Any]]:
        """Name and place of each; raises ``UserError`` if no path leads to a file."""
        labels = self._find_column()
        split = labels.table.roles({}, None).get("split")
        for where, (cell, *splits) in labels.table.rows([labels.roles["path"], *([split] if split else [])]):
            found: Any = cell
            parts = split_path(cell)
            if os.path.isfile(self._folder / cell):
                found = cell if os.path.isabs(cell) or ".." in parts else "/".join(parts)
            elif len(parts) > labels.dropped and ".." not in parts:
                try:
                    row = find_row(self._place, labels, cell, split_name("".join(splits)), where)
                    found = row[0][1] if row else cell
                except UserError as error:
                    found = {"error": str(error)}
            yield printable([cell if isinstance(found, dict) else found]), found

    def close(self) -> None:
        if "_place" in self.__dict__:
            self._place.tree.close()

    @cached_property
    def _place(self) -> Place:
        """What lies around the table, which is walked only if a path leads nowhere as it stands."""
        return Place(Tree(self._folder), self._reading)

    def _find_column(self) -> LabelTable:
        """The table by its column of paths."""
        plain = LabelTable(self._table, (), 0, {"path": self._named or ""})
        if self._named and self._stands(TRIED):
            return plain
        if found := find_paths(self._place, self._table, ()):
            return found
        if self._named and self._stands(None):
            return plain
        lack = "has neither pictures in it nor a column of paths"
        if self._named:
            first = next((cell for _, (cell,) in self._table.rows([self._named]) if cell), "")
            lack = f"has no path in its column {self._named!r} that leads to a file there or below, such as {first!r}"
        raise UserError(
            f"{self._table.path} {lack}. Put it beside its pictures, or name another column by --column: it has "
            f"{self._table.named}."
        )

    def _stands(self, rows: int | None) -> bool:
        """Whether any of the first paths, or of all, is that of a file as it stands."""
        cells = (cell for _, (cell,) in islice(self._table.rows([str(self._named)]), rows))
        return any(os.path.isfile(self._folder / cell) for cell in cells if cell)
