"""Images, or other arrays of one shape, on disk: written one after another and read by number.

A mapped file would do, but that its pages count as memory of the process.
"""

import threading
from io import SEEK_END
from itertools import pairwise
from pathlib import Path

import numpy as np


class ArrayFile:
    """A file of N images, of that shape (N, ...), the first of which are written; made anew. Threads may share it."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type = np.uint8) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._file = path.open("w+b")
        # Between a seek and its read another thread would move the file's position.
        self._lock = threading.Lock()
        self._bytes = int(np.prod(shape[1:])) * self.dtype.itemsize

    def append(self, images: np.ndarray) -> None:
        """Write images, (n, ...), behind the last."""
        with self._lock:
            self._file.seek(0, SEEK_END)
            self._file.write(np.ascontiguousarray(images, self.dtype))

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """Images by their numbers, (n,) -> (n, ...)."""
        found = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        # What stands together is read together.
        runs = np.flatnonzero(np.diff(numbers, prepend=-2, append=-2) != 1) if len(numbers) else []
        with self._lock:
            for start, stop in pairwise(runs):
                self._file.seek(int(numbers[start]) * self._bytes)
                self._file.readinto(found[start:stop])
        return found

    def __len__(self) -> int:
        return self.shape[0]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
