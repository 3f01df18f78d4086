"""A bundle's folder: what it holds is what was exported, or it is refused.

``bundle.json`` has the SHA-256 of every other file (``files``) and of its own other entries (``sha256``). Who uses a
file gets the very bytes that were checked. This guards against damage and mix-ups; who wants to deceive can make new
sums, against which only a signature helps.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

RECORD = "bundle.json"
_REMEDY = "Copy the bundle anew, or run `dvc repro -f export`."


class BundleError(ValueError):
    """A bundle that is not as it was exported: the message names the file and the remedy."""


class Bundle:
    """A bundle whose record is as it was exported, and whose files are neither more nor fewer.

    Attributes:
        folder: Where it is.
        content: The bytes of ``bundle.json``, which stand for the whole bundle.
        record: What they say.
        files: The SHA-256 of each other file.

    Raises:
        BundleError: It is not so, or it is of a version that kept no sums.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / RECORD
        try:
            self.content = path.read_bytes()
            self.record: dict[str, Any] = json.loads(self.content)
            self.files: dict[str, str] = dict(self.record.get("files", {}))
        except FileNotFoundError:
            raise BundleError(f"{path} not found. Run `dvc repro export` first.") from None
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise BundleError(f"{path} cannot be read ({error}). {_REMEDY}") from None
        if not self.files:
            raise BundleError(
                f"{path} is of an older version, which kept no sums of its files. Run `dvc repro -f export`; for a "
                "registered version also `hyojo register`, which makes a new one."
            )
        if self.record.get("sha256") != _sum_record(self.record):
            raise BundleError(f"{path} was changed after the export: its own sum is another. {_REMEDY}")
        there = _list_files(self.folder)
        if missing := sorted(self.files.keys() - there):
            raise BundleError(f"{self.folder} lacks {', '.join(missing)}, which {RECORD} names. {_REMEDY}")
        if extra := sorted(there - self.files.keys()):
            raise BundleError(f"{self.folder} holds {', '.join(extra)}, which {RECORD} does not name. {_REMEDY}")

    def read(self, name: str) -> bytes:
        """Read a file; raises ``BundleError`` if it is not as it was exported."""
        with self._open(name) as file:
            content = file.read()
            self._compare(name, hashlib.sha256(content).hexdigest())
        return content

    def check(self, *but: str) -> None:
        """Look at every file, but for those that were read; raises as ``read``."""
        for name in self.files.keys() - set(but):
            with self._open(name) as file:
                self._compare(name, hashlib.file_digest(file, "sha256").hexdigest())

    @contextmanager
    def _open(self, name: str) -> Iterator[BufferedReader]:
        """Open a file; trouble with it is a ``BundleError``."""
        try:
            with (self.folder / name).open("rb") as file:
                yield file
        except OSError as error:
            raise BundleError(f"{self.folder / name} cannot be read ({error}). {_REMEDY}") from None

    def _compare(self, name: str, found: str) -> None:
        if found != self.files.get(name):
            raise BundleError(f"{self.folder / name} is not the file that was exported: its sum is another. {_REMEDY}")


def seal(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Give a bundle's record with the sums of all files of its folder and of its own other entries."""
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(_list_files(folder))}
    record = record | {"files": sums}
    return record | {"sha256": _sum_record(record)}


def _sum_record(record: dict[str, Any]) -> str:
    """The SHA-256 of a record's entries, but for that sum itself."""
    entries = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _list_files(folder: Path) -> set[str]:
    """The files of a bundle beside its record; hidden ones are the file manager's."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if name != RECORD and not name.startswith(".")}
