"""Every item of a source, in a SQLite file beside the arrays while they are made.

Names, classes, splits, people and places stand there in order of name, so that memory does not grow with the
source: only numbers are kept of each image.
"""

import json
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import UserError
from pipeline.prepare.label_checks import check_labels
from pipeline.prepare.sources.labels import fold, name_classes
from pipeline.prepare.sources.source import NAMED, Source, search_name

SPLITS = ("train", "val", "test")
# Nobody else reads the file, and nobody needs it after a crash.
_TABLES = """
    PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -4000; PRAGMA temp_store = FILE;
    CREATE TABLE items (
        file TEXT PRIMARY KEY, label TEXT, split INT, place TEXT, person TEXT, weight REAL, votes TEXT, root TEXT
    ) WITHOUT ROWID;
    CREATE TABLE classes (label TEXT PRIMARY KEY, class INT) WITHOUT ROWID;
    CREATE TABLE people (rank INTEGER PRIMARY KEY, name TEXT UNIQUE);
    CREATE TABLE images (
        number INTEGER PRIMARY KEY, file TEXT, class INT, split INT, place TEXT, person INT, weight REAL, votes TEXT,
        root TEXT
    );
"""
_NUMBER = """
    BEGIN;
    INSERT INTO people (name) SELECT DISTINCT person FROM items WHERE person IS NOT NULL ORDER BY person;
    INSERT INTO images
        SELECT ROW_NUMBER() OVER (ORDER BY file) - 1, file, classes.class, split, place, rank, weight, votes, root
        FROM items CROSS JOIN classes USING (label) LEFT JOIN people ON name = person
        WHERE classes.class IS NOT NULL ORDER BY file;
    DROP TABLE items;
    COMMIT;
"""


