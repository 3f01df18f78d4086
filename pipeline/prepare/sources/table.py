"""Tables, CSV or Parquet: what their columns mean, and their rows as text, a few at a time.

Columns are found by their usual names, whatever their case, blanks and underscores, or as ``stage.columns`` says.
"""

import csv
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError, suggest

ROLES = {
    "path": (
        "path", "file", "filename", "filepath", "image", "imagepath", "imagename", "imagefile", "imageid", "img",
        "imgpath", "imgname", "picture", "photo", "pth", "subdirectoryfilepath",
    ),
    "label": ("label", "labels", "emotion", "expression", "class", "classname", "target", "category", "labelname"),
    "split": ("split", "usage", "set", "subset", "partition", "phase"),
    "person": (
        "subject", "subjectid", "person", "personid", "identity", "participant", "participantid", "actor", "group",
    ),
    "weight": ("weight", "weights", "sampleweight"),
}  # fmt: skip
MAX_LINE = 2**24  # characters: the pixels of a picture of 2000 px as text
_BATCH = 4096  # rows of a Parquet file at a time
_PICTURES = 32  # likewise of pictures, which may be photographs


class Table(ABC):
    """A file of rows; its columns are named without blanks around."""

    path: Path
    columns: list[str]

    @abstractmethod
    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        """Each row: where it is, for messages, and its cells in ``columns`` as text without blanks around.

        Raises:
            UserError: The file is damaged; the message says where.
        """

    def names(self, column: str) -> list[str] | None:
        """What the numbers in a column stand for, if the file says."""
        return None

    def roles(self, given: Mapping[str, str], person: str | None) -> dict[str, str]:
        """The column of every role that has one; ``given`` and ``person`` are as in ``Reading``.

        Raises:
            UserError: A column that is given is not there.
        """
        by_name = {_plain(name): name for name in reversed(self.columns)}
        found = {}
        for role, usual in ROLES.items():
            if role in given:
                found[role] = column = given[role].strip()
                if column not in self.columns:
                    hint = suggest(column, self.columns, f"it has {self.named}.")
                    raise UserError(f"prepare.columns.{role}: {self.path} has no column {column!r}; {hint}")
            elif name := next((by_name[name] for name in usual if name in by_name), None):
                found[role] = name
        if person is None:
            found.pop("person", None)
        elif _plain(person) in by_name and person != "auto":
            found["person"] = by_name[_plain(person)]
        return found

    @property
    def named(self) -> str:
        """The first columns, for a message; what stands for a name may be a row of pixels."""
        return ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in self.columns[:20])


