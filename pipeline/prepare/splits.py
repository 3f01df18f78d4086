"""Splits that a source lacks, cut from its train split: stratified, seeded, and never between twins or people."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np

from pipeline.core.errors import UserError
from pipeline.prepare.catalogue import SPLITS
from pipeline.prepare.columns import TRAIN, Records
from pipeline.prepare.twins.search import connect


def check_cut(records: Records, given: Collection[str], fractions: Mapping[str, float]) -> None:
    """Refuse, before anything is decoded, to cut what cannot be cut; arguments are as in ``cut_missing``.

    Raises:
        UserError: A fraction is 0 or too large, or a class has fewer images, or fewer people where they are kept apart,
            than there are splits to share them.
    """
    splits = ["train", *_list_missing(records, given, fractions)]
    if len(splits) == 1:
        return
    train = records.splits == TRAIN
    people = np.full(len(records), -1) if records.people is None else records.people
    known, names = train & (people >= 0), records.class_names
    pairs = np.unique(np.stack([records.labels[known], people[known]]), axis=1)
    shown = np.bincount(pairs[0], minlength=len(names))
    alone = np.bincount(records.labels[train & (people < 0)], minlength=len(names))
    for label in np.flatnonzero(shown + alone < len(splits)):
        who = "people" if shown[label] else "images"
        remedy = " Or set prepare.person to null: then one person may be in several splits." if shown[label] else ""
        raise UserError(
            f"{records.source}: class {names[label]!r} has {shown[label] + alone[label]} {who} to share, and "
            f"{', '.join(splits)} need one each. Add some, leave the class out by prepare.class_map, or give the "
            f"source its own splits.{remedy}"
        )


def _list_missing(records: Records, given: Collection[str], fractions: Mapping[str, float]) -> dict[str, float]:
    """The splits to cut, with their fractions; raises ``UserError`` for fractions that cannot be."""
    missing = {split: fraction for split, fraction in fractions.items() if split not in given}
    for split, fraction in missing.items():
        if fraction == 0:
            raise UserError(f"{records.source} has no {split} split: set prepare.{split}_fraction above 0, to 0.1 say.")
    if sum(missing.values()) >= 1:
        raise UserError("prepare.val_fraction and prepare.test_fraction leave nothing to train on: lower them.")
    return missing


def cut_missing(records: Records, given: Collection[str], fractions: Mapping[str, float], seed: int) -> None:
    """Cut the splits that the source lacks, in place; those ``given`` are never touched. See ``cut_split``.

    ``fractions`` say by split (``test``, ``val``) what part of the source's train split to cut.

    Raises:
        UserError: A fraction is 0 or too large, or a class has too few images to share.
    """
    missing = _list_missing(records, given, fractions)
    sizes = records.counts()["train"]
    for split, fraction in missing.items():
        cut_split(records, split, {name: max(1, round(fraction * size)) for name, size in sizes.items()}, seed)


def cut_split(records: Records, split: str, targets: Mapping[str, int], seed: int) -> None:
    """Move part of every class from train to ``split``, in place.

    Twins (exact and near ones) and images of one person move together or not at all, and stay in train if one of them
    is in another split already. The choice hangs on ``seed`` and the pixels only: neither file names nor their
    order matter, and an image added later hardly changes it.

    Args:
        records: All images; those left out are passed over.
        split: ``val`` or ``test``.
        targets: How many images of each class to move, at least 1. Fewer move where sets do not fit.
        seed: Another seed, another choice.

    Raises:
        UserError: A class has too few images to share.
    """
    used = np.flatnonzero(records.used).astype(np.int32)
    units, firsts = _units(records, used)
    labels, train = records.labels[used], records.splits[used] == TRAIN
    free = np.ones(len(firsts), bool)
    free[units[~train]] = False
    by_unit, sizes = units.argsort(kind="stable").astype(np.int32), np.bincount(units).astype(np.int32)
    ends = sizes.cumsum(dtype=np.int32)
    wanted = np.array([targets[name] for name in records.class_names])
    moved, left = np.zeros_like(wanted), np.bincount(labels[train], minlength=len(wanted))

    def move(unit: int, fits: Callable[[np.ndarray], bool]) -> None:
        members = by_unit[ends[unit] - sizes[unit] : ends[unit]]
        counts = np.bincount(labels[members], minlength=len(wanted))
        if fits(counts) and (left > counts)[counts > 0].all():
            records.splits[used[members]] = SPLITS.index(split)
            free[unit] = False
            np.add(moved, counts, out=moved)
            np.subtract(left, counts, out=left)

    def brings_nearer(counts: np.ndarray) -> bool:
        after = moved + counts
        if np.count_nonzero(counts) == 1:
            return bool((after <= wanted)[counts > 0].all())
        # In parts of what is wanted, so that a rare class weighs as much as a common one.
        return bool((((wanted - after) / wanted) ** 2).sum() < (((wanted - moved) / wanted) ** 2).sum())

    order = _shuffle((records.digests[first] for first in firsts), len(firsts), f"{seed}:{split}")
    del firsts
    for unit in order[free[order]]:
        if moved.sum() >= wanted.sum():
            break
        move(unit, brings_nearer)
    # No class may be without images, even if its smallest set is above the target.
    for label in np.flatnonzero(moved == 0):
        place = order.argsort()
        holding = np.unique(units[labels == label])
        for unit in sorted(holding[free[holding]], key=lambda unit: (sizes[unit], place[unit])):
            if not moved[label]:
                move(unit, lambda _: True)
    check_counts(records, {"train", split}, "Add images of it, or give the source its own splits.")


def _shuffle(keys: Iterable[np.ndarray], count: int, seed: str) -> np.ndarray:
    """An order of keys, uint8 (32,), that is the same on every platform and numpy version: int32 (count,)."""
    hashes = (hashlib.sha256(f"{seed}:{key.tobytes().hex()}".encode()).digest() for key in keys)
    ranks = np.fromiter((int.from_bytes(found[:8], "big") for found in hashes), np.uint64, count)
    return np.argsort(ranks, kind="stable").astype(np.int32)


def check_counts(records: Records, splits: Collection[str], remedy: str = "") -> None:
    """Fail on a split that has no usable image of some class."""
    counts = records.counts()
    for split in sorted(splits):
        for name, count in counts[split].items():
            if not count:
                remedy = remedy or "None of its files can be read: mend them, or remove the class everywhere."
                raise UserError(f"{records.source}: class {name!r} has no images for split {split!r}. {remedy}")


def _units(records: Records, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What must not be parted: the number of each image's unit, int32 (n,), and of each the image of smallest digest.

    They are numbered in the order of the smallest digests.
    """
    twins = records.twins[used]
    present = np.zeros(twins.max(initial=-1) + 1, bool)
    present[twins] = True
    units = (present.cumsum(dtype=np.int32) - 1)[twins]
    if records.people is not None:
        # Twins link the people they show: sets of both.
        known = records.people[used] >= 0
        count = np.count_nonzero(present)
        people = records.people[used][known] + count
        size = count + int(records.people.max()) + 1
        units = connect(int(size), units[known], people)[units]
    copies = records.copies[used]
    smallest = np.full(units.max(initial=-1) + 1, len(records), np.int32)
    np.minimum.at(smallest, units, copies)
    image = np.empty(copies.max(initial=-1) + 1, np.int32)
    image[copies] = used
    return units, image[smallest]
