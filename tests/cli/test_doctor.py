"""hyojo doctor: it names what is missing with a remedy, and fails only for what would stop the pipeline."""

import shutil
import subprocess
from pathlib import Path

import pytest
from builders import ROOT, forget_store, run_hyojo

from pipeline.cli import doctor

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def clone(project: Path) -> Path:
    """A project that lacks nothing, which is the working directory."""
    shutil.copy2(ROOT / "requirements.lock", project)
    (project / "data" / "tiny.zip").touch()
    for words in (
        ["init", "-q"],
        ["add", "params.yaml"],
        ["-c", "user.name=n", "-c", "user.email=m", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *words], check=True)
    for key in ("user.name", "user.email"):
        subprocess.run(["git", "config", key, "Ann"], check=True)
    return project


def check(capsys: Capture, name: str) -> tuple[int, str, str]:
    """Exit status, and what is said of one check: its level and the rest."""
    status = run_hyojo("doctor")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(name)]
    level, text = line.removeprefix(name).split(maxsplit=1)
    return status, level, text


@pytest.mark.usefixtures("clone")
def test_a_project_that_lacks_nothing(capsys: Capture) -> None:
    assert run_hyojo("doctor") == 0
    levels = [line[14:].split()[0] for line in capsys.readouterr().out.splitlines()]
    assert len(levels) == 8
    assert set(levels) <= {"ok", "note"}


def test_what_is_missing_stops(clone: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / "data" / "tiny.zip").unlink()
    status, level, said = check(capsys, "params.yaml")
    assert (status, level) == (1, "STOP")
    assert said.startswith("prepare.source: data/tiny.zip is not there. Put the data there")
    (clone / "data" / "tiny.zip.dvc").touch()
    assert "`dvc pull` fetches it" in check(capsys, "params.yaml")[2]
    (clone / "data" / "tiny.zip").touch()
    with (clone / "requirements.lock").open("a") as lock:
        lock.write("not-there==1.0\n")
    assert "not installed: not-there. `make install`" in check(capsys, "packages")[2]
    (clone / "requirements.lock").write_text("numpy==0.1\n")
    status, level, said = check(capsys, "packages")
    assert (status, level) == (0, "note")
    assert "(lock: 0.1)" in said
    forget_store()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert run_hyojo("doctor") == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MLflow store")]
    assert "STOP" in line
    assert "nobody answers" in line
    shutil.rmtree(clone / ".git")
    assert "git init" in check(capsys, "git")[2]


def test_a_remote_is_asked_and_not_waited_for(clone: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["dvc", "remote", "add", "-q", "-d", "team", str(clone.parent / "remote")], check=True)
    assert check(capsys, "DVC remote")[1:] == ("ok", f"team ({clone.parent / 'remote'})")
    monkeypatch.setattr(doctor, "REMOTE_S", 0.0)
    status, level, said = check(capsys, "DVC remote")
    assert (status, level) == (0, "note")
    assert "no answer within 0 s" in said


@pytest.mark.usefixtures("clone")
def test_room_and_compiler(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_GB", 1e9)
    assert check(capsys, "disk")[:2] == (1, "STOP")
    monkeypatch.setattr(doctor, "LEAST_GB", 0)
    monkeypatch.setenv("CXX", "no-such-compiler")
    status, level, said = check(capsys, "device")
    assert (status, level) == (0, "note")
    assert "no no-such-compiler here" in said
