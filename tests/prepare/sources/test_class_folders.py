"""Class folders and archives, against trees and archives made by hand."""

import bz2
import gzip
import itertools
import lzma
import os
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from builders import list_items, read_contents, write_tar, write_zip

from pipeline.core.errors import UserError
from pipeline.inference.images import ImageError
from pipeline.prepare.catalogue import Listing
from pipeline.prepare.sources import archive as archives
from pipeline.prepare.sources.open import open_source
from pipeline.prepare.sources.source import Source, split_name
from pipeline.prepare.sources.tar import TarArchive

Tree = dict[str, bytes]


def as_folder(path: Path, tree: Tree) -> Path:
    with zipfile.ZipFile(as_zip(path, tree)) as archive:
        archive.extractall(path / "source")
    return path / "source"


def as_zip(path: Path, tree: Tree, method: int = zipfile.ZIP_DEFLATED) -> Path:
    return write_zip(path / "source.zip", tree, method)


def as_tar(path: Path, tree: Tree, kind: str = "") -> Path:
    return write_tar(path / f"source.tar{kind}", tree.items(), kind.strip("."))


KINDS = {
    "folder": as_folder,
    "zip": as_zip,
    "stored zip": lambda path, tree: as_zip(path, tree, zipfile.ZIP_STORED),
    "tar": as_tar,
    "tar.gz": lambda path, tree: as_tar(path, tree, ".gz"),
    "tar.bz2": lambda path, tree: as_tar(path, tree, ".bz2"),
    "tar.xz": lambda path, tree: as_tar(path, tree, ".xz"),
}
PLAIN = {"happy/a.png": b"A" * 3000, "sad/b (1).png": b"B", "sad/c.png": b""}


def listed(path: Path) -> list[tuple[str, str, str | None]]:
    return [(item.file, item.label, item.split) for item in list_items(path)]


def read(source: Source, file: str) -> bytes:
    """The bytes of one file."""
    (place,) = [item.place for item in source.items() if item.file == file]
    return next(source.fetch([place]))()


def check(path: Path) -> list[str]:
    """Open a source and list it, as prepare does, and return its classes."""
    with open_source(path) as source, tempfile.TemporaryDirectory() as folder:
        with closing(Listing(Path(folder), source, {}, "auto")) as listing:
            return listing.class_names


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_every_kind_of_source_gives_the_same(tmp_path: Path, make: Callable[[Path, Tree], Path]) -> None:
    tree = {
        "données/train/happy/b.png": b"one" * 5000,
        "données/train/happy/ä (2).png": b"two",
        "données/train/sad/c.png": bytes(range(256)),
        "données/Validation/happy/d.png": b"four",
        "données/Validation/sad/e.png": b"",
    }
    assert read_contents(path := make(tmp_path, tree)) == tree
    assert {found[1:] for found in listed(path)} == set(itertools.product(("happy", "sad"), ("train", "val")))


