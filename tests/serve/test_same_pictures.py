"""One source, one list of pictures: ``prepare``, ``predict`` and ``batch`` read the same bytes by the same names."""

import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from builders import grey_png, list_items, read_contents, write_files, write_tar, write_zip

from pipeline.core.errors import UserError
from pipeline.prepare.sources.unlabelled import open_pictures
from pipeline.serve import batch, files

LABELS = {"happy/a.png": "bright", "happy/b.JPG": "dark", "sad/deep/c_001": "bright", "sad/d.png": "dark"}
TREE = {name: grey_png(250 if label == "bright" else 5) for name, label in LABELS.items()}
JUNK = (
    "__MACOSX/happy/._a.png", "happy/Thumbs.db", "happy/thumbs.db", "THUMBS.DB", "sad/Desktop.ini", "sad/.DS_Store",
    "@eaDir/happy/a.png", "@EADIR/sad/d.png", ".hidden/happy/e.png", "sad/._d.png", "$Recycle.Bin/sad/f.png",
)  # fmt: skip


def as_folder(path: Path, table: str = "") -> Path:
    with zipfile.ZipFile(write_zip(path / "tree.zip", TREE | dict.fromkeys(JUNK, TREE["sad/d.png"]))) as archive:
        archive.extractall(path / "faces")
    return write_files(path / "faces", **({"labels": table} if table else {}))


def as_zip(path: Path) -> Path:
    with zipfile.ZipFile(path / "faces.zip", "w") as archive:
        for name, data in [*dict.fromkeys((*TREE, *JUNK), grey_png(128)).items(), *TREE.items()]:
            archive.writestr(name, data)
    return path / "faces.zip"


def as_tar(path: Path) -> Path:
    former = dict.fromkeys((*TREE, *JUNK), grey_png(128))
    return write_tar(path / "faces.tar.gz", [*former.items(), *TREE.items()], "gz")


def as_links(path: Path) -> Path:
    """Links to files; a link to a folder, which would lead in a circle, is passed over as junk."""
    target = as_folder(path).rename(path / "target")
    for name in TREE:
        (path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "faces" / name).symlink_to(target / name)
    (path / "faces" / ".around").symlink_to(path)
    return path / "faces"


def as_table(head: str, form: str) -> Callable[[Path], Path]:
    """A table whose paths lead to the files in another way than as they stand."""
    rows = (f"{form.format(path=name)},{name.split('/')[0]}\n" for name in TREE)
    return lambda path: as_folder(path, f"{head},label\n{''.join(rows)}") / "labels.csv"


