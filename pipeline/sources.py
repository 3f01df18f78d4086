"""A folder, or a zip or tar archive read in place, of class folders -> labelled files.

    happy/a.png                    train/happy/a.png, val/happy/b.png, ...
    fer2013/happy/a.png            fer2013/train/happy/a.png, test/test/happy/b.png, ...

Folders around the class folders are looked through, and so are folders inside them. Split folders have any
usual name (``Training``, ``valid``, ``PublicTest``, ``test_set``).
"""

import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pipeline.archives import MAX_FILE_BYTES, Archive, Parts, is_junk, open_archive
from pipeline.errors import UserError
from pipeline.images import ImageError

_EXPECTED = (
    "Expected one folder a class (happy/a.png, sad/b.png, ...), either directly or inside split folders "
    "(train/happy/a.png, val/happy/b.png, test/happy/c.png)."
)
_SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "development", "publictest"),
    "test": ("test", "testing", "tst", "privatetest"),
}
_SPLIT_OF = {name: split for split, names in _SPLITS.items() for name in names}
_SPLIT_SUFFIX = re.compile(r"(set|data|dataset|images?|imgs?|split|faces)$")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a class folder: its path in the source, its class, and its split where the source has one."""

    file: str
    label: str
    split: str | None


class Source:
    """An opened source: a context manager. ``read`` may be called from several threads.

    Attributes:
        entries: The labelled files, sorted by path.
        ignored: Paths of files that lie in no class folder.
    """

    def __init__(self, reader: "_Folder | Archive", entries: dict[Parts, Entry], ignored: list[str]) -> None:
        self._reader = reader
        self._parts = {entry.file: parts for parts, entry in entries.items()}
        self.entries = sorted(entries.values(), key=lambda entry: entry.file)
        self.ignored = ignored

    def read(self, file: str) -> bytes:
        """The bytes of ``file``, an entry's path.

        Raises:
            ImageError: The file cannot be read, or is damaged inside its archive.
            UserError: It unpacks to more than the archive says.
        """
        return self._reader.read(self._parts[file])

    def close(self) -> None:
        """Close the archive; nothing can be read afterwards."""
        self._reader.close()

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_source(path: Path | str) -> Source:
    """List the labelled files of a folder or of a zip or tar archive (plain, gz, bz2 or xz).

    Hidden files and what operating systems leave behind (``__MACOSX``, ``Thumbs.db``) are passed over.

    Raises:
        UserError: The path is missing or no such archive, or damaged; an archive member points outside, is a
            link, encrypted, or absurdly large; there are no class folders, or one; a class is empty in a split.
    """
    path = Path(path)
    reader = _open_reader(path)
    try:
        entries, empty, ignored = _find_classes(reader.files, reader.folders)
        _check_classes(path, entries.values(), empty)
    except BaseException:
        reader.close()
        raise
    return Source(reader, entries, ignored)


def split_name(folder: str) -> str | None:
    """``train``, ``val`` or ``test`` for a folder with a usual name of a split, else None."""
    name = re.sub(r"[\W_]", "", folder.lower())
    return _SPLIT_OF.get(name) or _SPLIT_OF.get(_SPLIT_SUFFIX.sub("", name))


def _open_reader(path: Path) -> "_Folder | Archive":
    """What reads this kind of source."""
    if not path.exists():
        raise UserError(f"prepare.source: {path} does not exist. Give a folder, or a zip or tar archive.")
    if path.is_dir():
        return _Folder(path)
    if archive := open_archive(path):
        return archive
    raise UserError(
        f"prepare.source: {path} is neither a folder nor a zip or tar archive (.zip, .tar, .tar.gz, .tar.bz2, "
        ".tar.xz). Unpack it and give the folder."
    )


class _Folder:
    """Files below a folder; links are followed, as in any folder of one's own."""

    def __init__(self, path: Path) -> None:
        self.files: dict[Parts, Path] = {}
        self.folders: list[Parts] = []
        self._walk(path, (), ())

    def _walk(self, path: Path, parts: Parts, above: tuple[tuple[int, int], ...]) -> None:
        """Collect below ``path``; ``above`` holds the folders around it, against links that go in circles."""
        try:
            info = path.stat()
            here = (info.st_dev, info.st_ino)
            if here in above:
                return
            children = [(item.name, item.is_dir()) for item in os.scandir(path)]
        except OSError as error:
            raise UserError(f"prepare.source: {path} cannot be read ({error.strerror}).") from error
        self.folders.append(parts)
        for name, is_folder in children:
            if is_junk(name):
                continue
            if is_folder:
                self._walk(path / name, (*parts, name), (*above, here))
            else:
                self.files[*parts, name] = path / name

    def read(self, parts: Parts) -> bytes:
        path = self.files[parts]
        try:
            info = path.stat()
            if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
                raise ImageError("not a regular file")
            if info.st_size > MAX_FILE_BYTES:
                raise ImageError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
            return path.read_bytes()
        except OSError as error:
            raise ImageError(f"cannot be read ({error.strerror})") from error

    def close(self) -> None: ...


