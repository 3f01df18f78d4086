"""Sets of images that show the same picture: found, marked, and kept out of training where they flatter a score."""

from pathlib import Path

import numpy as np

from pipeline.duplicates import connect, near_pairs
from pipeline.pixels import Pixels
from pipeline.records import TRAIN, Records, number_groups, sets_of


def find_twins(
    records: Records, pixels: Pixels | np.ndarray, scratch: Path | None = None, progress: bool = False
) -> None:
    """Give every readable image its group, and the flags ``duplicate``, ``near`` and ``conflict``, in place.

    Blank images are exact twins of equal ones only: there is nothing in them to compare.

    Args:
        records: All images, with their digests.
        pixels: Their pixels, uint8 (N, S, S, C), in the same order.
        scratch: Folder for a temporary file; the system's if None.
        progress: Show progress bars.
    """
    readable = records.readable
    # By digest, so that neither names nor order of the files change what is found.
    twins = number_groups(records.digests[readable])
    rows = np.full(twins.max(initial=-1) + 1, -1)
    lit = ~records.have("blank")[readable]
    rows[twins[lit]] = readable[lit]
    looked_at = np.flatnonzero(rows >= 0)
    pairs = near_pairs(pixels, rows[looked_at], scratch, progress)
    labels = connect(len(rows), looked_at[pairs.first], looked_at[pairs.second])
    groups = labels[twins]
    records.groups[readable] = groups
    records.mark(readable[np.bincount(twins)[twins] > 1], "duplicate")
    records.mark(readable[np.bincount(labels)[groups] > 1], "near")
    records.mark(readable[in_conflict(groups, records.labels[readable])], "conflict")


def in_conflict(groups: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which of some things are in a group, by its number from 0, whose labels differ; bool (n,)."""
    one = np.zeros(groups.max(initial=-1) + 1, labels.dtype)
    one[groups] = labels
    return np.bincount(groups, labels != one[groups])[groups] > 0


def drop_twins(records: Records, duplicates: str, conflicts: str) -> None:
    """Decide which training images are left out, and mark the val and test images that still leak; in place.

    Val and test stay as they are.

    Args:
        records: All images, with their final splits and groups.
        duplicates: ``drop_from_train`` drops twins of val and test images, exact and near ones;
            ``drop_exact_from_train`` drops exact ones only; ``keep`` none.
        conflicts: What is done with training images that are twins with different labels: ``drop`` drops them all,
            ``majority`` those whose label is not that of more than half of the set, ``keep`` none.
    """
    readable = records.readable
    groups, train = records.groups[readable], records.splits[readable] == TRAIN
    if duplicates != "keep":
        near = duplicates == "drop_from_train"
        keys = groups if near else number_groups(records.digests[readable])
        _drop(records, readable[train & np.isin(keys, keys[~train])], "twin of a val or test image")
    if conflicts != "keep":
        training = records.members("train")
        training = training[in_conflict(records.groups[training], records.labels[training])]
        for members in sets_of(records.groups[training], training):
            votes = np.bincount(records.labels[members])
            agreed = conflicts == "majority" and 2 * votes.max() > len(members)
            wrong = members[records.labels[members] != votes.argmax()] if agreed else members
            _drop(records, wrong, "twin with another label")
    trained_on = records.groups[records.members("train")]
    records.mark(readable[~train & np.isin(groups, trained_on)], "leak")


def _drop(records: Records, numbers: np.ndarray, why: str) -> None:
    """Leave training images out."""
    records.mark(numbers, "dropped")
    records.drops |= dict.fromkeys(map(int, numbers), why)
