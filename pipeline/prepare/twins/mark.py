"""Sets of images that show the same picture: found, marked, and kept out of training where they flatter a score."""

import ctypes
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.prepare.array_file import ArrayFile
from pipeline.prepare.columns import TRAIN, Records, sets_of
from pipeline.prepare.ordering import count_values, repeated
from pipeline.prepare.twins.search import connect, near_pairs

# Why an image is left out of training.
TWIN, CONFLICT = "twin of a val or test image", "twin with another label"
_BLOCK = 2**16


def find_twins(records: Records, pixels: ArrayFile | np.ndarray, scratch: Path | None = None) -> None:
    """Give every readable image its set of twins, and the flags ``duplicate``, ``near`` and ``conflict``, in place.

    Blank images are exact twins of equal ones only: there is nothing in them to compare. Arguments are as in
    ``near_pairs``; ``pixels`` are in the order of ``records``, whose digests are known.
    """
    # By digest, so that neither names nor order of the files change what is found.
    if records.copies.max(initial=-1) < 0:
        return
    sets = np.append(_connect_pictures(records, pixels, scratch), np.int32(-1))
    for start in range(0, len(records), _BLOCK):
        block = slice(start, start + _BLOCK)
        records.twins[block] = sets[records.copies[block]]  # -1, of what cannot be read, stays so
    twinned = records.twinned
    records.mark(repeated(records.copies), "duplicate")
    records.mark(twinned[(count_values(sets) > 1)[records.twins[twinned]]], "near")
    records.mark(twinned[in_conflict(records.twins[twinned], records.labels[twinned])], "conflict")


def _connect_pictures(records: Records, pixels: ArrayFile | np.ndarray, scratch: Path | None) -> np.ndarray:
    """The set of twins of each different picture, in order of digest, int32 (T,)."""
    images = np.full(records.copies.max(initial=-1) + 1, -1, np.int32)
    lit = ~records.have("corrupt", "no_face", "blank")
    for start in range(0, len(lit), _BLOCK):  # else row numbers would be the largest thing in memory
        rows = start + np.flatnonzero(lit[start : start + _BLOCK])
        images[records.copies[rows]] = rows
    del lit
    del records.copies  # numbered again when asked for: the search takes the most memory of all
    missing = np.flatnonzero(images < 0)
    if len(missing):  # else it would be a copy for nothing
        images = images[images >= 0]
    pairs, _ = near_pairs(pixels, images, scratch)
    there = np.ones(len(images) + len(missing), bool)
    there[missing] = False
    del images
    _return_freed_memory()
    ranks = there.cumsum(dtype=np.int32)  # a picture's place among those looked at is its rank less 1
    first, second = (np.searchsorted(ranks, side.astype(np.int32) + np.int32(1)) for side in pairs.T)
    return connect(len(there), first, second)


def _return_freed_memory() -> None:
    """Give the system what glibc keeps of freed memory, which would add to what is used next; elsewhere, nothing."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def in_conflict(sets: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which of some things are in a set, by its number from 0, whose labels differ; bool (n,)."""
    one = np.zeros(sets.max(initial=-1) + 1, labels.dtype)
    one[sets] = labels
    clash = np.zeros(len(one), bool)
    clash[sets[labels != one[sets]]] = True
    return clash[sets]


def drop_twins(records: Records, duplicates: str, conflicts: str) -> None:
    """Decide which training images are left out, and mark the val and test images that still leak; in place.

    Args:
        records: All images, with their final splits and twins. Val and test stay as they are.
        duplicates: ``drop_from_train`` drops twins of val and test images, exact and near ones;
            ``drop_exact_from_train`` drops exact ones only; ``keep`` none.
        conflicts: What is done with training images that are twins with different labels: ``drop`` drops them all,
            ``majority`` those whose label is not that of more than half of the set, ``keep`` none.
    """
    twinned = records.twinned
    twins, train = records.twins[twinned], records.splits[twinned] == TRAIN
    if duplicates != "keep":
        near = duplicates == "drop_from_train"
        keys = twins if near else records.copies[twinned]
        _drop(records, twinned[train & np.isin(keys, keys[~train])], TWIN)
    if conflicts != "keep":
        training = twinned[train & records.used[twinned]]
        training = training[in_conflict(records.twins[training], records.labels[training])]
        for places in sets_of(records.twins[training]):
            members = training[places]
            votes = np.bincount(records.labels[members])
            agreed = conflicts == "majority" and 2 * votes.max() > len(members)
            wrong = members[records.labels[members] != votes.argmax()] if agreed else members
            _drop(records, wrong, CONFLICT)
    trained_on = twins[train & records.used[twinned]]
    records.mark(twinned[~train & np.isin(twins, trained_on)], "leak")


def _drop(records: Records, numbers: np.ndarray, why: str) -> None:
    """Leave training images out."""
    records.mark(numbers, "dropped")
    records.drops |= dict.fromkeys(map(int, numbers), why)