LAYOUTS = {
    "plain": ("{c}/{f}", [None]),
    "one folder around": ("faces/{c}/{f}", [None]),
    "deep": ("a/b/c/{c}/{f}", [None]),
    "folders in the classes": ("{c}/person 1/{f}", [None]),
    "splits": ("{s}/{c}/{f}", ["train", "val", "test"]),
    "splits in a folder": ("fer2013/{s}/{c}/{f}", ["train", "val", "test"]),
    "splits twice": ("{s}/{s}/{c}/{f}", ["train", "test"]),
    "folder between split and class": ("{s}/images/{c}/{f}", ["train", "test"]),
    "folder named as a split around": ("test/fer/{s}/{c}/{f}", ["train", "val"]),
    "folders in the classes of splits": ("{s}/{c}/person 1/{f}", ["train", "val"]),
    "no val": ("{s}/{c}/{f}", ["train", "test"]),
    "leading dot": ("./{s}/./{c}/{f}", ["train", "test"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_layouts(tmp_path: Path, layout: str, kind: str) -> None:
    pattern, splits = LAYOUTS[layout]
    expected = [
        (pattern.format(s=s, c=c, f=f"{i}.png"), c, s) for s in splits for c in ("happy", "sad") for i in range(2)
    ]
    path = KINDS[kind](tmp_path, {file: b"x" for file, _, _ in expected})
    clean = [(file.replace("./", ""), label, split) for file, label, split in expected]
    assert listed(path) == sorted(clean)


@pytest.mark.parametrize(
    "spellings, split",
    [
        ("train Train TRAIN training Training train_set train-images TrainSet training_data trn", "train"),
        ("val Val valid validation Validation VALIDATION dev PublicTest public_test Public-Test val_set", "val"),
        ("test Test testing PrivateTest private_test test_set testset test_images Test-Data", "test"),
        ("angry neutral contest trained invalid image set data 0 日本", None),
    ],
)
def test_split_names(spellings: str, split: str | None) -> None:
    assert {split_name(name) for name in spellings.split()} == {split}
    assert split_name(spellings.split()[0] + " set") == split


@pytest.mark.parametrize(
    "around, strays, junk",
    [
        (
            "",
            ["README.md", "labels.csv"],
            ["__MACOSX/happy/._a.png", "happy/.DS_Store", "sad/Thumbs.db", ".git/x/y", "happy/desktop.ini"],
        ),
        ("faces/", ["README.md", "faces/about.txt"], []),
        ("train/", ["extra/happy/y.png", "train/x.png"], []),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_strays_are_told_and_leftovers_are_not(
    tmp_path: Path, kind: str, around: str, strays: list[str], junk: list[str]
) -> None:
    tree = {f"{around}{name}": data for name, data in PLAIN.items()}
    with open_source(KINDS[kind](tmp_path, tree | dict.fromkeys(strays + junk, b""))) as source:
        assert {item.file: item.label for item in source.items()} == {name: name.split("/")[-2] for name in tree}
        assert sorted(source.ignored) == strays


def test_agrees_with_torchvision(tmp_path: Path) -> None:
    tree = {f"{label}/{i}/{i}.png": b"x" for label in ("b", "a b", "Z", "é", "10", "9") for i in range(3)}
    path = as_folder(tmp_path, tree)
    theirs = pytest.importorskip("torchvision.datasets").ImageFolder(path)
    ours = listed(path)
    names = sorted({label for _, label, _ in ours})
    assert names == theirs.classes
    assert {(str(path / file), names.index(label)) for file, label, _ in ours} == set(theirs.samples)


def test_composed_and_decomposed_letters_are_one_class(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "fâché") for form in ("NFC", "NFD")]
    assert names[0] != names[1]
    tree = {f"train/{names[0]}/a.png": b"", f"test/{names[1]}/b.png": b"", "train/x/c.png": b"", "test/x/d.png": b""}
    assert check(as_folder(tmp_path, tree)) == [names[0], "x"]


def test_names_in_a_tar_that_are_not_utf8(tmp_path: Path) -> None:
    """Anywhere: data set, class and file."""
    raw = (b"\xe9/happy/\xff.png", b"\xe9/sa\xe9/b.png", b"B/happy/c.png", b"B/sad/d.png")
    path = as_tar(tmp_path, {os.fsdecode(name): b"x" for name in raw})
    assert check(path) == ["happy", "sa\\udce9", "sad"]
    assert set(read_contents(path).values()) == {b"x"}


@pytest.mark.skipif(os.name == "nt", reason="names are bytes on POSIX only")
def test_a_name_that_is_not_utf8_can_be_listed_and_read(tmp_path: Path) -> None:
    path = as_folder(tmp_path, PLAIN)
    try:
        (path / "happy" / os.fsdecode(b"\xff.png")).write_bytes(b"odd")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with open_source(path) as source:
        odd = next(item.file for item in source.items() if "ff" in item.file)
        odd.encode("utf-8")
        assert read(source, odd) == b"odd"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    path = as_folder(tmp_path, PLAIN)
    os.mkfifo(path / "happy" / "pipe.png")
    with open_source(path) as source, pytest.raises(ImageError, match="regular"):
        read(source, "happy/pipe.png")


def test_order_of_members_and_later_twin_wins(tmp_path: Path) -> None:
    backwards = dict(reversed(PLAIN.items()))
    assert listed(as_zip(tmp_path, backwards)) == listed(as_folder(tmp_path, PLAIN))
    twice = [("happy/a", b"old"), ("sad/b", b"B"), ("happy/a", b"newer")]
    assert read_contents(write_tar(tmp_path / "twice.tar", twice)) == {"happy/a": b"newer", "sad/b": b"B"}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "folder"])
def test_reads_from_several_threads(tmp_path: Path, kind: str) -> None:
    tree = {f"{label}/{i}.bin": (label * (1 + 37 * i)).encode() for label in ("a", "b") for i in range(200)}
    with open_source(KINDS[kind](tmp_path, tree)) as source, ThreadPoolExecutor(8) as pool:
        items = list(source.items()) * 3
        found = pool.map(lambda fetch: fetch(), source.fetch(item.place for item in items))
        assert list(found) == [tree[item.file] for item in items]


# What cannot be trained on


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
@pytest.mark.parametrize(
    "files, message",
    [
        ("", "no class folders"),
        ("a.png b.png", "no class folders"),
        ("train/a.png", "no class folders|only one class"),
        ("train/a.png test/b.png", "no class folders"),
        ("happy/a.png", "only one class, 'happy'"),
        ("train/happy/a.png test/happy/b.png", "only one class, 'happy'"),
        ("test/happy/a.png test/sad/b.png", "no train split"),
        ("train/happy/a train/sad/b test/happy/c", "no files of class 'sad' in split 'test'"),
        ("train/happy/a test/sad/b test/happy/c", "no files of class 'sad' in split 'train'"),
        ("train/happy/a train/sad/b val/happy/c val/sad/", "no files of class 'sad' in split 'val'"),
        ("train/happy/a train/sad/b val/happy/ val/sad/", "no files of class 'happy' in split 'val'"),
        ("happy/a sad/b calm/", "no files of class 'calm'"),
    ],
)
def test_unusable_layouts(tmp_path: Path, kind: str, files: str, message: str) -> None:
    (tmp_path / "source").mkdir()
    path = KINDS[kind](tmp_path, dict.fromkeys(files.split(), b""))
    with pytest.raises(UserError, match=message) as caught:
        check(path)
    assert str(path) in str(caught.value)


# Archives that mean harm, or came to it

OUTSIDE = (
    "../evil.png", "happy/../../evil.png", "/etc/evil.png", "C:/evil.png", "c:evil.png", "..\\evil.png", "..",
    "\\\\server\\evil.png", "happy\\..\\..\\evil.png",
)  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_members_that_point_outside(tmp_path: Path, name: str, kind: str) -> None:
    path = KINDS[kind](tmp_path, PLAIN | {name: b"x"})
    with pytest.raises(UserError, match="outside") as caught:
        check(path)
    assert repr(name) in str(caught.value)


def test_dots_inside_a_name_are_harmless(tmp_path: Path) -> None:
    assert len(listed(as_zip(tmp_path, PLAIN | {"happy/a..b.png": b"", "sad/...png ..x": b""}))) == 4


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../x", "happy/a.png"])
def test_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes, target: str) -> None:
    path = as_tar(tmp_path, PLAIN)
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("happy/link.png")
        info.type, info.linkname = kind, target
        archive.addfile(info)
    with pytest.raises(UserError, match=r"'happy/link.png' is (a link|not a plain file)"):
        check(path)


@pytest.mark.parametrize("size", [-512, -1024, -(2**40)])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_tar_whose_member_has_a_negative_size(tmp_path: Path, kind: bytes, size: int) -> None:
    """It led back to its own header, for ever; Python from 3.11.14 on refuses it itself."""
    first, info = tarfile.TarInfo("happy/a.png"), tarfile.TarInfo("happy/back.png")
    first.size, info.type = 512, kind
    header = bytearray(info.tobuf())
    header[124:136] = b"\xff" + (size % 2**88).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * ord(" "))
    path = tmp_path / "back.tar"
    path.write_bytes(first.tobuf() + bytes(512) + header + bytes(1024))
    with closing(TarArchive(path)) as archive, pytest.raises(UserError, match=r"negative size|damaged"):
        list(itertools.islice(archive.members(), 9))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_zip_member_that_unpacks_to_more_than_it_claims(tmp_path: Path, method: int) -> None:
    bomb = bytes(1_000_000)
    path = as_zip(tmp_path, PLAIN)
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr("sad/bomb.png", bomb)
        info = archive.getinfo("sad/bomb.png")
        info.file_size, info.CRC = 100, zlib.crc32(bomb[:100])
    with zipfile.ZipFile(path) as archive:  # the library itself notices nothing
        assert len(archive.read("sad/bomb.png")) == 100
    with (
        open_source(path) as source,
        pytest.raises(UserError, match=r"'sad/bomb.png' unpacks to more than the 100 bytes"),
    ):
        read(source, "sad/bomb.png")


