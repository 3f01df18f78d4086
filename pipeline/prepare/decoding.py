"""Every picture of a source -> packed pixels on disk, and what was seen in each."""

import hashlib
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.core.cores import available
from pipeline.core.errors import UserError
from pipeline.inference.faces import NoFace
from pipeline.inference.images import ImageError, decode
from pipeline.prepare.array_file import ArrayFile
from pipeline.prepare.catalogue import SPLITS
from pipeline.prepare.columns import Records
from pipeline.prepare.pixels.cache import Cache
from pipeline.prepare.pixels.picture import Decoded, decode_picture

# Pictures a task, and bytes of them: small enough for a live progress bar, large enough that tasks cost nothing.
_CHUNK, _CHUNK_BYTES = 32, 2**22
# Photos a task, where faces are looked for in them; and after how many the time of all is told.
_PHOTOS, _TOLD = 4, 64

Fetch = Callable[[], bytes]


def check_classes(
    fetch: Callable[[Iterable[Any]], Iterator[Fetch]], places: Callable[[np.ndarray], Iterable[Any]], records: Records
) -> None:
    """Refuse, before thousands of pictures are decoded, a class none of whose files in a split is a picture.

    Args:
        fetch: Gives files by their places, as ``Source.fetch``.
        places: Gives places by numbers, ascending, as ``Listing.places``.
        records: All images.
    """
    keys = records.labels.astype(np.int32) * len(SPLITS) + records.splits
    firsts = np.sort(np.unique(keys, return_index=True)[1])
    for number, first in zip(firsts, fetch(places(firsts))):
        if problem := _find_problem(first):
            others = np.flatnonzero(keys == keys[number])
            if all(map(_find_problem, fetch(places(others)))):
                (file,) = records.files([number])
                raise UserError(
                    f"{records.source}: none of the {len(others)} files of class "
                    f"{records.class_names[records.labels[number]]!r} in split {SPLITS[records.splits[number]]!r} is a "
                    f"picture that can be read, such as {file}: {problem}. Mend them, or remove the class everywhere, "
                    "as prepare.class_map can."
                )


def _find_problem(fetch: Fetch) -> str:
    """Why a file cannot be read as a picture; empty if it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable files
            decode(fetch(), 1)
    except ImageError as error:
        return str(error)
    return ""


def decode_all(
    fetches: Iterator[Fetch],
    records: Records,
    pixels: ArrayFile,
    cache: Cache,
    faces: Mapping[str, Any] | None = None,
    max_bad_fraction: float = 1.0,
) -> int:
    """Decode all pictures into ``pixels``, and write down in ``records`` what is seen.

    Shows progress; where faces are looked for, it says after the first photos how long all will take. Threads and not
    processes: Pillow decodes, and hashlib hashes, without Python's lock. Only a few tasks are under way at a time, and
    their results are taken in order, so memory does not grow with the source.

    Args:
        fetches: Give the bytes of all their files, in the order of ``records``.
        records: Filled in.
        pixels: Filled in; the shape of an image in it says what it is made to.
        cache: Of decoded pictures.
        faces: As of ``decode_picture``.
        max_bad_fraction: As of ``prepare``.

    Returns:
        How many did not have to be decoded, thanks to the cache.

    Raises:
        UserError: At once, when too many files cannot be read.
    """
    fetches = iter(fetches)
    done = reused = bad = 0
    stop, start = threading.Event(), time.perf_counter()
    chunk = max(1, min(_PHOTOS if faces else _CHUNK, _CHUNK_BYTES // int(np.prod(pixels.shape[1:]))))
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
                bad += sum(isinstance(image, ImageError) and not isinstance(image, NoFace) for image in found)
                if bad > max_bad_fraction * len(records):
                    raise _too_many_bad(records, done, max_bad_fraction)
                if faces and 0 <= done - reused - _TOLD < len(found) - hits:  # now, and only now
                    bar.write(_estimate(len(records) - done, done - reused, time.perf_counter() - start), sys.stderr)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return reused


def _estimate(left: int, done: int, seconds: float) -> str:
    """Say how long it takes to look for faces in the photos that are left, if those that are done took some seconds."""
    rate = done / seconds
    seconds = left / rate
    time_left = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f"MTCNN looks for faces in {left} more photos, at {rate:.0f} a second: about {time_left}"


def _too_many_bad(records: Records, done: int, allowed: float) -> UserError:
    """What is said of the bad files among the first ``done``."""
    bad = np.flatnonzero(records.have("corrupt")).tolist()
    shown = "\n".join(f"  {file}: {records.problems[i]}" for i, file in zip(bad, records.files(bad[:10])))
    some = f"{done}" if done == len(records) else f"the first {done}"
    return UserError(
        f"{records.source}: {len(bad)} of {some} files cannot be read, more than prepare.max_bad_fraction "
        f"({allowed:g}) allows of {len(records)}. Mend or remove them, or raise the limit. The first:\n{shown}"
    )


def _decode_task(
    task: Sequence[Fetch],
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
