"""Several sources side by side in one folder, as one source."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.prepare.sources.form import Place, find_form, open_place, register
from pipeline.prepare.sources.labels import EXPRESSIONS, fold
from pipeline.prepare.sources.source import Item, Source, printable, split_name
from pipeline.prepare.sources.tree import Tree

_RANK = 4


class Merged(Source):
    """Several sources as one; the name of each stands before those of its items."""

    def __init__(self, place: Place, roots: Mapping[str, Source]) -> None:
        super().__init__(place.path)
        self._place, self._roots = place, roots
        self._names = {path.name for path in place.archives} | {f.inside[-1] for f in place.folders if f.is_useful}
        self.form = "; ".join(f"{name}: {root.form}" for name, root in roots.items())
        self.numbers_are_names = all(root.numbers_are_names for root in roots.values())
        self.later_wins = all(root.later_wins for root in roots.values())
        self.has_columns = any(root.has_columns for root in roots.values())
        self.vote_labels = {label for root in roots.values() for label in root.vote_labels}
        self.empty = {place for root in roots.values() for place in root.empty}

    def items(self) -> Iterator[Item]:
        for parts, _ in self._place.tree.files(self._place.inside):
            if parts[0] not in self._names:
                self.ignore(printable(parts))
        for name, root in self._roots.items():
            for item in root.items():
                inner = f"{name}/{item.root}" if item.root else name
                yield replace(item, file=f"{name}/{item.file}", place=[name, item.place], root=inner)
            self.left_out += root.left_out
            self.notes += Counter({f"{name}: {note}": count for note, count in root.notes.items()})
            self.ignored += [f"{name}/{file}" for file in root.ignored]
            self.ignored_count += root.ignored_count

    def fetch(self, places: Iterable[Any]) -> Iterator[Callable[[], bytes]]:
        for name, run in groupby(places, key=lambda place: place[0]):
            yield from self._roots[name].fetch(place for _, place in run)

    def close(self) -> None:
        for root in self._roots.values():
            root.close()
        super().close()


def recognises(place: Place) -> bool:
    """Whether there are archives, or folders of other forms than class folders, and no class or split folders."""
    names = [folder.inside[-1] for folder in place.folders]
    known = EXPRESSIONS | set(map(fold, place.reading.class_map))
    if sum(fold(name) in known for name in names) > 1 or any(map(split_name, names)):
        return False
    return bool(place.archives) or any(find_form(folder, _RANK) for folder in place.folders)


def open_all(place: Place) -> Merged:
    """Open what lies in the folder; raises ``UserError``."""
    roots: dict[str, Source] = {}
    children: dict[Path, Place | None] = {f.path: f for f in place.folders if f.is_useful}
    try:
        for path, folder in sorted((children | dict.fromkeys(place.archives)).items()):
            roots[printable([path.name])] = open_place(folder or Place(Tree(path), place.reading))
    except BaseException:
        Merged(place, roots).close()
        raise
    return Merged(place, roots)


register(
    _RANK,
    {
        "several data sets: a folder of folders and archives, each of any of these forms": "merged; the manifest's "
        "column `root` has their names"
    },
    recognises,
    open_all,
)
