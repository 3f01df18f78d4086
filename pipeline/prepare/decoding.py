"""Every picture of a source -> packed pixels on disk, and what was seen in each."""

import hashlib
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.core.cores import available
from pipeline.inference.faces import NoFace
from pipeline.inference.images import ImageError
from pipeline.prepare.array_file import ArrayFile
from pipeline.prepare.columns import Records
from pipeline.prepare.pixels.cache import Cache
from pipeline.prepare.pixels.picture import Decoded, decode_picture

# Pictures a task, and bytes of them: small enough for a live progress bar, large enough that tasks cost nothing.
_CHUNK, _CHUNK_BYTES = 32, 2**22


def decode_all(
    fetches: Iterator[Callable[[], bytes]],
    records: Records,
    pixels: ArrayFile,
    cache: Cache,
    faces: Mapping[str, Any] | None = None,
) -> int:
    """Decode all pictures into ``pixels``, and write down in ``records`` what is seen; shows progress.

    Threads and not processes: Pillow decodes, and hashlib hashes, without Python's lock. Only a few tasks are
    under way at a time, and their results are taken in order, so memory does not grow with the source.

    Args:
        fetches: Give the bytes of all their files, in the order of ``records``.
        records: Filled in.
        pixels: Filled in; the shape of an image in it says what it is made to.
        cache: Of decoded pictures.
        faces: As of ``decode_picture``.

    Returns:
        How many did not have to be decoded, thanks to the cache.
    """
    fetches = iter(fetches)
    done = reused = 0
    stop = threading.Event()
    chunk = max(1, min(_CHUNK, _CHUNK_BYTES // int(np.prod(pixels.shape[1:]))))
    work = partial(_decode_task, shape=pixels.shape[1:], faces=faces, cache=cache, stop=stop)
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(threads := available()) as pool,
        tqdm(total=len(records), desc="prepare", unit="img") as bar,
    ):
        warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable files
        waiting: deque[Future[tuple[list[Decoded | ImageError], int]]] = deque()
        try:
            while (task := list(islice(fetches, chunk))) or waiting:
                if task:
                    waiting.append(pool.submit(work, task))
                if task and len(waiting) <= 2 * threads:
                    continue
                found, hits = waiting.popleft().result()
                pixels.append(_write_down(records, done, found, pixels.shape[1:]))
                done, reused = done + len(found), reused + hits
                bar.update(len(found))
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return reused


def _decode_task(
    task: Sequence[Callable[[], bytes]],
    shape: tuple[int, int, int],
    faces: Mapping[str, Any] | None,
    cache: Cache,
    stop: threading.Event,
) -> tuple[list[Decoded | ImageError], int]:
    """Each picture, or why it cannot be read; and how many were decoded before."""
    found: list[Decoded | ImageError] = []
    new: dict[bytes, Decoded] = {}
    hits = 0
    try:
        for fetch in task:
            if stop.is_set():
                break
            try:
                data = fetch()
                key = hashlib.sha256(data).digest()
                image = cache.get(key)
                if image is None:
                    image = new[key] = decode_picture(data, shape, faces)
                else:
                    hits += 1
                found.append(image)
            except ImageError as error:
                found.append(error)
    finally:
        cache.put(new)  # also of a task that is stopped
    return found, hits


def _write_down(
    records: Records, start: int, found: Sequence[Decoded | ImageError], shape: tuple[int, int, int]
) -> np.ndarray:
    """Enter what was seen in the images from number ``start`` on, and return their pixels; bad ones are black."""
    block = np.zeros((len(found), *shape), np.uint8)
    for i, image in enumerate(found, start):
        if isinstance(image, ImageError):
            records.problems[i] = str(image)
            records.mark(i, "no_face" if isinstance(image, NoFace) else "corrupt")
        else:
            block[i - start] = image.pixels
            records.mark(i, *image.seen)
            records.sizes[i] = np.minimum(image.size, np.iinfo(np.uint16).max)
            records.digests[i] = np.frombuffer(image.digest, np.uint8)
    return block
