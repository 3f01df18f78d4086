"""Which pictures are worth comparing: for each descriptor the ones most like it, found by an inverted file.

As of Jegou, Douze and Schmid, "Product quantization for nearest neighbor search", 2011: every row is in the cell of the
pivot nearest to it, and is compared with the cells of its nearest pivots. There are about as many cells as rows in
each, so work grows as n^1.5. What is known of a row lies on disk; in memory are four bytes of each.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from pipeline.prepare.array_file import ArrayFile
from pipeline.prepare.ordering import count_values, rows_by_value

# Cosine of two descriptors. Of copies it is mostly above 0.7, of faces taken at random 0 on average.
_CANDIDATE_COSINE = 0.4
_NEIGHBOURS = 5  # candidates that a picture has
# So many pictures are compared all with all. More are parted into cells around pivots, this factor times the root of
# their number; each picture is compared with those of the cells that are nearest to it.
_CELL, _PIVOTS, _VISITS = 4096, 2, 16
# With fewer pictures the descriptors' mean and spread say nothing, and all pairs are candidates.
_FEW = 100

_BLOCK, _COSINES = 1024, 2**19  # rows, and cosines, worked on at once
_VISITORS = 2**15  # rows whose neighbours are looked for at once, in all cells

Parts = Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]


def candidates(descriptors: ArrayFile | np.ndarray, folder: Path) -> Iterator[np.ndarray]:
    """Pairs of similar descriptors, each once, the lower index first: int64 (m, 2) for every ``_BLOCK`` of rows.

    Arguments are as of ``Cells``.
    """
    count = len(descriptors)
    if count <= _FEW:
        yield np.stack(np.triu_indices(count, 1), axis=1)
        return
    with closing(ArrayFile(folder / "nearest", (count, _NEIGHBOURS), np.int32)) as nearest:
        with closing(Cells(descriptors, folder)) as cells:
            for start in range(0, count, _VISITORS):
                stop = min(count, start + _VISITORS)
                visited = cells.visited_by(start, stop)
                nearest.append(_nearest(descriptors[np.arange(start, stop)], start, visited))
        for start in range(0, count, _BLOCK):
            found = nearest[np.arange(start, min(count, start + _BLOCK))]
            row, place = np.nonzero(found >= 0)
            other = found[row, place].astype(np.int64)
            row += start
            # A pair of which each has the other is the lower one's.
            mine = row < other
            mine[~mine] = (nearest[other[~mine]] != row[~mine, None]).all(axis=1)
            yield np.stack([np.minimum(row, other), np.maximum(row, other)], axis=1)[mine]


def _nearest(own: np.ndarray, start: int, cells: Parts) -> np.ndarray:
    """The neighbours of some rows, the first of which has the number ``start``; int32 (n, _NEIGHBOURS), -1 for none."""
    nearest = np.full((len(own), _NEIGHBOURS), -1, np.int32)
    cosine = np.full((len(own), _NEIGHBOURS), _CANDIDATE_COSINE, np.float32)
    for members, descriptors, visitors in cells:
        theirs = descriptors.astype(np.float32).T
        kept = min(_NEIGHBOURS, len(members))
        step = max(1, min(_BLOCK, _COSINES // len(members)))
        for block in range(0, len(visitors), step):
            rows = visitors[block : block + step]
            cosines = own[rows].astype(np.float32) @ theirs
            cosines[rows[:, None] + start == members] = -1
            best = np.argpartition(cosines, -kept, axis=1)[:, -kept:]
            found = np.concatenate([nearest[rows], members[best]], axis=1)
            values = np.concatenate([cosine[rows], np.take_along_axis(cosines, best, axis=1)], axis=1)
            best = np.argpartition(values, -_NEIGHBOURS, axis=1)[:, -_NEIGHBOURS:]
            nearest[rows], cosine[rows] = (np.take_along_axis(x, best, axis=1) for x in (found, values))
    return nearest


class Cells:
    """Descriptors in files, parted by the pivot nearest to them; few of them are one cell.

    Args:
        descriptors: Unit vectors, float16 (R, D).
        folder: Where the files are made; who makes it removes it.
    """

    def __init__(self, descriptors: ArrayFile | np.ndarray, folder: Path) -> None:
        count = len(descriptors)
        size = 1 if count <= _CELL else round(_PIVOTS * count**0.5)
        visits = min(_VISITS, size)
        pivots = descriptors[np.linspace(0, count - 1, size).astype(np.int64)].T.astype(np.float32)
        # A billion pictures have as many pivots as 16 bits tell apart.
        number = np.uint16 if size <= 2**16 else np.uint32
        cell = np.empty(count, number)
        self._visited = ArrayFile(folder / "visited", (count, visits), number)
        step = min(_BLOCK, max(1, _COSINES // size))
        for start in range(0, count, step):
            block = np.arange(start, min(count, start + step))
            cosines = descriptors[block].astype(np.float32) @ pivots
            # The very nearest pivot last.
            nearest = np.argpartition(cosines, sorted({-visits, -1}), axis=1)[:, -visits:]
            cell[block] = nearest[:, -1]
            self._visited.append(nearest)
        self._members = np.empty(count, np.int32)
        self._sizes = count_values(cell, size)
        # Once more, cell by cell: each is then read in one go, which is often.
        self._sorted = ArrayFile(folder / "cells", descriptors.shape, np.float16)
        done = 0
        for rows in rows_by_value(cell):
            self._members[done : done + len(rows)] = rows
            done += len(rows)
            for start in range(0, len(rows), _BLOCK):
                self._sorted.append(descriptors[rows[start : start + _BLOCK]])

    def visited_by(self, start: int, stop: int) -> Parts:
        """Cells, or parts of large ones, that rows from ``start`` to ``stop`` are to be compared with.

        Yields:
            The rows in a cell, ascending, int32 (m,); their descriptors, float16 (m, D); and those of the rows that
            visit it, counted from ``start``, ascending, int64 (n,).
        """
        cells = self._visited[np.arange(start, stop)]
        by_cell = np.argsort(cells, axis=None, kind="stable")
        sizes = np.bincount(cells.ravel(), minlength=len(self._sizes))
        visits = np.split(by_cell, np.cumsum(sizes)[:-1])
        for end, size, visit in zip(np.cumsum(self._sizes), self._sizes, visits):
            if not size or not len(visit):
                continue
            visitors = visit // cells.shape[1]
            # What is all alike, such as the frames of one film, would make one huge cell: it is parted as it comes.
            places = np.array_split(np.arange(end - size, end), -(-size // _CELL))
            starts = [self._members[place[0]] for place in places[1:]]
            for place, some in zip(places, np.split(visitors, np.searchsorted(visitors + start, starts))):
                if len(some):
                    yield self._members[place], self._sorted[place], some

    def close(self) -> None:
        """Close the files."""
        self._visited.close()
        self._sorted.close()
