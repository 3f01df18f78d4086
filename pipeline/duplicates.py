"""Near duplicates: the same picture again, re-encoded, resized, mirrored, shifted, re-cropped or lit otherwise.

Pure functions of packed images, in three steps. A descriptor of each picture that shifting and mirroring hardly
change (magnitudes of its Fourier transform) gives candidates, found in overlapping cells around pivots, so that
the work grows as n log n and not as n^2. Each candidate is then laid over its partner and compared place by place
(``alignment.py``). What holds becomes groups. ``benchmarks/duplicates.py`` measures it.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import fft
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from pipeline.alignment import agreement, tents
from pipeline.pixels import Pixels

SIZE = 48  # px at which pictures are compared; larger ones are reduced to it and smaller ones enlarged

# The descriptor goes up to this many cycles a picture: JPEG and resizing leave these alone.
_CYCLES = 7
# Cosine of two descriptors. Of copies it is mostly above 0.7, of faces taken at random 0 on average.
_CANDIDATE_COSINE = 0.4
_NEIGHBOURS = 5  # candidates a picture has in a cell
# So many pictures are compared all with all; more are parted into cells around pivots, of which each picture
# belongs to its nearest ones.
_CELL, _PIVOTS, _SPILL = 4096, 32, 2
# With fewer pictures the descriptors' mean and spread say nothing, and all pairs are candidates.
_FEW = 100

# From this agreement on, two pictures are twins. Of copies nearly all have 0.9 and more; of different drawn faces,
# which may differ in the mouth alone, the most is 0.75.
TWIN_AGREEMENT = 0.82

_BLOCK = 1024  # pictures or pairs worked on at once, some 50 MB


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
    images: Pixels | np.ndarray,
    rows: np.ndarray,
    scratch: Path | None = None,
    progress: bool = False,
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
    with tempfile.TemporaryDirectory(prefix=".hyojo-", dir=scratch) as folder, ExitStack() as stack:
        faces, places = images, rows
        if images.shape[1:] != (SIZE, SIZE, 1):
            faces = stack.enter_context(closing(_reduce(images, rows, Path(folder, "faces"))))
            places = np.arange(len(rows))

        def look(which: np.ndarray) -> np.ndarray:
            return faces[places[which]].reshape(-1, SIZE, SIZE).astype(np.float32)

        pairs = _candidates(_describe_all(look, len(rows), progress))
        found = np.empty(len(pairs), np.float32)
        for start in _blocks(len(pairs), progress and "comparing", "pair"):
            first, second = map(look, pairs[start : start + _BLOCK].T)
            found[start : start + _BLOCK] = agreement(first, second)
    holds = found >= TWIN_AGREEMENT
    return Pairs(*pairs[holds].T, found[holds])


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


def _blocks(count: int, progress: str | bool, unit: str) -> Iterator[int]:
    """Starts of blocks, with a progress bar of that name unless it is False."""
    with tqdm(total=count, desc=progress or None, unit=unit, disable=not progress) as bar:
        for start in range(0, count, _BLOCK):
            yield start
            bar.update(min(_BLOCK, count - start))


# Candidates


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


def _describe_all(look: Callable[[np.ndarray], np.ndarray], count: int, progress: bool) -> np.ndarray:
    """Descriptors as unit vectors, float16 (R, D), each component brought to mean 0 and spread 1 before."""
    parts, total, squares = [], 0.0, 0.0
    for start in _blocks(count, progress and "describing", "img"):
        block = _describe(look(np.arange(start, min(count, start + _BLOCK))))
        total, squares = total + block.sum(axis=0), squares + (block**2).sum(axis=0)
        parts.append(block.astype(np.float16))
    if not parts:
        return np.empty((0, 1), np.float16)
    mean = total / count
    spread = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
    for part in parts:
        block = (part - mean) / spread
        part[:] = block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-6)
    return np.concatenate(parts)


def _cells(descriptors: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Overlapping parts of ``rows``, of at most ``_CELL``; similar descriptors are together in one of them."""
    if len(rows) <= _CELL:
        yield rows
        return
    pivots = descriptors[rows[np.linspace(0, len(rows) - 1, _PIVOTS).astype(np.int64)]].astype(np.float32)
    nearest = np.empty((len(rows), _SPILL), np.int8)
    for start in range(0, len(rows), _CELL):
        cosines = descriptors[rows[start : start + _CELL]].astype(np.float32) @ pivots.T
        nearest[start : start + _CELL] = np.argpartition(cosines, -_SPILL)[:, -_SPILL:]
    for pivot in range(_PIVOTS):
        cell = rows[(nearest == pivot).any(axis=1)]
        if len(cell) > len(rows) // 2:  # all alike, such as the frames of one film: parted as they come
            yield from np.array_split(cell, -(-len(cell) // _CELL))
        else:
            yield from _cells(descriptors, cell)


def _candidates(descriptors: np.ndarray) -> np.ndarray:
    """Pairs of similar descriptors, int64 (M, 2), the lower index first; sorted."""
    count = len(descriptors)
    if count <= _FEW:
        return np.stack(np.triu_indices(count, 1), axis=1)
    keys = []
    for cell in _cells(descriptors, np.arange(count)):
        members = descriptors[cell].astype(np.float32)
        kept = min(_NEIGHBOURS, len(cell))
        for start in range(0, len(cell), _BLOCK):
            cosines = members[start : start + _BLOCK] @ members.T
            lines = np.arange(len(cosines))
            cosines[lines, start + lines] = -1  # itself
            best = np.argpartition(cosines, -kept)[:, -kept:]
            line, place = np.nonzero(np.take_along_axis(cosines, best, axis=1) > _CANDIDATE_COSINE)
            one, other = cell[start + line], cell[best[line, place]]
            keys.append(np.minimum(one, other) * count + np.maximum(one, other))
    return np.stack(np.divmod(np.unique(np.concatenate(keys)), count), axis=1)
