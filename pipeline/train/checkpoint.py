"""Resumable training state, kept outside DVC's outs because DVC deletes those before a stage runs.

One folder a job under ``.hyojo/checkpoints``, named by a hash of all that determines the result, with one file
written atomically and a lock that keeps two trainers apart. Of finished jobs, the last one's is kept.
"""

import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from pipeline.core.errors import UserError
from pipeline.core.files import replacing

STATE, FINISHED = "state.pt", "finished"
LOCK_POLL_S = 0.5


@contextmanager
def hold_lock(directory: Path, give_up: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold the lock beside a job's folder; wait, and say so, while another process trains the same job.

    Yields whether the lock is held: once ``give_up``, asked while waiting, says True, the wait ends without it. Raises
    ``UserError`` if the folder of checkpoints cannot be written.
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


def save(directory: Path, state: dict[str, Any], finished: bool = False) -> None:
    """Write a checkpoint of tensors and plain values so that a crash at any moment leaves the old one or the new one.

    A file beside it says if nothing is left to train. Raises ``UserError`` if the disk is full or not writable.
    """
    try:
        if not finished:
            (directory / FINISHED).unlink(missing_ok=True)
        with replacing(directory / STATE) as scratch, scratch.open("wb") as file:
            torch.save(state, file)
        if finished:
            (directory / FINISHED).touch()
    except (OSError, RuntimeError) as error:  # torch.save turns a short write into a RuntimeError
        raise UserError(
            f"the checkpoint {directory / STATE} cannot be written ({error}). Free some disk space or mend its "
            "permissions and run again: training goes on from the last good checkpoint."
        ) from None


def discard_finished(own: Path) -> None:
    """Delete the checkpoints of finished jobs, but a job's own and those of jobs that are at work.

    The last finished one stays, so that a training whose outs are lost, or whose code changed in nothing that counts,
    is restored from it.
    """
    for directory in own.parent.iterdir():
        if directory == own or not directory.is_dir():
            continue
        with suppress(Timeout), FileLock(f"{directory}.lock", timeout=0):
            if (directory / FINISHED).exists():  # the state goes first: an unfinished one never has the mark
                (directory / STATE).unlink(missing_ok=True)
                shutil.rmtree(directory, ignore_errors=True)


def load(directory: Path) -> dict[str, Any] | None:
    """Read a job's checkpoint, on to the CPU; None if there is none, ``UserError`` with the remedy if it is damaged."""
    path = directory / STATE
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch answers what is no checkpoint with a page of advice on loading it unsafely.
        reason = "it is damaged" if isinstance(error, pickle.UnpicklingError) else error
        raise UserError(f"{path} cannot be read ({reason}). Delete it to train from the start.") from None
