"""Tables of labels: of whatever kind and wherever they lie they are found, read as a whole, or named in an error."""

import json
import unicodedata
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from builders import draw_noise, list_items, prepare_params, write_files, write_tar, write_zip

from pipeline.core.errors import UserError
from pipeline.prepare.catalogue import Listing
from pipeline.prepare.sources.open import Reading, open_source
from pipeline.prepare.stage import prepare

Labelled = list[tuple[str, str, str | None]]


def make(root: Path, *names: str, **texts: str) -> Path:
    """Files by their paths, and tables whose names have ``__`` for a slash and ``_`` for the dot of the suffix."""
    write_files(root, *names)
    for name, text in texts.items():
        stem, _, suffix = name.replace("__", "/").rpartition("_")
        (root / stem).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{stem}.{suffix}").write_text(text, encoding="utf-8")
    return root


def labelled(path: Path, **reading: Any) -> Labelled:
    return [(item.file, item.label, item.split) for item in list_items(path, **reading)]


def packed(folder: Path) -> list[Path]:
    """A folder, and the same as zip and tar."""
    tree = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return [folder, write_zip(folder.with_suffix(".zip"), tree), write_tar(folder.with_suffix(".tar"), tree.items())]


# Found


KINDS = [
    ("labels_csv", "id,emotion_label\n1,happy\n2,sad\n"),
    ("labels_csv", "1.png,happy\n2.png,sad\n"),
    ("labels_tsv", "image\tfacial_expression\n1\thappy\n2\tsad\n"),
    ("list_txt", "1.png happy\n2.png  sad \n"),
    ("list_txt", "happy pictures/1.png\nsad pictures/2.png\n"),
    ("list_lst", "name emotion\n1.png happy\n2.png sad\n"),
    ("list_txt", "1.png,happy\n2.png,sad\n"),
    ("labels_json", json.dumps([{"fname": "1.png", "emotion": "happy"}, {"fname": "2.png", "emotion": "sad"}])),
    ("labels_json", json.dumps({"1.png": "happy", "2.png": "sad"})),
    ("labels_json", json.dumps({"1.png": {"label": "happy"}, "2.png": {"label": "sad"}})),
    ("labels_json", json.dumps({"path": ["1.png", "2.png"], "label": ["happy", "sad"]})),
    ("labels_json", json.dumps({"path": {"0": "1.png", "1": "2.png"}, "label": {"0": "happy", "1": "sad"}})),
    (
        "labels_json",
        json.dumps({"about": "x", "rows": [{"file": "1", "label": "happy"}, {"file": "2", "label": "sad"}]}),
    ),
    (
        "_annotations.coco_json",
        json.dumps(
            {
                "images": [{"id": 7, "file_name": "1.png"}, {"id": 8, "file_name": "2.png"}],
                "categories": [{"id": 0, "name": "happy"}, {"id": 1, "name": "sad"}],
                "annotations": [{"image_id": 7, "category_id": 0}, {"image_id": 8, "category_id": 1}],
            }
        ),
    ),
    ("annotations_jsonl", '{"file_name": "1.png", "label": "happy"}\n{"file_name": "2.png", "label": "sad"}\n'),
    ("metadata_ndjson", '{"image_id": 1, "expression": "happy"}\n\n{"image_id": 2, "expression": "sad"}\n'),
    ("_classes_csv", "filename, happy, sad\n1.png, 1, 0\n2.png, 0, 1\n"),
]


@pytest.mark.parametrize(
    "where, name, text", [(w, *KINDS[0]) for w in ("", "pictures__")] + [("data__", *kind) for kind in KINDS]
)
def test_tables_of_every_kind_in_every_place(tmp_path: Path, where: str, name: str, text: str) -> None:
    """Beside the pictures, above them, and in a folder of its own; in a folder, a zip and a tar."""
    folder = make(tmp_path / "f", "pictures/1.png", "pictures/2.png", "papers/3.pdf", **{where + name: text})
    for path in packed(folder):
        assert labelled(path) == [("pictures/1.png", "happy", None), ("pictures/2.png", "sad", None)]


