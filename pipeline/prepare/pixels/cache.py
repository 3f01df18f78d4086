"""Pictures as they were decoded before, in ``.hyojo/decoded/``, found by the digest of their files' bytes.

A source that grew, or was prepared before in another arrangement, is decoded only where it is new. The folder
may be deleted at any time.
"""

import hashlib
import importlib.metadata
import json
import sqlite3
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.code_hash import hash_code
from pipeline.core.errors import UserError
from pipeline.core.project import project_root
from pipeline.inference import apart, faces, images, limits
from pipeline.prepare.pixels.picture import SEEN, Decoded

MAX_BYTES = 2**34  # 16 GiB; a larger cache is begun anew
_KEPT_FILES = 4  # one for each setting, the last used ones
_CHECKSUM = 4  # bytes
_HEADER = struct.Struct("<32s3L")


class Cache:
    """Decoded pictures on disk; may be used from several threads, and by several processes.

    Trouble with the file switches it off with a word on stderr: it only ever saves time.

    Args:
        folder: Where its files are, one for each setting; None for a cache that keeps nothing.
        settings: All that a decoded picture depends on besides its bytes.
        shape: Of its pixels, (S, S, C).
    """

    def __init__(self, folder: Path | None, settings: Sequence[str], shape: tuple[int, int, int]) -> None:
        self._shape = shape
        self._lock = threading.Lock()
        self._base: sqlite3.Connection | None = None
        if folder:
            name = hashlib.sha256(json.dumps([*settings, shape]).encode()).hexdigest()[:16]
            try:
                self._base = _open(folder, folder / f"{name}.db")
            except (OSError, sqlite3.Error) as error:
                self._give_up(error)

    def get(self, key: bytes) -> Decoded | None:
        """A picture, by the digest of its file's bytes, if it was decoded before."""
        found = self._use(lambda base: base.execute("SELECT value FROM decoded WHERE key = ?", (key,)).fetchone())
        return self._unpack(found[0]) if found else None

    def put(self, new: Mapping[bytes, Decoded]) -> None:
        """Keep pictures, by the digests of their files' bytes."""
        rows = [(key, self._pack(decoded)) for key, decoded in new.items()]
        self._use(lambda base: base.executemany("INSERT OR REPLACE INTO decoded VALUES (?, ?)", rows))

    def close(self) -> None:
        """Close the file."""
        if self._base:
            self._base.close()

    def _use(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """What is got from the file; None while there is none, or trouble with it."""
        with self._lock:
            try:
                if self._base:
                    with self._base:
                        return work(self._base)
            except sqlite3.Error as error:
                self._give_up(error)
        return None

    def _pack(self, decoded: Decoded) -> bytes:
        marks = sum(1 << SEEN.index(name) for name in decoded.seen)
        rest = _HEADER.pack(decoded.digest, *decoded.size, marks) + decoded.pixels.tobytes()
        return zlib.crc32(rest).to_bytes(_CHECKSUM, "little") + rest

    def _unpack(self, value: bytes) -> Decoded | None:
        """A picture, None if its bytes are damaged."""
        rest = value[_CHECKSUM:]
        if zlib.crc32(rest) != int.from_bytes(value[:_CHECKSUM], "little"):
            return None
        digest, height, width, marks = _HEADER.unpack_from(rest)
        pixels = np.frombuffer(rest, np.uint8, offset=_HEADER.size).reshape(self._shape)
        seen = tuple(name for i, name in enumerate(SEEN) if marks >> i & 1)
        return Decoded(pixels, digest, (height, width), seen)

    def _give_up(self, error: Exception) -> None:
        print(f"warning: the cache of decoded pictures is not used ({error})", file=sys.stderr)
        if self._base:
            self._base.close()
        self._base = None


def open_cache(shape: tuple[int, int, int], face_settings: Mapping[str, Any] | None) -> Cache:
    """The project's cache of pictures decoded by this code with these settings; none outside a project.

    Arguments are as of ``decode_picture``.

    Raises:
        UserError: Faces are to be found, and what finds them is not installed.
    """
    try:
        folder = project_root() / ".hyojo" / "decoded"
    except UserError:
        folder = None
    shipped = [Path(images.__file__), Path(apart.__file__), Path(limits.__file__), Path(faces.__file__)]
    code = hash_code([Path(__file__).parent, *shipped])
    settings = [code, *map(_version, ("pillow", "numpy", "pillow-heif"))]
    if face_settings:
        try:
            settings += [json.dumps(face_settings), faces.detector_digest()]
        except ModuleNotFoundError as error:
            raise UserError(f"prepare.faces: {error}") from None
    return Cache(folder, settings, shape)


def _version(package: str) -> str:
    """Of a package; empty if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _open(folder: Path, path: Path) -> sqlite3.Connection:
    """Open or make a cache; those not used lately are deleted, and one that is damaged or too large begun anew."""
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(folder.glob("*.db"), key=lambda file: file.stat().st_mtime, reverse=True)
    for old in [file for file in others if file != path][_KEPT_FILES - 1 :]:
        _delete(old)
    if path.exists() and path.stat().st_size > MAX_BYTES:
        _delete(path)
    try:
        return _connect(path)
    except sqlite3.DatabaseError:
        _delete(path)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=60, check_same_thread=False)
    # What a crash of the machine may spoil is told by the checksums.
    base.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = -4000;")
    base.execute("CREATE TABLE IF NOT EXISTS decoded (key BLOB PRIMARY KEY, value BLOB)")
    path.touch()
    return base


def _delete(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