SOURCES = {
    "folder": as_folder,
    "zip with names that stand twice": as_zip,
    "tar with names that stand twice": as_tar,
    "links": as_links,
    "table": as_table("path", "{path}"),
    "table of another machine": as_table("file", r"C:\data\faces\{path}"),
    "table of absolute paths": as_table("image", "/home/somebody/faces/{path}"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", SOURCES)
def test_prepare_predict_and_batch_read_the_same(name: str, bright_bundle: Path, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path)
    root = source.parent if source.suffix == ".csv" else source
    assert read_contents(root) == TREE
    with open_pictures(source) as pictures:
        assert {file: fetch() for file, fetch in pictures.stream(0)} == TREE
        assert (pictures.count, pictures.passed_over) == (4, 0)
    rows = list(files.predict_paths([source], bright_bundle))
    assert {row["file"]: row["label"] for row in rows} == {str(root / file): label for file, label in LABELS.items()}
    result = batch.score_pictures(source, tmp_path / "s.parquet", bright_bundle)
    assert (result.pictures, result.rows, result.errors) == (len(rows), 4, 0)
    scored = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert {row["file"]: row["label"] for row in scored} == LABELS
    assert [str(root / row["file"]) for row in scored] == [row["file"] for row in rows]


def test_names_without_suffix_or_folder(bright_bundle: Path, tmp_path: Path) -> None:
    """As of a competition: a table of ids beside a folder of pictures; its own folder is another."""
    flat = {Path(name).stem: data for name, data in TREE.items()}
    table = write_files(tmp_path, train="id_code,label\n" + "".join(f"{stem},x\n" for stem in flat)) / "train.csv"
    for stem, data in flat.items():
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / "pictures" / f"{stem}.png").write_bytes(data)
    rows = list(files.predict_paths([table], bright_bundle, column="id_code"))
    assert [row["file"] for row in rows] == [str(tmp_path / "pictures" / f"{stem}.png") for stem in flat]
    assert [row["label"] for row in rows] == list(LABELS.values())


def test_paths_that_lead_out_of_the_tables_folder(bright_bundle: Path, tmp_path: Path) -> None:
    """They are followed where nothing is tracked, row by row."""
    as_folder(tmp_path)
    lists = write_files(tmp_path / "lists", t="path\n../faces/happy/a.png\n../faces/gone.png\n../faces/sad/d.png\n")
    rows = list(files.predict_paths([lists / "t.csv"], bright_bundle))
    assert [row["label"] for row in rows] == ["bright", None, "dark"]
    assert "cannot be read" in rows[1]["error"]


def test_linked_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    folder = as_folder(tmp_path)
    shutil.move(folder / "happy", tmp_path / "elsewhere")
    (folder / "happy").symlink_to(tmp_path / "elsewhere")
    (folder / "sad" / "up").symlink_to(folder)
    with open_pictures(folder) as pictures:
        assert {file: fetch() for file, fetch in pictures.stream(0)} == TREE


@pytest.mark.parametrize("head", ["emotion,pixels,Usage", "pixels"])
def test_pixels_in_a_csv(head: str, bright_bundle: Path, tmp_path: Path) -> None:
    """As FER2013 has it, also the challenge's pictures without labels; a bad line is an error of its row."""
    lines = [f"{value} {value} {value} {value}" for value in (250, 5, 999, 240)]
    rows = [line if head == "pixels" else f"3,{line},Training" for line in lines]
    (tmp_path / "test.csv").write_text("\n".join([head, *rows]))
    source = tmp_path / "test.csv"
    answers = list(files.predict_paths([source], bright_bundle))
    assert [row["file"] for row in answers] == [f"{source}/fer000000{i}.pgm" for i in range(4)]
    assert [row["label"] for row in answers] == ["bright", "dark", None, "bright"]
    assert "line 4: pixels that are not" in answers[2]["error"]
    if head != "pixels":
        assert [f"{source}/{item.file}" for item in list_items(source)] == [row["file"] for row in answers]
    settings = batch.Settings(batch_size=1, chunk=2)
    assert batch.score_pictures(source, tmp_path / "s.parquet", bright_bundle, settings)[:3] == (4, 4, 1)
    assert [row["label"] for row in pq.read_table(tmp_path / "s.parquet").to_pylist()] == [
        row["label"] for row in answers
    ]


def test_a_text_that_is_no_list_is_one_bad_picture(bright_bundle: Path, tmp_path: Path) -> None:
    """While a list of paths is a table; of no header, as such lists have none."""
    as_folder(tmp_path)
    (tmp_path / "faces" / "list.txt").write_text("happy/a.png bright\nsad/d.png dark\n")
    (tmp_path / "notes.txt").write_text("no pictures here\n")
    rows = list(files.predict_paths([tmp_path / "notes.txt", tmp_path / "faces" / "list.txt"], bright_bundle))
    assert [row["label"] for row in rows] == [None, "bright", "dark"]


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `hyojo predict` needs of packages is less than Parquet wants."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and more")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"a.parquet wants pyarrow.*hyojo\[serve\]"):
        open_pictures(tmp_path / "a.parquet")


def test_a_link_to_itself_is_an_error_of_its_own_row(bright_bundle: Path, tmp_path: Path) -> None:
    folder = as_folder(tmp_path)
    (folder / "happy" / "loop.png").symlink_to("loop.png")
    rows = {Path(row["file"]).name: row for row in files.predict_paths([folder], bright_bundle)}
    assert "cannot be read" in rows["loop.png"]["error"]
    assert len(rows) == len(TREE) + 1