class CsvTable(Table):
    """Text in UTF-8; cells are parted by the ``delimiter``: a comma, semicolon or tab."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = next(self._lines(), "")
        self.delimiter = max(",;\t", key=header.count)
        self.columns = [name.strip() for name in next(csv.reader([header], delimiter=self.delimiter), [])]

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        at = [self.columns.index(name) for name in columns]
        reader = csv.reader(self._lines(), delimiter=self.delimiter)
        limit = csv.field_size_limit(MAX_LINE)
        try:
            next(reader, None)
            for cells in reader:
                where = f"{self.path}, line {reader.line_num}"
                if not any(cells):
                    continue
                if len(cells) != len(self.columns):
                    raise UserError(
                        f"{where}: {len(cells)} cells, but the first line has {len(self.columns)}. "
                        "Mend the line; a cell with a comma in it wants quotes around it."
                    )
                yield where, [cells[i].strip() for i in at]
        except csv.Error as error:
            raise UserError(f"{self.path}, line {reader.line_num}: not valid CSV ({error}). Mend it.") from None
        finally:
            csv.field_size_limit(limit)

    def _lines(self) -> Iterator[str]:
        """The lines, none of them endless."""
        number = 0
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                while line := file.readline(MAX_LINE):
                    number += 1
                    if len(line) == MAX_LINE:
                        raise UserError(f"{self.path}, line {number}: longer than {MAX_LINE:,} characters.")
                    yield line
        except UnicodeDecodeError:
            raise UserError(f"{self.path}, about line {number + 1}: not UTF-8. Save it as UTF-8.") from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}).") from None


class ParquetTable(Table):
    """Parquet, read in batches; pyarrow is imported only here, because it is large.

    Attributes:
        schema: As pyarrow has it.
        row_groups: The number of rows in each row group.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        self._types = pa.types
        self._errors = (pa.ArrowException, OSError, KeyError)
        with self.open() as file:
            self.schema: pa.Schema = file.schema_arrow
            self.row_groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self.columns = list(self.schema.names)

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The file as a ``pyarrow.parquet.ParquetFile``; what fails with it open is a ``UserError``."""
        import pyarrow.parquet as pq

        try:
            # Without these a column of a row group, which may be the whole file, is read at once.
            with pq.ParquetFile(self.path, buffer_size=2**20, pre_buffer=False) as file:
                yield file
        except self._errors as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{self.path} is damaged or no Parquet file ({reason}). Fetch it again.") from None

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        number = 0
        with self.open() as file:
            for batch in file.iter_batches(_BATCH, columns=list(columns)):
                # A batch has its columns in the order of the file.
                for cells in zip(*(self._column(batch, name).to_pylist() for name in columns)):
                    number += 1
                    yield f"{self.path}, row {number}", list(map(_text, cells))

    def values(self, column: str, row_group: int) -> Iterator[Any]:
        """A column of a row group, few values at a time."""
        with self.open() as file:
            for batch in file.iter_batches(_PICTURES, row_groups=[row_group], columns=[column]):
                yield from self._column(batch, column).to_pylist()

    def pictures(self, column: str, row_group: int) -> Iterator[bytes | None]:
        """The pictures of a row group, from a column of bytes or of structs with a field ``bytes``."""
        return self.values(f"{column}.bytes" if self.has_inner(column, "bytes") else column, row_group)

    def has_inner(self, column: str, inner: str) -> bool:
        """Whether a column is a struct with a field of that name."""
        kind = self.schema.field(column).type
        return bool(self._types.is_struct(kind) and kind.get_field_index(inner) >= 0)

    def _holds_bytes(self, column: str) -> bool:
        """Whether a column is binary, or a struct whose field ``bytes`` is."""
        kind = self.schema.field(column).type
        if self.has_inner(column, "bytes"):
            kind = kind.field("bytes").type
        return bool(self._types.is_binary(kind) or self._types.is_large_binary(kind))

    def find_pictures(self, given: Mapping[str, str]) -> str | None:
        """The column that holds pictures, which is the one given for ``path`` if any is; None if there is none."""
        asked = given.get("path")
        return next((name for name in self.columns if asked in (None, name) and self._holds_bytes(name)), None)

    def _column(self, batch: Any, name: str) -> Any:
        """A column of a batch, also one inside a struct, as ``image.bytes``."""
        if name in self.columns:
            return batch.column(name)
        outer, _, inner = name.rpartition(".")
        return batch.column(outer).field(inner)

    def names(self, column: str) -> list[str] | None:
        """The names of a ``ClassLabel`` of Hugging Face's datasets, which stand in the file's metadata."""
        try:
            names = json.loads(self.schema.metadata[b"huggingface"])["info"]["features"][column]["names"]
            return [str(names[i]) for i in (sorted(names, key=int) if isinstance(names, dict) else range(len(names)))]
        except (KeyError, TypeError, ValueError):
            return None


def open_table(path: Path) -> Table | None:
    """A CSV or Parquet file by its suffix or its first bytes, None for any other."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PAR1":
        return ParquetTable(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return CsvTable(path)
    return None


def read_label(cell: str, names: Sequence[str] | None, where: str) -> str:
    """The label in a cell in lower case, by name if a number has one; raises ``UserError`` if there is none."""
    if not cell or (cell == "-1" and names):
        raise UserError(
            f"{where}: no label. Add one or take the row out; `hyojo predict` classifies pictures without labels."
        )
    cell = re.sub(r"^(\d+)\.0*$", r"\1", cell)  # numbers in a column with gaps become 3.0 in many programs
    if names is None or not cell.isdecimal():
        return cell.lower()
    if int(cell) >= len(names):
        raise UserError(f"{where}: label {cell} has no name; there are names for 0 to {len(names) - 1}.")
    return names[int(cell)].lower()


def read_weight(cell: str, where: str) -> float | None:
    """The weight in a cell, None for an empty one; raises ``UserError`` for what is no number from 0."""
    if not cell:
        return None
    try:
        weight = float(cell)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise UserError(f"{where}: weight {cell!r} is not a number from 0.")
    return weight


def _plain(name: str) -> str:
    """A column's name as it is looked up."""
    return re.sub(r"[\W_]", "", name.casefold())


def _text(value: Any) -> str:
    """A cell as text; whole numbers without a point."""
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    return str(value).strip()
