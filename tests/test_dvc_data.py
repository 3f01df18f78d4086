"""Data that DVC is given, under names as they come: git ignores them, and DVC finds their pointers."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import ROOT, run_git
from dvc.repo import Repo

NAMES = ["faces.zip", "my faces (2).zip", "others [x] & 100%.zip", "日本.zip"]


def test_data_come_back_by_their_pointers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pointers, no clone and no experiment in a temporary copy gets the data."""
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "data" / "raw"
    raw.mkdir(parents=True)
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path)
    run_git("init", "-q")
    Repo.init(str(tmp_path)).close()
    for name in NAMES:
        (raw / name).write_bytes(name.encode())
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", *(f"data/raw/{name}" for name in NAMES)], check=True)
    run_git("add", "-A")
    pointers = sorted(f"data/raw/{name}.dvc" for name in NAMES)
    assert sorted(run_git("ls-files", "-z", "data").strip("\0").split("\0")) == pointers
    with Repo(str(tmp_path)) as repo:
        assert sorted(Path(out.fs_path).name for out in repo.index.outs) == sorted(NAMES)
    for name in NAMES:
        (raw / name).unlink()
    subprocess.run([sys.executable, "-m", "dvc", "checkout", "-q"], check=True)
    assert [(raw / name).read_text(encoding="utf-8") for name in NAMES] == NAMES
