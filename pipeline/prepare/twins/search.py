"""Near duplicates: the same picture again, re-encoded, resized, mirrored, shifted, re-cropped or lit otherwise.

Pure functions of packed images, in three steps. A descriptor of each picture that shifting and mirroring hardly
change (magnitudes of its Fourier transform) gives candidates (``neighbours.py``), whose work grows as n^1.5 and is
small beside the rest. Each candidate is then laid over its partner and compared place by place
(``alignment.py``), which is linear in n. What holds becomes sets of twins. ``benchmarks/duplicates.py`` measures it.
"""

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from scipy import fft
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from pipeline.core.cores import available
from pipeline.prepare.array_file import ArrayFile
from pipeline.prepare.twins.alignment import agreement, tents
from pipeline.prepare.twins.neighbours import candidates

SIZE = 48  # px at which pictures are compared; larger ones are reduced to it and smaller ones enlarged

# The descriptor goes up to this many cycles a picture: JPEG and resizing leave these alone.
_CYCLES = 7
# From this agreement on, two pictures are twins. Of planted copies 99 % reach it; of the embedded drawn faces, which
# may differ in little more than the mouth, no two do: the most is 0.885.
TWIN_AGREEMENT = 0.9

_BLOCK, _PAIRS = 1024, 128  # pictures and pairs worked on at once: some 50 MB


def near_pairs(
    images: ArrayFile | np.ndarray, rows: np.ndarray, scratch: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the pairs of pictures that show the same thing; shows progress.

    Of exact copies only one should be looked at: many of them would crowd out its other twins. Pictures without
    any edges are twins of nothing.

    Args:
        images: uint8 (N, S, S, C), C 1 or 3; read in blocks.
        rows: Which of them to look at, integers (R,).
        scratch: Folder for temporary files; the system's if None.

    Returns:
        Pairs of indices into ``rows``, int64 (M, 2), in order, in each the less one first; and the agreement of their
        edges, aligned, float32 (M,), from ``TWIN_AGREEMENT`` to 1.
    """
    with (
        # Many small products: were each of them to use all cores, they would wait for each other most of the time.
        threadpool_limits(1, "blas"),
        tempfile.TemporaryDirectory(prefix=".hyojo-", dir=scratch) as folder,
        ExitStack() as stack,
    ):
        reduced = None
        if images.shape[1:] != (SIZE, SIZE, 1):
            reduced = stack.enter_context(closing(_reduce(images, rows, Path(folder, "faces"))))

        def look(which: np.ndarray) -> np.ndarray:
            faces = images[rows[which]] if reduced is None else reduced[which]
            return faces.reshape(-1, SIZE, SIZE).astype(np.float32)

        descriptors = stack.enter_context(closing(_write_descriptors(look, len(rows), Path(folder))))
        pairs, found = _compare_all(look, candidates(descriptors, Path(folder)), len(rows))
    order = np.lexsort(pairs.T[::-1])
    return pairs[order], found[order]


def connect(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number the sets that pairs of ``first`` and ``second``, (M,), connect, in the order of their first members.

    Returns:
        The set of each of ``count`` things, int32 (count,), from 0; those in no pair are sets of one.
    """
    # A graph of those in pairs alone: most are in none, and a graph takes many bytes of each.
    linked, ends = np.unique(np.concatenate([first, second]), return_inverse=True)
    edges = ends.reshape(2, -1)
    graph = coo_array((np.ones(len(first), bool), tuple(edges)), shape=(len(linked), len(linked)))
    number, component = connected_components(graph, directed=False)
    smallest = np.full(number, count, np.int64)
    np.minimum.at(smallest, component, linked)
    is_first = np.ones(count, bool)
    is_first[linked] = smallest[component] == linked
    sets = is_first.cumsum(dtype=np.int32)
    sets -= 1
    sets[linked] = sets[smallest[component]]
    return sets


def _reduce(images: ArrayFile | np.ndarray, rows: np.ndarray, path: Path) -> ArrayFile:
    """Some of the images in grey and at SIZE, uint8 (R, SIZE, SIZE), in a file."""
    _, size, _, channels = images.shape
    luma = np.float32([1] if channels == 1 else [0.299, 0.587, 0.114])
    ratio = size / SIZE
    weights = tents((np.arange(SIZE, dtype=np.float32) + 0.5) * ratio - 0.5, size, max(1.0, ratio))
    weights /= weights.sum(-1, keepdims=True)
    faces = ArrayFile(path, (len(rows), SIZE, SIZE))
    step = max(1, _BLOCK * SIZE**2 // (size**2 * channels))
    for start in range(0, len(rows), step):
        block = images[rows[start : start + step]].astype(np.float32) @ luma
        faces.append(np.rint(weights @ block @ weights.T).astype(np.uint8))
    return faces


def _compute_descriptors(faces: np.ndarray) -> np.ndarray:
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


def _write_descriptors(look: Callable[[np.ndarray], np.ndarray], count: int, folder: Path) -> ArrayFile:
    """Descriptors as unit vectors, float16 (R, D) in a file, each component brought to mean 0 and spread 1 before."""
    starts = range(0, count, _BLOCK)
    shape = (count, _compute_descriptors(np.zeros((1, SIZE, SIZE), np.float32)).shape[1])
    total, squares = np.zeros((2, shape[1]), np.float32)
    found = ArrayFile(folder / "descriptors", shape, np.float16)
    with closing(ArrayFile(folder / "plain", shape, np.float16)) as plain:
        for start in tqdm(starts, desc="describing", unit=f" {_BLOCK} img"):
            values = _compute_descriptors(look(np.arange(start, min(count, start + _BLOCK))))
            total, squares = total + values.sum(axis=0), squares + (values**2).sum(axis=0)
            plain.append(values)
        mean = total / max(count, 1)
        spread = np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 1e-6))
        for start in starts:
            values = (plain[np.arange(start, min(count, start + _BLOCK))] - mean) / spread
            found.append(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6))
    return found


def _compare_all(
    look: Callable[[np.ndarray], np.ndarray], blocks: Iterator[np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Those of some blocks of pairs that are twins, int64 (M, 2), and their agreement, float32 (M,). On all cores.

    Candidates are many and are not kept: memory is for what holds.
    """
    pairs, agreements = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    with ThreadPoolExecutor(available()) as pool, tqdm(total=count, desc="comparing", unit="img") as bar:
        for block in blocks:
            parts = [block[start : start + _PAIRS] for start in range(0, len(block), _PAIRS)]
            for part, found in zip(parts, pool.map(lambda part: agreement(*map(look, part.T)), parts)):
                if (holds := found >= TWIN_AGREEMENT).any():
                    pairs.append(part[holds])
                    agreements.append(found[holds])
            bar.update(min(_BLOCK, count - bar.n))
    return np.concatenate(pairs), np.concatenate(agreements)
