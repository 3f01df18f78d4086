"""The stage from source to arrays: what it writes, cuts, leaves out, and leaves behind when it fails."""

import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from builders import ROOT, draw_noise, drawn_faces, encode, grey_png, prepare_params, write_zip
from PIL import Image
from ruamel.yaml import YAML

from pipeline.core.dataset import load_prepared
from pipeline.core.errors import UserError
from pipeline.prepare import stage
from pipeline.prepare.stage import prepare

Tree = dict[str, bytes]


def tree_of(counts: dict[str, int], start: int = 0) -> Tree:
    """``counts`` pictures in each folder, all different."""
    seeds = iter(range(start, 10**6))
    return {f"{folder}/{i:03}.png": draw_noise(next(seeds)) for folder, count in counts.items() for i in range(count)}


def manifest() -> pd.DataFrame:
    return pd.read_csv("data/prepared/manifest.csv", dtype=str, keep_default_na=False).astype({"row": int})


def written(home: Path) -> dict[str, bytes]:
    """Everything below the working folder."""
    return {str(path.relative_to(home)): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}


FILES = {f"data/prepared/{name}" for name in ("train.npy", "val.npy", "test.npy")}
FILES |= {"data/prepared/manifest.csv", "data/prepared/classes.json", "data/prepared/parity.zip"}
FILES |= {"reports/audit.json", "reports/audit.html"}
SPLITS = {"train/happy": 8, "train/sad": 5, "val/happy": 2, "val/sad": 3, "test/happy": 9, "test/sad": 12}


def test_every_image_is_where_the_manifest_says(home: Path, tmp_path: Path) -> None:
    tree = tree_of(SPLITS)
    prepare(prepare_params(write_zip(tmp_path / "s.zip", tree)))
    assert set(written(home)) == FILES
    table = manifest()
    assert list(table["file"]) == sorted(tree)
    assert list(table.columns) == ["file", "label", "split", "row", "sha256", "flags", "twins"]
    for split in ("train", "val", "test"):
        array = np.load(f"data/prepared/{split}.npy", mmap_mode="r")
        part = table[table["split"] == split]
        assert array.dtype == np.uint8
        assert array.shape == (len(part), 12, 12, 1)
        assert sorted(part["row"]) == list(range(len(part)))
        for line in part.itertuples():
            assert line.file.startswith(f"{split}/{line.label}/")
            np.testing.assert_array_equal(array[line.row, ..., 0], Image.open(io.BytesIO(tree[line.file])))
    classes = json.loads(Path("data/prepared/classes.json").read_text(encoding="utf-8"))
    expected = {"train": {"happy": 8, "sad": 5}, "val": {"happy": 2, "sad": 3}, "test": {"happy": 9, "sad": 12}}
    assert classes.pop("counts") == expected
    assert len(classes.pop("digest")) == 64
    assert set(classes.pop("split_digests")) == {"train", "val", "test"}
    assert classes.pop("audit") == {"redundant": 0, "conflicting_groups": 0, "test_in_train": 0}
    for name, digest in classes.pop("files").items():
        assert digest == hashlib.sha256(Path("data/prepared", name).read_bytes()).hexdigest()
    assert len(classes.pop("sha256")) == 64
    load_prepared().split("test")  # what is written is what is read: no sum speaks against it
    assert classes == {"class_names": ["happy", "sad"], "img_size": 12, "channels": 1, "faces": None}


def test_parity_zip_holds_untouched_bytes_of_every_class(home: Path, tmp_path: Path) -> None:
    tree = tree_of(SPLITS)
    prepare(prepare_params(write_zip(tmp_path / "s.zip", tree)))
    by_row = {line.row: line for line in manifest().query("split == 'test'").itertuples()}
    with zipfile.ZipFile("data/prepared/parity.zip") as archive:
        members = archive.infolist()
        assert len(members) == 16
        assert {info.compress_type for info in members} == {zipfile.ZIP_STORED}
        labels = Counter()
        for info in members:
            line = by_row[int(Path(info.filename).stem)]
            assert info.filename == f"{line.row:06d}.png"
            assert archive.read(info) == tree[line.file]
            labels[line.label] += 1
    assert labels == {"happy": 8, "sad": 8}


def test_size_and_channels(home: Path, tmp_path: Path) -> None:
    options = {"img_size": 20, "channels": 3, "val_fraction": 0.0, "test_fraction": 0.0}  # of splits that are given
    prepare(prepare_params(write_zip(tmp_path / "s.zip", tree_of(SPLITS)), **options))
    array = np.load("data/prepared/val.npy")
    assert array.shape == (5, 20, 20, 3)
    assert (array[..., 0] == array[..., 2]).all()


