"""Who is in which picture: as the source or ``prepare.person`` says, else by what file names give away.

Patterns that data sets are known for are tried on all names, before anything is decoded. One counts if it explains the
files well: nearly each has it; it names many people, each with several pictures, of which most show several classes.
What may as well be a counter (``happy/im7.png`` beside ``sad/im7.png``) or a copy's number names nobody.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.prepare.catalogue import Listing, person_finder
from pipeline.prepare.sources.labels import EXPRESSIONS, fold

_COVERED = 0.98  # of the files have it
_PEOPLE, _PICTURES = 8, 3  # at least so many people, and pictures of each on average
_LARGEST = 0.25  # of the files are of one person at most
_SEVERAL = 0.5  # of the people show several classes at least
_ALL = 0.9  # of numbers: all people show all classes, and the rest of a name tells the class, nearly
_KEPT = 2**15  # more different things are no people, and would fill memory


class _Pattern(NamedTuple):
    text: str  # as ``prepare.person`` takes it; without groups, so that several can be joined
    number: bool = False  # whether a counter looks the same


_WORDS = "(?i:subject|subj|sub|person|actor|participant|proband)"
_PATTERNS = (
    _Pattern(r"S\d+"),  # CK+: S010_004_00000017.png
    _Pattern(r"[FM]\d+"),  # KDEF: AF01AFS.JPG and BF01AFS.JPG are one woman; BU-3DFE, ADFES
    _Pattern(rf"{_WORDS}[-_ ]?\d+"),  # Yale: subject01.happy.gif
    _Pattern(r"(?<=Rafd\d{3}_)\d+"),  # RaFD: Rafd090_01_Caucasian_female_angry_frontal.jpg
    _Pattern(r"^[A-Z]{2,3}(?=[._-])"),  # JAFFE: KA.AN1.39.tiff
    _Pattern(r"^[A-Za-z]+(?:[ _-][A-Za-z]+)+(?=[ _-]\d)"),  # LFW: George_W_Bush_0010.jpg
    _Pattern(r"P\d+"),
    _Pattern(r"^bs\d+"),  # Bosphorus: bs000_E_ANGER_0.png
    _Pattern(r"^\d+(?=[._-])", number=True),  # FACES: 004_o_m_a_d.jpg
    _Pattern(r"(?<![^/])[SP]\d+(?=/)"),  # folders: Oulu-CASIA has P001/Happiness/003.jpeg
    _Pattern(rf"(?<![^/]){_WORDS}[-_ ]?\d+(?=/)"),  # RAVDESS: Actor_01/
)
_COMPILED = tuple(re.compile(pattern.text) for pattern in _PATTERNS)


@dataclass(frozen=True)
class People:
    """Who is known to be in N pictures."""

    numbers: np.ndarray  # which person, -1 where that is not known, int32 (N,)
    kept_apart: bool  # whether ``prepare.person`` keeps them out of two splits
    own_splits: bool  # whether the source has splits of its own
    pattern: str | None = None  # what was found in file names, None where source or params say it


def find_people(listing: Listing, person: str | None) -> People | None:
    """Find out who is in each picture of a listing; ``person`` is ``prepare.person``. None if nothing tells."""
    numbers = listing.numbers("person", np.int32)
    own_splits = len(listing.given) > 1
    asked = person not in (None, "auto")
    pattern = None if asked else find_pattern(listing.unnamed(), listing.class_names)
    if pattern is None:
        return None if numbers is None else People(numbers, person is not None, own_splits)
    known: dict[str | None, int] = {None: -1}
    start = 0 if numbers is None else int(numbers.max()) + 1
    names = map(person_finder(pattern), listing.files(), listing.roots())
    found = np.fromiter((known.setdefault(name, start + len(known) - 1) for name in names), np.int32, listing.count)
    return People(found if numbers is None else np.where(numbers < 0, found, numbers), False, own_splits, pattern)


def find_pattern(named: Iterable[tuple[str, int, str | None]], class_names: Collection[str]) -> str | None:
    """Find the pattern that says who is in which file, as ``prepare.person`` takes it; None if none does.

    Args:
        named: Name, number of the class, and data set (None if there is only one) of each file.
        class_names: The classes; neither they nor other expressions are anybody's name.
    """
    words = EXPRESSIONS | set(map(fold, class_names))
    tallies: dict[str | None, list[_Tally]] = defaultdict(lambda: [_Tally(pattern) for pattern in _PATTERNS])
    for file, label, root in named:
        found = list(_read_name(file, words))
        for data_set in {None, root}:  # all files, and those of each of several data sets
            for tally, (who, rest) in zip(tallies[data_set], found):
                tally.add(f"{root}/{who}" if who else "", rest, label)
    if whole := _find_best(tallies.pop(None, []), len(class_names)):
        return whole
    several = list(dict.fromkeys(filter(None, (_find_best(tally, len(class_names)) for tally in tallies.values()))))
    if any("/" in text for text in several):  # then all is about paths, and a name is what stands after the last slash
        several = [text if "/" in text else f"{text.replace('^', '(?<![^/])', 1)}(?=[^/]*$)" for text in several]
    return "|".join(several) or None


def _find_best(tallies: Iterable["_Tally"], class_count: int) -> str | None:
    """The first of the patterns that explains its files."""
    return next((tally.pattern.text for tally in tallies if tally.explains(class_count)), None)


def _read_name(file: str, words: Set[str]) -> Iterator[tuple[str, str]]:
    """By each pattern, whom a file shows (empty if nobody), and what else its name has, without digits."""
    name = file.rpartition("/")[2]
    stem = name.rpartition(".")[0] or name
    for pattern, compiled in zip(_PATTERNS, _COMPILED):
        match = compiled.search(file if "/" in pattern.text else name)
        # A name that has nothing else in it is a picture's own.
        if not match or match[0] == stem or not words.isdisjoint(re.split(r"[\W_]+", fold(match[0]))):
            yield "", ""
        else:
            yield match[0], re.sub(r"\d", "", stem.replace(match[0], "", 1)) if pattern.number else ""


class _Tally:
    """What a pattern makes of the files of a data set."""

    def __init__(self, pattern: _Pattern) -> None:
        self.pattern = pattern
        self._files = 0
        self._people: Counter[str] = Counter()  # how many files show each
        self._classes: Counter[str] = Counter()  # and which classes, as bits
        self._rests: Counter[tuple[str, int]] = Counter()  # what else names have, by class

    def add(self, who: str, rest: str, label: int) -> None:
        """Count a file."""
        self._files += 1
        if who and max(len(self._people), len(self._rests)) < _KEPT:
            self._people[who] += 1
            self._classes[who] |= 1 << label
            if self.pattern.number:
                self._rests[rest, label] += 1

    def explains(self, class_count: int) -> bool:
        """Whether the pattern explains the files well."""
        number, total = len(self._people), self._people.total()
        if total < _COVERED * self._files or not _PEOPLE <= number <= total / _PICTURES:
            return False
        if max(self._people.values()) > _LARGEST * total:
            return False
        if sum(classes.bit_count() > 1 for classes in self._classes.values()) < _SEVERAL * number:
            return False
        return not self.pattern.number or self._tells_classes(class_count)

    def _tells_classes(self, class_count: int) -> bool:
        """Whether numbers have gaps, nearly all of them show all classes, and what else a name has tells the class."""
        numbers = [int(who.rpartition("/")[2]) for who in self._people]
        if max(numbers) - min(numbers) < len(numbers):
            return False
        shown = sum(map(int.bit_count, self._classes.values()))
        largest: dict[str, int] = {}
        for (rest, _), count in self._rests.items():
            largest[rest] = max(count, largest.get(rest, 0))
        total = self._rests.total()
        told = sum(largest.values()) >= _ALL * total and len(largest) <= total / _PICTURES
        return told and shown >= _ALL * class_count * len(self._people)
