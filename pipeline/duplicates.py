"""Near duplicates: the same picture again, re-encoded, resized, mirrored, shifted, re-cropped or lit otherwise.

Pure functions of packed images, in three steps. A descriptor of each picture that shifting and mirroring hardly
change (magnitudes of its Fourier transform) gives candidates, found by an inverted file, whose work grows as n^1.5
and is small beside the rest. Each candidate is then laid over its partner and compared place by place
(``alignment.py``), which is linear in n. What holds becomes groups. ``benchmarks/duplicates.py`` measures it.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import fft
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from pipeline.alignment import agreement, tents
from pipeline.pixels import Pixels

SIZE = 48  # px at which pictures are compared; larger ones are reduced to it and smaller ones enlarged

# The descriptor goes up to this many cycles a picture: JPEG and resizing leave these alone.
_CYCLES = 7
# Cosine of two descriptors. Of copies it is mostly above 0.7, of faces taken at random 0 on average.
_CANDIDATE_COSINE = 0.4
_NEIGHBOURS = 5  # candidates that a picture has
# So many pictures are compared all with all. More are parted into cells around pivots, this factor times the root of
# their number; each picture is compared with those of the cells that are nearest to it.
_CELL, _PIVOTS, _PROBES = 4096, 2, 16
# With fewer pictures the descriptors' mean and spread say nothing, and all pairs are candidates.
_FEW = 100

# From this agreement on, two pictures are twins. Of planted copies 99 % reach it; of the embedded drawn faces, which
# may differ in little more than the mouth, no two do: the most is 0.885.
TWIN_AGREEMENT = 0.9

_BLOCK, _PAIRS = 1024, 256  # pictures and pairs worked on at once: some 50 MB
_VISITORS = 2**18  # rows that are sorted by cell at once


@dataclass(frozen=True)
class Pairs:
    """Pairs of near twins.

    Attributes:
        first: int64 (M,), each less than its ``second``.
        second: int64 (M,).
        agreement: Of their edges, aligned; float32 (M,), from ``TWIN_AGREEMENT`` to 1.
    """

    first: np.ndarray
    second: np.ndarray
    agreement: np.ndarray


def near_pairs(
    images: Pixels | np.ndarray, rows: np.ndarray, scratch: Path | None = None, progress: bool = False
) -> Pairs:
    """Find the pairs of pictures that show the same thing.

    Of exact copies only one should be looked at: many of them would crowd out its other twins. Pictures without
    any edges are twins of nothing.

    Args:
        images: uint8 (N, S, S, C), C 1 or 3; read in blocks.
        rows: Which of them to look at, int64 (R,).
        scratch: Folder for a temporary file, which images of another size than ``SIZE`` take; the system's if None.
        progress: Show progress bars.

    Returns:
        Pairs of indices into ``rows``.
    """
    with (
        # Many small products: were each of them to use all cores, they would wait for each other most of the time.
        threadpool_limits(1, "blas"),
        tempfile.TemporaryDirectory(prefix=".hyojo-", dir=scratch) as folder,
        ExitStack() as stack,
    ):
        faces, places = images, rows
        if images.shape[1:] != (SIZE, SIZE, 1):
            faces = stack.enter_context(closing(_reduce(images, rows, Path(folder, "faces"))))
            places = np.arange(len(rows))

        def look(which: np.ndarray) -> np.ndarray:
            return faces[places[which]].reshape(-1, SIZE, SIZE).astype(np.float32)

        descriptors = stack.enter_context(closing(_describe_all(look, len(rows), Path(folder), progress)))
        pairs, found = _compare_all(look, _candidates(descriptors), len(rows), progress)
    order = np.lexsort(pairs.T[::-1])
    return Pairs(*pairs[order].T, found[order])


def connect(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number the groups that pairs connect, in the order of their first members.

    Args:
        count: How many things there are, N; those in no pair are groups of one.
        first: One side of the pairs, int64 (M,).
        second: The other side.

    Returns:
        Each thing's group, int32 (N,), from 0.
    """
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _reduce(images: Pixels | np.ndarray, rows: np.ndarray, path: Path) -> Pixels:
    """Some of the images in grey and at SIZE, uint8 (R, SIZE, SIZE), in a file."""
    _, size, _, channels = images.shape
    luma = np.float32([1] if channels == 1 else [0.299, 0.587, 0.114])
    ratio = size / SIZE
    weights = tents((np.arange(SIZE, dtype=np.float32) + 0.5) * ratio - 0.5, size, max(1.0, ratio))
    weights /= weights.sum(-1, keepdims=True)
    faces = Pixels(path, (len(rows), SIZE, SIZE))
    step = max(1, _BLOCK * SIZE**2 // (size**2 * channels))
    for start in range(0, len(rows), step):
        block = images[rows[start : start + step]].astype(np.float32) @ luma
        faces.append(np.rint(weights @ block @ weights.T).astype(np.uint8))
    return faces


def _describe(faces: np.ndarray) -> np.ndarray:
    """Descriptors of pictures (n, SIZE, SIZE), float32 (n, D): the same, nearly, for a shifted or mirrored one.

    A shift changes only the phases of a Fourier transform, but for what it brings in at the borders, which the
    window fades out. Mirroring swaps waves that fall to the right with those that rise: sums and absolute
    differences of the two stay.
    """
    fade = np.hanning(SIZE + 2)[1:-1].astype(np.float32)
    window = fade[:, None] * fade
    weights = window / window.sum()
    faces = faces - (faces * weights).sum((1, 2), keepdims=True)
    contrast = np.sqrt((faces**2 * weights).sum((1, 2), keepdims=True))
    spectrum = np.abs(fft.rfft2(faces / np.maximum(contrast, 1e-3) * window))
    down, right = np.mgrid[:_CYCLES, :_CYCLES]
    disc = (down**2 + right**2 < _CYCLES**2) & (down + right > 0)
    falling, rising = spectrum[:, :_CYCLES, :_CYCLES], spectrum[:, -np.arange(_CYCLES), :_CYCLES]
    sums, differences = falling + rising, np.abs(falling - rising)
    return np.concatenate([sums[:, disc], differences[:, disc & (down > 0) & (right > 0)]], axis=1)


def _describe_all(
    look: Callable[[np.ndarray], np.ndarray], count: int, folder: Path, progress: bool
) -> Pixels:
    """Descriptors as unit vectors, float16 (R, D) in a file, each component brought to mean 0 and spread 1 before."""
    blocks = [np.arange(start, min(count, start + _BLOCK)) for start in range(0, count, _BLOCK)]
    shape = (count, _describe(np.zeros((1, SIZE, SIZE), np.float32)).shape[1])
    total, squares = np.zeros((2, shape[1]), np.float32)
    found = Pixels(folder / "descriptors", shape, np.float16)
    with closing(Pixels(folder / "plain", shape, np.float16)) as plain:
        for block in tqdm(blocks, desc="describing", unit=f" {_BLOCK} img", disable=not progress):
            values = _describe(look(block))
            total, squares = total + values.sum(axis=0), squares + (values**2).sum(axis=0)
            plain.append(values)
        mean = total / max(count, 1)
        spread = np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 1e-6))
        for block in blocks:
            values = (plain[block] - mean) / spread
            found.append(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6))
    return found


