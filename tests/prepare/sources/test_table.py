"""Tables and what is made of their cells: manifests, FER2013's CSV, Parquet; and what is said of bad ones."""

import io
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import list_items, load_script, read_contents, write_files
from PIL import Image

from pipeline.core.errors import UserError
from pipeline.inference.images import ImageError
from pipeline.prepare.catalogue import Listing
from pipeline.prepare.sources.fer2013 import count_votes
from pipeline.prepare.sources.open import Reading, open_source
from pipeline.prepare.sources.parquet_table import ParquetTable
from pipeline.prepare.sources.source import Item
from pipeline.prepare.sources.text_table import CsvTable

# Columns


@pytest.mark.parametrize(
    "header",
    [
        "path,label,split,subject,weight",
        "Filename,EMOTION,Usage,Person ID,sample weight",
        "image_path;class_name;set;participant;Weight",
        "\ufeffpth\texpression\tpartition\tidentity\tweights",
        "weight,subject,label,split,path",
    ],
)
def test_usual_names_of_columns(tmp_path: Path, header: str) -> None:
    delimiter = next(character for character in ",;\t" if character in header)
    row = ["a.png", "Happy", "PublicTest", "S1", "0.5"]
    if header.startswith("weight"):
        row = ["0.5", "S1", "Happy", "PublicTest", "a.png"]
    write_files(tmp_path, "a.png", table=f"{header}\r\n{delimiter.join(row)}\r\n")
    assert list_items(tmp_path) == [Item("a.png", "happy", "val", "a.png", person="S1", weight=0.5)]


def test_columns_given_by_name(tmp_path: Path) -> None:
    write_files(tmp_path, "a.png", table="label,where,file,who\nx,a.png,happy,Ann\n")
    given = {"path": "where", "label": "file", "person": "who"}
    assert list_items(tmp_path, columns=given) == [Item("a.png", "happy", None, "a.png", person="Ann")]
    assert list_items(tmp_path, columns={"path": "where", "label": "file"}, person="WHO")[0].person == "Ann"
    assert list_items(tmp_path, columns=given, person=None)[0].person is None


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    write_files(tmp_path, "a.png", table="path,label\na.png,happy\n")
    with pytest.raises(
        UserError, match=r"prepare.columns.split: .*table.csv has no column 'labl'; did you mean 'label'"
    ):
        list_items(tmp_path, columns={"split": "labl"})


# Paths


def test_paths_lead_to_files_in_every_usual_way(tmp_path: Path) -> None:
    ways = {
        "plain": ("img/ä (1).png", "img/ä (1).png"),
        "dot": ("./img//ä (1).png", "img/ä (1).png"),
        "windows": ("img\\ä (1).png", "img/ä (1).png"),
        "folder": ("ä (1).png", "img/ä (1).png"),
        "absolute": ("/home/me/data/img/ä (1).png", "img/ä (1).png"),
        "drive": ("C:\\data\\img\\ä (1).png", "img/ä (1).png"),
        "no suffix": ("ä (1)", "img/ä (1).png"),
        "back and in": ("../data/img/ä (1).png", "img/ä (1).png"),
    }
    for name, (path, file) in ways.items():
        folder = write_files(tmp_path / name, file, "img/b.png", table=f"path,label\n{path},happy\n")
        assert read_contents(folder) == {file: file.encode()}, name