# Bad files


def test_bad_files_are_counted_named_and_left_out(home: Path, tmp_path: Path) -> None:
    tree = tree_of(SPLITS)
    cut = draw_noise(1, 40)[:500]
    bad = {"train/happy/notes.txt": b"hello", "train/sad/empty.png": b"", "test/sad/cut.png": cut}
    audit = prepare(prepare_params(write_zip(tmp_path / "s.zip", tree | bad)))
    assert json.loads(Path("reports/audit.json").read_text(encoding="utf-8")) == audit
    assert audit["images"] == len(tree) + 3
    assert audit["corrupt"] == 3
    assert {item["file"] for item in audit["bad_files"]} == set(bad)
    assert all(item["reason"] for item in audit["bad_files"])
    assert sum(sum(classes.values()) for classes in audit["splits"].values()) == len(tree)
    left_out = manifest().query("row == -1")
    assert set(left_out["file"]) == set(bad)
    assert set(left_out["flags"]) == {"corrupt"}
    assert set(left_out["sha256"]) == {""}
    assert np.load("data/prepared/train.npy").shape[0] == 13


def test_too_many_bad_files(home: Path, tmp_path: Path) -> None:
    bad = {f"train/sad/bad {i:02}.jpg": b"\xff\xd8\xff garbage" for i in range(12)}
    source = write_zip(tmp_path / "s.zip", tree_of(SPLITS) | bad)
    with pytest.raises(UserError, match=r"12 of 51 files cannot be read.*max_bad_fraction \(0.2\)") as caught:
        prepare(prepare_params(source))
    named = [f"bad {i:02}.jpg" in str(caught.value) for i in range(12)]
    assert named == [True] * 10 + [False] * 2
    assert set(written(home)) == set()
    assert prepare(prepare_params(source, max_bad_fraction=12 / 51))["corrupt"] == 12


def test_blank_and_duplicate_images(home: Path, tmp_path: Path) -> None:
    tree = tree_of(SPLITS)
    other_format = encode(Image.open(io.BytesIO(tree["test/sad/000.png"])), "BMP")
    tree |= {"train/happy/twin.bmp": other_format, "train/sad/again.png": tree["test/sad/000.png"]}
    tree |= dict.fromkeys(("train/sad/black 1.png", "val/sad/black 2.png"), grey_png(0, (12, 12)))
    audit = prepare(prepare_params(write_zip(tmp_path / "s.zip", tree)))
    assert audit["blank"] == 2
    assert audit["exact"] == {"groups": 2, "redundant": 3, "conflicting_groups": 1}
    assert audit["leaks"] == {"test_in_train": 1, "val_in_train": 1, "test_in_val": 0}
    flags = {line.file: line.flags for line in manifest().itertuples() if line.flags}
    assert flags == {
        "test/sad/000.png": "duplicate;conflict;leak",
        "train/happy/twin.bmp": "duplicate;conflict",
        "train/sad/again.png": "duplicate;conflict",
        "train/sad/black 1.png": "blank;dark;duplicate",
        "val/sad/black 2.png": "blank;dark;duplicate;leak",
    }
    # Counted by pandas from the manifest, which keeps them all in their arrays.
    table = manifest()
    assert table.duplicated("sha256").sum() == audit["exact"]["redundant"]
    assert (table["row"] >= 0).all()
    twins = table[table["twins"] != ""]
    assert sorted(map(set, twins.groupby("twins")["file"].agg(list)), key=len) == [
        {"train/sad/black 1.png", "val/sad/black 2.png"},
        {"test/sad/000.png", "train/happy/twin.bmp", "train/sad/again.png"},
    ]


def face(number: int, mirrored: bool = False) -> bytes:
    """A drawn face of the sample, losslessly stored."""
    image = drawn_faces()[number, ..., 0]
    return encode(image[:, ::-1] if mirrored else image)


def faces_with_twins() -> Tree:
    """Twelve different faces a class in train and four in val and test; twins are added, exact and near ones."""
    tree, number = {}, iter(range(1000))
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for label in ("happy", "sad"):
            tree |= {f"{split}/{label}/{i:02}.png": face(next(number)) for i in range(count)}
    return tree | {
        "train/happy/of test.png": tree["test/happy/00.png"],
        "train/sad/of val.png": face(24, mirrored=True),  # the first one of val/happy
        "train/sad/of happy.png": tree["train/happy/03.png"],
        "train/happy/of happy.png": face(5, mirrored=True),
    }