@pytest.mark.parametrize(
    "column",
    [
        "Emotion_Label", "facial_expression", "emotion_class", "emotionName", "expr", "class_id", "EmotionCategory",
        "dominant_emotion", "label_text", "image_label", "mood", "true_label", "emo", "expression_idx", "target_class",
    ],
)  # fmt: skip
def test_usual_names_of_labels(tmp_path: Path, column: str) -> None:
    folder = make(tmp_path / "f", "1.png", "2.png", labels_csv=f"file,age,{column}\n1.png,20,happy\n2.png,30,sad\n")
    assert [label for _, label, _ in labelled(folder)] == ["happy", "sad"]


@pytest.mark.parametrize(
    "cell, file",
    [
        ("A.JPG", "x/a.jpg"),
        ("a", "x/A.PNG"),
        ("KA.AN1.39", "KA.AN1.39.tiff"),
        (unicodedata.normalize("NFC", "fâché.png"), unicodedata.normalize("NFD", "x/fâché.png")),
        ("train_00001.jpg", "Image/aligned/train_00001_aligned.jpg"),
        ("/home/me/x/y/a.png", "x/y/a.png"),
    ],
)
def test_names_are_found_however_they_are_spelt(tmp_path: Path, cell: str, file: str) -> None:
    tree = {file: b"a", "other/b.png": b"b", "lists/l.csv": f"file,label\n{cell},happy\n".encode()}
    assert labelled(write_zip(tmp_path / "a.zip", tree)) == [(file, "happy", None)]


def test_a_file_of_another_folder_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    rows = "".join(f"{label}/{i}.png,{label}\n" for label in ("happy", "sad") for i in range(60))
    names = [f"{label}/{i}.png" for label in ("happy", "sad") for i in range(60)]
    names.remove("happy/7.png")
    folder = make(tmp_path / "f", *names, labels_csv=f"path,label\n{rows}")
    with open_source(folder) as source:
        found = {item.file: item.place for item in source.items()}
    assert len(found) == 120
    assert [file for file, place in found.items() if place is None] == ["happy/7.png"]


# Several tables, and splits


def test_folders_of_splits_say_the_split_where_no_column_does(tmp_path: Path) -> None:
    rows = "1.png,happy\n2.png,sad\n"
    folder = make(tmp_path / "f", "train/1.png", "valid/2.png", labels_csv=f"file,label\n{rows}")
    for path in packed(folder):
        assert labelled(path) == [("train/1.png", "happy", "train"), ("valid/2.png", "sad", "val")]


def test_several_data_sets_each_with_its_table(tmp_path: Path) -> None:
    """Also in an archive, and though the names of their files are the same."""
    texts = {f"{name}__labels_csv": "file,label,subject\n1.png,happy,Ann\n2.png,sad,Bob\n" for name in "AB"}
    folder = make(tmp_path / "f", *(f"{name}/{i}.png" for name in "AB" for i in (1, 2)), **texts)
    for path in packed(folder):
        found = [(item.file, item.label, item.root) for item in list_items(path)]
        assert found == [(f"{root}/{i}.png", ("happy", "sad")[i - 1], root) for root in "AB" for i in (1, 2)]


def test_numbers_of_several_data_sets_need_not_mean_the_same(tmp_path: Path) -> None:
    """FER2013's CSV keeps its own; those of the others are named one by one."""
    texts = {f"{name}__labels_csv": "file,label\n1.png,1\n2.png,2\n" for name in "AB"}
    names = [f"{name}/{i}.png" for name in "AB" for i in (1, 2)]
    folder = make(tmp_path / "f", *names, C__fer2013_csv="emotion,pixels\n1,1 2 3 4\n", **texts)
    both = {"1": "happy", "2": "sad"}
    with pytest.raises(UserError, match=r"labels of A and B in .* are numbers.*class_map=\{A/0: angry, B/0: neutral"):
        check(folder, tmp_path, **both)
    (tmp_path / "listing.db").unlink()
    each = {"A/1": "happy", "a/2": "sad", "B/1": "sad", "B/2": "happy"}
    with open_source(folder, Reading(class_map=each)) as source:
        with closing(Listing(tmp_path, source, each, "auto")) as listing:
            labels = [listing.class_names[i] for i in listing.numbers("class", "int16")]
            assert labels == ["happy", "sad", "sad", "happy", "disgust"]


