"""Data that DVC is given, under names as they come: git ignores them, and DVC finds their pointers."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import ROOT, run_git
from dvc.repo import Repo

NAMES = ["faces.zip", "my faces (2).zip", "others [x] & 100%.zip", "日本.zip"]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git and DVC repository with this project's ignore files, and data in data/raw; the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "raw").mkdir(parents=True)
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path)
    run_git("init", "-q")
    Repo.init(str(tmp_path)).close()
    for name in NAMES:
        (tmp_path / "data" / "raw" / name).write_bytes(name.encode())
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", *(f"data/raw/{name}" for name in NAMES)], check=True)
    return tmp_path


def test_pointers_are_found_and_data_is_ignored(repository: Path) -> None:
    """Without them, no clone and no experiment in a temporary copy gets the data."""
    run_git("add", "-A")
    assert sorted(run_git("ls-files", "-z", "data").strip("\0").split("\0")) == sorted(
        f"data/raw/{name}.dvc" for name in NAMES
    )
    with Repo(str(repository)) as repo:
        assert sorted(Path(out.fs_path).name for out in repo.index.outs) == sorted(NAMES)


def test_data_come_back(repository: Path) -> None:
    for name in NAMES:
        (repository / "data" / "raw" / name).unlink()
    subprocess.run([sys.executable, "-m", "dvc", "checkout", "-q"], check=True)
    for name in NAMES:
        assert (repository / "data" / "raw" / name).read_text(encoding="utf-8") == name
