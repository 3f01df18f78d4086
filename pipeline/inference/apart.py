"""Decoding in another process, which is ended and replaced: for formats whose headers do not say what they cost."""

import atexit
import contextlib
import os
import signal
import struct
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from .limits import MAX_PIXELS

# Of a picture: CPU time, s, and bytes beyond what the process has before it decodes anything.
SECONDS, MEMORY = 1.0, 300 * 10**6
TOO_SLOW, TOO_LARGE = "takes more than a second to decode", "takes more than 300 MB to decode"

_CLOCK = getattr(signal, "SIGPROF", 0)
_ASKED, _ANSWERED = struct.Struct("<QI"), struct.Struct("<IIII")  # bytes, channels; bytes of a message, or a shape
# The folder is a package of any name there, as it is in a registered model.
_START = (
    "import sys, types; package = types.ModuleType('shipped'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['shipped'] = package; from shipped.apart import answer; answer()"
)
_idle: deque[subprocess.Popen[bytes]] = deque()


def decode_apart(data: bytes, channels: int) -> np.ndarray | str:
    """Decode as ``images.decode`` does, in another process: the pixels, or what is wrong.

    Raises:
        OSError: There can be no other process.
    """
    worker = _take()
    assert worker.stdin
    assert worker.stdout
    try:
        worker.stdin.write(_ASKED.pack(len(data), channels))
        worker.stdin.write(data)
        worker.stdin.flush()
        length, *shape = _ANSWERED.unpack(_read(worker.stdout, _ANSWERED.size))
        found = _read(worker.stdout, length or int(np.prod(shape)))
    except (OSError, EOFError):  # it has ended, by its clock or otherwise
        _end(worker, 5)
        return TOO_SLOW if worker.returncode == -_CLOCK else "its decoder broke down"
    except BaseException:
        _end(worker)
        raise
    _idle.append(worker)
    return found.decode() if length else np.frombuffer(found, np.uint8).reshape(shape)


def answer() -> None:
    """What the other process does: decode what comes in, until nothing comes any more."""
    from . import images

    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write there
    images.suffixes()
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # beyond twice as many Pillow opens no file
    _limit_memory()
    while head := source.read(_ASKED.size):
        length, channels = _ASKED.unpack(head)
        data = source.read(length)
        _set_clock(SECONDS)
        try:
            pixels = images.decode_here(data, channels)[0]
            message = b""
        except images.ImageError as error:
            message = str(error).encode()
        except MemoryError:
            message = TOO_LARGE.encode()
        _set_clock(0)
        if message:
            sink.write(_ANSWERED.pack(len(message), 0, 0, 0) + message)
        else:
            sink.write(_ANSWERED.pack(0, *pixels.shape))
            sink.write(pixels.data)
            del pixels
        sink.flush()


def _take() -> "subprocess.Popen[bytes]":
    """A process that waits for work, or a new one."""
    with contextlib.suppress(IndexError):
        while True:
            worker = _idle.pop()
            if worker.poll() is None:
                return worker
    return _start()


def _start() -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _START, str(Path(__file__).parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # an interrupt at the keyboard is not for it
    )


def _read(stream: IO[bytes], count: int) -> bytearray:
    found = bytearray(count)
    if stream.readinto(found) < count:  # type: ignore[attr-defined]
        raise EOFError
    return found


def _end(worker: "subprocess.Popen[bytes]", patience: float = 0) -> None:
    """End a process that does not do so by itself within some seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(patience)
    worker.kill()
    worker.wait()
    for stream in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError):
            stream.close()  # type: ignore[union-attr]


def _end_all() -> None:
    while _idle:
        _end(_idle.pop())


def _set_clock(seconds: float) -> None:
    """End this process after that much CPU time; 0: never. Windows has no such clock."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError):  # on Linux only
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[5])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)
