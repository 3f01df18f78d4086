"""The project's root is found from wherever DVC runs a stage."""

import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.core import project as core_project
from pipeline.core.errors import UserError
from pipeline.core.project import project_lock, project_root
from pipeline.tracking import store


def test_root_is_found_from_a_folder_below(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert project_root() == project
    (project / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(project / "a" / "b")
    assert project_root() == project


@pytest.mark.parametrize("dvc_root", [None, "project", "copy"])
def test_root_of_a_temporary_copy_is_the_project(
    project: Path, temporary_copy: Path, dvc_root: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(temporary_copy)
    if dvc_root:
        monkeypatch.setenv("DVC_ROOT", str({"project": project, "copy": temporary_copy}[dvc_root]))
    assert project_root() == project
    assert store.tracking_uri(project_root()) == f"sqlite:///{project}/mlflow.db"


def test_a_project_inside_another_is_its_own(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = project / "sub" / "inner"
    (inner / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert project_root() == inner


def test_a_dvc_root_of_somewhere_else_does_not_count(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other" / ".dvc").mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "other"))
    assert project_root() == project


def test_outside_any_project_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no \.dvc folder"):
        project_root()


def test_who_waits_for_a_lock_is_told(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(core_project, "TOLD_AFTER_S", 0.05)
    with project_lock("registry"):
        pass
    assert capsys.readouterr().err == ""
    held = threading.Event()

    def hold() -> None:
        with FileLock(project / ".hyojo" / "registry.lock"):
            held.set()
            time.sleep(0.5)

    threading.Thread(target=hold).start()
    held.wait()
    with project_lock("registry"):
        assert "Waiting for another process" in capsys.readouterr().err