def test_what_belongs_to_no_data_set_is_counted(tmp_path: Path) -> None:
    texts = {"A__labels_csv": "file,label\n1,happy\n2,sad\n"}
    folder = make(tmp_path / "f", "A/1.png", "A/2.png", "3.png", "doc/a.pdf", **texts)
    for path in packed(folder):
        with open_source(path) as source:
            assert len(list(source.items())) == 2
            assert sorted(source.ignored) == ["3.png", "doc/a.pdf"]


def test_spreadsheets_are_not_passed_over_without_a_word(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "f", "faces/1.png", "faces/2.png", "labels.xlsx")
    for path in packed(folder):
        with pytest.raises(UserError, match=r"It holds labels.xlsx: save that as CSV if it has the labels"):
            labelled(path)
    write_files(folder, "happy/3.png")
    with open_source(folder) as source:
        assert list(source.notes) == ["spreadsheets are not read; if they have labels, save them as CSV: labels.xlsx"]


def test_many_tables_in_one_folder(tmp_path: Path) -> None:
    """Notes on a picture each are passed over; tables of pictures are not."""
    names = [f"{('happy', 'sad')[i % 2]}/{i}.png" for i in range(120)]
    tree = dict.fromkeys(names, b"x")
    notes = {f"{name[:-4]}.csv": b"3,0.5,0.5\n" for name in names}
    path = write_zip(tmp_path / "a.zip", tree | notes)
    assert sum(file.endswith(".png") for file, _, _ in labelled(path)) == 120
    people = {f"labels/S{i}.csv": f"file,label\n{name},happy\n".encode() for i, name in enumerate(names)}
    with pytest.raises(UserError, match=r"labels holds more than 50 tables, and S\d+.csv names pictures"):
        labelled(write_zip(tmp_path / "b.zip", tree | people))


def test_columns_that_nothing_has(tmp_path: Path) -> None:
    folder = make(tmp_path / "f", "happy/1.png", "sad/2.png", labels_csv="who,age\nAnn,3\n")
    with pytest.raises(UserError, match=r"prepare.columns: .* is read as class folders, which have no columns"):
        labelled(folder, columns={"path": "who", "label": "emotion"})


# Rows that disagree


TWICE = "file,label\n1.png,happy\n2.png,sad\n1.png,Happy\n3.png,sad\n3.png,fear\n3.png,fear\n4.png,sad\n4.png,fear\n"


@pytest.mark.parametrize(
    "conflicts, expected, left_out",
    [
        ("majority", {"1.png": "happy", "2.png": "sad", "3.png": "fear"}, 1),
        ("drop", {"1.png": "happy", "2.png": "sad"}, 2),
    ],
)
def test_rows_that_name_a_file_twice(tmp_path: Path, conflicts: str, expected: dict[str, str], left_out: int) -> None:
    folder = make(tmp_path / "f", *(f"{i}.png" for i in range(1, 5)), labels_csv=TWICE)
    with open_source(folder, Reading(conflicts=conflicts)) as source:
        assert {item.file: item.label for item in source.items()} == expected
        assert sum(source.left_out.values()) == left_out
        assert source.notes == {
            "rows name a file again, with the same label": 1,
            "files have rows with different labels: 3.png (fear, sad), 4.png (fear, sad)": 2,
        }


