"""Prepared data: that images, targets and files belong together, and what is said where they do not."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import invert_block, seal_prepared, write_zip

from pipeline.core.dataset import load_prepared
from pipeline.core.errors import UserError
from pipeline.core.stage_files import DatasetFile


def write(folder: Path, manifest: str, class_names: list[str], **arrays: np.ndarray) -> Path:
    """Write a data set by hand: images of 2 px, grey."""
    folder.mkdir()
    for name, values in arrays.items():
        # Each image is of one value, by which a test recognises it.
        np.save(folder / f"{name}.npy", np.broadcast_to(values[:, None, None, None], (len(values), 2, 2, 1)))
    (folder / "manifest.csv").write_text(manifest, encoding="utf-8")
    return seal_prepared(folder, class_names=class_names, img_size=2, channels=1, digest="d")


def test_rows_order_the_files_and_left_out_files_are_gone(tmp_path: Path) -> None:
    """The manifest is sorted by file; ``row`` says which image is whose."""
    manifest = (
        "file,label,split,row,sha256,flags\n"
        "a.png,sad,train,2,,\n"
        "b.png,happy,val,0,,\n"
        "c.png,happy,train,0,,\n"
        "d.png,sad,train,-1,,corrupt\n"
        "e.png,sad,train,1,,\n"
    )
    pixels = np.array([10, 20, 30], dtype=np.uint8)
    path = write(tmp_path / "p", manifest, ["happy", "sad"], train=pixels, val=pixels[:1])
    prepared = load_prepared(path)
    train = prepared.split("train")
    assert train.files == ["c.png", "e.png", "a.png"]
    assert train.targets.tolist() == [0, 1, 1]
    assert train.targets.dtype == np.int64
    assert train.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert len(train) == 3
    assert prepared.split("val").files == ["b.png"]
    assert (prepared.img_size, prepared.channels, prepared.digest) == (2, 1, "d")


def test_leaks_are_the_images_with_that_flag(tmp_path: Path) -> None:
    manifest = (
        "file,label,split,row,sha256,flags,twins\n"
        "a.png,sad,test,2,,duplicate;leak,1\n"
        "b.png,happy,test,0,,,\n"
        "c.png,sad,train,0,,duplicate,1\n"
        "d.png,happy,test,1,,near,2\n"
    )
    path = write(tmp_path / "p", manifest, ["happy", "sad"])
    assert load_prepared(path).leaks("test").tolist() == [False, False, True]
    assert load_prepared(path).leaks("train").tolist() == [False]
    assert load_prepared(path).leaks("val").tolist() == []


def test_soft_labels_and_weights_where_there_are_some(tmp_path: Path) -> None:
    manifest = (
        "file,label,split,row,sha256,flags,twins,weight\n"
        "a.png,sad,train,1,,,,0.5\n"
        "b.png,happy,train,0,,,,2\n"
        "c.png,happy,val,0,,,,1.0\n"
    )
    path = write(tmp_path / "p", manifest, ["happy", "sad"], train=np.uint8([1, 2]), val=np.uint8([3]))
    shares = np.array([[0.75, 0.25], [0, 1]], np.float32)
    np.save(path / "train_soft.npy", shares)
    seal_prepared(path)
    train, val = load_prepared(path).split("train"), load_prepared(path).split("val")
    np.testing.assert_array_equal(train.soft, shares)
    assert train.weights.tolist() == [2, 0.5]
    assert train.weights.dtype == np.float32
    assert (val.soft, val.weights.tolist()) == (None, [1])
    np.save(path / "val_soft.npy", shares)
    with pytest.raises(UserError, match=r"val_soft.npy holds float32 \(2, 2\).*float32 \(1, 2\)"):
        load_prepared(path).split("val")


def test_names_stay_text(tmp_path: Path) -> None:
    """No label or file turns into a number or a missing value on the way."""
    labels = ["01", "1", "NA", "None", "nan", "null", "true"]
    files = ["007", "NaN", "3.10", "é,x.png", "", "inf", "0x1"]
    lines = [f'"{file}",{label},train,{row},,' for row, (file, label) in enumerate(zip(files, labels))]
    manifest = "file,label,split,row,sha256,flags\n" + "\n".join(lines) + "\n"
    path = write(tmp_path / "p", manifest, labels, train=np.arange(7, dtype=np.uint8))
    train = load_prepared(path).split("train")
    assert train.targets.tolist() == list(range(7))
    assert train.files == files


def test_pixels_stay_on_disk(prepared_dir: Path) -> None:
    """A split is mapped, and cannot be written to by mistake; it has no soft labels or weights by itself."""
    train = load_prepared(prepared_dir).split("train")
    assert (train.soft, train.weights) == (None, None)
    images = train.images
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    np.testing.assert_array_equal(images, np.load(prepared_dir / "train.npy"))


def edit_manifest(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    """Apply a change to the manifest of a data set."""

    def mutate(path: Path) -> None:
        file = path / "manifest.csv"
        change(pd.read_csv(file)).to_csv(file, index=False)
        seal_prepared(path)

    return mutate


def write_manifest(content: bytes) -> Callable[[Path], None]:
    """Write other bytes in place of the manifest, with their sum."""

    def mutate(path: Path) -> None:
        (path / "manifest.csv").write_bytes(content)
        files = {"manifest.csv": hashlib.sha256(content).hexdigest()}
        DatasetFile.load(path).model_copy(update={"files": files}).save(path)

    return mutate


def edit_classes(**changes: object) -> Callable[[Path], None]:
    """Set keys of classes.json, which stays of one piece."""
    return lambda path: seal_prepared(path, **changes)


def save_train(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Apply a change to train.npy."""
    return lambda path: np.save(path / "train.npy", change(np.load(path / "train.npy")))