def test_member_that_claims_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 10_000)
    for kind in ("zip", "tar", "tar.gz"):
        with pytest.raises(UserError, match=r"'sad/big.png' is larger than"):
            check(KINDS[kind](tmp_path, PLAIN | {"sad/big.png": os.urandom(10_001)}))
    with open_source(as_folder(tmp_path, PLAIN)) as source:
        assert len(read(source, "happy/a.png")) == 3000


def test_absurd_ratio(tmp_path: Path) -> None:
    bomb = bytes(archives.RATIO_FLOOR_BYTES + 1)
    with pytest.raises(UserError, match=r"'sad/bomb.png' unpacks to more than 200 times"):
        check(as_zip(tmp_path, PLAIN | {"sad/bomb.png": bomb}))
    # A plain picture of moderate size packs as well, and is none.
    assert len(listed(as_zip(tmp_path, PLAIN | {"sad/plain.bmp": bytes(1_000_000)}))) == 4


def link_in_zip(path: Path) -> Path:
    file = as_zip(path, PLAIN)
    with zipfile.ZipFile(file, "a") as archive:
        info = zipfile.ZipInfo("happy/link.png")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return file


def overwritten(file: Path, at: int, data: bytes) -> Path:
    """An archive, with some bytes of it replaced."""
    content = bytearray(file.read_bytes())
    content[at : at + len(data)] = data
    file.write_bytes(content)
    return file


