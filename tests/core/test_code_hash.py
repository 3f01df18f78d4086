"""A hash of code changes with what code does, wherever it lies below a stage's deps, and with nothing else."""

from pathlib import Path

import pytest
import yaml

from pipeline.core.code_hash import PACKAGE, find_stage_code, hash_code
from pipeline.core.errors import UserError

ROOT = PACKAGE.parent
SOURCE = '"""About."""\n\n\ndef f(x: int) -> int:\n    """Return x."""\n    # why\n    return x + 1\n'


def digest(folder: Path, source: str, name: str = "a.py") -> str:
    """The hash of a folder with one module."""
    folder.mkdir(parents=True)
    (folder / name).write_text(source)
    return hash_code([folder], root=folder)


@pytest.mark.parametrize(
    "old, new",
    [("About", "Else"), ("Return x", "Return one more"), ("    # why\n", ""), ("x + 1", "(x\n            + 1)")],
)
def test_hash_code_passes_over_comments_docstrings_and_layout(tmp_path: Path, old: str, new: str) -> None:
    assert digest(tmp_path / "a", SOURCE) == digest(tmp_path / "b", SOURCE.replace(old, new))


@pytest.mark.parametrize("old, new", [("x + 1", "x + 2"), ("x: int", "x: float"), ("def f", "def g")])
def test_hash_code_sees_what_changes_the_code(tmp_path: Path, old: str, new: str) -> None:
    assert digest(tmp_path / "a", SOURCE) != digest(tmp_path / "b", SOURCE.replace(old, new))


def test_hash_code_sees_names_and_files_in_subfolders(tmp_path: Path) -> None:
    assert digest(tmp_path / "a", SOURCE) != digest(tmp_path / "b", SOURCE, "b.py")
    before = hash_code([tmp_path], root=tmp_path)
    (tmp_path / "a" / "deep").mkdir()
    (tmp_path / "a" / "deep" / "c.py").write_text(SOURCE)
    after = hash_code([tmp_path], root=tmp_path)
    assert before != after
    (tmp_path / "a" / "__pycache__").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("text")
    assert hash_code([tmp_path], root=tmp_path) == after


def test_find_stage_code_reads_the_deps_of_dvc_yaml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["train"]["deps"]
    found = find_stage_code("train")
    assert [str(path.relative_to(ROOT)) for path in found] == [dep for dep in deps if dep.startswith("pipeline/")]
    assert all(path.exists() for path in found)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="project's root"):
        find_stage_code("train")