def test_all_that_cannot_be_settled_is_named_at_once(tmp_path: Path) -> None:
    folder = make(tmp_path / "f", *(f"{i}.png" for i in range(1, 5)), labels_csv=TWICE)
    with pytest.raises(UserError, match=r"(?s)3.png has different labels: sad in .*line 5, fear.*4.png has different"):
        labelled(folder, conflicts="keep")
    assert len(labelled(folder, conflicts="majority", class_map={"fear": "sad"})) == 4
    text = "file,label,split,subject\n1.png,happy,train,A\n1.png,happy,test,A\n2.png,sad,,A\n2.png,sad,val,B\n"
    (folder / "labels.csv").write_text(text)
    with pytest.raises(
        UserError, match=r"(?s)1.png .*different split: train in .*line 2, test.*2.png .*different person"
    ):
        labelled(folder)


def test_an_error_names_the_first_ten_bad_rows(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,\n" for i in range(12))
    folder = make(tmp_path / "f", *(f"{i}.png" for i in range(12)), labels_csv=f"file,label\n{rows}12.png,happy,more\n")
    with pytest.raises(UserError) as caught:
        labelled(folder)
    lines = str(caught.value).splitlines()
    assert [f"line {i}" in line for i, line in enumerate(lines[:10], 2)] == [True] * 10
    assert lines[10] == "and 4 more rows."  # these, the cell too many, and that no row is left


def test_one_name_in_several_folders(tmp_path: Path) -> None:
    """All are named, unless the split tells them apart; aligned and original pictures are two."""
    names = ["Image/aligned/train_1_aligned.jpg", "Image/original/train_1.jpg"]
    folder = make(tmp_path / "raf", *names, EmoLabel__list_txt="train_1.jpg happy\n")
    with pytest.raises(
        UserError, match=r"list.txt, line 1: train_1.jpg may be Image/aligned.* and Image/original/train_1"
    ):
        labelled(folder)
    folder = make(
        tmp_path / "f", "a/train/1.png", "a/test/1.png", "b/train/1.png", labels_csv="file,label,split\n1,sad,test\n"
    )
    assert labelled(folder) == [("a/test/1.png", "sad", "test")]
    (folder / "labels.csv").write_text("file,label,split\n1,sad,train\n1,happy,\n")
    with pytest.raises(
        UserError, match=r"(?s)line 2: 1 may be a/train/1.png and b/train/1.png\. .*line 3: 1 may be a/test"
    ):
        labelled(folder)


def test_more_than_one_class_in_a_row(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,{int(i % 2)},{int(i % 2 == 0)}\n" for i in range(1, 7))
    folder = make(
        tmp_path / "f", *(f"{i}.png" for i in range(9)), labels_csv=f"file,happy,sad\n{rows}7.png,1,1\n8.png,0,0\n"
    )
    with open_source(folder) as source:
        assert {item.file: item.label for item in source.items()} == {
            f"{i}.png": ("sad", "happy")[i % 2] for i in range(1, 7)
        }
        assert source.left_out == {"rows give the file different labels": 1, "no class has a 1 in the row": 1}
        assert source.ignored == ["0.png", "8.png"]


def test_class_folders_that_contradict_the_table(tmp_path: Path) -> None:
    """They are counted and named; people's folders and numbers that mean the same contradict nothing."""
    text = "pth,label\nhappy/1.png,happy\nhappy/2.png,sad\nsad/3.png,sad\nsad/4.png,Sadness\n"
    folder = make(tmp_path / "f", "happy/1.png", "happy/2.png", "sad/3.png", "sad/4.png", labels_csv=text)
    note = "files lie in the folder of another class than the table says, which counts (see prepare.label): "
    for path in packed(folder):
        with open_source(path, Reading(class_map={"sadness": "sad"})) as source:
            assert [item.label for item in source.items()] == ["happy", "sad", "sad", "sadness"]
            assert source.notes == {f"{note}happy/2.png (sad)": 1}
        assert [label for _, label, _ in labelled(path, label="folders")] == ["happy", "happy", "sad", "sad"]
    people = make(tmp_path / "g", "Ann/1.png", "Bob/2.png", labels_csv="file,label\n1.png,happy\n2.png,sad\n")
    with open_source(people) as source:
        assert len(list(source.items())) == 2
        assert not source.notes


# Not understood, or no table of labels


@pytest.mark.parametrize(
    "text, message",
    [
        ("photo,code\na/1.png,happy\nb/2.png,sad\n", r"column 'photo'.*\(photo, code\).*prepare.label to folders"),
        ("a/1.png,happy,4\nb/2.png,sad,5\n", r"column '1'.*\(1, 2, 3; its first row is a/1.png, happy, 4\)"),
        ("a/1.png,train\nb/2.png,test\n", r"column '1'.*prepare.columns.label"),
    ],
)  # fmt: skip
def test_a_table_that_is_not_understood_is_named(tmp_path: Path, text: str, message: str) -> None:
    folder = make(tmp_path / "f", "a/1.png", "b/2.png", list_csv=text)
    for path in packed(folder):
        with pytest.raises(UserError, match=message) as caught:
            labelled(path)
        assert "list.csv" in str(caught.value)
    assert [label for _, label, _ in labelled(folder, label="folders")] == ["a", "b"]


def test_columns_of_a_table_without_names(tmp_path: Path) -> None:
    folder = make(tmp_path / "f", "a/1.png", "b/2.png", list_csv="a/1.png,4,happy\nb/2.png,5,sad\n")
    assert [label for _, label, _ in labelled(folder, columns={"label": "3"})] == ["happy", "sad"]


@pytest.mark.parametrize(
    "texts",
    [
        {"papers_csv": "title,year,label\nFaces,2013,x\nMore faces,2014,y\n"},
        {"readme_txt": "These are faces.\nhappy/1.png is one of them.\n"},
        {"about_json": '{"name": "faces", "licence": ["a"]}', "broken_json": "{"},
        {"happy__1_txt": "3 0.5 0.5 0.1 0.1\n", "sad__2_txt": "4 0.5 0.5 0.1 0.1\n"},
        {"files_csv": "happy/1.png\nsad/2.png\n"},
        {"ages_csv": "age,height\n1,180\n1,170\n2,160\n1,150\n"},
    ],
)
def test_files_that_say_nothing_of_the_pictures_are_passed_over(tmp_path: Path, texts: dict[str, str]) -> None:
    folder = make(tmp_path / "f", "happy/1.png", "sad/2.png", **texts)
    (folder / "latin.txt").write_bytes(b"\xe4\xf6\xfc 1.png\n")
    for path in packed(folder):
        found = labelled(path)
        assert [row[:2] for row in found if row[0].endswith("png")] == [("happy/1.png", "happy"), ("sad/2.png", "sad")]


def test_a_table_beside_class_folders_is_not_passed_over(tmp_path: Path) -> None:
    folder = make(tmp_path / "f", "happy/1.png", "sad/2.png", "more/3.png", more__labels_csv="file,label\n3.png,fear\n")
    for path in packed(folder):
        with pytest.raises(
            UserError, match=r"more/labels.csv names pictures, and class folders lie beside.*label to folders"
        ):
            labelled(path)


# Labels in names of files, and folders that are no classes


def test_labels_by_pattern(tmp_path: Path) -> None:
    names = ["train/KA.AN1.1.tiff", "train/KA.HA1.2.tiff", "test/MK.AN1.3.tiff", "test/MK.HA1.4.tiff", "test/odd.png"]
    folder = write_files(tmp_path / "f", *names, "README.txt")
    for path in packed(folder):
        with open_source(path, Reading(label=r"\.([A-Z]{2})\d")) as source:
            found = sorted((item.file, item.label, item.split) for item in source.items())
            assert source.left_out == {"prepare.label is not found in the name": 1}
            assert source.ignored == ["test/odd.png"]
        labels = ["AN", "HA", "AN", "HA"]
        assert found == sorted((name, label, name.split("/")[0]) for name, label in zip(names, labels))
        assert [label for _, label, _ in labelled(path, label="([a-z]+)/")] == ["test"] * 3 + ["train"] * 2
    with pytest.raises(UserError, match=r"prepare.label: '_x_' is in no picture's name in .*f, such as '\w+/"):
        open_source(folder, Reading(label="_x_"))
    with pytest.raises(UserError, match=r"prepare.label: '\(' is neither auto nor folders nor a pattern"):
        open_source(folder, Reading(label="("))


@pytest.mark.parametrize(
    "names, message",
    [
        ("KA.AN1.1.tiff KA.HA1.2.tiff MK.NE1.3.tiff", r"prepare.label='\\\.\(AN\|"),
        ("AF01AFS.JPG BM02HAFL.JPG", r"prepare.label='\^\[AB\]"),
        ("1_happy.png 2_Sad.png 3_happy.png", r"prepare.label='\(\?i\)\(happy\|sad\)'"),
        ("1.png 2.png", r"prepare.label takes a pattern"),
    ],
)
def test_a_flat_folder_is_told_of_labels_in_names(tmp_path: Path, names: str, message: str) -> None:
    with pytest.raises(UserError, match=f"no class folders.*{message}"):
        open_source(write_files(tmp_path / "f", *names.split()))


def check(path: Path, scratch: Path, **class_map: str | None) -> list[str]:
    with open_source(path, Reading(class_map=class_map)) as source:
        with closing(Listing(scratch, source, class_map, "auto")) as listing:
            return listing.class_names


@pytest.mark.parametrize(
    "folders, kind",
    [
        ([f"S{i:03}" for i in range(5, 75)], r"70 labels .* numbered people or parts \(S005, S006"),
        (["part1", "part2"], "numbered people or parts"),
        (["AF01", "AM02", "BF01"], "numbered people or parts"),
        (["person 1", "person 2"], "numbered people or parts"),
        (["001", "002", "003"], "numbers of people"),
        (["aligned", "original"], "parts of a data set"),
        (["images", "labels"], "parts of a data set"),
        ([f"{a}nn{b}" for a in "ABCDEF" for b in "abcdef"], "people or other ids"),
        ([str(i) for i in range(1, 8)], None),
        (["S005", "happy"], None),
        (["class 1", "class 2"], None),
        (["AU1", "AU12"], None),
        (["wut", "freude"], None),
    ],
)
def test_classes_that_look_like_ids(tmp_path: Path, folders: list[str], kind: str | None) -> None:
    path = write_files(tmp_path / "f", *(f"{name}/{i}.png" for i, name in enumerate(folders)))
    if kind is None:
        assert check(path, tmp_path) == sorted(folders)
        return
    with pytest.raises(UserError, match=rf"{kind}.*prepare.label=.*prepare.person.*class_map=\{{{min(folders)}: "):
        check(path, tmp_path)
    (tmp_path / "listing.db").unlink()
    assert check(path, tmp_path, **{folders[0]: folders[0]}) == sorted(folders)


def test_archives_that_were_not_unpacked(tmp_path: Path) -> None:
    folder = make(tmp_path / "raf", EmoLabel__list_txt="train_1.jpg 5\n")
    (folder / "Image").mkdir()
    write_zip(folder / "Image" / "aligned.zip", {"aligned/train_1_aligned.jpg": b"x"})
    with pytest.raises(UserError, match=r"raf/Image holds archives\. Unpack them"):
        labelled(folder)


def test_what_was_settled_is_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the summary, in audit.json and on the page."""
    names = [f"{label}/{i}.png" for label in ("happy", "sad") for i in range(10)]
    rows = "".join(f"{name},{name.split('/')[0]}\n" for name in [*names[1:], names[-1]])
    texts = {"labels.csv": f"file,label\nhappy/0.png,sad\n{rows}".encode(), "sad/gone.png": b""}
    pictures = {name: draw_noise(i) for i, name in enumerate(names)}
    audit = prepare(prepare_params(write_zip(home.parent / "work" / "a.zip", pictures | texts)))
    astray = "files lie in the folder of another class than the table says, which counts (see prepare.label)"
    assert audit["notes"] == {f"{astray}: happy/0.png (sad)": 1, "rows name a file again, with the same label": 1}
    told, page = capsys.readouterr().out, Path("reports/audit.html").read_text()
    for note in audit["notes"]:
        assert f"noted 1: {note}" in told
        assert note in page
    assert "1 files without a label passed over, such as sad/gone.png" in told