def _cells(descriptors: Pixels | np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts of the descriptors, as rows, each with the rows that are to be compared with it.

    Every row is in one part, with the pivot nearest to it, and is compared with the parts of its nearest pivots: an
    inverted file, as of Jegou, Douze and Schmid, "Product quantization for nearest neighbor search", 2011.
    """
    count = len(descriptors)
    if count <= _CELL:
        yield np.arange(count), np.arange(count)
        return
    pivots = descriptors[np.linspace(0, count - 1, round(_PIVOTS * count**0.5)).astype(np.int64)]
    pivots = pivots.T.astype(np.float32)
    probes = min(_PROBES, pivots.shape[1])
    # By probe, the very nearest pivot last. A billion pictures have as many pivots as 16 bits tell apart.
    nearest = np.empty((probes, count), np.uint16 if pivots.shape[1] <= 2**16 else np.uint32)
    for start in range(0, count, _BLOCK):
        stop = min(count, start + _BLOCK)
        cosines = descriptors[np.arange(start, stop)].astype(np.float32) @ pivots
        nearest[:, start:stop] = np.argpartition(cosines, (-probes, -1), axis=1)[:, -probes:].T
    # Some pivots at a time: an index of all visitors would be the largest thing in memory.
    step = max(1, _VISITORS * pivots.shape[1] // nearest.size)
    for first in range(0, pivots.shape[1], step):
        some = range(first, min(pivots.shape[1], first + step))
        for own, others in zip(_rows_by_value(nearest[-1:], some), _rows_by_value(nearest, some)):
            # What is all alike, such as the frames of one film, would make one huge cell: it is parted as it comes.
            parts = -(-len(own) // _CELL)
            if parts:
                yield from zip(np.array_split(own, parts), np.array_split(others, parts))


def _rows_by_value(values: np.ndarray, wanted: range) -> list[np.ndarray]:
    """For each of the values ``wanted``, the rows of an array, here as columns (V, R), that have it; ascending."""
    places = [np.flatnonzero((row >= wanted.start) & (row < wanted.stop)) for row in values]
    rows = np.concatenate(places)
    found = np.concatenate([row[place] for row, place in zip(values, places)]).astype(np.int64) - wanted.start
    ends = np.cumsum(np.bincount(found, minlength=len(wanted)))[:-1]
    return np.split(rows[np.lexsort((rows, found))], ends)


def _candidates(descriptors: Pixels | np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of similar descriptors, each once, the lower index first: int64 (m, 2) for every ``_BLOCK`` of rows."""
    count = len(descriptors)
    if count <= _FEW:
        yield np.stack(np.triu_indices(count, 1), axis=1)
        return
    nearest = np.full((count, _NEIGHBOURS), -1, np.int32)
    cosine = np.full((count, _NEIGHBOURS), _CANDIDATE_COSINE, np.float32)
    for members, visitors in _cells(descriptors):
        theirs = descriptors[members].astype(np.float32).T
        kept = min(_NEIGHBOURS, len(members))
        for start in range(0, len(visitors), _BLOCK):
            rows = visitors[start : start + _BLOCK]
            cosines = descriptors[rows].astype(np.float32) @ theirs
            cosines[rows[:, None] == members] = -1
            best = np.argpartition(cosines, -kept, axis=1)[:, -kept:]
            found = np.concatenate([nearest[rows], members[best]], axis=1)
            values = np.concatenate([cosine[rows], np.take_along_axis(cosines, best, axis=1)], axis=1)
            best = np.argpartition(values, -_NEIGHBOURS, axis=1)[:, -_NEIGHBOURS:]
            nearest[rows], cosine[rows] = (np.take_along_axis(x, best, axis=1) for x in (found, values))
    del cosine
    for start in range(0, count, _BLOCK):
        row, place = np.nonzero(nearest[start : start + _BLOCK] >= 0)
        row += start
        other = nearest[row, place].astype(np.int64)
        # A pair of which each has the other is the lower one's.
        mine = (row < other) | (nearest[other] != row[:, None]).all(axis=1)
        yield np.stack([np.minimum(row, other), np.maximum(row, other)], axis=1)[mine]


def _compare_all(
    look: Callable[[np.ndarray], np.ndarray], candidates: Iterator[np.ndarray], count: int, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Those of the pairs that are twins, int64 (M, 2), and their agreement, float32 (M,). In parallel, on all cores.

    Candidates are many and are not kept: memory is for what holds.
    """
    pairs, agreements = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=count, desc="comparing", unit="img", disable=not progress) as bar,
    ):
        for block in candidates:
            parts = [block[start : start + _PAIRS] for start in range(0, len(block), _PAIRS)]
            for part, found in zip(parts, pool.map(lambda part: agreement(*map(look, part.T)), parts)):
                holds = found >= TWIN_AGREEMENT
                pairs.append(part[holds])
                agreements.append(found[holds])
            bar.update(min(_BLOCK, count - bar.n))
    return np.concatenate(pairs), np.concatenate(agreements)
