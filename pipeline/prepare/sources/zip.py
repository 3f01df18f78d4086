"""Zip archives: their members are listed and unpacked here, one at a time.

``zipfile`` keeps a kilobyte a member in memory, and stops quietly at the size that a member claims.
"""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

from pipeline.inference.images import ImageError
from pipeline.prepare.sources.archive import Archive, Member

# Zip APPNOTE 4.3.7 (before a member's bytes), 4.3.12 (its entry in the list), 4.3.14 to 4.3.16 (the end).
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_WIDE = 0xFFFFFFFF  # stands for a number that has no room in 32 bits


class ZipArchive(Archive):
    """Zip members, stored or deflated."""

    def read(self, place: Sequence[Any]) -> bytes:
        member = Member(*place)
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

    def _scan(self) -> Iterator[tuple[str, Member | None]]:
        start, end, shift = self._directory()
        former = Member("the list of members", -1, 0, 0)
        room = start  # a small zip can hold petabytes if its members share their bytes (Fifield, WOOT 2019)
        with self.path.open("rb") as file:
            file.seek(start)
            while file.tell() < end:
                flags, is_link, member = _read_entry(file, shift)
                name, taken = member.name, _LOCAL_HEADER.size + member.packed
                room -= taken
                if room < 0 or former.offset <= member.offset < former.offset + former.packed:
                    raise self._refuse(name, f"overlaps {former.name!r}")
                former = member._replace(packed=taken)
                if is_link:
                    raise self._refuse(name, "is a link")
                if name.endswith(("/", "\\")):
                    yield name, None
                    continue
                if flags & 1:
                    raise self._refuse(name, "is encrypted")
                if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise self._refuse(name, "is packed by another method than deflate")
                yield name, member

    def _directory(self) -> tuple[int, int, int]:
        """Where the list of members starts and ends, and how many bytes were put before the archive."""
        size = self.path.stat().st_size
        tail_bytes = min(size, _END.size + 0xFFFF)
        tail = self._read_at(size - tail_bytes, tail_bytes)
        at = tail.rfind(b"PK\x05\x06")
        if at < 0:
            raise zipfile.BadZipFile("its end is missing")
        *_, listed_bytes, listed_at, _ = _END.unpack_from(tail, at)
        end = size - tail_bytes + at
        wide_bytes = _END_64.size + _LOCATOR_64.size
        before = self._read_at(end - wide_bytes, wide_bytes) if end >= wide_bytes else b""
        if before.startswith(b"PK\x06\x06") and before.startswith(b"PK\x06\x07", _END_64.size):
            *_, listed_bytes, listed_at = _END_64.unpack_from(before)
            end -= wide_bytes
        start = end - listed_bytes
        if start < listed_at:
            raise zipfile.BadZipFile("a part of it is missing")
        return start, end, start - listed_at


def _read_entry(file: IO[bytes], shift: int) -> tuple[int, bool, Member]:
    """The next entry of the list: flags, whether it is a link, and where its bytes are."""
    fields = _ENTRY.unpack(file.read(_ENTRY.size))
    if fields[0] != b"PK\x01\x02":
        raise zipfile.BadZipFile("its list of members is damaged")
    flags, method = fields[3:5]
    crc, packed, size, name_bytes, extra_bytes, comment_bytes = fields[7:13]
    attributes, offset = fields[15:]
    rest = file.read(name_bytes + extra_bytes + comment_bytes)
    name = rest[:name_bytes].decode("utf-8" if flags & 0x800 else "cp437").split("\0")[0]
    extra = rest[name_bytes : name_bytes + extra_bytes]
    size, packed, offset = _widen(extra, [size, packed, offset])
    member = Member(name, offset + shift, packed, size, method=method, crc=crc)
    return flags, stat.S_ISLNK(attributes >> 16), member


def _widen(extra: bytes, values: list[int]) -> list[int]:
    """``values``, with those that have no room in 32 bits taken from the extra fields (APPNOTE 4.5.3)."""
    while _WIDE in values and len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = [number for (number,) in struct.iter_unpack("<Q", extra[4 : 4 + length // 8 * 8])]
            return [wide.pop(0) if value == _WIDE and wide else value for value in values]
        extra = extra[4 + length :]
    return values