def overlapping(path: Path) -> Path:
    file = as_zip(path, {"happy/a.png": os.urandom(5000), "sad/b.png": os.urandom(5000)})
    return overwritten(file, file.read_bytes().rfind(b"PK\x01\x02") + 42, bytes(4))  # both are said to start at 0


def encrypted(path: Path) -> Path:
    file = as_zip(path, PLAIN)
    return overwritten(file, file.read_bytes().find(b"PK\x01\x02") + 8, b"\1")


def damaged_header(path: Path) -> Path:
    file = as_tar(path, {f"{label}/{i}.png": b"x" for label in ("happy", "sad") for i in range(4)})
    return overwritten(file, 6 * 1024 + 100, b"\xff")  # the seventh member's: each takes 512 + 512 bytes


def absurd_tar(path: Path, name: str, kind: bytes, packing: ModuleType) -> Path:
    """A tar whose one header claims gigabytes."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, 2**33 - 1
    (path / "bomb.tar.gz").write_bytes(packing.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**20)))
    return path / "bomb.tar.gz"


@pytest.mark.parametrize(
    "make, message",
    [
        *(
            (partial(absurd_tar, name="././@PaxHeader", kind=tarfile.XHDTYPE, packing=packing), "header of absurd size")
            for packing in (gzip, bz2, lzma)
        ),
        (link_in_zip, r"'happy/link.png' is a link"),
        (overlapping, "overlaps"),
        (encrypted, r"'happy/a.png' is encrypted"),
        (lambda path: as_zip(path, PLAIN, zipfile.ZIP_BZIP2), "another method than deflate"),
        (damaged_header, "breaks off"),
        (
            partial(absurd_tar, name="sad/bomb.png", kind=tarfile.REGTYPE, packing=gzip),
            "'sad/bomb.png' makes it unpack to more than 200 times",
        ),
    ],
)
def test_open_source_refuses_harmful_archives(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(make(tmp_path))


@pytest.mark.parametrize("kind", ["zip", "stored zip"])
def test_damaged_zip_member_is_a_bad_image_and_no_more(tmp_path: Path, kind: str) -> None:
    tree = {"happy/a.png": os.urandom(3000), "sad/b.png": b"fine"}
    path = overwritten(KINDS[kind](tmp_path, tree), 1000, bytes(50))
    with open_source(path) as source:
        assert read(source, "sad/b.png") == b"fine"
        with pytest.raises(ImageError, match="damaged in the archive"):
            read(source, "happy/a.png")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("part", [0.4, 0.7])
def test_archive_that_breaks_off(tmp_path: Path, kind: str, part: float) -> None:
    tree = {f"{label}/{i}.png": os.urandom(700) for label in ("happy", "sad") for i in range(20)}
    path = KINDS[kind](tmp_path, tree)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(UserError, match="damaged"):
        check(path)


def test_closed_after_the_block(tmp_path: Path) -> None:
    with open_source(as_zip(tmp_path, PLAIN)) as source:
        fetch = next(source.fetch(item.place for item in source.items()))
    with pytest.raises(ImageError):
        fetch()
