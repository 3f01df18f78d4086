"""Tar archives, plain or compressed (gz, bz2, xz).

A compressed one has no random access, so it is unpacked into an unnamed temporary file first.
"""

import bz2
import gzip
import lzma
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from pipeline.core.errors import UserError
from pipeline.prepare.sources.archive import DAMAGED, MAX_FILE_BYTES, MAX_RATIO, Archive, Member, damaged


class TarArchive(Archive):
    """Tar members, read at their offsets."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._limit = max(2**30, MAX_RATIO * path.stat().st_size)
        try:
            stream = decompressed(self._file)
            if stream is not self._file:
                spool = self._unpack(stream)
                self._file.close()
                self._file = spool
        except DAMAGED as error:
            self.close()
            raise damaged(path, error) from error
        except BaseException:
            self.close()
            raise

    def read(self, place: Sequence[Any]) -> bytes:
        member = Member(*place)
        return self._read_at(member.offset, member.size)

    def _unpack(self, stream: IO[bytes]) -> IO[bytes]:
        """Copy a decompressed stream into a temporary file."""
        spool = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            while block := stream.read(2**20):
                if spool.write(block) and spool.tell() > self._limit:
                    raise UserError(
                        f"{self.path}: refused, because it unpacks to more than {MAX_RATIO} times its packed "
                        "size. Make the archive again without what blows it up."
                    )
        except BaseException:
            spool.close()
            raise
        return spool

    def _scan(self) -> Iterator[tuple[str, Member | None]]:
        self._file.seek(0)
        archive = tarfile.open(fileobj=_Guarded(self._file), mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
        end = 0
        while info := archive.next():
            archive.members.clear()  # else tarfile keeps them all
            if archive.offset <= end or info.size < 0:  # a negative size would lead back, for ever
                raise self._refuse(info.name, "has a negative size")
            end = archive.offset
            if info.issym() or info.islnk():
                raise self._refuse(info.name, "is a link")
            if not (info.isreg() or info.isdir()) or info.issparse():
                raise self._refuse(info.name, "is not a plain file")
            if info.offset_data + info.size > self._limit:
                raise self._refuse(info.name, f"makes it unpack to more than {MAX_RATIO} times its packed size")
            member = Member(info.name, info.offset_data, info.size, info.size)
            yield info.name, None if info.isdir() else member
        # tarfile takes a damaged header for the end of the archive; the real end is a block of zeros.
        self._file.seek(archive.offset)
        if self._file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it breaks off in the middle")


class _Guarded:
    """A stream for ``tarfile``, which would read an extended header of any claimed size into memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.seek, self.tell = stream.seek, stream.tell
        self._stream = stream

    def read(self, size: int) -> bytes:
        """Read at most ``MAX_FILE_BYTES``."""
        if not 0 <= size <= MAX_FILE_BYTES:
            raise tarfile.ReadError("a header of absurd size")
        return self._stream.read(size)


def decompressed(file: IO[bytes]) -> IO[bytes]:
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
