"""Archives read in place, on the suspicion that someone else made them; ``zips`` and ``tars`` read the two kinds.

Refused are members that point outside, links, and members that unpack to more than they claim or to an absurd
size. No member is written to disk, and none is kept in memory: members are listed as the archive is read.
"""

import lzma
import re
import struct
import tarfile
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from pipeline.core.errors import UserError
from pipeline.inference.images import ImageError
from pipeline.prepare.sources.source import Opened

MAX_FILE_BYTES = 2**28  # 256 MiB: no picture of a face is larger
MAX_RATIO = 200  # of unpacked to packed size, above the floor: pictures are compressed already
RATIO_FLOOR_BYTES = 2**26

# What zipfile, tarfile and the decompressors raise for damaged bytes.
DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    NotImplementedError,
)

# In lower case: what macOS, Windows and network drives leave behind.
_JUNK = {
    "__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information",
    "@eadir", "#recycle", "lost+found",
}  # fmt: skip

Parts = tuple[str, ...]


def is_junk(name: str) -> bool:
    """Hidden, or left behind by an operating system."""
    return name.startswith(".") or name.lower() in _JUNK


class Member(NamedTuple):
    """Where an archive holds a file: offset of its local header (zip) or of its bytes (tar), and sizes."""

    name: str
    offset: int
    packed: int
    size: int
    method: int = zipfile.ZIP_STORED
    crc: int | None = None


class Archive(Opened, ABC):
    """An opened archive; ``read`` may be called from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] = path.open("rb")
        self._lock = threading.Lock()

    def members(self) -> Iterator[tuple[Parts, Member | None]]:
        """Every file, as the parts of its path and where it lies, and every folder that is listed (None).

        Hidden ones are passed over. Where two have one name, the later counts, as when unpacking.

        Raises:
            UserError: The archive is damaged, or has a member that is not to be trusted; the message names it.
        """
        try:
            for name, member in self._scan():
                parts = self._parts(name)
                if not parts or any(map(is_junk, parts)):
                    continue
                if member and max(member.size, member.packed) > MAX_FILE_BYTES:
                    raise self._refuse(name, f"is larger than {MAX_FILE_BYTES >> 20} MiB")
                if member and member.size > RATIO_FLOOR_BYTES and member.size > MAX_RATIO * member.packed:
                    raise self._refuse(name, f"unpacks to more than {MAX_RATIO} times its packed size")
                yield parts, member
        except DAMAGED as error:
            raise damaged(self.path, error) from error

    @abstractmethod
    def read(self, place: Sequence[Any]) -> bytes:
        """The bytes of a file, given the fields of its ``Member``.

        Raises:
            ImageError: It is damaged inside the archive.
            UserError: It unpacks to more than it claims.
        """

    def close(self) -> None:
        self._file.close()

    @abstractmethod
    def _scan(self) -> Iterator[tuple[str, Member | None]]:
        """List names and files; a folder has no member."""

    def _refuse(self, name: str, why: str) -> UserError:
        return UserError(f"{self.path}: refused, because its member {name!r} {why}. Make the archive again without it.")

    def _parts(self, name: str) -> Parts:
        """The member's path, which must stay inside; Windows' own separators and drives count too."""
        path = name.replace("\\", "/")
        if path.startswith("/") or re.match("[A-Za-z]:", path) or ".." in path.split("/"):
            raise self._refuse(name, "points outside the archive")
        return tuple(part for part in path.split("/") if part not in ("", "."))

    def _read_at(self, offset: int, size: int) -> bytes:
        try:
            with self._lock:
                self._file.seek(offset)
                return self._file.read(size)
        except DAMAGED:
            raise ImageError("damaged in the archive") from None


def damaged(path: Path, error: Exception) -> UserError:
    """What to say of an archive that cannot be read."""
    return UserError(f"{path} is damaged or cannot be read ({error}). Fetch it again.")
