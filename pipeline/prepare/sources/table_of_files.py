"""Pictures, and one or more tables with the label of each, in a folder or an archive -> labelled files.

    labels.csv, a.png, b.png          train/_classes.csv, train/a.png, valid/_classes.csv, valid/b.png
    data/labels.csv, images/a.png     EmoLabel/list.txt, Image/aligned/train_1_aligned.jpg

That a file is such a table is told by its cells, which name files of the source. Their paths count from the table's
folder, from the source's, or from any folder around the files; what stands before that in an absolute path is passed
over.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from pipeline.core.errors import UserError
from pipeline.inference.images import ImageError
from pipeline.prepare.sources.folder_classes import find_classes
from pipeline.prepare.sources.form import Place, list_forms, register
from pipeline.prepare.sources.label_tables import LabelTable, find_columns, find_row, find_tables, is_on
from pipeline.prepare.sources.labels import EXPRESSIONS, fold
from pipeline.prepare.sources.source import (
    NAMED,
    Faults,
    Item,
    Source,
    printable,
    read_split,
    split_before,
    split_of,
)
from pipeline.prepare.sources.table import read_label, read_weight

_ROWS = """
    DROP TABLE IF EXISTS rows;
    CREATE TABLE rows (file TEXT, place TEXT, label TEXT, split TEXT, person TEXT, weight REAL, said TEXT);
"""


class TableOfFiles(Source):
    """Tables and the pictures that they name."""

    form = "a table of pictures"
    numbers_are_names = False

    def __init__(self, place: Place, tables: Sequence[LabelTable]) -> None:
        super().__init__(place.path)
        self._place, self._tables, self._base = place, tables, place.tree.base
        self._mapped = {fold(key): name for key, name in place.reading.class_map.items()}
        self._prefix = "".join(f"{printable([part])}/" for part in place.inside)

    def items(self) -> Iterator[Item]:
        faults = Faults()
        self._base.executescript(_ROWS)
        self._base.execute("BEGIN")
        missing = [where for labels in self._tables for where in self._read(labels, faults)]
        self._base.execute("COMMIT")
        with faults.gathered():
            self._check_rows(missing)
        prefixed = self._splits_stand_in_names()
        folders = self._folder_classes()
        doubtful: list[str] = []
        astray: list[str] = []
        rows = self._base.execute("SELECT * FROM rows ORDER BY file, rowid")
        for file, group in groupby(rows, key=lambda row: row[0]):
            same, item = list(group), None
            with faults.gathered():
                label = self._settle(file, same, doubtful)
                if label is not None:
                    split = _only("split", same, 3) or (split_before(file) if prefixed else None)
                    person, weight, place = _only("person", same, 4), _only("weight", same, 5), same[0][1]
                    item = Item(file, label, split, place and json.loads(place), person=person, weight=weight)
            if item:
                other = folders.get(file.rpartition("/")[0])
                if other and self._class(other) != self._class(item.label):
                    astray.append(f"{file} ({item.label})")
                yield item
        faults.raise_all()
        self._note(doubtful, astray)

    def fetch(self, places: Iterable[Any]) -> Iterator[Callable[[], bytes]]:
        return (partial(self._place.tree.read, place) if place else _raise_missing for place in places)

    def _read(self, labels: LabelTable, faults: Faults) -> Iterator[str]:
        """Write down what a table says, in ``rows``; gives the rows whose file is missing, by where they are."""
        table, roles = labels.table, dict(labels.roles)
        names = table.names(roles["label"]) if "label" in roles else None
        columns = [*roles.values(), *labels.hot]
        for where, cells in table.rows(columns, faults.add):
            with faults.gathered():
                cell = dict(zip(roles, cells))
                given = read_split(cell.get("split", ""), where)
                found = find_row(self._place, labels, cell["path"], given, where)
                ones = [name for name, value in zip(labels.hot, cells[len(roles) :]) if is_on(value)]
                texts = [read_label(cell["label"], names, where)] if "label" in cell else [fold(name) for name in ones]
                weight, person = read_weight(cell.get("weight", ""), where), cell.get("person") or None
                if not texts:
                    self.left_out["no class has a 1 in the row"] += 1
                for file, place in found or [(cell["path"].strip(), None)]:
                    file = file.removeprefix(self._prefix)
                    split = given or (labels.split if len(self._tables) > 1 else None)
                    split = split or split_of(file.split("/")[:-1])
                    for text in texts:
                        row = (file, place and json.dumps(place), text, split, person, weight, where)
                        self._base.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                if not found:
                    yield f"{where}: {cell['path']!r}"

    def _check_rows(self, missing: Sequence[str]) -> None:
        """Refuse tables without rows, or of which too many files are missing."""
        total = self._base.execute("SELECT COUNT(*) FROM rows").fetchone()[0]
        if not total:
            names = " and ".join(str(labels.table.path) for labels in self._tables)
            raise UserError(f"{names}: has no rows that can be used. Fill it, or take it away.")
        if len(missing) > self._place.reading.max_missing * total:
            column = self._tables[0].roles["path"]
            shown = "\n".join(f"  {where}" for where in missing[:NAMED])
            raise UserError(
                f"prepare.source: {self.path} lacks the files of {len(missing)} rows, more than "
                f"prepare.max_bad_fraction ({self._place.reading.max_missing:g}) allows. Paths count from the table's "
                f"folder or from any folder around the files; their column is prepare.columns.path (now {column!r}). "
                f"Mend the table, or set prepare.label to folders if class folders say it all. The first:\n{shown}"
            )

    def _splits_stand_in_names(self) -> bool:
        """Whether nothing else says a split, and all names of files begin with one; there are several."""
        if self._base.execute("SELECT COUNT(split) FROM rows").fetchone()[0]:
            return False
        found = set()
        for (file,) in self._base.execute("SELECT file FROM rows"):
            found.add(split_before(file))
            if None in found:
                return False
        return len(found) > 1

    def _settle(self, file: str, rows: Sequence[tuple[Any, ...]], doubtful: list[str]) -> str | None:
        """The label of the rows that name a file, None if they leave it open."""
        votes = Counter(self._class(row[2]) for row in rows)
        (top, most), *others = votes.most_common()
        if others:
            said = ", ".join(f"{row[2]} in {row[6]}" for row in rows[:4])
            if self._place.reading.conflicts == "keep":
                raise UserError(
                    f"{file} has different labels: {said}. Mend the table, or set prepare.conflicts to majority."
                )
            doubtful.append(f"{file} ({', '.join(sorted({row[2] for row in rows}))})")
            if self._place.reading.conflicts == "drop" or 2 * most <= len(rows):
                self.left_out["rows give the file different labels"] += 1
                return None
        elif len(rows) > 1:
            self.notes["rows name a file again, with the same label"] += len(rows) - 1
        return str(next(row[2] for row in rows if self._class(row[2]) == top))

    def _class(self, label: str) -> str:
        """The class of a label, or of a folder, as they are compared."""
        return fold(self._mapped.get(fold(label), label) or "")

    def _folder_classes(self) -> dict[str, str]:
        """The class folder around each folder, if the folders have the tables' names of classes; else nothing."""
        try:
            counts = self._place.tree.counts_in(self._place.inside)
            found = find_classes(self.path, counts, EXPRESSIONS | self._mapped.keys())
        except UserError:
            return {}
        classes = {printable(folder): item.label for folder, item in found.items()}
        said = {self._class(label) for (label,) in self._base.execute("SELECT DISTINCT label FROM rows")}
        return classes if len(said & set(map(self._class, classes.values()))) > 1 else {}

    def _note(self, doubtful: Sequence[str], astray: Sequence[str]) -> None:
        """Say what was settled, and count the pictures that no row names."""
        if doubtful:
            self.notes[f"files have rows with different labels: {_name_some(doubtful)}"] = len(doubtful)
        if astray:
            note = "files lie in the folder of another class than the table says, which counts (see prepare.label)"
            self.notes[f"{note}: {_name_some(astray)}"] = len(astray)
        unnamed = (
            "SELECT path FROM files WHERE picture AND substr(path, 1, ?1) = ?2 "
            "AND substr(path, ?1 + 1) NOT IN (SELECT file FROM rows) ORDER BY path"
        )
        for (path,) in self._base.execute(unnamed, (len(self._prefix), self._prefix)):
            self.ignore(path.removeprefix(self._prefix))


