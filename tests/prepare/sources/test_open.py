"""Every form of source gives what the zip of class folders gives; forms are told apart by looking."""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import SAMPLE, list_items, load_script, prepare_params, read_contents, write_files, write_zip

from pipeline.core.dataset import load_prepared
from pipeline.core.errors import UserError
from pipeline.core.params import PrepareParams
from pipeline.prepare.catalogue import Listing
from pipeline.prepare.sources.open import Reading, open_source
from pipeline.prepare.sources.parquet_table import ParquetTable
from pipeline.prepare.sources.tree import Tree
from pipeline.prepare.stage import prepare

forms = load_script("benchmarks/forms.py")
load_script("benchmarks/stage.py")
comparison = load_script("benchmarks/sources.py")


def params(source: Path, **changes: Any) -> PrepareParams:
    return prepare_params(source, **({"img_size": 48, "max_bad_fraction": 0.0} | changes))


@pytest.fixture(scope="module")
def faces() -> list[Any]:
    """Eight faces of every class in every split, with their files' bytes."""
    found = forms.read_archive(SAMPLE, each=8)
    assert Counter((face.split, face.label) for face in found) == Counter(
        {(split, label): 8 for split in ("train", "val", "test") for label in forms.FER_NUMBERS}
    )
    return found


@pytest.mark.parametrize("name", forms.FORMS)
def test_every_form_gives_the_same(name: str, faces: list[Any], home: Path) -> None:
    """The expected arrays are decoded by Pillow alone."""
    source, more = forms.FORMS[name](faces, home.parent / "work")
    prepare(params(source, **more))
    expected = {
        split: [(face.label, face.pixels().tobytes()) for face in faces if face.split == split]
        for split in ("train", "val", "test")
    }
    verdict = comparison.compare(comparison.load(Path("data/prepared")), expected, only_train=name == "train.csv")
    merged_or_cut = ("folder of a folder and a zip", "train.csv")
    assert verdict == ("same, in another order" if name in merged_or_cut else "same")
    assert load_prepared().class_names == sorted(forms.FER_NUMBERS)


# Told apart by looking