@pytest.mark.parametrize(
    "changes, gone, leaks",
    [
        ({}, {"happy/of test", "sad/of val", "sad/of happy", "happy/03"}, set()),
        ({"duplicates": "drop_exact_from_train", "conflicts": "keep"}, {"happy/of test"}, {"val/happy/00.png"}),
        ({"duplicates": "keep", "conflicts": "keep"}, set(), {"test/happy/00.png", "val/happy/00.png"}),
    ],
)
def test_training_twins_are_left_out(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    gone: set[str],
    leaks: set[str],
) -> None:
    tree = faces_with_twins()
    options = {"img_size": 48, "duplicates": "drop_from_train", "conflicts": "majority"} | changes
    audit = prepare(prepare_params(write_zip(tmp_path / "s.zip", tree), **options))
    table = manifest()
    left_out = table[table["row"] < 0]
    assert set(left_out["file"]) == {f"train/{name}.png" for name in gone}
    assert left_out["flags"].str.endswith("dropped").all()
    twins, conflicts = gone & {"happy/of test", "sad/of val"}, gone & {"sad/of happy", "happy/03"}
    assert audit["dropped"] == {"twins": len(twins), "conflicts": len(conflicts)}
    said = capsys.readouterr().out
    assert (f"left out of training {len(twins)}: twin of a val or test image" in said) == bool(twins)
    assert (f"left out of training {len(conflicts)}: twin with another label" in said) == bool(conflicts)
    assert np.load("data/prepared/train.npy").shape[0] == 28 - len(gone)
    assert sum(audit["splits"]["train"].values()) == 28 - len(gone)
    for split in ("val", "test"):
        assert np.load(f"data/prepared/{split}.npy").shape[0] == 8
    assert set(table[table["flags"].str.contains("leak")]["file"]) == leaks
    # What the source has, whatever is done about it.
    assert audit["exact"] == {"groups": 2, "redundant": 2, "conflicting_groups": 1}
    assert audit["leaks"] == {"test_in_train": 1, "val_in_train": 0, "test_in_val": 0}
    near_leaks = {"test_in_train": 0, "val_in_train": 1, "test_in_val": 0}
    assert audit["near"] == {"groups": 2, "redundant": 2, "conflicting_groups": 1, "leaks": near_leaks}
    headline = json.loads(Path("data/prepared/classes.json").read_text(encoding="utf-8"))["audit"]
    assert headline == {"redundant": 4, "conflicting_groups": 2, "test_in_train": 1}
    html = Path("reports/audit.html").read_text(encoding="utf-8")
    assert html.count('<span class="out">left out</span>') >= len(gone)


def test_a_class_of_twins_only_is_explained(home: Path, tmp_path: Path) -> None:
    tree = tree_of(SPLITS | {"train/sad": 0})
    tree |= {"train/sad/a.png": tree["test/sad/000.png"], "train/sad/b.png": tree["val/sad/001.png"]}
    source = write_zip(tmp_path / "s.zip", tree)
    with pytest.raises(UserError, match=r"'sad' has no images for split 'train'.*prepare\.duplicates"):
        prepare(prepare_params(source, duplicates="drop_from_train"))
    assert written(home) == {}
    assert prepare(prepare_params(source))["splits"]["train"]["sad"] == 2


# Cuts


@pytest.mark.parametrize(
    "counts, train, val, test",
    [
        ({"a": 100, "b": 30, "c": 10}, [70, 21, 7], [20, 6, 2], [10, 3, 1]),
        ({"a": 20, "b": 3}, [14, 1], [4, 1], [2, 1]),
        ({"Training/a": 40, "Training/b": 20, "PrivateTest/a": 3, "PrivateTest/b": 4}, [32, 16], [8, 4], [3, 4]),
    ],
)
def test_prepare_cuts_the_splits_that_are_missing(
    home: Path, counts: dict[str, int], train: list[int], val: list[int], test: list[int]
) -> None:
    """Of every class a part; a split that the source has is never touched."""
    audit = prepare(prepare_params(write_zip(home / "s.zip", tree_of(counts))))
    assert {split: list(found.values()) for split, found in audit["splits"].items()} == {
        "train": train, "val": val, "test": test
    }  # fmt: skip
    table = manifest()
    if "PrivateTest/a" in counts:
        assert (table["file"].str.startswith("PrivateTest") == (table["split"] == "test")).all()


