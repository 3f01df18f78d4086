r"""Pictures with the label in the name of each, found by the pattern ``prepare.label`` -> labelled files.

KA.AN1.39.tiff      with the pattern \.([A-Z]{2})\d
AF01/AF01AFS.JPG    with the pattern ^[AB][FM]\d\d([A-Z]{2})
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from pipeline.core.errors import UserError
from pipeline.prepare.sources.archive import Parts
from pipeline.prepare.sources.form import Place, register
from pipeline.prepare.sources.source import Item, Source, printable, search_name, split_before, split_of
from pipeline.prepare.sources.tree import has_suffix


class FileNames(Source):
    """Pictures in a folder or an archive whose names say what they show; others are left out and counted."""

    form = "pictures with labels in their names"
    numbers_are_names = False
    later_wins = True
    has_columns = False

    def __init__(self, place: Place) -> None:
        super().__init__(place.path)
        self._place, text = place, str(place.reading.pattern)
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise UserError(f"prepare.label: {text!r} is neither auto nor folders nor a pattern ({error}).") from None
        self._find = partial(search_name, pattern)
        some, splits = "", set()
        found = False
        for parts, _ in self._pictures():
            some = some or printable(parts)
            found = found or bool(self._find(printable(parts)))
            splits.add(split_before(parts[-1]))
        if not found:
            there = f", such as {some!r}" if some else ", which holds no pictures"
            raise UserError(f"prepare.label: {text!r} is in no picture's name in {place.path}{there}.")
        self._prefixed = None not in splits and len(splits) > 1

    def items(self) -> Iterator[Item]:
        for parts, at in self._pictures():
            file = printable(parts)
            if label := self._find(file):
                split = split_of(parts[:-1]) or (split_before(file) if self._prefixed else None)
                yield Item(file, label, split, at)
            else:
                self.left_out["prepare.label is not found in the name"] += 1
                self.ignore(file)

    def fetch(self, places: Iterable[Any]) -> Iterator[Callable[[], bytes]]:
        return (partial(self._place.tree.read, place) for place in places)

    def _pictures(self) -> Iterator[tuple[Parts, Any]]:
        """Files with the suffix of a picture, and their places."""
        files = self._place.tree.files(self._place.inside)
        return ((parts, at) for parts, at in files if has_suffix(parts[-1]))


register(
    3,
    {
        "pictures with labels in their names, in a folder or an archive, as JAFFE and KDEF": "the pattern "
        "`prepare.label`; splits by the names of folders"
    },
    lambda place: place.reading.pattern is not None and place.holds_files and not place.archives,
    FileNames,
)
