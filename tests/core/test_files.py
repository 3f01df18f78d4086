"""Whatever happens while a file or folder is written, the old content stands or the new one, and nothing beside it."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.core.files import (
    escape_cell,
    replacing,
    replacing_within,
    unescape_cell,
    write_csv,
    write_json,
    write_text,
)


def put(path: Path, kind: str, text: str) -> None:
    """Write a file, or a folder with a file in it."""
    if kind == "folder":
        path.mkdir()
        path = path / "inner.txt"
    path.write_text(text)


def content(path: Path) -> str:
    return (path / "inner.txt" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("there", [False, True])
def test_replacing_swaps_at_the_end_or_not_at_all(tmp_path: Path, kind: str, there: bool) -> None:
    target = tmp_path / "made" / "out.txt"
    if there:
        target.parent.mkdir()
        put(target, kind, "old")
    with suppress(RuntimeError), replacing(target) as scratch:
        put(scratch, kind, "half")
        raise RuntimeError
    assert target.exists() == there
    with replacing(target) as scratch:
        assert scratch.suffix == target.suffix
        put(scratch, kind, "new")
        assert not there or content(target) == "old"
    assert content(target) == "new"
    assert list(target.parent.iterdir()) == [target]


def test_replacing_within_keeps_other_files(tmp_path: Path) -> None:
    for name in ("metrics.json", "audit.json"):
        (tmp_path / name).write_text("old")
    put(tmp_path / "figures", "folder", "old")
    with suppress(RuntimeError), replacing_within(tmp_path) as folder:
        (folder / "metrics.json").write_text("half")
        raise RuntimeError
    assert (tmp_path / "metrics.json").read_text() == "old"
    with replacing_within(tmp_path) as folder:
        (folder / "metrics.json").write_text("new")
        (folder / "figures").mkdir()
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"metrics.json", "audit.json", "figures"}
    assert (tmp_path / "metrics.json").read_text() == "new"
    assert (tmp_path / "audit.json").read_text() == "old"
    assert not list((tmp_path / "figures").iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_replacing_clears_what_a_killed_process_left(tmp_path: Path, kind: str) -> None:
    """It is killed in the middle of writing; a folder, also between the two renames."""
    target = tmp_path / "out"
    put(target, kind, "old")
    code = """
import os, signal, sys
from pathlib import Path
from pipeline.core.files import replacing
with replacing(Path(sys.argv[1])) as scratch:
    scratch.mkdir() if sys.argv[2] == "folder" else scratch.write_text("half")
    if sys.argv[3] == "renamed":
        Path(sys.argv[1]).rename(scratch.with_name(f".out.{os.getpid()}-former.tmp"))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    for moment in ("writing", "renamed") if kind == "folder" else ("writing",):
        done = subprocess.run([sys.executable, "-c", code, str(target), kind, moment], check=False)
        assert done.returncode == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 2
        with pytest.raises(RuntimeError), replacing(target):
            raise RuntimeError
        assert content(target) == "old"
        assert list(tmp_path.iterdir()) == [target]


def test_replacing_leaves_what_a_running_process_writes(tmp_path: Path) -> None:
    theirs = tmp_path / f".out.{os.getppid()}.tmp"
    theirs.write_text("half")
    write_text(tmp_path / "out", "mine")
    assert theirs.read_text() == "half"


def test_text_is_utf8_with_unix_line_ends(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"名": "é"})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "名": "é"\n}\n'.encode()


@pytest.mark.parametrize("cell", ["=1+1", "+a", "-1", "@x", "'=1", "''-1", "\t=1", "'quoted'", "plain=1", "", 1, -0.5])
def test_escape_cell_starts_no_formula_and_can_be_undone(cell: object, tmp_path: Path) -> None:
    import pandas as pd

    assert unescape_cell(escape_cell(cell)) == cell
    assert not (isinstance(cell, str) and escape_cell(cell).startswith(tuple("=+-@\t")))
    table = pd.DataFrame({"text": ["a", cell], "number": [0.1, -1.0]})
    write_csv(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_text().splitlines()[1:] == ["a,0.1", f"{escape_cell(cell)},-1.0"]
