"""What is known of every image, by column: numbers only, some fifty bytes an image, 32 of them a hash."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.prepare.catalogue import SPLITS, Listing
from pipeline.prepare.ordering import count_values, number_distinct, repeated

# In the order in which the manifest has them; each is a bit of ``Records.marks``.
FLAGS = {
    "corrupt": "cannot be read, left out",
    "no_face": "a photo in which no face was found, left out",
    "several_faces": "a photo with several faces, of which the largest was taken",
    "blank": "all of it has nearly one colour",
    "dark": "nearly all of it is in the darkest quarter of the range",
    "bright": "nearly all of it is in the brightest quarter of the range",
    "enlarged": "smaller than prepare.img_size",
    "stretched": "far from square",
    "duplicate": "another image has the same pixels",
    "near": "another image shows the same picture, changed",
    "conflict": "such an image has another label",
    "leak": "val or test image whose twin is trained on",
    "dropped": "left out of training",
    "relabelled": "has another label than in the source, by data/corrections.csv",
}
_BITS = {flag: 1 << i for i, flag in enumerate(FLAGS)}
TRAIN = SPLITS.index("train")


@dataclass(eq=False)
class Records:
    """N images in order of name, and what became of them."""

    files: Callable[[Iterable[int]], Iterable[str]]  # gives the names of images by their numbers
    class_names: list[str]
    labels: np.ndarray  # numbers of their classes, int16 (N,)
    splits: np.ndarray  # numbers of their splits in ``SPLITS``, int8 (N,)
    people: np.ndarray | None = None  # numbers of the people they show, -1 where not known, int32 (N,)
    weights: np.ndarray | None = None  # how much they count in training, float32 (N,)
    source: str = "The source"  # what holds them, for messages

    def __post_init__(self) -> None:
        # SHA-256 of their pixels at full size; zeros where a file cannot be read.
        self.digests = np.zeros((len(self), 32), np.uint8)
        self.sizes = np.zeros((len(self), 2), np.uint16)  # height and width at full size, px, at most 65535
        self.marks = np.zeros(len(self), np.uint16)  # bits of ``FLAGS``
        self.problems: dict[int, str] = {}  # why a file cannot be read or used, by its number
        self.drops: dict[int, str] = {}  # why an image is left out of training, likewise

    @classmethod
    def of(cls, listing: Listing) -> "Records":
        """Records of all that is listed, of which nothing has been seen yet."""
        columns = {"class": np.int16, "split": np.int8, "person": np.int32, "weight": np.float32}
        found = (listing.numbers(*column) for column in columns.items())
        records = cls(listing.files, listing.class_names, *found, source=str(listing.path))
        if not listing.person_count:
            records.people = None
        return records

    def __len__(self) -> int:
        return len(self.labels)

    def mark(self, numbers: np.ndarray | int, *names: str) -> None:
        """Set flags."""
        self.marks[numbers] |= bits(names)

    def have(self, *names: str) -> np.ndarray:
        """Which images have one of these flags, bool (N,)."""
        return self.marks & bits(names) != 0

    @cached_property
    def twins(self) -> np.ndarray:
        """Numbers of their sets of twins, exact and near ones, in order of the smallest digest in each, int32 (N,).

        To be filled in; -1 where a file cannot be read.
        """
        return np.full(len(self), -1, np.int32)

    @cached_property
    def copies(self) -> np.ndarray:
        """Numbers of the digests in their order, the same for exact twins, int32 (N,); -1 where a file cannot be read.

        Valid once all files have been decoded; ``del`` frees their memory until they are asked for again.
        """
        found = number_distinct(self.digests)
        unknown = self.have("corrupt", "no_face")
        if unknown.any():  # they have the first number
            found -= 1
            found[unknown] = -1
        return found

    @property
    def twinned(self) -> np.ndarray:
        """Numbers of the images that have twins, exact or near ones."""
        return repeated(self.twins)

    @property
    def used(self) -> np.ndarray:
        """Which images go into the arrays, bool (N,)."""
        return ~self.have("corrupt", "no_face", "dropped")

    def members(self, split: str) -> np.ndarray:
        """Numbers of the images in a split's array, in its order."""
        return np.flatnonzero((self.splits == SPLITS.index(split)) & self.used)

    def counts(self) -> dict[str, dict[str, int]]:
        """Images in the arrays by split and class."""
        size, used = len(self.class_names), self.used
        found = (count_values(self.labels[used & (self.splits == number)], size) for number in range(len(SPLITS)))
        return {split: dict(zip(self.class_names, map(int, counts))) for split, counts in zip(SPLITS, found)}


def bits(names: Iterable[str]) -> int:
    """The bits of some flags."""
    return sum(_BITS[name] for name in names)


def flags(marks: int) -> str:
    """The flags whose bits are set, joined by ``;``."""
    return ";".join(flag for flag, bit in _BITS.items() if marks & bit)


def sets_of(keys: np.ndarray) -> Iterator[np.ndarray]:
    """The places in ``keys``, (n,), of each key from 0 that has several; in order of the first ones. -1 is no key."""
    numbers = repeated(keys)
    numbers = numbers[np.argsort(keys[numbers], kind="stable")]
    starts = np.flatnonzero(np.diff(keys[numbers], prepend=-1))
    sets = np.split(numbers, starts[1:]) if len(numbers) else []
    return iter(sorted(sets, key=lambda members: members[0]))
