"""Tables that are text: CSV and its kin, lists with blanks between their cells, JSON and JSON Lines."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.prepare.sources.archive import MAX_FILE_BYTES
from pipeline.prepare.sources.table import Opener, Table, cell_text

if TYPE_CHECKING:
    import _csv

MAX_LINE = 2**24  # characters: the pixels of a picture of 2000 px as text


class TextTable(Table):
    """A table in UTF-8."""

    def __init__(self, path: Path, opener: Opener | None = None) -> None:
        super().__init__(path, opener or (lambda: path.open("rb")))

    def _lines(self) -> Iterator[str]:
        """The lines, none of them endless."""
        number = 0
        try:
            with io.TextIOWrapper(self.open_bytes(), encoding="utf-8-sig", newline="") as file:
                while line := file.readline(MAX_LINE):
                    number += 1
                    if len(line) == MAX_LINE:
                        raise UserError(f"{self.path}, line {number}: longer than {MAX_LINE:,} characters.")
                    yield line
        except UnicodeDecodeError:
            raise UserError(f"{self.path}, about line {number + 1}: not UTF-8. Save it as UTF-8.") from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}).") from None


class CsvTable(TextTable):
    """Cells are parted by the ``delimiter``: a comma, semicolon or tab; in a list without any by blanks."""

    _blanks = False
    _first = 1  # rows before the data

    def __init__(self, path: Path, opener: Opener | None = None) -> None:
        super().__init__(path, opener)
        header = next(self._lines(), "")
        self.delimiter = max(",;\t", key=header.count)
        if self._blanks and self.delimiter not in header:
            self.delimiter = " "
        self.columns = [name.strip() for name in next(self._reader([header]), [])]

    def headless(self) -> "CsvTable":
        other = copy(self)
        other._first, other.columns = 0, [str(i) for i in range(1, len(self.columns) + 1)]
        return other

    def rows(
        self, columns: Sequence[str], bad: Callable[[UserError], None] | None = None
    ) -> Iterator[tuple[str, list[str]]]:
        at = [self.columns.index(name) for name in columns]
        reader = self._reader(self._lines())
        limit = csv.field_size_limit(MAX_LINE)
        try:
            for number, cells in enumerate(reader):
                where = f"{self.path}, line {reader.line_num}"
                if number < self._first or not any(cells):
                    continue
                if len(cells) == len(self.columns):
                    yield where, [cells[i].strip() for i in at]
                    continue
                error = UserError(
                    f"{where}: {len(cells)} cells, but the first line has {len(self.columns)}. "
                    "Mend the line; a cell with a comma or blank in it wants quotes around it."
                )
                if bad is None:
                    raise error
                bad(error)
        except csv.Error as error:
            raise UserError(f"{self.path}, line {reader.line_num}: not valid CSV ({error}). Mend it.") from None
        finally:
            csv.field_size_limit(limit)

    def _reader(self, lines: Iterable[str]) -> "_csv.Reader":
        """The cells of each row."""
        if self.delimiter != " ":
            return csv.reader(lines, delimiter=self.delimiter)
        return csv.reader((f"{line.strip()}\n" for line in lines), delimiter=" ", skipinitialspace=True)


class ListTable(CsvTable):
    """A text file with a name and a label a line, say, as RAF-DB's ``train_00001.jpg 5``."""

    _blanks = True


class JsonTable(TextTable):
    """A list of objects, a name for each label or object, columns of equal length, or COCO's images and annotations."""

    def __init__(self, path: Path, opener: Opener | None = None) -> None:
        super().__init__(path, opener)
        self.columns = list(dict.fromkeys(key for _, row in self._entries() for key in row))

    def rows(
        self, columns: Sequence[str], bad: Callable[[UserError], None] | None = None
    ) -> Iterator[tuple[str, list[str]]]:
        for where, row in self._entries():
            yield where, [cell_text(row.get(name)) for name in columns]

    def _entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each object, by where it is."""
        data = self._parse("".join(self._lines()), str(self.path))
        try:
            rows = list(_find_rows(data))
        except (KeyError, TypeError, AttributeError):  # of no such arrangement after all
            rows = []
        for number, row in enumerate(rows, 1):
            yield f"{self.path}, entry {number}", row

    def _parse(self, text: str, where: str) -> Any:
        try:
            if len(text) > MAX_FILE_BYTES:
                raise ValueError("too large")
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not valid JSON ({error}). Mend it.") from None


class JsonLinesTable(JsonTable):
    """An object a line."""

    def _entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, line in enumerate(self._lines(), 1):
            where = f"{self.path}, line {number}"
            if line.strip():
                row = self._parse(line, where)
                if not isinstance(row, dict):
                    raise UserError(f"{where}: no JSON object. Mend it.")
                yield where, row


def _find_rows(data: Any) -> Iterator[dict[str, Any]]:
    """The rows in one of the arrangements that ``JsonTable`` names; none in others."""
    if isinstance(data, list):
        yield from (row for row in data if isinstance(row, dict))
    elif isinstance(data, dict) and {"images", "annotations", "categories"} <= data.keys():
        images, categories = ({row["id"]: row for row in data[key]} for key in ("images", "categories"))
        for row in data["annotations"]:
            image, category = images.get(row.get("image_id"), {}), categories.get(row.get("category_id"), {})
            yield {"file_name": image.get("file_name"), "label": category.get("name")}
    elif isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list)]
        if len(lists) == len(data) and len(set(map(len, lists))) == 1 and not isinstance((lists[0] or [{}])[0], dict):
            yield from (dict(zip(data, row)) for row in zip(*lists))
        elif lists:  # among other things, as a licence
            yield from _find_rows(max(lists, key=len))
        elif all(isinstance(value, dict) and all(map(str.isdecimal, value)) for value in data.values()):
            keys = dict.fromkeys(key for column in data.values() for key in column)
            yield from ({name: column.get(key) for name, column in data.items()} for key in keys)
        else:
            for name, value in data.items():
                yield {"path": name, **(value if isinstance(value, dict) else {"label": value})}
