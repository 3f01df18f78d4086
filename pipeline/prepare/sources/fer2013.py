"""FER2013's CSV, in its three public spellings, and the votes of FER+ -> labelled pictures.

    emotion,pixels,Usage            fer2013.csv
    emotion, Usage, pixels          icml_face_data.csv, blanks included
    emotion,pixels                  the challenge's train.csv
    emotion,pixels,Usage            ckextended.csv, CK+ with contempt as 7

Pixels stand as grey values with blanks between; a row becomes a PGM picture. FER+ (Barsoum et al., "Training
deep networks for facial expression recognition with crowd-sourced label distribution", ICMI 2016) has ten
people's votes for each row of FER2013, in the same order, in ``fer2013new.csv``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import isqrt
from typing import Any

import numpy as np

from pipeline.core.errors import UserError
from pipeline.inference.images import ImageError
from pipeline.prepare.sources.form import Place, refuse_packed, register
from pipeline.prepare.sources.labels import FER_NAMES, FERPLUS_NAMES
from pipeline.prepare.sources.source import Faults, Item, Source, read_split
from pipeline.prepare.sources.table import Table, read_label
from pipeline.prepare.sources.text_table import MAX_LINE, CsvTable

_PIXELS = "pixels"
_NO_FACE = ("unknown", "NF")


def holds_pixels(table: Table) -> bool:
    """Whether a table is a CSV with pictures as text."""
    return isinstance(table, CsvTable) and _PIXELS in table.columns


def _holds_votes(table: Table) -> bool:
    """Whether a table has the columns of FER+."""
    return {*FERPLUS_NAMES, *_NO_FACE} <= set(table.columns)


class FerCsv(Source):
    """A CSV of pixels, with FER+'s table for it if there is one; lines are read where they stand, not all at once.

    If it need not be ``labelled``, there may be no more than ``pictures``, and no items.
    """

    numbers_are_names = False

    def __init__(self, place: Place, table: Table, votes: Table | None, labelled: bool = True) -> None:
        super().__init__(place.path)
        reading = place.reading
        given, soft = reading.columns, reading.soft
        # The class map may say otherwise, unless its numbers may be those of another data set beside this one.
        taken = () if place.inside else reading.class_map
        self._names = {str(i): name for i, name in enumerate(FER_NAMES) if str(i) not in taken}
        self.form = "FER2013's CSV" + (f" with FER+'s votes, {'soft' if soft else 'majority'} labels" if votes else "")
        self._table, self._votes, self._soft = table, votes, soft
        self.vote_labels = FERPLUS_NAMES.values() if votes and soft else ()
        roles = table.roles({role: given[role] for role in ("label", "split") if role in given}, None)
        if labelled and "label" not in roles:
            raise UserError(
                f"{table.path} has pixels but no emotions, as the challenge's test.csv: there is nothing to learn "
                "from it. Give fer2013.csv, icml_face_data.csv or train.csv; pictures without labels are for "
                "`hyojo predict`."
            )
        self._at = {role: table.columns.index(name) for role, name in roles.items()}
        self._at[_PIXELS] = table.columns.index(_PIXELS)
        self._file = table.path.open("rb")

    def pictures(self) -> Iterator[tuple[str, list[int]]]:
        """Name and place of every picture, whatever its label."""
        return ((_name_row(index), place) for index, (place, _) in enumerate(self._lines()))

    def items(self) -> Iterator[Item]:
        votes = self._read_votes() if self._votes else None
        faults = Faults()
        for index, (place, line) in enumerate(self._lines()):
            voted = next(votes, (None, {})) if votes else None
            item = None
            with faults.gathered():
                item = self._read(_name_row(index), place, line, voted)
            if item:
                yield item
        faults.raise_all()
        if votes and next(votes, None):
            raise UserError(f"{self._votes.path}: more rows than {self._table.path.name} has. Fetch both again.")

    def fetch(self, places: Iterable[Any]) -> Iterator[Callable[[], bytes]]:
        for offset, length, number in places:
            self._file.seek(offset)
            yield partial(self._picture, self._file.read(length), number)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _lines(self) -> Iterator[tuple[list[int], bytes]]:
        """Every line after the first that has something in it: its offset, length and number, and its bytes."""
        self._file.seek(0)
        offset = number = 0
        while line := self._file.readline(MAX_LINE):
            place = [offset, len(line), number := number + 1]
            offset += len(line)
            if number > 1 and line.strip():
                yield place, line

    def _read(
        self, file: str, place: list[int], line: bytes, voted: tuple[str | None, dict[str, float]] | None
    ) -> Item | None:
        """The item in a line, None if its votes leave it out."""
        where = f"{self._table.path}, line {place[2]}"
        cells = self._cells(line, place[2])
        text = {role: cells[at].decode("utf-8", "replace") for role, at in self._at.items() if role != _PIXELS}
        label = read_label(text["label"], None, where)
        label = self._names.get(label, label)
        split = read_split(text.get("split", ""), where)
        if voted is None:
            return Item(file, label, split, place)
        voted_split, counts = voted
        if not counts or voted_split != split:
            raise UserError(
                f"{where}: the row of {self._votes.path.name} for it is missing or of another split. Both "
                "files must hold the same rows in the same order: fetch them again."
            )
        found, shares = count_votes(counts, self._soft)
        if found is None:
            self.left_out["FER+: unknown, no face, or no majority"] += 1
            return None
        return Item(file, found, split, place, votes=shares if self._soft else None)

    def _cells(self, line: bytes, number: int) -> list[bytes]:
        """The cells of a line; in this format no cell has a delimiter in it."""
        cells = [cell.strip(b'" \t\r\n') for cell in line.split(self._table.delimiter.encode())]
        if len(cells) != len(self._table.columns):
            raise UserError(
                f"{self._table.path}, line {number}: {len(cells)} cells, but the first line has "
                f"{len(self._table.columns)}. Mend the line, or fetch the file again."
            )
        return cells

    def _picture(self, line: bytes, number: int) -> bytes:
        """The PGM picture in a line."""
        text = self._cells(line, number)[self._at[_PIXELS]]
        # With nothing else in it, numpy reads it to its end.
        pixels = np.fromstring(text, np.int64, sep=" ") if not text.translate(None, b"0123456789 ") else None
        if pixels is None or pixels.max(initial=0) > 255:
            raise ImageError(f"line {number}: pixels that are not whole numbers from 0 to 255")
        side = isqrt(len(pixels))
        if not side or side * side != len(pixels):
            raise ImageError(f"line {number}: {len(pixels)} pixels, which make no square")
        return b"P5 %d %d 255\n" % (side, side) + pixels.astype(np.uint8).tobytes()

    def _read_votes(self) -> Iterator[tuple[str | None, dict[str, float]]]:
        """Split and votes of every row of FER+."""
        names = [*FERPLUS_NAMES, *_NO_FACE]
        usage = self._votes.roles({}, None).get("split")
        for where, cells in self._votes.rows([*([usage] if usage else []), *names]):
            split = read_split(cells[0], where) if usage else None
            counts = cells[1:] if usage else cells
            if not all(count.isdecimal() for count in counts):
                raise UserError(f"{where}: votes that are not whole numbers. Fetch the file again.")
            yield split, dict(zip(names, map(int, counts)))


def _name_row(index: int) -> str:
    return f"fer{index:07d}.pgm"


def count_votes(counts: Mapping[str, float], soft: bool) -> tuple[str | None, dict[str, float]]:
    """What people's votes on a picture come to.

    Single votes count as slips. The picture is left out if most votes are for no class, and, unless labels are
    soft, if no class has more than half of the votes; ``counts`` are by FER+'s names.

    Returns:
        The class with most votes, None if the picture is left out, and the votes by class.
    """
    counts = {name: count for name, count in counts.items() if count > 1}
    top = max(counts, key=lambda name: (counts[name], name in _NO_FACE), default="NF")
    if top in _NO_FACE or (not soft and 2 * counts[top] <= sum(counts.values())):
        return None, {}
    return FERPLUS_NAMES[top], {FERPLUS_NAMES[name]: n for name, n in counts.items() if name in FERPLUS_NAMES}


def recognises(place: Place) -> bool:
    """Whether there are pixels or votes."""
    return any(holds_pixels(table) or _holds_votes(table) for table in place.tables)


def open_fer(place: Place) -> FerCsv:
    """Open the CSV, with the votes on it if they lie beside it; raises ``UserError``."""
    pixels = [table for table in place.tables if holds_pixels(table)]
    votes = [table for table in place.tables if _holds_votes(table)]
    refuse_packed(place, (pixels or votes)[0])
    if not pixels:
        lack = " and no pictures. Put it into one folder with fer2013.csv, and give the folder."
        if place.holds_files:
            lack = ", but no CSV with FER2013's pixels lies beside it. Put fer2013.csv into the folder."
        raise UserError(f"prepare.source: {votes[0].path} has the votes of FER+{lack}")
    labelled = [table for table in pixels if "label" in table.roles({}, None)] or pixels[:1]
    for tables in (labelled, votes):
        if len(tables) > 1:
            names = ", ".join(table.path.name for table in tables)
            raise UserError(
                f"prepare.source: {place.path} has several tables of the same kind ({names}). Leave one there."
            )
    return FerCsv(place, labelled[0], votes[0] if votes else None)


register(
    1,
    {
        "FER2013's CSV: `fer2013.csv`, `icml_face_data.csv`, or the challenge's `train.csv`": "the numbers 0 to 6; "
        "`Usage`",
        "FER+: a folder with `fer2013new.csv` and FER2013's CSV": "people's votes; `Usage`",
    },
    recognises,
    open_fer,
)
