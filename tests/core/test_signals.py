"""Signals: a first one asks, a second one ends, and a stage ends with whatever started it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipeline.core.signals import LAUNCHER, TOGETHER_S, stop_requests

ROOT = Path(__file__).parents[2]
LIMIT_S = 60


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until something holds; fail after a generous while."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def is_alive(number: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(number).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request(number: signal.Signals) -> None:
    former = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    with suppress(ZeroDivisionError), stop_requests() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        wait_for(lambda: stop, "the signal arrives")
        assert stop.signal == number
        raise ZeroDivisionError  # what handled them before is put back also then
    assert {each: signal.getsignal(each) for each in former} == former


STUBBORN = """
import time
from pipeline.core.signals import stop_requests
with stop_requests() as stop:
    print("ready", flush=True)
    while not stop:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    "first, second", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)]
)
def test_a_second_signal_ends_the_process(first: signal.Signals, second: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(first)  # the same request, once more
        time.sleep(2 * TOGETHER_S)
        assert process.poll() is None
        process.send_signal(second)
        assert process.wait(LIMIT_S) == -second
    finally:
        process.kill()
        process.communicate()


STAGE = """
import os, sys, time
from pathlib import Path
from pipeline.core.signals import die_with_parent, stop_requests
die_with_parent()
folder = Path(sys.argv[1])
with stop_requests() as stop:
    (folder / "pid.tmp").write_text(str(os.getpid()))
    os.replace(folder / "pid.tmp", folder / "pid")
    while not stop:
        time.sleep(0.01)
(folder / "ended").write_text(str(int(stop.signal)))
"""
# As DVC does: a shell runs the stage's command, which begins with exec.
PARENT = """
import subprocess, sys
subprocess.run(sys.argv[2], shell=True, executable=sys.argv[1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child of its parent's end")
@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_a_stage_ends_when_what_started_it_is_killed(tmp_path: Path, shell: str) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"no {shell} here")
    script = tmp_path / "stage.py"
    script.write_text(STAGE)
    command = f"exec '{sys.executable}' '{script}' '{tmp_path}'"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, path, command], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    number = 0
    try:
        wait_for((tmp_path / "pid").exists, "the stage starts")
        number = int((tmp_path / "pid").read_text())
        assert number != parent.pid
        assert is_alive(number)
        parent.kill()
        parent.wait()
        wait_for(lambda: not is_alive(number), "the stage ends")
        # By a request and not at once, so that a trainer still writes its checkpoint.
        assert (tmp_path / "ended").read_text() == str(int(signal.SIGTERM))
    finally:
        parent.kill()
        parent.wait()
        if number and is_alive(number):
            os.kill(number, signal.SIGKILL)


def test_a_rank_whose_launcher_ended_while_it_was_starting_ends(tmp_path: Path) -> None:
    script = tmp_path / "stage.py"
    script.write_text(STAGE)
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), LAUNCHER: str(finished.pid)}
    result = subprocess.run([sys.executable, str(script), str(tmp_path)], cwd=ROOT, env=environment, timeout=LIMIT_S)
    assert result.returncode == -signal.SIGTERM
    assert not (tmp_path / "ended").exists()


SCRATCH = """
import atexit, shutil, tempfile, time
from pipeline.core.errors import stage_main
def main():
    kept = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, kept)
    with tempfile.TemporaryDirectory():
        print("ready", flush=True)
        time.sleep(600)
stage_main(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_scratch_files_are_gone_after_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRATCH],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # nohup ignores SIGHUP
    )
    assert process.stdout.readline() == "ready\n"
    assert len(list(tmp_path.iterdir())) == 2
    process.send_signal(number)
    assert process.communicate(timeout=LIMIT_S)[1] == ""
    assert process.returncode == 128 + number
    assert not list(tmp_path.iterdir())
