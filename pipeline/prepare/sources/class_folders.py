"""A folder, or a zip or tar archive read in place, of class folders -> labelled files.

    happy/a.png                    train/happy/a.png, val/happy/b.png, ...
    fer2013/happy/a.png            fer2013/train/happy/a.png, test/test/happy/b.png, ...
    A/happy/a.png, B/train/happy/b.png, ...

Folders around the class folders are looked through, and so are folders inside them. Split folders have any
usual name (``Training``, ``valid``, ``PublicTest``, ``test_set``). Several data sets side by side (A, B) are
told by class folders that have names of expressions.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from pipeline.core.errors import UserError
from pipeline.prepare.sources.folder_classes import find_classes
from pipeline.prepare.sources.form import Place, list_forms, register
from pipeline.prepare.sources.label_tables import find_unused
from pipeline.prepare.sources.labels import EXPRESSIONS, fold, suggest_pattern
from pipeline.prepare.sources.source import NAMED, Item, Source, printable
from pipeline.prepare.sources.tree import has_suffix


class ClassFolders(Source):
    """Class folders in a folder or an archive; hidden files and what operating systems leave are passed over.

    Raises:
        UserError: There are no class folders, or tables say something of their pictures that is not understood.
    """

    form = "class folders"
    later_wins = True
    has_columns = False

    def __init__(self, place: Place) -> None:
        super().__init__(place.path)
        self._place, counts = place, place.tree.counts_in(place.inside)
        self._classes = find_classes(place.path, counts, EXPRESSIONS | set(map(fold, place.reading.class_map)))
        if sheets := place.sheets:
            shown = ", ".join(map(printable, sheets[:NAMED]))
            self.notes[f"spreadsheets are not read; if they have labels, save them as CSV: {shown}"] = len(sheets)
        labels = {found.label for folder, found in self._classes.items() if counts[folder]}
        if len(labels) < 1 + bool(sheets):
            raise UserError(f"prepare.source: {place.path} has no class folders with files in them. {_hint(place)}")
        packed = Counter(parts[:-1] for parts in place.tree.archives)
        for folder in self._classes:
            if 0 < counts[folder] == packed[*place.inside, *folder]:
                raise UserError(f"prepare.source: {place.path.joinpath(*folder)} holds archives. Unpack them.")
        if table := find_unused(place):
            raise UserError(
                f"{table.path} names pictures, and class folders lie beside them. Put the two data sets into folders "
                "side by side, or set prepare.label to folders if class folders say it all."
            )
        found = {folder: (item.split, item.label) for folder, item in self._classes.items()}
        self.empty = set(found.values()) - {place for folder, place in found.items() if counts[folder]}

    def items(self) -> Iterator[Item]:
        for parts, place in self._place.tree.files(self._place.inside):
            if found := self._classes.get(parts[:-1]):
                yield Item(printable(parts), found.label, found.split, place, root=found.root)
            else:
                self.ignore(printable(parts))

    def fetch(self, places: Iterable[Any]) -> Iterator[Callable[[], bytes]]:
        return (partial(self._place.tree.read, place) for place in places)


def _hint(place: Place) -> str:
    """What there is instead of class folders, and what to do about it."""
    names = (parts[-1] for parts, _ in place.tree.files(place.inside) if has_suffix(parts[-1]))
    if pattern := suggest_pattern(islice(names, 1000)):
        return f"The files' names seem to have the labels in them; say so by prepare.label='{pattern}'."
    if place.sheets:
        return f"It holds {printable(place.sheets[0])}: save that as CSV if it has the labels. {list_forms()}"
    found = [*(table.path for table in place.tables_below.values()), *place.archives]
    there = f"It holds {found[0]}, but no pictures that go with it. " if found else ""
    return (
        f"{there}If the files' names have the labels in them, prepare.label takes a pattern of them, such as "
        rf"'\.([A-Z]+)\d' for KA.AN1.39.tiff. {list_forms()}"
    )


register(
    5,
    {
        "class folders, with or without split folders around them, in a folder or in a zip or tar archive (plain, "
        "gz, bz2, xz)": "the folders' names; splits as `train`, `val`/`valid`/`validation`/`PublicTest`, "
        "`test`/`PrivateTest`, ..."
    },
    lambda place: place.holds_files,
    ClassFolders,
)