@pytest.mark.parametrize(
    "mutate, file",
    [
        (lambda path: (path / "classes.json").unlink(), "classes.json"),
        (lambda path: (path / "classes.json").write_text('{"class_names"'), "classes.json"),
        (lambda path: (path / "classes.json").write_text("[]"), "classes.json"),
        (lambda path: (path / "classes.json").write_text('{"class_names": []}'), "img_size"),
        (edit_classes(img_size=15), "train.npy"),
        (edit_classes(channels=3), "train.npy"),
        (edit_classes(class_names=["angry", "happy"]), "sad"),
        (lambda path: (path / "manifest.csv").unlink(), "manifest.csv"),
        (write_manifest(b"file,label\na,b\n"), "manifest.csv has no columns"),
        (write_manifest(b"\xff\xfe\x00"), "manifest.csv cannot be read"),
        (edit_manifest(lambda rows: rows.drop(index=3)), "train.npy"),
        (edit_manifest(lambda rows: rows.assign(row=rows["row"].replace(5, 6))), "manifest.csv"),
        (edit_manifest(lambda rows: rows.assign(row=rows["row"] + 1)), "manifest.csv"),
        (lambda path: (path / "train.npy").unlink(), "train.npy"),
        (lambda path: (path / "train.npy").write_bytes(b""), "train.npy"),
        (lambda path: (path / "train.npy").write_bytes(b"version https://example.com"), "train.npy"),
        (lambda path: (path / "train.npy").write_bytes((path / "train.npy").read_bytes()[:-1]), "train.npy"),
        (save_train(lambda images: images[:-1]), "train.npy"),
        (save_train(lambda images: images.astype(np.float32)), "train.npy"),
        (save_train(lambda images: images[..., 0]), "train.npy"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    mutate: Callable[[Path], None], file: str, prepared_dir: Path
) -> None:
    """Every such message names the file or the key, and the command that mends it."""
    mutate(prepared_dir)
    with pytest.raises(UserError) as caught:
        load_prepared(prepared_dir).split("train")
    assert file in str(caught.value)
    assert re.search("dvc repro (-f )?prepare", str(caught.value))


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """All that prepare may write: votes, weights, flags and pictures."""
    manifest = (
        "file,label,split,row,sha256,flags,twins,weight\n"
        "a.png,sad,train,1,,,,0.5\n"
        "b.png,happy,train,0,,,,2\n"
        "c.png,happy,test,0,,duplicate;leak,1,1.0\n"
    )
    path = write(tmp_path / "p", manifest, ["happy", "sad"], train=np.uint8([1, 2]), test=np.uint8([3]))
    np.save(path / "train_soft.npy", np.array([[0.75, 0.25], [0, 1]], np.float32))
    write_zip(path / "parity.zip", {"000000.png": b"picture"})
    return seal_prepared(path)


def invert(file: str) -> Callable[[Path], None]:
    """Invert the last bytes of a file."""
    return lambda path: invert_block(path / file)


def swap(file: str, old: str, new: str) -> Callable[[Path], None]:
    """Put other words into a text file."""

    def mutate(path: Path) -> None:
        text = (path / file).read_text()
        assert old in text
        (path / file).write_text(text.replace(old, new))

    return mutate


@pytest.mark.parametrize(
    "mutate, said",
    [
        (invert("train.npy"), "train.npy and the labels in manifest.csv are not what was prepared"),
        (invert("train_soft.npy"), "train.npy and the labels"),
        (lambda path: (path / "train_soft.npy").unlink(), "train.npy and the labels"),
        (invert("test.npy"), "test.npy and the labels"),
        (invert("parity.zip"), "parity.zip is not what was prepared"),
        (lambda path: (path / "parity.zip").unlink(), "parity.zip cannot be read"),
        (swap("manifest.csv", "a.png,sad", "a.png,happy"), "manifest.csv is not what was prepared"),
        (swap("manifest.csv", ";leak", ""), "manifest.csv is not what was prepared"),
        (swap("manifest.csv", ",0.5", ",0.4"), "manifest.csv is not what was prepared"),
        (swap("classes.json", '"happy",\n    "sad"', '"sad",\n    "happy"'), "classes.json was changed"),
        (swap("classes.json", '"faces": null', '"faces": {}'), "classes.json was changed"),
        (edit_classes(digest="e", split_digests={"train": "t"}), "train.npy and the labels"),
        (edit_classes(files={}), "classes.json is of an older version"),
    ],
)
def test_what_is_not_what_was_prepared_is_refused(mutate: Callable[[Path], None], said: str, full: Path) -> None:
    """Whatever its time says: all that results hang on is read and summed, each time."""

    def read(path: Path) -> None:
        prepared = load_prepared(path)
        prepared.read("parity.zip")
        for split in ("train", "test"):
            prepared.split(split)

    read(full)
    seal_prepared(full, faces=None)
    mutate(full)
    with pytest.raises(UserError, match=said) as caught:
        read(full)
    assert "`dvc repro -f prepare`" in str(caught.value)
