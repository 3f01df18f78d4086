"""hyojo predict: files and folders in, one row a file out; a bad file spoils only its own row."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import grey_png
from PIL import Image

from pipeline.core.errors import UserError
from pipeline.serve import files

EXPECTED = {"a.png": "bright", "b/broken.png": None, "b/c.JPG": "dark", "b/deep/d.webp": "bright"}
EXPECTED |= {"b/e ü.gif": "dark", "f.bmp": "bright"}


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Bright and dark pictures in several formats and folders, and files that are none."""
    folder = tmp_path / "album"
    (folder / "b" / "deep").mkdir(parents=True)
    for name, label in EXPECTED.items():
        if label:
            Image.new("RGB", (30, 20), (250,) * 3 if label == "bright" else (5,) * 3).save(folder / name)
    (folder / "b" / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture, and not taken for one")
    return folder


def test_a_folder(album: Path, bright_bundle: Path) -> None:
    rows = list(files.predict_paths([album], bright_bundle))
    assert {str(Path(row["file"]).relative_to(album)): row["label"] for row in rows} == EXPECTED
    (bad,) = [row for row in rows if row["error"]]
    assert bad["label"] is bad["probability"] is bad["probabilities"] is None
    for row in rows:
        if row is not bad:
            assert row["probability"] == max(row["probabilities"].values())
            assert row["probability"] == pytest.approx(1 / (1 + np.exp(-(2 * 250 - 255) / 64)), abs=1e-2)


def test_files_any_name_each_once_in_the_order_given(album: Path, bright_bundle: Path) -> None:
    odd = album / "picture.without-suffix"
    odd.write_bytes((album / "a.png").read_bytes())
    rows = list(files.predict_paths([str(odd), album / "notes.txt", album / "a.png", odd, album], bright_bundle))
    names = [Path(row["file"]).name for row in rows]
    assert names[:3] == ["picture.without-suffix", "notes.txt", "a.png"]
    assert len(names) == len(set(names)) == 8
    assert [row["label"] for row in rows[:3]] == ["bright", None, "bright"]


def test_more_files_than_a_batch(tmp_path: Path, bright_bundle: Path) -> None:
    for i in range(140):
        (tmp_path / f"{i:03d}.png").write_bytes(b"" if i % 10 == 3 else grey_png(255 * (i % 2)))
    rows = list(files.predict_paths([tmp_path], bright_bundle))
    expected = [None if i % 10 == 3 else ("bright" if i % 2 else "dark") for i in range(140)]
    assert [row["label"] for row in rows] == expected


def test_a_file_that_vanishes_is_an_error_of_its_row(album: Path, bright_bundle: Path) -> None:
    rows = files.predict_paths([album / "a.png", album / "f.bmp"], bright_bundle)
    (album / "a.png").unlink()
    first, second = rows
    assert "can't be read" in first["error"]
    assert second["label"] == "bright"


def test_mistakes_are_told_before_any_work(album: Path, bright_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"nowhere.*does not exist"):
        files.predict_paths([album, tmp_path / "nowhere"], bright_bundle)
    with pytest.raises(UserError, match="empty holds no pictures"):
        files.predict_paths([tmp_path / "empty"], bright_bundle)
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04 and no end")
    with pytest.raises(UserError, match=r"torn\.zip is damaged"):
        files.predict_paths([tmp_path / "torn.zip"], bright_bundle)
    with pytest.raises(UserError, match="dvc repro"):
        files.predict_paths([album], tmp_path / "empty")


def test_a_model_of_mlflow_answers_the_same(
    album: Path, bright_bundle: Path, pyfunc_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.tracking import store

    monkeypatch.setattr(store, "connect", lambda: None)
    uri = pyfunc_dir.as_uri()
    assert list(files.predict_paths([album], uri, trust=(True, None))) == list(
        files.predict_paths([album], bright_bundle)
    )
    with pytest.raises(UserError, match=r"hyojo register"):
        files.predict_paths([album], uri + "-other")


def test_csv(album: Path, bright_bundle: Path) -> None:
    rows = list(files.predict_paths([album], bright_bundle))
    read = list(csv.DictReader(io.StringIO(files.format_csv(iter(rows)))))
    assert list(read[0]) == ["file", "label", "probability", "prob_bright", "prob_dark", "abstain", "error"]
    for got, row in zip(read, rows, strict=True):
        assert got["file"] == row["file"]
        assert got["label"] == (row["label"] or "")
        assert got["error"] == (row["error"] or "")
        if row["label"]:
            assert float(got["prob_bright"]) == row["probabilities"]["bright"]
    assert files.format_csv([]) == "file,label,probability,abstain,error"


def test_table(album: Path, bright_bundle: Path) -> None:
    lines = files.format_table(files.predict_paths([album], bright_bundle)).splitlines()
    assert len(lines) == 6
    assert lines[0].split() == [str(album / "a.png"), "bright", "0.979"]
    assert "error: " in lines[1]
    assert len({line.index("bright") for line in lines if "bright" in line}) == 1
    assert files.format_table([]) == ""


def test_a_bundle_needs_neither_torch_nor_mlflow(album: Path, bright_bundle: Path, tmp_path: Path) -> None:
    """To predict it needs no pandas either."""
    code = f"""
import sys
from pipeline.serve import files
rows = list(files.predict_paths([{str(album)!r}], {str(bright_bundle)!r}))
print(len(rows), [name for name in ("torch", "mlflow", "pandas") if name in sys.modules])
from pipeline.serve.batch import score_pictures
print(score_pictures({str(album)!r}, {str(tmp_path / "s.parquet")!r}, {str(bright_bundle)!r}).rows)
print([name for name in ("torch", "mlflow") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = f"{album}: 1 files passed over that are no pictures by suffix\n"
    assert (done.stdout.splitlines(), done.stderr) == (["6 []", "6", "[]"], said)


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(album: Path, bright_bundle: Path) -> None:
    os.mkfifo(album / "pipe")
    (row,) = files.predict_paths([album / "pipe"], bright_bundle)
    assert row["error"] == "empty file"
    source, sink = os.pipe()
    os.write(sink, (album / "a.png").read_bytes())
    os.close(sink)
    (row,) = files.predict_paths([f"/dev/fd/{source}"], bright_bundle)
    os.close(source)
    assert row["label"] == "bright"


def test_names_start_no_formula_and_steer_no_terminal(tmp_path: Path, bright_bundle: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(grey_png())
    names = ["=1+1.png", "-x.png", "@a.png", "\x1b[2Jb.png", "line\nbreak.png"]
    rows = [row | {"file": name} for name in names for row in files.predict_paths([picture], bright_bundle)]
    cells = [line["file"] for line in csv.DictReader(io.StringIO(files.format_csv(rows)))]
    assert cells == ["'=1+1.png", "'-x.png", "'@a.png", *names[3:]]
    table = files.format_table(rows)
    assert len(table.splitlines()) == len(names)
    assert r"\x1b[2Jb.png" in table
