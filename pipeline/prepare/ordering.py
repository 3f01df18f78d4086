"""Sorting a column with little memory beside it: in parts, by the first of what is sorted by."""

from collections.abc import Iterator

import numpy as np

_BLOCK, _PART = 2**18, 2**16  # values counted, and rows sorted, at once


def count_values(values: np.ndarray, minlength: int = 0) -> np.ndarray:
    """``np.bincount`` of integers, (n,), which does not copy them all and passes over negative ones: int32."""
    counts = np.zeros(max(minlength, int(values.max()) + 1 if len(values) else 0), np.int32)
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        np.add.at(counts, block[block >= 0], 1)
    return counts


def repeated(values: np.ndarray) -> np.ndarray:
    """The places of those integers from 0, (n,), that are there more than once: ascending, int64 (m,). -1 is none."""
    several = np.append(count_values(values) > 1, False)  # the last is that of -1
    starts = range(0, len(values), _BLOCK)
    found = [start + np.flatnonzero(several[values[start : start + _BLOCK]]) for start in starts]
    return np.concatenate([np.empty(0, np.int64), *found])


def rows_by_value(values: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of integers from 0, (n,), in parts: ascending values, of a value all rows, ascending; int64 (m,)."""
    ends = count_values(values).cumsum()
    start = 0
    while start < len(ends):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _PART, side="right")))
        rows = np.flatnonzero((values >= start) & (values < stop))
        yield rows[np.argsort(values[rows], kind="stable")]
        start = stop


def number_distinct(keys: np.ndarray) -> np.ndarray:
    """The number of each row of bytes, uint8 (N, 8 * M), among the distinct ones in their order, from 0: int32 (N,).

    What begins alike is sorted at once, so memory is little if the rows are hashes.
    """
    numbers = np.empty(len(keys), np.int32)
    below = 0
    for rows in rows_by_value(keys[:, :2].copy().view(">u2")[:, 0].astype(np.uint16)):
        # As numbers that sort like the bytes.
        words = keys[rows].view(">u8").astype(np.uint64)
        order = np.lexsort(words.T[::-1])
        words = words[order]
        distinct = np.cumsum(np.append(False, (words[1:] != words[:-1]).any(axis=1)))[: len(rows)]
        numbers[rows[order]] = below + distinct
        below += int(distinct.max(initial=-1)) + 1
    return numbers