def test_a_few_missing_files_are_for_the_stage_to_count(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,happy\n" for i in range(6))
    write_files(tmp_path, *(f"pictures/{i}.png" for i in range(2, 6)), table=f"path,label\n{rows}")
    with pytest.raises(UserError, match=r"(?s)lacks .* of 2 rows.*max_bad_fraction .0.01.*line 2: '0.png'.*line 3"):
        list_items(tmp_path)
    with open_source(tmp_path, Reading(max_missing=0.5)) as source:
        found = list(source.items())
        assert [item.file for item in found] == ["0.png", "1.png", *(f"pictures/{i}.png" for i in range(2, 6))]
        fetches = list(source.fetch(item.place for item in found))
        with pytest.raises(ImageError, match="no such file"):
            fetches[0]()
        assert fetches[2]() == b"pictures/2.png"


FILES, FER = "path,label\na.png,happy\n", "emotion,pixels,Usage\n0,1 2 3 4,Training\n"


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "path,label\ngone.png,happy",
            r"lacks the files of 1 rows.*prepare.columns.path .now 'path'(?s:.*)line 2: 'gone.png'",
        ),
        ("path,label\na.png,", "line 2: no label.*hyojo predict"),
        ("path,label\na.png,happy,more", "line 2: 3 cells, but the first line has 2"),
        ("path,label\n", "has no rows"),
        ("path,label\ntwice.png,happy", "twice.png may be one/twice.png and two/twice.png"),
        (f"{FILES},sad", "line 3: no path"),
        (f"{FILES}../a.png,sad", r"line 3: '../a.png' does not lead into the folder"),
        (f"{FILES}img/../../a.png,sad", r"line 3: 'img/../../a.png' does not lead"),
        (f"{FILES}b.png", "line 3: 1 cells"),
        ("path,label,split\na.png,happy,\na.png,happy,maybe", "line 3: 'maybe' is no split"),
        ("path,label,weight\na.png,happy,\na.png,happy,-1", "line 3: weight '-1' is not a number from 0"),
        ("path,label,weight\na.png,happy,\na.png,happy,nan", "line 3: weight 'nan'"),
        ("path,label,weight\na.png,happy,\na.png,happy,heavy", "line 3: weight 'heavy'"),
        (f"{FER},1 2 3 4,Training", "line 3: no label"),
        (f"{FER}1,1 2 3 4,Later", "line 3: 'Later' is no split"),
        (f"{FER}1,1 2 3 4", "line 3: 2 cells, but the first line has 3"),
        (f"{FER}1,1,2,3,4,Training", "line 3: 6 cells"),
        ("path,label\n\udcff\udcfe,happy\n", "about line 1: not UTF-8"),
        ("path,label\n" + "x" * 2**24, "line 2: longer than 16,777,216"),
        ('path,label\n"a.png,happy\n', "cells|not valid CSV|line 2"),
    ],
)
def test_items_name_the_bad_row(tmp_path: Path, text: str, message: str) -> None:
    write_files(tmp_path, "a.png", "b.png", "one/twice.png", "two/twice.png")
    (tmp_path / "table.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        list_items(tmp_path)
    assert "table.csv" in str(caught.value)


def test_two_tables_named_after_their_splits(tmp_path: Path) -> None:
    tables = {"train_labels": "file,label\n1.png,happy\n", "test": "file,label\n1.png,sad\n"}
    found = list_items(write_files(tmp_path, "train/1.png", "test/1.png", **tables))
    assert [item.file for item in found] == ["test/1.png", "train/1.png"]
    assert [(item.label, item.split) for item in found] == [("sad", "test"), ("happy", "train")]


def test_csv_cells_with_line_breaks_quotes_and_delimiters(tmp_path: Path) -> None:
    write_files(tmp_path, 'a, "b".png', table='label,path,note\nhappy,"a, ""b"".png","two\nlines"\n\n')
    assert [(item.file, item.label) for item in list_items(tmp_path)] == [('a, "b".png', "happy")]


def test_numbers_want_a_map(tmp_path: Path) -> None:
    """Also those from a column with gaps, where many programs write 3.0 for 3."""
    write_files(tmp_path / "f", "1.png", "2.png", table="path,label\n1.png,3.0\n2.png,10.\n")
    with open_source(tmp_path / "f") as source:
        with pytest.raises(UserError, match=r"labels of .* are numbers \(3, 10\).*prepare.class_map: \{3: angry"):
            Listing(tmp_path, source, {}, None)
    (tmp_path / "listing.db").unlink()
    with open_source(tmp_path / "f") as source:
        with closing(Listing(tmp_path, source, {"3": "happy", "10": "sad"}, None)) as listing:
            assert listing.class_names == ["happy", "sad"]


# FER2013's CSV


@pytest.mark.parametrize(
    "numbers, class_map, expected",
    [
        ("3 6 7", {}, "labels of .* are numbers .7."),
        ("3 6 7.0", {"7": "contempt"}, "happy neutral contempt"),
        ("0 1 2", {"0": "x", "1": "y", "2": "z"}, "x y z"),
        ("0 3 6", {"0": "contempt"}, "contempt happy neutral"),
        ("0 3 6", {"angry": "contempt"}, "contempt happy neutral"),
        ("0 3 -1", {}, "labels of .* are numbers .-1."),
    ],
)
def test_numbers_go_by_the_map_before_their_usual_names(
    tmp_path: Path, numbers: str, class_map: dict[str, str], expected: str
) -> None:
    rows = "".join(f"{number},1 2 3 {i}\n" for i, number in enumerate(numbers.split()))
    write_files(tmp_path, fer2013=f"emotion,pixels\n{rows}")
    with open_source(tmp_path, Reading(class_map=class_map)) as source:
        if "numbers" in expected:
            with pytest.raises(UserError, match=expected):
                Listing(tmp_path, source, class_map, None)
            return
        with closing(Listing(tmp_path, source, class_map, None)) as listing:
            assert [listing.class_names[i] for i in listing.numbers("class", np.int16)] == expected.split()


def test_other_delimiters(tmp_path: Path) -> None:
    write_files(tmp_path, fer2013='emotion;pixels;Usage\n6;"1 2 3 4";PrivateTest\n')
    assert list(read_contents(tmp_path / "fer2013.csv").values()) == [b"P5 2 2 255\n\1\2\3\4"]


def test_pixels_become_pictures(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    text = " ".join(map(str, pixels.ravel()))
    write_files(tmp_path, fer2013=f"emotion,pixels,Usage\n6,{text},PrivateTest\n")
    picture = Image.open(io.BytesIO(read_contents(tmp_path)["fer0000000.pgm"]))
    assert picture.mode == "L"
    np.testing.assert_array_equal(np.asarray(picture), pixels)
    assert [(item.label, item.split) for item in list_items(tmp_path)] == [("neutral", "test")]


@pytest.mark.parametrize(
    "pixels, message",
    [
        ("1 2 3", "line 3: 3 pixels, which make no square"),
        ("1 2 3 256", "line 3: pixels that are not whole numbers from 0 to 255"),
        ("1 2 3 -4", "line 3: pixels that are not"),
        ("1 2 3 x", "line 3: pixels that are not"),
        ("", "line 3: 0 pixels"),
    ],
)
def test_bad_pixels_are_a_bad_image(tmp_path: Path, pixels: str, message: str) -> None:
    write_files(tmp_path, fer2013=f"emotion,pixels\n0,1 2 3 4\n1,{pixels}\n")
    with open_source(tmp_path) as source:
        good, bad = source.fetch([item.place for item in source.items()])
        assert good().startswith(b"P5 2 2")
        with pytest.raises(ImageError, match=message):
            bad()


COLUMNS = load_script("benchmarks/forms.py").FERPLUS_COLUMNS


@pytest.mark.parametrize(
    "counts, majority, soft",
    [
        # By hand. Single votes are slips.
        ({"happiness": 10}, "happy", {"happy": 10}),
        ({"happiness": 6, "neutral": 4}, "happy", {"happy": 6, "neutral": 4}),
        ({"happiness": 5, "neutral": 5}, None, {"neutral": 5, "happy": 5}),
        ({"happiness": 5, "neutral": 4, "fear": 1}, "happy", {"happy": 5, "neutral": 4}),
        ({"sadness": 4, "anger": 3, "unknown": 3}, None, {"sad": 4, "angry": 3}),
        ({"sadness": 6, "unknown": 4}, "sad", {"sad": 6}),
        ({"unknown": 6, "anger": 4}, None, None),
        ({"NF": 10}, None, None),
        ({"NF": 5, "anger": 5}, None, None),
        (dict.fromkeys(COLUMNS, 1), None, None),
        ({}, None, None),
    ],
)  # fmt: skip
def test_votes_by_hand(counts: dict[str, int], majority: str | None, soft: dict[str, int] | None) -> None:
    counts = dict.fromkeys(COLUMNS, 0) | counts
    assert count_votes(counts, soft=False)[0] == majority
    label, votes = count_votes(counts, soft=True)
    assert (votes or None) == soft
    assert label == (max(soft, key=soft.get) if soft else None)


HAPPY = "fer.png,0,9,1,0,0,0,0,0,0,0"


@pytest.mark.parametrize(
    "rows, message",
    [
        ([f"Training,{HAPPY}"], "fer2013.csv, line 3: the row of fer2013new.csv for it is missing"),
        ([f"Training,{HAPPY}", f"Training,{HAPPY}"], "line 3: the row of fer2013new.csv for it is .* of another split"),
        ([f"Training,{HAPPY}", f"PrivateTest,{HAPPY}", f"Training,{HAPPY}"], "fer2013new.csv: more rows than"),
        (["Training,fer.png,0,nine,1,0,0,0,0,0,0,0"], "fer2013new.csv, line 2: votes that are not whole numbers"),
    ],
)
def test_votes_that_belong_to_other_pictures(tmp_path: Path, rows: list[str], message: str) -> None:
    votes = "\n".join([f"Usage,Image name,{','.join(COLUMNS)}", *rows])
    pixels = "emotion,pixels,Usage\n0,1 2 3 4,Training\n0,1 2 3 4,PrivateTest\n"
    with pytest.raises(UserError, match=message):
        list_items(write_files(tmp_path, fer2013=pixels, fer2013new=votes))


# Parquet


def test_parquet_is_read_in_pieces(tmp_path: Path) -> None:
    """A row group of 60 MB is read without holding half of it; what it takes does not grow further."""
    pictures = [np.random.default_rng(i).bytes(10_000) for i in range(6000)]
    table = pa.table({"image": [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(pictures)]})
    table = table.append_column("label", pa.array(["ab"[i % 2] for i in range(len(pictures))]))
    pq.write_table(
        table, tmp_path / "a.parquet", row_group_size=len(pictures), data_page_size=2**16, compression="none"
    )
    with open_source(tmp_path / "a.parquet") as source:
        found = list(source.items())
        assert [item.file for item in found[:2]] == ["a.parquet/0000000-0.jpg", "a.parquet/0000001-1.jpg"]
        before = pa.total_allocated_bytes()
        peak = 0
        for fetch, data in zip(source.fetch(item.place for item in found), pictures, strict=True):
            assert fetch() == data
            peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 30e6


def write_parquet(folder: Path, names: Any, **columns: Any) -> Path:
    """Pictures, and what the numbers in ``label`` stand for."""
    features = {"features": {"label": {"names": names, "_type": "ClassLabel"}}}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": features})})
    pq.write_table(table, folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize("kind", [pa.int64(), pa.int8(), pa.float64()])
@pytest.mark.parametrize("names", [["Anger", "happy", "sad"], {"0": "Anger", "1": "happy", "2": "sad"}])
def test_names_of_classes_stand_in_the_metadata(tmp_path: Path, kind: pa.DataType, names: Any) -> None:
    image, label = pa.array([b"x"] * 3, pa.large_binary()), pa.array([2, 0, 1], kind)
    found = list_items(write_parquet(tmp_path, names, image=image, label=label))
    assert [item.label for item in found] == ["sad", "anger", "happy"]


@pytest.mark.parametrize(
    "column, labels, message",
    [
        ("label", [0, -1], r"a.parquet, row 2: no label.*hyojo predict"),
        ("label", [0, None], r"a.parquet, row 2: no label"),
        ("label", [0, 2], r"a.parquet, row 2: label 2 has no name"),
        ("caption", ["x", "y"], r"no column of labels .*there are image, caption.*prepare.columns.label"),
    ],
)
def test_bad_labels_in_parquet(tmp_path: Path, column: str, labels: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list_items(write_parquet(tmp_path, ["a", "b"], image=[b"x", b"y"], **{column: labels}))


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: data[:2000] + b"?" * 1000 + data[3000:]])
def test_damaged_parquet(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    pictures = [np.random.default_rng(i).bytes(100) for i in range(100)]
    table = pa.table({"image": pictures, "label": ["a", "b"] * 50})
    pq.write_table(table, tmp_path / "a.parquet", compression="gzip", row_group_size=10)
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(damage(data))
    with pytest.raises(UserError, match="damaged"):
        read_contents(tmp_path / "a.parquet")


def test_rows_as_text_of_both_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(" a , b\n 1 ,x\n,\n 3.5,y \n")
    pq.write_table(pa.table({"b": ["x", None, "y "], "a": [1.0, None, 3.5]}), tmp_path / "a.parquet")
    csv_rows = [cells for _, cells in CsvTable(tmp_path / "a.csv").rows(["b", "a"])]
    parquet_rows = [cells for _, cells in ParquetTable(tmp_path / "a.parquet").rows(["b", "a"])]
    assert parquet_rows == [["x", "1"], ["", ""], ["y", "3.5"]]
    assert csv_rows == [["x", "1"], ["y", "3.5"]]  # a line without anything is no row
