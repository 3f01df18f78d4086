"""Zip and tar archives read in place, on the suspicion that someone else made them.

No member is written to disk, except that those of a compressed tar, which has no random access, go through
an unnamed temporary file. Refused are members that point outside, links, and members that unpack to more
than they claim or to an absurd size.
"""

import bz2
import gzip
import lzma
import re
import stat
import struct
import tarfile
import tempfile
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from itertools import pairwise
from pathlib import Path
from typing import IO, NamedTuple

from pipeline.errors import UserError
from pipeline.images import ImageError

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

_JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", "@eaDir"}
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # zip APPNOTE 4.3.7

Parts = tuple[str, ...]


def is_junk(name: str) -> bool:
    """Hidden, or left behind by an operating system."""
    return name.startswith(".") or name in _JUNK


class _Member(NamedTuple):
    """Where an archive holds a file: offset of its local header (zip) or of its bytes (tar), and sizes."""

    name: str
    offset: int
    packed: int
    size: int
    method: int = zipfile.ZIP_STORED
    crc: int | None = None


class Archive(ABC):
    """An opened archive; ``read`` may be called from several threads.

    Attributes:
        files: The path of every file in the archive, as a tuple of its parts, without hidden ones.
        folders: Likewise of folders, where the archive lists them.

    Raises:
        UserError: The archive is damaged, or has a member that is not to be trusted; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[Parts, _Member] = {}
        self.folders: list[Parts] = []
        self._file: IO[bytes] = path.open("rb")
        self._lock = threading.Lock()
        try:
            self._list()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def read(self, parts: Parts) -> bytes:
        """The bytes of a file.

        Raises:
            ImageError: It is damaged inside the archive.
            UserError: It unpacks to more than it claims.
        """

    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""
        self._file.close()

    @abstractmethod
    def _list(self) -> None:
        """Fill ``files`` and ``folders``."""

    def _refuse(self, name: str, why: str) -> UserError:
        return UserError(
            f"{self.path}: refused, because its member {name!r} {why}. Make the archive again without it."
        )

    def _parts(self, name: str) -> Parts:
        """The member's path, which must stay inside; Windows' own separators and drives count too."""
        path = name.replace("\\", "/")
        if path.startswith("/") or re.match("[A-Za-z]:", path) or ".." in path.split("/"):
            raise self._refuse(name, "points outside the archive")
        return tuple(part for part in path.split("/") if part not in ("", "."))

    def _add(self, parts: Parts, member: _Member) -> None:
        """Enter a file; of two with one name the later counts, as when unpacking."""
        if max(member.size, member.packed) > MAX_FILE_BYTES:
            raise self._refuse(member.name, f"is larger than {MAX_FILE_BYTES >> 20} MiB")
        if member.size > RATIO_FLOOR_BYTES and member.size > MAX_RATIO * member.packed:
            raise self._refuse(member.name, f"unpacks to more than {MAX_RATIO} times its packed size")
        self.files[parts] = member

    def _read_at(self, offset: int, size: int) -> bytes:
        try:
            with self._lock:
                self._file.seek(offset)
                return self._file.read(size)
        except DAMAGED:
            raise ImageError("damaged in the archive") from None


class ZipArchive(Archive):
    """Zip members, unpacked here and not by ``zipfile``, which stops quietly at the size that a member claims."""

    def _list(self) -> None:
        with zipfile.ZipFile(self._file) as archive:
            infos = archive.infolist()
        for info in infos:
            parts = self._parts(info.filename)
            if stat.S_ISLNK(info.external_attr >> 16):
                raise self._refuse(info.filename, "is a link")
            if not parts or any(map(is_junk, parts)):
                continue
            if info.filename.endswith(("/", "\\")):
                self.folders.append(parts)
                continue
            if info.flag_bits & 1:
                raise self._refuse(info.filename, "is encrypted")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self._refuse(info.filename, "is packed by another method than deflate")
            where = (info.header_offset, info.compress_size, info.file_size)
            self._add(parts, _Member(info.filename, *where, info.compress_type, info.CRC))
        # A small zip can hold petabytes if its members share their bytes (Fifield, WOOT 2019).
        for member, following in pairwise(sorted(self.files.values(), key=lambda member: member.offset)):
            if member.offset + _LOCAL_HEADER.size + member.packed > following.offset:
                raise self._refuse(following.name, f"overlaps {member.name!r}")

    def read(self, parts: Parts) -> bytes:
        member = self.files[parts]
        header = self._read_at(member.offset, _LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise ImageError("damaged in the archive")
        *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        data = self._read_at(member.offset + _LOCAL_HEADER.size + name_bytes + extra_bytes, member.packed)
        if member.method == zipfile.ZIP_DEFLATED:
            try:
                # One byte more than it claims is enough to tell, and bounds the memory.
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size + 1)
            except zlib.error:
                raise ImageError("damaged in the archive") from None
        if len(data) > member.size:
            raise self._refuse(member.name, f"unpacks to more than the {member.size} bytes that it claims")
        if zlib.crc32(data) != member.crc:
            raise ImageError("damaged in the archive")
        return data


class TarArchive(Archive):
    """Tar members, read at their offsets; those of a compressed tar are copied to a temporary file first."""

    def _list(self) -> None:
        stream = _decompressed(self._file)
        if stream is self._file:
            self._scan(stream, None)
            return
        spool = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._scan(stream, spool)
        except BaseException:
            spool.close()
            raise
        self._file.close()
        self._file = spool

    def _scan(self, stream: IO[bytes], spool: IO[bytes] | None) -> None:
        """List ``stream``, an uncompressed tar, and copy its files to ``spool`` if there is one."""
        limit = max(2**30, MAX_RATIO * self.path.stat().st_size)
        archive = tarfile.open(fileobj=_Guarded(stream), mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
        for info in archive:
            parts = self._parts(info.name)
            if info.issym() or info.islnk():
                raise self._refuse(info.name, "is a link")
            if not (info.isreg() or info.isdir()) or info.issparse():
                raise self._refuse(info.name, "is not a plain file")
            if info.offset_data + info.size > limit:
                raise self._refuse(
                    info.name, f"makes it unpack to more than {MAX_RATIO} times its packed size"
                )
            if not parts or any(map(is_junk, parts)):
                continue
            if info.isdir():
                self.folders.append(parts)
                continue
            offset = spool.tell() if spool else info.offset_data
            self._add(parts, _Member(info.name, offset, info.size, info.size))
            if spool:
                stream.seek(info.offset_data)
                spool.write(stream.read(info.size))
        # tarfile takes a damaged header for the end of the archive; the real end is a block of zeros.
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it breaks off in the middle")

    def read(self, parts: Parts) -> bytes:
        member = self.files[parts]
        return self._read_at(member.offset, member.size)


class _Guarded:
    """A stream for ``tarfile``, which would read an extended header of any claimed size into memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.seek, self.tell = stream.seek, stream.tell
        self._stream = stream

    def read(self, size: int) -> bytes:
        """Read at most ``MAX_FILE_BYTES``."""
        if size > MAX_FILE_BYTES:
            raise tarfile.ReadError("an absurdly large header")
        return self._stream.read(size)


def _decompressed(file: IO[bytes]) -> IO[bytes]:
    """``file`` unpacked by what its first bytes say, or itself."""
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(file)
    if start.startswith(b"BZh"):
        return bz2.open(file)
    if start.startswith(b"\xfd7zXZ\0"):
        return lzma.open(file)
    return file


def open_archive(path: Path) -> Archive | None:
    """Open a zip or tar archive (plain, gz, bz2 or xz), told by content; None if it is neither.

    Raises:
        UserError: As ``Archive`` says.
    """
    try:
        with path.open("rb") as file:
            # An empty zip starts with its end.
            if file.read(4) in (b"PK\x03\x04", b"PK\x05\x06"):
                return ZipArchive(path)
            file.seek(0)
            start = _decompressed(file).read(tarfile.BLOCKSIZE)
        try:
            # By the first block's checksum: `tarfile.is_tarfile` reads extended headers of any size.
            tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:
            pass  # a tar without members
        except tarfile.HeaderError:
            return None
        return TarArchive(path)
    except DAMAGED as error:
        raise UserError(f"{path} is damaged or cannot be read ({error}). Fetch it again.") from error