def _printable(parts: Iterable[str]) -> str:
    """A path that can be written as UTF-8 even where the file system's name cannot."""
    return "/".join(parts).encode("utf-8", "backslashreplace").decode("utf-8")


def _find_classes(
    files: Iterable[Parts], folders: Iterable[Parts]
) -> tuple[dict[Parts, Entry], set[tuple[str | None, str]], list[str]]:
    """Tell splits and classes by the folders; also which class folders are empty, and what lies outside them."""
    by_folder: dict[Parts, list[Parts]] = defaultdict(list)
    for parts in files:
        by_folder[parts[:-1]].append(parts)
    around = {folder[:depth] for folder in (*by_folder, *folders) for depth in range(len(folder))}
    for folder in set(folders) - around:
        by_folder.setdefault(folder, [])
    places = {folder: _split_place(folder) for folder in by_folder}
    if any(split and rest and by_folder[folder] for folder, (split, rest) in places.items()):
        places = {folder: (split, rest if split else ()) for folder, (split, rest) in places.items()}
    else:
        places = {folder: (None, folder) for folder in places}
    wrapper = _wrapper([rest for folder, (_, rest) in places.items() if by_folder[folder] and rest])
    entries: dict[Parts, Entry] = {}
    empty: set[tuple[str | None, str]] = set()
    ignored: list[str] = []
    for folder, (split, rest) in places.items():
        below = rest[len(wrapper) :] if rest[: len(wrapper)] == wrapper else ()
        if not below:
            ignored += map(_printable, by_folder[folder])
            continue
        # The same letter may come composed from one system and decomposed from another.
        label = unicodedata.normalize("NFC", _printable(below[:1]))
        empty.add((split, label))
        for parts in by_folder[folder]:
            entries[parts] = Entry(_printable(parts), label, split)
    return entries, empty - {(entry.split, entry.label) for entry in entries.values()}, sorted(ignored)


def _split_place(folder: Parts) -> tuple[str | None, Parts]:
    """The split of a folder, and the path below its last split folder that has a folder in it."""
    for i in reversed(range(len(folder) - 1)):
        if split := split_name(folder[i]):
            return split, folder[i + 1 :]
    return None, folder


def _wrapper(rests: list[Parts]) -> Parts:
    """The folders that lie around all class folders."""
    depth = 0
    while len({rest[depth] for rest in rests if len(rest) > depth}) == 1:
        if all(len(rest) <= depth + 1 for rest in rests):
            break  # the last level is the class, even if there is only one
        depth += 1
    return max(rests, key=len)[:depth] if rests else ()


def _check_classes(path: Path, entries: Iterable[Entry], empty: set[tuple[str | None, str]]) -> None:
    """Refuse what no classifier can be trained on."""
    found = {(entry.split, entry.label) for entry in entries}
    classes = sorted({label for _, label in found | empty})
    if not found:
        raise UserError(f"prepare.source: {path} has no class folders with files in them. {_EXPECTED}")
    if len(classes) == 1:
        raise UserError(
            f"prepare.source: {path} has only one class, {classes[0]!r}; it takes two. {_EXPECTED}"
        )
    splits = {split for split, _ in found | empty}
    if splits == {None} and all(map(split_name, classes)):
        raise UserError(
            f"prepare.source: {path} has split folders, but no class folders in them. {_EXPECTED}"
        )
    if None not in splits and "train" not in splits:
        raise UserError(
            f"prepare.source: {path} has {' and '.join(sorted(map(str, splits)))} but no train folder. {_EXPECTED}"
        )
    for split in sorted(splits, key=str):
        for label in classes:
            if (split, label) not in found:
                where = f" in split {split!r}" if split else ""
                raise UserError(
                    f"prepare.source: {path} has no files of class {label!r}{where}. "
                    "Add some, or remove the class everywhere."
                )
