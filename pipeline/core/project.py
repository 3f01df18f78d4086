"""The project around the working folder: its root, its locks, and the folders below ``.hyojo`` that outlive a stage."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.core.errors import UserError

TOLD_AFTER_S = 2.0


def project_root() -> Path:
    """The project's root: that of the repository DVC was started in, else the nearest one above.

    Raises:
        UserError: Called outside any project.
    """
    cwd = Path.cwd().resolve()
    dvc_root = os.environ.get("DVC_ROOT")
    if dvc_root and cwd.is_relative_to(Path(dvc_root).resolve()):
        return _outside_dvc(Path(dvc_root).resolve())
    for parent in (cwd, *cwd.parents):
        if (parent / ".dvc").is_dir():
            return _outside_dvc(parent)
    raise UserError(f"{cwd} is not inside a Hyojo project: no .dvc folder here or above. Change into the project.")


@contextmanager
def project_lock(name: str) -> Iterator[None]:
    """Hold a lock that all processes of the project share, wherever DVC runs them; whom it keeps waiting is told.

    The system drops the lock of a process that ends, however it ends.
    """
    folder = project_root() / ".hyojo"
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=TOLD_AFTER_S)
    except Timeout:
        print(f"Waiting for another process of this project, which holds {lock.lock_file}.", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def find_checkpoint(root: Path, key: str) -> Path:
    """The folder in which a training job keeps its checkpoint."""
    return root / ".hyojo" / "checkpoints" / key


def _outside_dvc(path: Path) -> Path:
    """The project around DVC's temporary copies, which lie in ``.dvc/tmp`` and have a ``.dvc`` of their own."""
    for parent in reversed(path.parents):
        if (parent / ".dvc").is_dir() and path.is_relative_to(parent / ".dvc"):
            return parent
    return path
