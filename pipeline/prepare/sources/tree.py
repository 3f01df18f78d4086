"""A source as a tree of files, a folder or an archive alike: its folders, its tables, and its files by name."""

import io
import json
import re
import sqlite3
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import IO, Any

from pipeline.core.errors import UserError
from pipeline.inference.images import ImageError, suffixes
from pipeline.prepare.sources.archive import Archive, Parts
from pipeline.prepare.sources.members import Folder, find_archive_kind
from pipeline.prepare.sources.source import Opened, printable
from pipeline.prepare.sources.table import Table
from pipeline.prepare.sources.tables import KINDS, SURE, open_table

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")
_SHEETS = (".xlsx", ".xls", ".ods")
MOST_TABLES = 50  # of one kind in one folder; of more, which are likely notes on a picture each, some are looked at
# What data sets add to the names of the pictures that their tables have.
_ADDED = re.compile("_(aligned|cropped|crop|face)$")


class Tree(Opened):
    """A folder or an archive; of any other file, that file alone.

    Attributes:
        holds_files: Whether it is a folder or an archive.
        counts: How many files each folder has, not counting those in its folders.
        useful: Folders with files that may be pictures, tables or archives.
        folders: The names of the folders in each.
        archives: Archives in a folder.
        sheets: Spreadsheets, which are not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        kind = Folder if path.is_dir() else find_archive_kind(path)
        self._members: Folder | Archive | None = kind(path) if kind else None
        self.holds_files = self._members is not None
        self.counts: Counter[Parts] = Counter()
        self.useful: set[Parts] = set()
        self.folders: defaultdict[Parts, set[str]] = defaultdict(set)
        self.archives: list[Parts] = []
        self.sheets: list[Parts] = []
        self._tables: defaultdict[tuple[Parts, str], list[tuple[Parts, Any]]] = defaultdict(list)
        try:
            for parts, place in self._members.members() if self._members else ():
                self._enter(parts, place)
        except BaseException:
            self.close()
            raise
        for folder in self.counts:
            for depth, name in enumerate(folder):
                self.folders[folder[:depth]].add(name)

    def close(self) -> None:
        if self._members:
            self._members.close()
        if base := self.__dict__.pop("base", None):
            base.close()
            self._scratch.cleanup()

    def files(self, inside: Parts = ()) -> Iterator[tuple[Parts, Any]]:
        """The files in a folder and below it: their paths from there on, and their places."""
        depth = len(inside)
        if inside and isinstance(self._members, Folder):
            for parts, below in Folder(self.path.joinpath(*inside)).members():
                if below is not None:
                    yield parts, "/".join((*inside, below))
            return
        for parts, place in self._members.members() if self._members else ():
            if place is not None and parts[:depth] == inside:
                yield parts[depth:], place

    def read(self, place: Any) -> bytes:
        """The bytes of a file, in any thread; raises ``ImageError``, or ``UserError`` for what is not to be trusted."""
        assert self._members
        return self._members.read(place)

    def counts_in(self, inside: Parts) -> dict[Parts, int]:
        """``counts`` of a folder and those below it, by their paths from there on."""
        depth = len(inside)
        return {folder[depth:]: count for folder, count in self.counts.items() if folder[:depth] == inside}

    def is_crowded(self, folder: Parts, suffix: str) -> bool:
        """Whether a folder has more tables of a kind than are looked at."""
        return suffix != ".parquet" and len(self._tables[folder, suffix.lower()]) > MOST_TABLES

    @cached_property
    def tables(self) -> dict[Parts, Table]:
        """Tables by their paths in the tree, sorted; raises ``UserError`` for one that is surely one and is damaged."""
        if not self.holds_files:
            found = open_table(self.path)
            return {(): found} if found else {}
        tables = {}
        for (_, suffix), files in self._tables.items():
            for parts, place in files:
                try:
                    opener = None if isinstance(self._members, Folder) else partial(self._open, parts, place)
                    if table := open_table(self.path.joinpath(*parts), opener):
                        tables[parts] = table
                except UserError:
                    if suffix in SURE:
                        raise
        return dict(sorted(tables.items()))

    @cached_property
    def base(self) -> sqlite3.Connection:
        """All files, in a table ``files``: path, key, folded name of the folder, place as JSON, whether a picture."""
        self._scratch = tempfile.TemporaryDirectory(prefix="hyojo-source-")
        base = sqlite3.connect(Path(self._scratch.name) / "files.db", isolation_level=None)
        # Nobody else reads it, and nobody needs it after a crash.
        base.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -8000; PRAGMA temp_store = FILE;"
            "CREATE TABLE files (path TEXT PRIMARY KEY, key TEXT, above TEXT, place TEXT, picture INT) WITHOUT ROWID;"
        )
        base.execute("BEGIN")
        base.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", self._list_files())
        base.execute("COMMIT")
        base.execute("CREATE INDEX by_key ON files (key, above)")
        return base

    def find(self, parts: Parts, inside: Parts, near: Sequence[Parts]) -> dict[str, Any]:
        """The files that a path may mean, and their places: one if it is clear, none if there is no such file.

        Letters' case and composition, a suffix that the path lacks, and what data sets add to names do not matter.

        Args:
            parts: The path.
            inside: Only files in this folder count.
            near: Folders from which the path is tried first.
        """
        for folder in near:
            path = printable((*folder, *parts))
            if found := self.base.execute("SELECT place FROM files WHERE path = ?", (path,)).fetchone():
                return {path: json.loads(found[0])}
        *above, name = map(_fold, parts)
        key, suffix = _split(name)
        prefix = "".join(f"{printable([part])}/" for part in inside)
        found = {}
        query = f"SELECT path, place FROM files WHERE key = ? {'AND above = ?' if above else ''}"
        for path, place in self.base.execute(query, (key, *above[-1:])):
            *folders, file = _fold(path).split("/")
            same_folders = folders[len(folders) - len(above) :] == above
            if path.startswith(prefix) and same_folders and suffix in ("", _split(file)[1]):
                found[path] = json.loads(place)
        return found

    def _enter(self, parts: Parts, place: Any) -> None:
        """Count a file or folder."""
        if place is None:
            self.counts[parts] += 0
            return
        folder, suffix = parts[:-1], suffix_of(parts[-1])
        self.counts[folder] += 1
        if suffix in (*KINDS, *ARCHIVES) or may_be_picture(parts[-1]):
            self.useful.add(folder)
        if suffix in ARCHIVES and isinstance(self._members, Folder):
            self.archives.append(parts)
        if suffix in _SHEETS:
            self.sheets.append(parts)
        if suffix in KINDS and not self.is_crowded(folder, suffix):
            self._tables[folder, suffix].append((parts, place))

    def _open(self, parts: Parts, place: Any) -> IO[bytes]:
        """The bytes of a table in an archive."""
        try:
            return io.BytesIO(self.read(place))
        except ImageError as error:
            raise UserError(f"{self.path.joinpath(*parts)} cannot be read ({error}). Make the archive again.") from None

    def _list_files(self) -> Iterator[tuple[str, str, str, str, bool]]:
        """All files, as the base has them."""
        for parts, place in self.files():
            key, _ = _split(_fold(parts[-1]))
            above = printable(map(_fold, parts[-2:-1]))
            yield printable(parts), printable([key]), above, json.dumps(place), has_suffix(parts[-1])


_known = cache(suffixes)


def suffix_of(file: str) -> str:
    """The suffix of a file's name or path, such as ``.jpg``, in lower case."""
    stem, dot, suffix = file.rpartition(".")
    return f".{suffix.lower()}" if stem and dot and "/" not in suffix else ""


def has_suffix(file: str) -> bool:
    """Whether a file's suffix is that of a picture, such as ``.jpg``."""
    return suffix_of(file) in _known()


def may_be_picture(file: str) -> bool:
    """Whether that is so, or it has no suffix."""
    suffix = suffix_of(file)
    return suffix in _known() or not suffix[1:].isalnum() or suffix[1].isdecimal()


def _fold(text: str) -> str:
    """What two spellings of one name have in common."""
    return unicodedata.normalize("NFC", text).casefold()


def _split(name: str) -> tuple[str, str]:
    """A folded name without a picture's suffix and what data sets add; and that suffix, if it has one."""
    suffix = suffix_of(name) if has_suffix(name) else ""
    return _ADDED.sub("", name.removesuffix(suffix)), suffix
