"""Files and folders written aside and then swapped in: whatever happens, the old content stands or the new one."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# What a spreadsheet takes for the beginning of a formula; an apostrophe before it says that it is text.
_FORMULA, _ESCAPED = re.compile("'*[=+\\-@\t\r]"), re.compile("'+[=+\\-@\t\r]")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a path to write a file or folder to; it becomes ``target`` at the end, or vanishes on an error.

    What is written reaches the disk before it takes the place of the old content. What a killed process left
    behind beside ``target`` is cleared away; its own folder is made if need be.

    Yields:
        A path beside ``target``, on the same file system, with the same suffix, at which nothing exists yet.
    """
    with _writing_beside(target) as scratch:
        yield scratch
        _sync_tree(scratch)
        if scratch.is_dir() and target.exists():  # a folder cannot be renamed over a full one
            former = _scratch(target, f"{os.getpid()}-former")
            target.rename(former)
            scratch.rename(target)
            _remove(former)
        else:
            os.replace(scratch, target)
        _sync(target.parent)


@contextmanager
def replacing_within(folder: Path) -> Iterator[Path]:
    """Give an empty folder; what is put into it replaces its namesakes in ``folder`` when all is written.

    Other files of ``folder`` stay. On an error nothing is replaced.
    """
    # Only the name matters: beside it is inside the folder, on the same file system.
    with _writing_beside(folder / "parts") as scratch:
        scratch.mkdir()
        yield scratch
        _sync_tree(scratch)
        for entry in sorted(scratch.iterdir()):
            if entry.is_dir():
                _remove(folder / entry.name)
            os.replace(entry, folder / entry.name)
        _sync(folder)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with Unix line ends at one stroke, as DVC hashes bytes."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON at one stroke."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write a table without its index at one stroke; texts by ``escape_cell``."""
    for name in table.select_dtypes(exclude=["number", "bool"]):
        if any(escape_cell(cell) is not cell for cell in table[name]):
            table = table.assign(**{name: table[name].map(escape_cell)})
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def escape_cell(cell: Any) -> Any:
    """A cell that starts no formula in a spreadsheet: ``=x.png`` becomes ``'=x.png``; numbers stay."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def unescape_cell(cell: Any) -> Any:
    """What ``escape_cell`` was given."""
    return cell[1:] if isinstance(cell, str) and _ESCAPED.match(cell) else cell


@contextmanager
def _writing_beside(target: Path) -> Iterator[Path]:
    """Give a path beside ``target`` that is gone at the end; clears what killed processes left there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(target)
    scratch = _scratch(target, str(os.getpid()))
    _remove(scratch)
    try:
        yield scratch
    finally:
        _remove(scratch)


def _scratch(target: Path, owner: str) -> Path:
    """Where a process writes what becomes ``target``."""
    return target.with_name(f".{target.stem}.{owner}.tmp{target.suffix}")


def _clear_leftovers(target: Path) -> None:
    """Remove what processes that are gone have left; put a folder back that one of them had moved away."""
    for left in target.parent.glob(f".{target.stem}.*.tmp{target.suffix}"):
        owner = left.name.removeprefix(f".{target.stem}.").split(".")[0]
        number, _, former = owner.partition("-")
        if number.isdecimal() and not _is_running(int(number)):
            if former and not target.exists():
                left.rename(target)
            else:
                _remove(left)


def _is_running(process: int) -> bool:
    """Whether a process of this machine with that number is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_tree(path: Path) -> None:
    """Have a file, or all that a folder holds, reach the disk."""
    for entry in (*path.rglob("*"), path):
        _sync(entry)


def _sync(path: Path) -> None:
    """Have a file's content, or a folder's entries, reach the disk; some file systems cannot say."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
