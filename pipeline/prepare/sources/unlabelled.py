"""Pictures whose labels don't matter, however many: in a folder, an archive, or a table, in an order that stays.

    faces/a.png, faces/b/c.jpg        faces.zip, faces.tar.gz
    photos.parquet, shards/*.parquet  with the pictures in them, or with a column of paths, as .csv and .tsv may have
    fer2013.csv, test.csv             with pixels in them

They are walked, read and named as ``prepare`` does it, but files of other suffixes are passed over, and links to
folders are followed: DVC tracks none of this. Files come in order of name, members of an archive as the archive has
them, and rows as the table has them. The list stands in a SQLite file, so that memory does not grow with the source.
"""

import hashlib
import json
import sqlite3
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any, ClassVar

from pipeline.core.errors import UserError
from pipeline.inference.images import ImageError
from pipeline.prepare.sources.archive import Archive
from pipeline.prepare.sources.fer2013 import FerCsv, holds_pixels
from pipeline.prepare.sources.form import Place
from pipeline.prepare.sources.members import Folder, find_archive_kind, open_members
from pipeline.prepare.sources.parquet_pictures import check_bytes, name_row, name_table
from pipeline.prepare.sources.parquet_table import ParquetTable
from pipeline.prepare.sources.source import Opened, printable
from pipeline.prepare.sources.table import Table
from pipeline.prepare.sources.table_paths import TablePaths
from pipeline.prepare.sources.tables import open_table
from pipeline.prepare.sources.tree import Tree, may_be_picture

Fetch = Callable[[], bytes]
FORMS = (
    "Give a folder of pictures, a zip or tar archive of them, Parquet (a file or a folder of these) with pictures in "
    "it, or a table (.parquet, .csv, .tsv) with a column of paths or, as FER2013 has it, of pixels."
)


class Pictures(Opened, ABC):
    """An opened source of pictures."""

    root: Path  # where their names count from
    count: int
    digest: str  # SHA-256 of what is listed; another one means other pictures, or another order
    passed_over = 0  # files that are no pictures by their suffix

    @abstractmethod
    def stream(self, start: int) -> Iterator[tuple[str, Fetch]]:
        """Name of each picture from number ``start`` on, and a function that reads it, once, in any thread.

        The function raises ``ImageError`` for a picture that cannot be read.
        """


