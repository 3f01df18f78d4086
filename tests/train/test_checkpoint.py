"""Checkpoints: written whole or not at all, and one trainer a job."""

import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from pipeline.core.errors import UserError
from pipeline.core.project import find_checkpoint
from pipeline.train import checkpoint

STATE = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}, "step": 7, "history": [{"lr": 0.1}], "none": None}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A job's folder, not made yet."""
    return find_checkpoint(tmp_path, "a" * 32)


def test_a_state_comes_back_as_it_was(tmp_path: Path, directory: Path) -> None:
    assert checkpoint.load(directory) is None
    checkpoint.save(directory, STATE)
    found = checkpoint.load(directory)
    assert torch.equal(found["model"].pop("weight"), STATE["model"]["weight"])
    assert found == {**STATE, "model": {}}
    assert [path.name for path in directory.iterdir()] == ["state.pt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64")])
def test_a_write_that_fails_leaves_the_old_state(
    directory: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(directory, {"step": 1})

    def half(_state: object, file: object) -> None:
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match="last good checkpoint"):
        checkpoint.save(directory, {"step": 2})
    assert checkpoint.load(directory) == {"step": 1}
    assert [path.name for path in directory.iterdir()] == ["state.pt"]


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_file_is_named_with_the_remedy(directory: Path, damage: bytes | None) -> None:
    checkpoint.save(directory, STATE)
    path = directory / "state.pt"
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(UserError, match=r"state\.pt cannot be read \(.*\)\. Delete it") as caught:
        checkpoint.load(directory)
    assert "weights_only" not in str(caught.value)  # no advice to load it unsafely


class Harmful:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return print, ("code ran",)


def test_a_file_never_runs_code(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory.mkdir(parents=True)
    torch.save({"x": Harmful()}, directory / "state.pt")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(directory)
    assert "code ran" not in capsys.readouterr().out


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path, directory: Path) -> None:
    (tmp_path / ".hyojo").write_text("a file where the folder should be")  # denies it to root as well
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint.save(directory, STATE)
    with pytest.raises(UserError, match="cannot be written"), checkpoint.hold_lock(directory):
        pytest.fail("the lock was had")


def test_a_second_trainer_waits_for_the_first(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events, inside = [], threading.Event()

    def first() -> None:
        with checkpoint.hold_lock(directory) as held:
            assert held
            events.append("first in")
            inside.set()
            time.sleep(0.3)
            events.append("first out")

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(10)
    with checkpoint.hold_lock(directory) as held:
        assert held
        events.append("second in")
    thread.join()
    assert events == ["first in", "first out", "second in"]
    assert capsys.readouterr().out.count("waiting") == 1
    with checkpoint.hold_lock(directory.with_name("b" * 32)) as held:  # another job is free at once
        assert held
    assert "waiting" not in capsys.readouterr().out


def test_who_is_asked_to_stop_waits_no_longer(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LOCK_POLL_S", 0.05)
    directory.parent.mkdir(parents=True)
    answers = iter([False, False, True])
    with FileLock(f"{directory}.lock"):
        with checkpoint.hold_lock(directory, lambda: next(answers)) as held:
            assert not held
    with checkpoint.hold_lock(directory) as held:
        assert held


def test_an_error_inside_frees_the_lock(directory: Path) -> None:
    with pytest.raises(ZeroDivisionError), checkpoint.hold_lock(directory):
        raise ZeroDivisionError
    with FileLock(f"{directory}.lock", timeout=0):
        pass


def test_discard_finished_keeps_the_own_the_unfinished_and_the_locked(directory: Path) -> None:
    """Of five jobs the finished ones go; a job that goes on after a crash in between is no finished one."""
    jobs = {name: directory.with_name(name * 32) for name in "abcde"}
    for name, finished in {"a": True, "b": True, "c": False, "d": True, "e": True}.items():
        checkpoint.save(jobs[name], STATE, finished)
    (jobs["e"] / "state.pt").unlink()  # a deletion that was killed
    checkpoint.save(jobs["e"], STATE)
    with checkpoint.hold_lock(jobs["d"]):
        checkpoint.discard_finished(directory)
    assert [name for name, job in jobs.items() if job.exists()] == ["a", "c", "d", "e"]
    checkpoint.discard_finished(directory)
    assert [name for name, job in jobs.items() if job.exists()] == ["a", "c", "e"]
