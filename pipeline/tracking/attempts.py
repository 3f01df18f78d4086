"""Attempts with MLflow inside stages: trouble is told and costs seconds, never a trained model.

Commands ask with MLflow's own patience; a stage asks ``hurried`` first, so that a server that hangs is found out soon.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pipeline.tracking.store import connect, experiment_id

# Seconds for connecting, and for each answer: twice the first is the most that a server costs an epoch, whose figures
# can wait; what a stage leaves at its end is worth a busy server's time.
EPOCH_S, STAGE_S = 2, 10
FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 1800.0
_EXACTING: ContextVar[bool] = ContextVar("exacting", default=False)


@contextmanager
def exacting() -> Iterator[None]:
    """Let trouble end what runs in this block: a command that mirrors, and does nothing else, has failed then."""
    former = _EXACTING.set(True)
    try:
        yield
    finally:
        _EXACTING.reset(former)


@contextmanager
def hurried(seconds: int) -> Iterator[None]:
    """Have MLflow's client give a server up that doesn't answer within so many seconds."""
    limits = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def attempt(action: Callable[[], Any], what: str, remedy: str = "`hyojo sync`") -> Any:
    """Do something with MLflow, if it answers; on any trouble say so on stderr, with the remedy, and return None."""
    if _EXACTING.get():
        return action()
    try:
        with hurried(STAGE_S):
            experiment_id(connect())
        return action()
    except Exception as error:  # a dead server, a full disk, a locked database: none may cost a trained model
        _tell(error, what, remedy)
        return None


class Patience:
    """How long a server that gave no answer is left alone: longer after each attempt, and told once an outage."""

    def __init__(self) -> None:
        self.lost = False  # since the last attempt
        self._pause_s, self._until_s = FIRST_PAUSE_S, 0.0

    def attempt(self, action: Callable[[], Any], what: str, at_once: bool = False) -> None:
        """Do something hurriedly, unless the last attempt failed a short while ago; or ``at_once``."""
        if time.monotonic() < self._until_s and not at_once:
            return
        try:
            with hurried(EPOCH_S):
                action()
            self.lost, self._pause_s = False, FIRST_PAUSE_S
        except Exception as error:
            if not self.lost:
                _tell(error, what)
            self.lost, self._until_s = True, time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def _tell(error: Exception, what: str, remedy: str = "`hyojo sync`") -> None:
    reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    print(f"warning: MLflow: {what} failed ({reason}). {remedy} makes up for it later.", file=sys.stderr)