def test_near_twins_stay_on_one_side_of_a_cut(home: Path, tmp_path: Path) -> None:
    tree = {f"{'ab'[i % 2]}/{i}.png": face(i) for i in range(80)}
    tree |= {f"{'ab'[i % 2]}/{i} again.png": face(i, mirrored=True) for i in range(0, 80, 3)}
    for seed in range(2):
        audit = prepare(prepare_params(write_zip(tmp_path / "s.zip", tree), seed=seed, img_size=48))
        table = manifest()
        assert (table["twins"] != "").sum() == 54
        assert (table[table["twins"] != ""].groupby("twins")["split"].nunique() == 1).all()
        assert set(table[table["file"].str.contains("again")]["split"]) == {"train", "val", "test"}
        assert not any(audit["near"]["leaks"].values())


def test_seed_chooses_and_names_and_order_do_not(home: Path, tmp_path: Path) -> None:
    tree = tree_of({"a": 50, "b": 50})

    def chosen(tree: Tree, seed: int) -> dict[str, str]:
        prepare(prepare_params(write_zip(tmp_path / "s.zip", tree), seed=seed))
        return dict(zip(manifest()["sha256"], manifest()["split"], strict=True))

    first = chosen(tree, 1)
    renamed = {f"{name[0]}/{zlib.crc32(name.encode())}.png": data for name, data in reversed(tree.items())}
    assert chosen(renamed, 1) == first
    assert chosen(tree, 2) != first


@pytest.mark.parametrize(
    "counts, changes, message",
    [
        (
            SPLITS | {"val/sad": 0},
            {},
            "none of the 1 files of class 'sad' in split 'val' is a picture.*val/sad/broken.png",
        ),
        ({"a": 20, "b": 2}, {}, "'b' has no images for split"),
        ({"a": 20, "b": 20}, {"val_fraction": 0.0}, "prepare.val_fraction above 0"),
        ({"a": 20, "b": 20}, {"val_fraction": 0.95}, "nothing to train on"),
    ],
)
def test_prepare_refuses_splits_that_cannot_be(
    home: Path, tmp_path: Path, counts: dict[str, int], changes: dict[str, float], message: str
) -> None:
    """Files that cannot be read do not count."""
    source = write_zip(tmp_path / "s.zip", tree_of(counts) | {f"{folder}/broken.png": b"x" for folder in counts})
    with pytest.raises(UserError, match=message):
        prepare(prepare_params(source, **changes))
    assert written(home) == {}


def people_of(counts: dict[str, int]) -> Tree:
    """Two pictures of each of ``counts`` people a class."""
    names = [f"{label}/S{i}_{k}.png" for label, count in counts.items() for i in range(count) for k in range(2)]
    return {name: draw_noise(number) for number, name in enumerate(names)}


@pytest.mark.parametrize(
    "tree, changes, message",
    [
        (tree_of(SPLITS) | dict.fromkeys([f"test/happy/{i:03}.png" for i in range(9)], b"<html>"), {}, "none of the 9"),
        ({f"{label}/{i}.txt": b"text" for label in "ab" for i in range(30)}, {}, "none of the 30 files of class 'a'"),
        (tree_of({"a": 20, "b": 2}), {}, "'b' has 2 images to share, and train, test, val need one each"),
        (people_of({"a": 9, "b": 2}), {"person": r"S\d+"}, "'b' has 2 people to share.*person to null"),
        (tree_of({"a": 20, "b": 20}), {"test_fraction": 0.0}, "prepare.test_fraction above 0"),
        (tree_of({"a": 20, "b": 20}), {"val_fraction": 0.95}, "nothing to train on"),
    ],
)
def test_prepare_finds_out_before_it_decodes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Tree, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(stage, "decode_all", lambda *_, **__: pytest.fail("decodes"))
    with pytest.raises(UserError, match=message):
        prepare(prepare_params(write_zip(tmp_path / "s.zip", tree), **changes))
    assert written(home) == {}


def test_the_first_of_a_class_may_be_no_picture(home: Path, tmp_path: Path) -> None:
    tree = tree_of(SPLITS) | {"train/happy/000.png": b"", "train/happy/001.png": b"text"}
    assert prepare(prepare_params(write_zip(tmp_path / "s.zip", tree)))["corrupt"] == 2


# The same bytes from the same pictures; nothing from a failure


def test_same_input_same_bytes(home: Path, tmp_path: Path) -> None:
    tree = tree_of({"a": 40, "b": 70}) | {"b/bad.png": b"bad"}
    prepare(prepare_params(write_zip(tmp_path / "s.zip", tree)))
    first = written(home)
    shuffled = dict(sorted(tree.items(), key=lambda item: zlib.crc32(item[1])))
    prepare(prepare_params(write_zip(tmp_path / "t.zip", shuffled)))
    assert written(home) == first
    zipfile.ZipFile(tmp_path / "t.zip").extractall(tmp_path / "folder")
    prepare(prepare_params(tmp_path / "folder"))
    assert written(home) == first