def test_pictures_are_not_read_to_tell_what_a_table_is(
    tmp_path: Path, faces: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be taken for paths of thousands of parts, and 4,096 of them be held at once."""
    asked: list[str] = []
    inner = ParquetTable.rows

    def rows(self: ParquetTable, columns: Sequence[str], *rest: Any) -> Any:
        asked.extend(columns)
        return inner(self, columns, *rest)

    monkeypatch.setattr(ParquetTable, "rows", rows)
    folder, _ = forms.as_embedded(faces, tmp_path)
    with open_source(folder) as source:
        assert source.form == "Parquet with pictures in it"
    assert set(asked) == {"label"}


def test_long_cells_are_tried_for_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    inner = Tree.find
    monkeypatch.setattr(Tree, "find", lambda self, *given: (tried.append(given), inner(self, *given))[1])
    rows = "".join(f"{i},{'/9j' * 3000}\n" for i in range(50))
    folder = write_files(tmp_path / "f", "happy/a.png", "sad/b.png", notes=f"number,picture\n{rows}")
    with open_source(folder) as source:
        assert source.form == "class folders"
    assert len(tried) < 200


@pytest.mark.parametrize(
    "tables, form, labels",
    [
        ({"labels": "file,label\nhappy/a.png,sad\nsad/b.png,happy\n"}, "a table of pictures", ["sad", "happy"]),
        ({"notes": "when,what\n1,2\n", "empty": ""}, "class folders", ["happy", "sad"]),
    ],
)
def test_a_table_of_files_wins_over_class_folders(
    tmp_path: Path, tables: dict[str, str], form: str, labels: list[str]
) -> None:
    folder = write_files(tmp_path / "f", "happy/a.png", "sad/b.png", **tables)
    with open_source(folder) as source:
        assert source.form == form
    found = [(item.file, item.label, item.split) for item in list_items(folder)]
    assert found == [("happy/a.png", labels[0], None), ("sad/b.png", labels[1], None)]


def test_several_data_sets_in_one_folder(tmp_path: Path) -> None:
    """Class folders with and without splits, in folders and in archives, FER's CSV and a table, all at once."""
    root = tmp_path / "all of it"
    write_files(root / "CK+", "train/happy/S1.png", "train/sad/S2.png", "test/happy/S3.png")
    write_files(root / "mine", "p/1.png", "p/2.png", labels="image,emotion,subject\n1.png,Happy,Ann\n2.png,SAD,Bob\n")
    write_files(root / "fer", fer2013="emotion,pixels,Usage\n3,0 1 2 3,Training\n4,9 9 9 9,PrivateTest\n")
    write_zip(root / "more (1).zip", {"faces/Happy/x.png": b"x", "faces/Sad/y.png": b"y"})
    assert [(item.file, item.label.lower(), item.split, item.root, item.person) for item in list_items(root)] == [
        ("CK+/test/happy/S3.png", "happy", "test", "CK+", None),
        ("CK+/train/happy/S1.png", "happy", "train", "CK+", None),
        ("CK+/train/sad/S2.png", "sad", "train", "CK+", None),
        ("fer/fer0000000.pgm", "happy", "train", "fer", None),
        ("fer/fer0000001.pgm", "sad", "test", "fer", None),
        ("mine/p/1.png", "happy", None, "mine", "Ann"),
        ("mine/p/2.png", "sad", None, "mine", "Bob"),
        ("more (1).zip/faces/Happy/x.png", "happy", None, "more (1).zip", None),
        ("more (1).zip/faces/Sad/y.png", "sad", None, "more (1).zip", None),
    ]
    fer = [b"P5 2 2 255\n\0\1\2\3", b"P5 2 2 255\n\t\t\t\t"]
    folders = [b"test/happy/S3.png", b"train/happy/S1.png", b"train/sad/S2.png"]
    assert list(read_contents(root).values()) == [*folders, *fer, b"p/1.png", b"p/2.png", b"x", b"y"]


def test_several_data_sets_of_class_folders_only(tmp_path: Path) -> None:
    names = ["A/happy/1.png", "A/sad/2.png", "B/train/happy/3.png", "B/train/sad/4.png", "B/test/sad/5.png"]
    more = ["readme.txt", "around/A/odd/6.png", *(f"around/{name}" for name in names)]
    write_zip(tmp_path / "a.zip", dict.fromkeys(more, b"x"))
    write_files(tmp_path / "f", *names)
    for path, before in ((tmp_path / "a.zip", "around/"), (tmp_path / "f", "")):
        found = {(item.file.removeprefix(before), item.label, item.split, item.root) for item in list_items(path)}
        assert found - {("A/odd/6.png", "odd", None, f"{before}A")} == {
            ("A/happy/1.png", "happy", None, f"{before}A"),
            ("A/sad/2.png", "sad", None, f"{before}A"),
            ("B/train/happy/3.png", "happy", "train", f"{before}B"),
            ("B/train/sad/4.png", "sad", "train", f"{before}B"),
            ("B/test/sad/5.png", "sad", "test", f"{before}B"),
        }
        assert len(found) == 5 + (path.suffix == ".zip")


def test_a_data_set_of_unknown_names_among_others_is_not_lost(tmp_path: Path) -> None:
    names = ["A/happy/1.png", "A/sad/2.png", "B/happy/3.png", "B/sad/4.png", "C/class 1/5.png", "C/class 2/6.png"]
    folder = write_files(tmp_path / "f", *names)
    with pytest.raises(UserError, match=r"folders in C have no usual names.*'class [12]'.*prepare.class_map"):
        open_source(folder)
    assert len(list_items(folder, class_map={"Class 1": "1", "class 2": "2"})) == 6


def test_people_above_the_classes_are_no_classes(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "f", "Ann/happy/1.png", "Ann/sad/2.png", "Bob/happy/3.png", "Bob/sad/4.png")
    assert {item.label for item in list_items(folder)} == {"happy", "sad"}


@pytest.mark.parametrize(
    "texts, message",
    [
        ({"a": "emotion,pixels\n", "b": "emotion, Usage, pixels\n"}, "several tables of the same kind .a.csv, b.csv"),
        ({"test": "pixels\n0 0 0 0\n"}, "test.csv has pixels but no emotions.*hyojo predict"),
        (
            {"v": f"Usage,Image name,{','.join(forms.FERPLUS_COLUMNS)}\n"},
            "votes of FER.*Put fer2013.csv into the folder",
        ),
        ({"a": "what,else\n"}, "no class folders.*Looked for:.*Parquet with pictures.*FER2013's CSV"),
    ],
)
def test_folders_that_do_not_fit(tmp_path: Path, texts: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(write_files(tmp_path / "f", "x", **texts))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("faces.zip", b"", "of no known form.*zip or tar archive"),
        ("faces.zip", b"Rar!\x1a\x07\x01\0" + bytes(600), "of no known form"),
        ("faces.zip", b"7z\xbc\xaf'\x1c" + bytes(600), "of no known form"),
        ("faces.zip", b"hello", "of no known form"),
        ("a.csv", b"file,label\nx.png,happy\n", "Give the folder that holds it and the pictures"),
        ("a.csv", b"when,what\n", "columns when, what: no paths and labels.*Looked for"),
        ("test.csv", b"pixels\n0 0 0 0\n", "no emotions.*hyojo predict"),
        ("fer2013new.csv", ",".join(forms.FERPLUS_COLUMNS).encode(), "one folder with fer2013.csv"),
        ("a.parquet", b"PAR1 and then nothing", "damaged or no Parquet"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "damaged or no Parquet"),
        ("a.csv", b"\xff\xfe\x00\x01", "not UTF-8"),
        ("a.xlsx", b"PK\x05\x06" + bytes(18), "no class folders"),
        ("a.npy", b"\x93NUMPY", "of no known form.*Looked for"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_source(tmp_path / name)
    assert name in str(caught.value)


def test_an_archive_with_a_table_in_it_is_told_to_be_unpacked(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"fer2013/fer2013.csv": b"emotion,pixels,Usage\n"})
    with pytest.raises(UserError, match=r"a.zip holds fer2013/fer2013\.csv: unpack it"):
        open_source(tmp_path / "a.zip")


# Through the stage: what a user sets in prepare


def test_class_map_merges_renames_and_drops(faces: list[Any], home: Path) -> None:
    source, _ = forms.as_zip(faces, home.parent / "work")
    audit = prepare(params(source, class_map={"ANGRY": "upset", "disgust": "Upset", "fear": None, "sad": None}))
    prepared = load_prepared()
    assert prepared.class_names == ["happy", "neutral", "surprise", "upset"]
    assert audit["images"] == 5 * 24
    assert audit["left_out"] == {"prepare.class_map: fear": 24, "prepare.class_map: sad": 24}
    assert audit["splits"]["test"] == {"happy": 8, "neutral": 8, "surprise": 8, "upset": 16}
    expected = {face.pixels().tobytes() for face in faces if face.label in ("angry", "disgust")}
    found = comparison.load(Path("data/prepared"))
    assert {pixels for pairs in found.values() for label, pixels in pairs if label == "upset"} == expected


def test_soft_labels_reach_the_data_and_its_digest(faces: list[Any], home: Path) -> None:
    """Majority labels leave none there."""
    source, _ = forms.as_ferplus(faces, home.parent / "work")
    audit = prepare(params(source, labels="soft"))
    # Torn rows stay in with soft labels, those of no face do not.
    assert audit["left_out"] == {"FER+: unknown, no face, or no majority": 2}
    prepared = load_prepared()
    assert prepared.class_names == sorted(forms.FER_NUMBERS)
    soft = {name: prepared.split(name).soft for name in ("train", "val", "test")}
    for name, shares in soft.items():
        split = prepared.split(name)
        assert shares.dtype == np.float32
        assert shares.shape == (len(split), 7)
        np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_array_equal(shares.argmax(axis=1), split.targets)
    # 8 votes for the label; single votes count as slips; 4, 3 and 2 where people were torn.
    rows = np.concatenate([np.sort(shares, axis=1)[:, ::-1] for shares in soft.values()])
    torn = np.isclose(rows[:, 0], 4 / 9)
    np.testing.assert_allclose(rows[torn], [[4 / 9, 3 / 9, 2 / 9, 0, 0, 0, 0]], atol=1e-6)
    assert torn.sum() == 1
    np.testing.assert_allclose(rows[~torn, 0], 1)
    audit = prepare(params(source))
    assert audit["left_out"] == {"FER+: unknown, no face, or no majority": 3}
    plain = load_prepared()
    assert plain.split("train").soft is plain.split("train").weights is None
    assert plain.digest != prepared.digest


def test_votes_follow_the_class_map(home: Path) -> None:
    """By hand: four pictures, fear merged into sad, contempt dropped, all by the paper's columns."""
    columns = forms.FERPLUS_COLUMNS
    votes = dict.fromkeys(columns, [0] * 5) | {"happiness": [0, 8, 0, 2, 9], "contempt": [2, 2, 0, 8, 0]}
    votes |= {"sadness": [5, 0, 3, 0, 0], "fear": [3, 0, 3, 0, 0]}
    lines = [f"Usage,Image name,{','.join(columns)}"]
    lines += [f"Training,f,{','.join(str(votes[name][i]) for name in columns)}" for i in range(5)]
    pixels = ["emotion,pixels,Usage", *(f"0,{i} 0 0 {90 * i % 255},Training" for i in range(5))]
    folder = write_files(home.parent / "work", fer2013new="\n".join(lines), fer2013="\n".join(pixels))
    with open_source(folder, Reading(soft=True)) as source:
        with closing(Listing(home, source, {"fear": "sad", "contempt": None}, None)) as listing:
            assert listing.class_names == ["happy", "sad"]
            shares = listing.shares(np.arange(listing.count))
            assert list(listing.files()) == [f"fer000000{i}.pgm" for i in (0, 1, 2, 4)]
    np.testing.assert_allclose(shares, [[0, 1], [1, 0], [0, 1], [1, 0]], atol=1e-6)


def test_weights_and_people_from_a_table(faces: list[Any], home: Path) -> None:
    faces = [face._replace(path=f"{i}.png") for i, face in enumerate(faces)]
    folder = forms.write_files(faces, home.parent / "work")
    people = {face.path: f"P{i % 21}" for i, face in enumerate(faces)}
    lines = ["path,label,weight,subject"]
    lines += [f"{face.path},{face.label},{1.5 if i % 2 else ''},{people[face.path]}" for i, face in enumerate(faces)]
    write_files(folder, labels="\n".join(lines))
    prepare(params(folder))
    prepared = load_prepared()
    splits = {name: prepared.split(name) for name in ("train", "val", "test")}
    own = [{people[file] for file in split.files} for split in splits.values()]
    assert sum(map(len, own)) == len(set.union(*own)) == 21
    weight = {face.path: 1.5 if i % 2 else 1.0 for i, face in enumerate(faces)}
    for split in splits.values():
        assert split.weights.dtype == np.float32
        assert split.weights.tolist() == [weight[file] for file in split.files]
    header = Path("data/prepared/manifest.csv").read_text().splitlines()[0]
    assert header == "file,label,split,row,sha256,flags,twins,person,weight"


def test_embedded_pictures_that_are_missing_are_bad_images(faces: list[Any], home: Path) -> None:
    pictures = [{"bytes": face.data, "path": None} for face in faces]
    pictures[3]["bytes"] = None
    table = pa.table({"image": pictures, "label": [face.label for face in faces]})
    pq.write_table(table, home.parent / "work" / "a.parquet", row_group_size=50)
    audit = prepare(params(home.parent / "work" / "a.parquet", max_bad_fraction=0.01))
    assert audit["bad_files"] == [{"file": "a.parquet/0000003", "reason": "no bytes in its row"}]
    assert audit["images"] == len(faces)