def open_pictures(path: Path | str, column: str | None = None) -> Pictures:
    """Open a folder, an archive, or a table, whose pictures or their paths are in ``column`` or one of a usual name.

    Raises:
        UserError: There are no pictures, or the source cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist. {FORMS}")
    try:
        if path.is_dir():
            found = _open_folder(path, column)
        elif table := open_table(path):
            found = _open_table(path, table, column)
        elif find_archive_kind(path):
            found = _list_members(path)[0]
        else:
            raise UserError(f"{path} is of no known form. {FORMS}")
    except UserError as error:  # the readers were made for the prepare stage
        raise UserError(str(error).removeprefix("prepare.source: ")) from error
    except ModuleNotFoundError as error:
        raise UserError(f"{path} wants {error.name}, which is not installed: pip install 'hyojo[serve]'.") from None
    if not found.count:
        found.close()
        others = f", only {found.passed_over} other files" if found.passed_over else ""
        raise UserError(
            f"{path} holds no pictures (files with a suffix such as .jpg, or without any, or rows){others}. {FORMS}"
        )
    return found


class Listed(Pictures):
    """Pictures each at a place of its own.

    Args:
        root: Where their names count from.
        members: What holds them; closed with this.
        files: Name and place, of the types that JSON has, of each.
        order: How they come: ``by name``, ``as listed``, or ``later counts``: as listed, but of those with one name
            only the last, as when unpacking.
    """

    _QUERIES: ClassVar[dict[str, str]] = {
        "by name": "SELECT file, place FROM found ORDER BY file, place",
        "as listed": "SELECT file, place FROM found ORDER BY rowid",
        "later counts": "SELECT file, place FROM (SELECT *, MAX(rowid) AS last FROM found GROUP BY file) ORDER BY last",
    }

    def __init__(
        self, root: Path, members: Folder | Archive, files: Iterable[tuple[str, Any]], order: str = "as listed"
    ) -> None:
        self.root, self._members = root, members
        self._folder = tempfile.TemporaryDirectory(prefix="hyojo-pictures-")
        self._base = sqlite3.connect(Path(self._folder.name) / "listing.db", isolation_level=None)
        try:
            # The sorter of ORDER BY works on disk, and nobody needs the file after a crash.
            self._base.executescript(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -8000; "
                "PRAGMA temp_store = FILE; CREATE TABLE found (file TEXT, place TEXT);"
            )
            with self._base:
                self._base.execute("BEGIN")
                rows = ((file, json.dumps(place)) for file, place in files)
                self._base.executemany("INSERT INTO found VALUES (?, ?)", rows)
            self._base.executescript(f"CREATE TABLE pictures AS {self._QUERIES[order]}; DROP TABLE found;")
            self.count = self._base.execute("SELECT COUNT(*) FROM pictures").fetchone()[0]
            digest = hashlib.sha256()
            for file, place in self._base.execute("SELECT file, place FROM pictures ORDER BY rowid"):
                digest.update(f"{file}\0{place}\n".encode())
            self.digest = digest.hexdigest()
        except BaseException:
            self.close()
            raise

    def stream(self, start: int) -> Iterator[tuple[str, Fetch]]:
        rows = self._base.execute("SELECT file, place FROM pictures WHERE rowid > ? ORDER BY rowid", (start,))
        return ((file, partial(self._read, json.loads(place))) for file, place in rows)

    def _read(self, place: Any) -> bytes:
        """One picture; one that lies about its size in an archive spoils only its own row."""
        if not place:
            raise ImageError("no path in its row")
        if isinstance(place, dict):
            raise ImageError(place["error"])
        try:
            return self._members.read(place)
        except UserError:
            raise ImageError("unpacks to more than its archive says") from None

    def close(self) -> None:
        self._base.close()
        self._folder.cleanup()
        self._members.close()


class Shards(Pictures):
    """Parquet files with the pictures in them, read from start to end.

    Names are as in the prepared manifest: the file, and the row, with the picture's own name if the row has one.
    """

    def __init__(self, root: Path, tables: list[ParquetTable], columns: list[str]) -> None:
        self.root = root if root.is_dir() else root.parent
        self._shards = list(zip([name_table(table, root) for table in tables], tables, columns))
        self.count = sum(sum(table.row_groups) for table in tables)
        listed = [(name, column, table.path.stat().st_size, table.row_groups) for name, table, column in self._shards]
        self.digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    def stream(self, start: int) -> Iterator[tuple[str, Fetch]]:
        for name, table, column in self._shards:
            row = 0
            for row_group, rows in enumerate(table.row_groups):
                if start < rows:
                    own = table.values(f"{column}.path", row_group) if table.has_inner(column, "path") else repeat(None)
                    pairs = islice(zip(own, table.pictures(column, row_group)), start, None)
                    for number, (inner, data) in enumerate(pairs, row + start):
                        yield name_row(name, number, inner), partial(check_bytes, data)
                start, row = max(0, start - rows), row + rows


class Pixels(Pictures):
    """FER2013's CSV, also that without labels; pictures have the names of the prepared manifest."""

    def __init__(self, path: Path, table: Table) -> None:
        self.root = path
        self._source = FerCsv(Place(Tree(path)), table, None, labelled=False)
        digest = hashlib.sha256()
        self.count = 0
        for file, place in self._source.pictures():
            digest.update(f"{file}\0{place}\n".encode())
            self.count += 1
        self.digest = digest.hexdigest()

    def stream(self, start: int) -> Iterator[tuple[str, Fetch]]:
        for file, place in islice(self._source.pictures(), start, None):
            yield file, next(self._source.fetch([place]))

    def close(self) -> None:
        self._source.close()


def _list_members(path: Path) -> tuple[Listed, list[Path]]:
    """The pictures in a folder or an archive, and where its Parquet files are."""
    others, shards = 0, []
    members = open_members(path)

    def files() -> Iterator[tuple[str, Any]]:
        nonlocal others
        for parts, place in members.members():
            if place is None:
                continue
            if may_be_picture(parts[-1]):
                yield printable(parts), place
                continue
            others += 1
            if parts[-1].lower().endswith(".parquet"):
                shards.append(path.joinpath(*parts))

    found = Listed(path, members, files(), "by name" if path.is_dir() else "later counts")
    found.passed_over = others
    return found, shards


def _open_folder(path: Path, column: str | None) -> Pictures:
    """Pictures in a folder and those in it; if there are none, its Parquet files."""
    found, shards = _list_members(path)
    if found.count or not shards:
        return found
    found.close()
    tables = [ParquetTable(shard) for shard in sorted(shards)]
    columns = [_embedded_in(table, column) for table in tables]
    for table, name in zip(tables, columns):
        if not name:
            raise UserError(
                f"{table.path} has no column with pictures in it. Give a table of paths by itself, or take it out "
                "of the folder."
            )
    return Shards(path, tables, list(map(str, columns)))


def _open_table(path: Path, table: Table, column: str | None) -> Pictures:
    """Pictures in a table, or those whose paths it has."""
    if column is not None and column not in table.columns:
        raise UserError(f"--column: {path} has no column {column!r}: it has {table.named}.")
    if isinstance(table, ParquetTable) and (inside := _embedded_in(table, column)):
        return Shards(path, [table], [inside])
    if column is None and holds_pixels(table):
        return Pixels(path, table)
    with TablePaths(table, column) as paths:
        return Listed(path.parent, Folder(path.parent), paths.find_all())


def _embedded_in(table: ParquetTable, column: str | None) -> str | None:
    """The column that holds pictures, if the one asked for does."""
    return table.find_pictures({"path": column} if column else {})
