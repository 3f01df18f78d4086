"""Splits that a source lacks, cut from its train split: stratified, seeded, and never between twins."""

import hashlib
from collections import Counter, defaultdict

from pipeline.audit import Record
from pipeline.errors import UserError


def cut_missing(
    records: list[Record], class_names: list[str], given: set[str], fractions: dict[str, float], seed: int
) -> None:
    """Cut the splits that the source lacks, in place; a split that it has is never touched.

    Args:
        records: All records; those left out are passed over.
        class_names: All classes.
        given: Splits that the source has.
        fractions: By split (``test``, ``val``), what part of the source's train split to cut.
        seed: Another seed, another choice.

    Raises:
        UserError: A fraction is 0 or too large, or a class has too few images to share.
    """
    missing = {split: fraction for split, fraction in fractions.items() if split not in given}
    for split, fraction in missing.items():
        if fraction == 0:
            raise UserError(
                f"The source has no {split} split: set prepare.{split}_fraction above 0, to 0.1 say."
            )
    if sum(missing.values()) >= 1:
        raise UserError(
            "prepare.val_fraction and prepare.test_fraction leave nothing to train on: lower them."
        )
    sizes = Counter(record.label for record in records if record.split == "train" and not record.problem)
    for split, fraction in missing.items():
        targets = {name: max(1, round(fraction * sizes[name])) for name in class_names}
        cut_split(records, split, targets, seed)


def cut_split(records: list[Record], split: str, targets: dict[str, int], seed: int) -> None:
    """Move part of every class from train to ``split``, in place.

    Twins (exact and near ones) move together or not at all, and stay in train if one of them is in another split
    already. The choice hangs on ``seed`` and the pixels only: neither file names nor their order matter, and
    an image added later hardly changes it.

    Args:
        records: All records; those left out are passed over.
        split: ``val`` or ``test``.
        targets: How many images of each class to move, at least 1. Fewer move where twins do not fit.
        seed: Another seed, another choice.

    Raises:
        UserError: A class has too few images to share.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if not record.problem:
            groups[record.group or record.sha256].append(record)
    by_label: dict[str, list[list[Record]]] = defaultdict(list)
    for _, group in sorted(groups.items(), key=lambda item: _rank(f"{seed}:{split}:{item[0]}")):
        if all(record.split == "train" for record in group):
            by_label[_majority(group)].append(group)
    for label, target in sorted(targets.items()):
        left = sum(
            record.split == "train" and record.label == label for record in records if not record.problem
        )
        moved = 0
        # The smallest group is let through even above the target, since no class may be without images.
        smallest = min(map(len, by_label[label]), default=0)
        for group in by_label[label]:
            fits = moved + len(group) <= target or (not moved and len(group) == smallest)
            if fits and moved + len(group) < left:
                moved += len(group)
                for record in group:
                    record.split = split
    check_counts(
        records, sorted(targets), {"train", split}, "Add images of it, or give the source its own splits."
    )


def _rank(text: str) -> str:
    """A place in a shuffled order that is the same on every platform and numpy version."""
    return hashlib.sha256(text.encode()).hexdigest()


def _majority(group: list[Record]) -> str:
    """The label that most twins have, the first in the alphabet of several."""
    counts = Counter(record.label for record in group)
    return min(counts, key=lambda label: (-counts[label], label))


def check_counts(records: list[Record], class_names: list[str], splits: set[str], remedy: str = "") -> None:
    """Fail on a split that has no usable image of some class."""
    found = {(record.split, record.label) for record in records if record.used}
    for split in sorted(splits):
        for name in class_names:
            if (split, name) not in found:
                remedy = remedy or "None of its files can be read: mend them, or remove the class everywhere."
                raise UserError(f"Class {name!r} has no images for split {split!r}. {remedy}")