def _raise_missing() -> bytes:
    raise ImageError("there is no such file")


def _name_some(files: Sequence[str]) -> str:
    """The first of some files."""
    return ", ".join(files[:NAMED]) + (", ..." if len(files) > NAMED else "")


def _only(what: str, rows: Sequence[tuple[Any, ...]], at: int) -> Any:
    """The value that all rows of a file have that have any."""
    values = {row[at]: row[6] for row in rows if row[at] is not None}
    if len(values) > 1:
        said = ", ".join(f"{value} in {where}" for value, where in values.items())
        raise UserError(f"{rows[0][0]} is named twice, as of different {what}: {said}. Take one row out.")
    return next(iter(values), None)


def open_tables(place: Place) -> TableOfFiles:
    """Open the tables of a place; raises ``UserError``, also for a table by itself."""
    if not place.holds_files:
        (table,) = place.tables
        if {"path", "label"} <= table.roles({}, None).keys():
            raise UserError(
                f"prepare.source: {place.path} is a table of pictures. Give the folder that holds it and the pictures, "
                "so that DVC tracks both."
            )
        raise UserError(
            f"prepare.source: {place.path} is a table with the columns {table.named}: no paths and labels among them. "
            f"Give the folder that holds it and the pictures, and name its columns in prepare.columns. {list_forms()}"
        )
    tables: list[LabelTable] = []
    errors: dict[str, UserError] = {}
    for found in find_tables(place):
        try:
            tables.append(find_columns(place, found))
        except UserError as error:
            errors[found.table.path.name] = error
    if not tables:
        raise next(iter(errors.values()))
    source = TableOfFiles(place, tables)
    if errors:
        source.notes[f"tables name pictures and have no labels: {_name_some(list(errors))}"] = len(errors)
    return source


register(
    2,
    {
        "a table and pictures, in a folder or an archive: `labels.csv`, say (.tsv, .txt, .json, .jsonl, .parquet), "
        "beside the pictures, above them, or in a folder of its own": "columns of path and label (or one a class with "
        "a 1 for the picture's), and of split, person and weight if there are any; splits also by the names of tables "
        "and folders"
    },
    lambda place: bool(place.tables) if not place.holds_files else any(True for _ in find_tables(place)),
    open_tables,
)