class Listing:
    """A source's items, numbered from 0 in order of name, in a file in ``folder``: who makes that removes it.

    Raises:
        UserError: Labels, splits, people or names do not allow to train; the message says what to do.
    """

    class_names: list[str]  # the K classes, sorted

    def __init__(self, folder: Path, source: Source, class_map: Mapping[str, str | None], person: str | None) -> None:
        self.path = source.path
        self._base = sqlite3.connect(folder / "listing.db", isolation_level=None)
        self._base.executescript(_TABLES)
        self.notes: Counter[str] = Counter()  # what was settled on the way, counted by a sentence about it
        self._add(source, person, set(map(fold, class_map)))
        self.left_out = Counter(source.left_out)  # items that are not listed, counted by the reason
        self.notes += source.notes
        check_labels(self._base, self.path, class_map, source.numbers_are_names)
        self._name(source, class_map)
        self._base.executescript(_NUMBER)
        self.count: int = self._one("SELECT COUNT(*) FROM images")  # N
        # People who are kept apart; 0 if nothing tells who they are, or nobody minds.
        self.person_count: int = self._one("SELECT COUNT(DISTINCT person) FROM images") if person else 0
        self.merged = bool(self._one("SELECT COUNT(root) FROM images"))  # whether the source is several ones
        self.soft = bool(self._one("SELECT COUNT(votes) FROM images"))  # whether there are votes
        # Splits that the source has; what it gives none is of train.
        self.given = {SPLITS[split] for (split,) in self._base.execute("SELECT DISTINCT split FROM images")}
        self._check_classes()
        self._check_people(person)

    def close(self) -> None:
        """Nothing can be read afterwards."""
        self._base.close()

    def numbers(self, column: str, dtype: Any) -> np.ndarray | None:
        """A column, (N,), None if it is empty: ``class``, ``split``, ``person`` (-1: not known) or ``weight``."""
        if not self._one(f"SELECT COUNT({column}) FROM images"):
            return None
        blank = {"person": -1, "weight": 1}.get(column)
        rows = self._base.execute(f"SELECT {column} FROM images ORDER BY number")
        return np.fromiter((blank if value is None else value for (value,) in rows), dtype, self.count)

    def files(self, numbers: Iterable[int] | None = None) -> Iterator[str]:
        """Names of all items, or of those with certain numbers."""
        return self._column("file", numbers)

    def places(self, numbers: Iterable[int] | None = None) -> Iterator[Any]:
        """Where the source has its items, likewise."""
        return map(json.loads, self._column("place", numbers))

    def roots(self) -> Iterator[str | None]:
        """Which of several merged sources each item comes from; all None if there is only one."""
        return self._column("root", None)

    def unnamed(self) -> Iterator[tuple[str, int, str | None]]:
        """Name, number of the class, and root of each item of which nothing says whom it shows."""
        return iter(self._base.execute("SELECT file, class, root FROM images WHERE person IS NULL ORDER BY number"))

    def people(self) -> Iterator[str | None]:
        """Whom each item shows, None if that is not known."""
        query = "SELECT name FROM images LEFT JOIN people ON rank = person ORDER BY images.number"
        return (name for (name,) in self._base.execute(query))

    def shares(self, numbers: np.ndarray) -> np.ndarray:
        """The share of each class in the votes on some items, float32 (n, K); without votes its own class has all."""
        shares = np.zeros((len(numbers), len(self.class_names)), np.float32)
        for share, votes, own in zip(shares, self._column("votes", numbers), self._column("class", numbers)):
            for label, count in json.loads(votes or "{}").items():
                if (number := self._classes[label]) is not None:
                    share[number] += count
            if not share.any():
                share[own] = 1
        return shares / shares.sum(axis=1, keepdims=True)

    def _one(self, query: str) -> Any:
        return self._base.execute(query).fetchone()[0]

    def _column(self, column: str, numbers: Iterable[int] | None) -> Iterator[Any]:
        if numbers is None:
            return (value for (value,) in self._base.execute(f"SELECT {column} FROM images ORDER BY number"))
        query = f"SELECT {column} FROM images WHERE number = ?"
        return (self._base.execute(query, (int(number),)).fetchone()[0] for number in numbers)

    def _add(self, source: Source, person: str | None, mapped: Collection[str]) -> None:
        """Write down all items as the source has them; a label that is mapped with its root has it before it."""
        find = person_finder(person)
        insert = f"INSERT {'OR REPLACE ' if source.later_wins else ''}INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        listed, twice = 0, []
        with self._base:
            self._base.execute("BEGIN")
            for item in source.items():
                own = f"{item.root}/{item.label}"
                label = _composed(own if item.root and fold(own) in mapped else item.label)
                row = (item.file, label, SPLITS.index(item.split or "train"), json.dumps(item.place))
                who = f"{item.root}/{item.person}" if item.person and item.root else item.person
                votes = json.dumps(item.votes) if item.votes else None
                listed += 1
                try:
                    self._base.execute(insert, (*row, who or find(item.file, item.root), item.weight, votes, item.root))
                except sqlite3.IntegrityError:
                    twice.append(item.file)
        if twice:
            raise UserError(
                f"prepare.source: {self.path} names {len(twice)} files twice: {', '.join(map(repr, twice[:NAMED]))}. "
                "Take one of each out."
            )
        count = self._one("SELECT COUNT(*) FROM items")
        if not count:
            raise UserError(f"prepare.source: {self.path} has no labelled images.")
        if listed > count:
            self.notes["files have the name of a later one in the archive, which counts"] += listed - count

    def _name(self, source: Source, class_map: Mapping[str, str | None]) -> None:
        """Settle the classes."""
        counts = dict(self._base.execute("SELECT label, COUNT(*) FROM items GROUP BY label"))
        empty = {(split or "train", _composed(label)) for split, label in source.empty}
        others = {*(label for _, label in empty), *source.vote_labels}
        names = name_classes(counts, class_map, source.numbers_are_names, others, self.path)
        self._empty = {(split, name) for split, label in empty if (name := names[label]) is not None}
        self.class_names = sorted({name for label in counts if (name := names[label]) is not None})
        index = {name: i for i, name in enumerate(self.class_names)}
        self._classes = {label: index.get(name or "") for label, name in names.items()}
        self._base.executemany("INSERT INTO classes VALUES (?, ?)", self._classes.items())
        for label, count in counts.items():
            if names[label] is None:
                self.left_out[f"prepare.class_map: {label}"] += count

    def _check_classes(self) -> None:
        """Refuse splits that lack a class, and sources that lack a train split."""
        pairs = self._base.execute("SELECT DISTINCT split, class FROM images")
        found = {(SPLITS[split], self.class_names[number]) for split, number in pairs}
        splits = {split for split, _ in found | self._empty}
        if "train" not in splits:
            raise UserError(
                f"prepare.source: {self.path} has {' and '.join(sorted(splits))} but no train split. Add one."
            )
        for split in sorted(splits):
            for name in sorted({name for _, name in found | self._empty}):
                if (split, name) not in found:
                    where = f" in split {split!r}" if len(splits) > 1 else ""
                    raise UserError(
                        f"prepare.source: {self.path} has no files of class {name!r}{where}. Add some, or remove "
                        "the class everywhere, as prepare.class_map can."
                    )

    def _check_people(self, person: str | None) -> None:
        """Refuse a person in two of the source's own splits, and a way to find people that finds none."""
        if person is None:
            return
        if person != "auto" and not self.person_count:
            raise UserError(
                f"prepare.person: {person!r} is no column of a table in {self.path}, nor a pattern in any file's "
                f"name, such as {next(self.files())!r}."
            )
        both = "SELECT name FROM images JOIN people ON rank = person GROUP BY rank HAVING COUNT(DISTINCT split) > 1"
        people = [name for (name,) in self._base.execute(f"{both} ORDER BY name")]
        if people:
            raise UserError(
                f"prepare.person: {len(people)} of {self.person_count} people are in more than one of the source's own "
                f"splits: {', '.join(people[:10])}. Put each into one split, take the splits away to have them cut "
                "here, or set prepare.person to null."
            )


def _composed(label: str) -> str:
    """The same letter may come composed from one system and decomposed from another."""
    return unicodedata.normalize("NFC", label)


def person_finder(person: str | None) -> Callable[[str, str | None], str | None]:
    """Who is in a file by a pattern, given its name and which of several data sets it is of; None if nobody is."""
    try:
        pattern = None if person in (None, "auto") else re.compile(person)
    except re.error:
        pattern = None  # a column may have such a name
    if pattern is None:
        return lambda file, root: None

    def find(file: str, root: str | None) -> str | None:
        found = search_name(pattern, file)
        return f"{root}/{found}" if found and root else found or None

    return find
