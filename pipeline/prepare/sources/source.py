"""What every form of source gives: a stream of labelled items, and the bytes of each on demand."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.core.errors import UserError

_SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "development", "publictest"),
    "test": ("test", "testing", "tst", "privatetest"),
}
_SPLIT_OF = {name: split for split, names in _SPLITS.items() for name in names}
_SPLIT_SUFFIX = re.compile(r"(set|data|dataset|images?|imgs?|split|faces|labels?|list)$")
_SHOWN = 20
NAMED = 10  # bad rows or files that an error names


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled picture."""

    file: str  # its name, which no other item of the source has
    label: str  # as the source spells it
    split: str | None  # train, val or test, None where the source does not say
    place: Any  # where ``Source.fetch`` finds its bytes; of the types that JSON has
    person: str | None = None  # the person it shows, or whatever must not be in two splits
    weight: float | None = None  # how much it counts in training
    votes: Mapping[str, float] | None = None  # how many people gave it each label
    root: str | None = None  # which of several merged sources it comes from


class Opened:
    """What can be closed."""

    def close(self) -> None:
        """Nothing can be read afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Source(Opened, ABC):
    """An opened source; what it counts is complete after ``items``."""

    form: str  # what it was taken for, in words
    numbers_are_names = True  # whether a label that is a number may stay the name of its class
    later_wins = False  # of two items with one name the later counts; else a second one is an error
    has_columns = True  # whether ``prepare.columns`` may say something of it
    vote_labels: Iterable[str] = ()  # labels that votes may be for
    tree: Opened | None = None  # what holds its files; closed with it

    def __init__(self, path: Path) -> None:
        self.path = path
        self.empty: set[tuple[str | None, str]] = set()  # class folders without files, as split and label
        self.left_out: Counter[str] = Counter()  # items that a rule leaves out, counted by the rule
        self.notes: Counter[str] = Counter()  # what was settled on the way, counted by a sentence about it
        self.ignored: list[str] = []  # the first files that belong to no item
        self.ignored_count = 0  # and how many there are

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """All items, one at a time; raises ``UserError``, which names file and row, for what cannot be used."""

    @abstractmethod
    def fetch(self, places: Iterable[Any]) -> Iterator[Callable[[], bytes]]:
        """For each place, in order of the items' names, a function that gives its bytes, once, in any thread.

        The function raises ``ImageError`` for what is damaged, ``UserError`` for what is not to be trusted.
        """

    def close(self) -> None:
        if self.tree:
            self.tree.close()

    def ignore(self, file: str) -> None:
        """Count a file that belongs to no item."""
        self.ignored_count += 1
        if len(self.ignored) < _SHOWN:
            self.ignored.append(file)


class Faults:
    """What is wrong with a table's rows, gathered so that one error names them all."""

    def __init__(self) -> None:
        self._messages: list[str] = []
        self._count = 0

    def add(self, error: UserError) -> None:
        """Take a row's error."""
        self._count += 1
        if len(self._messages) < NAMED:
            self._messages.append(str(error))

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Take the error that the block raises, if any."""
        try:
            yield
        except UserError as error:
            self.add(error)

    def raise_all(self) -> None:
        """Raise one ``UserError`` for all that was taken, if any was."""
        if self._count:
            rest = f"\nand {self._count - len(self._messages):,} more rows." if self._count > NAMED else ""
            raise UserError("\n".join(self._messages) + rest)


def split_name(name: str) -> str | None:
    """``train``, ``val`` or ``test`` for a usual name of a split, else None."""
    name = re.sub(r"[\W_]", "", name.lower())
    return _SPLIT_OF.get(name) or _SPLIT_OF.get(_SPLIT_SUFFIX.sub("", name))


def split_of(folders: Sequence[str]) -> str | None:
    """The split that the last folder of a usual name stands for."""
    return next(filter(None, map(split_name, reversed(folders))), None)


def split_before(file: str) -> str | None:
    """The split that a file's name begins with, as RAF-DB's ``train_00001.jpg``."""
    first, mark, _ = re.sub("[-_ ]", "\0", file.rpartition("/")[2], count=1).partition("\0")
    return split_name(first) if mark else None


def read_split(cell: str, where: str) -> str | None:
    """The split that a cell of a table names, None for an empty one; ``where`` is for the message."""
    if not cell.strip():
        return None
    if split := split_name(cell):
        return split
    raise UserError(
        f"{where}: {cell.strip()!r} is no split. Use train, val and test, or Training, PublicTest and PrivateTest."
    )


def search_name(pattern: re.Pattern[str], file: str) -> str | None:
    """What a pattern finds in a file's name: its first group, or all of it; with a slash in it, in the path."""
    match = pattern.search(file if "/" in pattern.pattern else file.rpartition("/")[2])
    return (match[1] if pattern.groups else match[0]) if match else None


def printable(parts: Iterable[str]) -> str:
    """A path that can be written as UTF-8 even where the file system's name cannot."""
    return "/".join(parts).encode("utf-8", "backslashreplace").decode("utf-8")
