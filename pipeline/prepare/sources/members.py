"""What holds files and lists them, all in one way: a folder, or a zip or tar archive read in place."""

import os
import shlex
import stat
import tarfile
from collections.abc import Iterator
from itertools import filterfalse
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.inference.images import ImageError
from pipeline.prepare.sources.archive import DAMAGED, MAX_FILE_BYTES, Archive, Parts, damaged, is_junk
from pipeline.prepare.sources.source import Opened
from pipeline.prepare.sources.tar import TarArchive, decompressed
from pipeline.prepare.sources.zip import ZipArchive


class Folder(Opened):
    """Files below a folder; links are followed, as in any folder of one's own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def members(self) -> Iterator[tuple[Parts, str | None]]:
        """Every file and its path, and every folder (None); without hidden ones."""
        todo: list[tuple[Parts, tuple[tuple[int, int], ...]]] = [((), ())]
        while todo:
            parts, above = todo.pop()
            path = self._path.joinpath(*parts)
            try:
                info = path.stat()
                here = (info.st_dev, info.st_ino)
                if here in above:  # a link that goes in circles
                    continue
                yield parts, None
                with os.scandir(path) as children:
                    for child in children:
                        if is_junk(child.name):
                            continue
                        if _is_folder(child):
                            todo.append(((*parts, child.name), (*above, here)))
                        else:
                            yield (*parts, child.name), "/".join((*parts, child.name))
            except OSError as error:
                raise UserError(f"prepare.source: {path} cannot be read ({error.strerror}).") from error

    def read(self, place: str) -> bytes:
        """The bytes of a file; raises ``ImageError``."""
        path = self._path / place
        try:
            info = path.stat()
            if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
                raise ImageError("not a regular file")
            if info.st_size > MAX_FILE_BYTES:
                raise ImageError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
            return path.read_bytes()
        except ImageError:
            raise
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _is_folder(child: os.DirEntry[str]) -> bool:
    """Whether that is a folder; a link that cannot be followed is a file, and says so when it is read."""
    try:
        return child.is_dir()
    except OSError:
        return False


def find_archive_kind(path: Path) -> type[Archive] | None:
    """What reads a zip or tar archive (plain, gz, bz2, xz), by content; else None. ``UserError`` if it is damaged."""
    try:
        with path.open("rb") as file:
            # An empty zip starts with its end.
            if file.read(4) in (b"PK\x03\x04", b"PK\x05\x06"):
                return ZipArchive
            file.seek(0)
            start = decompressed(file).read(tarfile.BLOCKSIZE)
        # By the first block's checksum: `tarfile.is_tarfile` reads extended headers of any size.
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:
        return TarArchive  # a tar without members
    except tarfile.HeaderError:
        return None
    except DAMAGED as error:
        raise damaged(path, error) from error
    return TarArchive


def open_members(path: Path) -> Folder | Archive:
    """Open a folder, or a file that ``find_archive_kind`` knows."""
    if path.is_dir():
        return Folder(path)
    kind = find_archive_kind(path)
    assert kind
    return kind(path)


def refuse_linked_folders(source: Path) -> None:
    """Raise ``UserError`` for links to folders in a folder: DVC does not look behind them, as it does behind others."""
    links = []
    for folder, names, _ in os.walk(source):
        names[:] = sorted(filterfalse(is_junk, names))
        links += [Path(folder, name) for name in names if os.path.islink(os.path.join(folder, name))]
    if links:
        shown = ", ".join(map(str, links[:3])) + ", ..." * (len(links) > 3)
        link, target = (shlex.quote(str(path)) for path in (links[0], links[0].resolve()))
        raise UserError(
            f"prepare.source: {source} has links to folders in it ({shown}). DVC does not look behind them, so that a "
            f"change there would go unnoticed. Copy each folder into its place: rm {link} && cp -rL {target} {link} "
            "(cp -rs links its files, which is fine too). Several data sets may lie side by side in one folder."
        )
