"""Resumable training state, kept outside DVC's outs because DVC deletes those before a stage runs.

One folder a job under ``.hyojo/checkpoints``, named by a hash of all that determines the result, with one file
written atomically and a lock that keeps two trainers apart.
"""

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from pipeline.core.errors import UserError

STATE = "state.pt"
LOCK_POLL_S = 0.5


def job_key(parts: dict[str, Any], code: list[Path]) -> str:
    """Hash of what determines a training result.

    Args:
        parts: Params, data digest, versions; ``json``-able.
        code: Source files that take part.
    """
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for path in sorted(code):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]


@contextmanager
def locked(directory: Path, give_up: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold a job's lock; wait, and say so, while another process trains the same job.

    Args:
        directory: The job's folder; the lock lies beside it.
        give_up: Asked while waiting; once it says True, the wait ends without the lock.

    Yields:
        Whether the lock is held.

    Raises:
        UserError: The folder of checkpoints cannot be written.
    """
    lock = FileLock(f"{directory}.lock")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        print("Another process is training this very job; waiting for it to end.", flush=True)
        while not lock.is_locked and not give_up():
            with suppress(Timeout):
                lock.acquire(timeout=LOCK_POLL_S)
    except OSError as error:
        raise UserError(
            f"{directory.parent} cannot be written ({error}). Training keeps its checkpoints there."
        ) from None
    try:
        yield lock.is_locked
    finally:
        lock.release()


def save(directory: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a crash at any moment leaves the old one or the new one.

    Args:
        directory: The job's folder, made if need be.
        state: Tensors and plain Python values.

    Raises:
        UserError: The disk is full or not writable; the last good checkpoint stays.
    """
    temporary = directory / f"{STATE}.{os.getpid()}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, directory / STATE)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the rename itself must reach the disk
        finally:
            os.close(descriptor)
    except (OSError, RuntimeError) as error:  # torch.save turns a short write into a RuntimeError
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"the checkpoint {directory / STATE} cannot be written ({error}). Free some disk space or mend its "
            "permissions and run again: training goes on from the last good checkpoint."
        ) from None


def load(directory: Path) -> dict[str, Any] | None:
    """Read a job's checkpoint, on to the CPU; None if there is none.

    Raises:
        UserError: The file is damaged; the message says how to start over.
    """
    path = directory / STATE
    for leftover in directory.glob(f"{STATE}.*.tmp"):
        leftover.unlink(missing_ok=True)
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch answers what is no checkpoint with a page of advice on loading it unsafely.
        reason = "it is damaged" if isinstance(error, pickle.UnpicklingError) else error
        raise UserError(f"{path} cannot be read ({reason}). Delete it to train from the start.") from None
