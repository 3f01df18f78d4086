"""Signals to a stage: SIGTERM and Ctrl-C ask it to stop after the step at hand; it dies with its parent."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

PR_SET_PDEATHSIG = 1
LAUNCHER = "HYOJO_LAUNCHER"  # environment: the process that starts ranks
# Linux tells a child of the end of each thread of its parent, and torchrun passes on what its ranks get from it, too:
# signals that come together are one request.
TOGETHER_S = 0.5


class StopRequest:
    """Remembers the signal that asked for an end; 0 while none has."""

    signal = 0
    since = 0.0  # monotonic clock, s

    def __bool__(self) -> bool:
        return self.signal != 0


def die_with_parent() -> None:
    """Have Linux send SIGTERM when the parent ends, however it ends; elsewhere do nothing.

    Without this, ``kill -9`` of ``dvc repro`` leaves a trainer behind that writes where the next one does.
    """
    if not sys.platform.startswith("linux"):
        return
    # A launcher says who it is, since it may have ended while this process was still importing.
    parent = int(os.environ.get(LAUNCHER, os.getppid()))
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def ended_by_exceptions() -> Iterator[None]:
    """Turn what ends a process into ``SystemExit``: by default its scratch files would be left behind.

    What is ignored, as by ``nohup``, stays so.
    """
    numbers = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]
    former = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) is signal.SIG_DFL}
    for number in former:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a request; a second one, later, ends the process at once."""
    request = StopRequest()

    def handle(number: int, _frame: object) -> None:
        if not request:
            request.signal, request.since = number, time.monotonic()
        elif time.monotonic() - request.since > TOGETHER_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    former = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
