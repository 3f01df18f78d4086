"""A folder, or a zip or tar archive read in place, of class folders -> labelled files.

    happy/a.png                    train/happy/a.png, val/happy/b.png, ...
    fer2013/happy/a.png            fer2013/train/happy/a.png, test/test/happy/b.png, ...
    A/happy/a.png, B/train/happy/b.png, ...

Folders around the class folders are looked through, and so are folders inside them. Split folders have any
usual name (``Training``, ``valid``, ``PublicTest``, ``test_set``). Several data sets side by side (A, B) are
told by class folders that have names of expressions.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.errors import UserError
from pipeline.prepare.sources.archive import Parts
from pipeline.prepare.sources.form import list_forms, register
from pipeline.prepare.sources.labels import EXPRESSIONS, fold
from pipeline.prepare.sources.members import find_archive_kind, open_members
from pipeline.prepare.sources.source import Item, Source, printable, split_name


class _Class(NamedTuple):
    """What a folder stands for."""

    label: str
    split: str | None
    root: str | None


class ClassFolders(Source):
    """Class folders in a folder or an archive; hidden files and what operating systems leave are passed over.

    Raises:
        UserError: There are no class folders; the archive is damaged, or a member points outside, is a link,
            encrypted, or absurdly large.
    """

    form = "class folders"
    later_wins = True

    def __init__(self, path: Path, known: Collection[str] = ()) -> None:
        super().__init__(path)
        self._reader = open_members(path)
        try:
            counts: Counter[Parts] = Counter()
            table: Parts = ()
            for parts, place in self._reader.members():
                if place is None:
                    counts[parts] += 0
                else:
                    counts[parts[:-1]] += 1
                    if parts[-1].lower().endswith((".csv", ".parquet")):
                        table = table or parts
            self._classes = _find_classes(path, counts, EXPRESSIONS | set(map(fold, known)))
            labels = {found.label for folder, found in self._classes.items() if counts[folder]}
            if not labels or (table and len(labels) < 2):
                hint = f"It holds {printable(table)}: unpack it, and give that. " if table else ""
                raise UserError(f"prepare.source: {path} has no class folders with files in them. {hint}{list_forms()}")
        except BaseException:
            self.close()
            raise
        found = {folder: (item.split, item.label) for folder, item in self._classes.items()}
        self.empty = set(found.values()) - {place for folder, place in found.items() if counts[folder]}

    def items(self) -> Iterator[Item]:
        for parts, place in self._reader.members():
            if place is None:
                continue
            if found := self._classes.get(parts[:-1]):
                yield Item(printable(parts), found.label, found.split, place, root=found.root)
            else:
                self.ignore(printable(parts))

    def fetch(self, places: Iterable[Any]) -> Iterator[Callable[[], bytes]]:
        return (partial(self._reader.read, place) for place in places)

    def close(self) -> None:
        self._reader.close()


def _find_classes(path: Path, counts: Mapping[Parts, int], known: Collection[str]) -> dict[Parts, _Class]:
    """What each folder stands for, by the number of files directly in every folder; those outside are not in it."""
    around = {folder[:depth] for folder in counts for depth in range(len(folder))}
    counts = {folder: count for folder, count in counts.items() if count or folder not in around}
    classes: dict[Parts, _Class] = {}
    for root, folders in _roots(path, counts, known).items():
        for folder, (split, label) in _read_level(path, {folder: counts[folder] for folder in folders}).items():
            classes[folder] = _Class(label, split, printable(root) or None)
    return classes


def _roots(path: Path, counts: Mapping[Parts, int], known: Collection[str]) -> dict[Parts, list[Parts]]:
    """The folders of each of several data sets, by what lies around their class folders; else all of one."""
    above: dict[Parts, Parts] = {}
    for folder, count in counts.items():
        level = next((i for i, name in enumerate(folder) if fold(name) in known), None)
        if count and level is not None:
            above[folder] = tuple(name for name in folder[:level] if not split_name(name))
    names = set(above.values())
    if len(names) < 2 or () in names:
        return {(): list(counts)}
    roots = defaultdict(list)
    for folder in counts:
        plain = tuple(name for name in folder if not split_name(name))
        root = above.get(folder) or next((name for name in names if plain[: len(name)] == name), None)
        if root:
            roots[root].append(folder)
        elif counts[folder] and len(plain) > 1:
            raise UserError(
                f"prepare.source: {path} holds several data sets ({', '.join(sorted(map('/'.join, names))[:3])}, "
                f"...), but the folders in {printable(plain[:-1])} have no usual names of expressions, such as "
                f"{printable(plain[-1:])!r}. Say in prepare.class_map what they are, or take them away."
            )
    return roots


def _read_level(path: Path, counts: Mapping[Parts, int]) -> dict[Parts, tuple[str | None, str]]:
    """Split and class of the folders of one data set: classes are the first level at which folders part."""
    places = {folder: _split_place(folder) for folder in counts}
    if any(split and rest and counts[folder] for folder, (split, rest) in places.items()):
        places = {folder: (split, rest if split else ()) for folder, (split, rest) in places.items()}
    else:
        places = {folder: (None, folder) for folder in places}
    wrapper = _wrapper([rest for folder, (_, rest) in places.items() if counts[folder] and rest])
    found = {}
    for folder, (split, rest) in places.items():
        if len(rest) > len(wrapper) and rest[: len(wrapper)] == wrapper:
            found[folder] = split, printable(rest[len(wrapper) :][:1])
    if found and all(split is None and split_name(label) for split, label in found.values()):
        raise UserError(f"prepare.source: {path} has split folders, but no class folders in them. {list_forms()}")
    return found


def _split_place(folder: Parts) -> tuple[str | None, Parts]:
    """The split of a folder, and the path below its last split folder that has a folder in it."""
    for i in reversed(range(len(folder) - 1)):
        if split := split_name(folder[i]):
            return split, folder[i + 1 :]
    return None, folder


def _wrapper(rests: list[Parts]) -> Parts:
    """The folders that lie around all class folders."""
    depth = 0
    while len({rest[depth] for rest in rests if len(rest) > depth}) == 1:
        if all(len(rest) <= depth + 1 for rest in rests):
            break  # the last level is the class, even if there is only one
        depth += 1
    return max(rests, key=len)[:depth] if rests else ()


register(
    5,
    {
        "class folders, with or without split folders around them, in a folder or in a zip or tar archive (plain, "
        "gz, bz2, xz)": "the folders' names; splits as `train`, `val`/`valid`/`validation`/`PublicTest`, "
        "`test`/`PrivateTest`, ..."
    },
    lambda place: place.path.is_dir() or find_archive_kind(place.path) is not None,
    lambda place: ClassFolders(place.path, place.reading.known),
)