def test_digest_follows_pixels_and_labels(home: Path, tmp_path: Path) -> None:
    def digest(tree: Tree) -> str:
        prepare(prepare_params(write_zip(tmp_path / "s.zip", tree)))
        return json.loads(Path("data/prepared/classes.json").read_text(encoding="utf-8"))["digest"]

    tree = tree_of(SPLITS)
    moved = {name.replace("train/sad/000", "train/happy/900"): data for name, data in tree.items()}
    renamed_class = {name.replace("happy", "glad"): data for name, data in tree.items()}
    one_pixel = tree | {"train/sad/000.png": draw_noise(77)}
    assert len({digest(variant) for variant in (tree, moved, renamed_class, one_pixel)}) == 4
    assert digest(tree) == digest(dict(reversed(tree.items())))


@pytest.mark.parametrize(
    "name", ["write_arrays", "write_manifest", "write_parity_pictures", "write_json", "decode_all"]
)
@pytest.mark.parametrize("before", [False, True])
def test_a_failure_leaves_what_was_there(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, before: bool
) -> None:
    if before:
        prepare(prepare_params(write_zip(tmp_path / "s.zip", tree_of(SPLITS))))
    there = written(home)

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt if name == "write_arrays" else OSError("disk full")

    monkeypatch.setattr(stage, name, fail)
    with pytest.raises((OSError, KeyboardInterrupt)):
        prepare(prepare_params(write_zip(tmp_path / "t.zip", tree_of({"a": 30, "b": 30}))))
    assert written(home) == there


def test_a_bomb_in_an_archive_stops_the_stage(home: Path, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "s.zip", tree_of(SPLITS))
    with zipfile.ZipFile(source, "a") as archive:
        archive.getinfo("train/happy/000.png").file_size = 5  # it claims so
        archive.writestr("README.txt", "")  # else the list of members is not written again
    with pytest.raises(UserError, match=r"train/happy/000.png' unpacks to more than the 5 bytes"):
        prepare(prepare_params(source))
    assert written(home) == {}


def test_no_room_on_the_disk(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="Make room"):
        prepare(prepare_params(write_zip(tmp_path / "s.zip", tree_of(SPLITS))))
    assert written(home) == {}


def test_odd_names_survive_the_manifest(home: Path, tmp_path: Path) -> None:
    tree = {f"{split}/{name}": data for split in ("train", "val", "test") for name, data in tree_of({"a,b": 1}).items()}
    odd = ['日 本/"quoted", x.png', "日 本/NA.png", "日 本/line\nbreak.png", "日 本/=1+1.png"]
    tree |= {f"{split}/{name}": draw_noise(i) for split in ("train", "val", "test") for i, name in enumerate(odd)}
    prepare(prepare_params(write_zip(tmp_path / "s.zip", tree)))
    with open("data/prepared/manifest.csv", encoding="utf-8", newline="") as file:
        assert {line["file"] for line in csv.DictReader(file)} == set(tree)
    assert json.loads(Path("data/prepared/classes.json").read_text(encoding="utf-8"))["class_names"] == ["a,b", "日 本"]


# As a process


def run_stage(home: Path, source: str, **options: Any) -> subprocess.Popen[str]:
    """The stage as DVC starts it; other sections are taken from the repository's own parameters."""
    content = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["prepare"] = prepare_params(source).model_dump() | options
    with (home / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(content, file)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "pipeline.prepare"], cwd=home, env=environment, **pipes)


def test_command_shows_progress_and_a_summary(home: Path, tmp_path: Path) -> None:
    tree = tree_of(SPLITS | {"val/happy": 0, "val/sad": 0}) | {"README.txt": b"hello"}
    process = run_stage(home, write_zip(tmp_path / "s.zip", tree))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "34/34" in err
    assert "34 images of 2 classes: happy, sad" in out
    assert "(cut from train)" in out
    assert "README.txt" in out
    assert "torch" not in err


def test_command_shows_a_mistake_without_a_traceback(home: Path) -> None:
    process = run_stage(home, "nowhere.zip")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("error: prepare.source: nowhere.zip does not exist")
    assert "Traceback" not in err


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_command_leaves_nothing(home: Path, tmp_path: Path, sign: int) -> None:
    slow = grey_png(0, (5000, 5000))  # small to store, long to decode
    tree = {f"{label}/{i}.png": slow for label in ("a", "b") for i in range(100)}
    process = run_stage(home, write_zip(tmp_path / "s.zip", tree))
    deadline = time.monotonic() + 30
    while not list(home.glob("data/.prepared*/*/pixels")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(sign)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert set(written(home)) == {"params.yaml"}
