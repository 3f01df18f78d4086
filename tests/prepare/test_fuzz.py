"""Bad sources by the thousand: each is read, or refused in words; none crashes, hangs, escapes or swallows the memory.

Valid sources of every form are damaged at random: bytes of their files, cells of their tables, names and members of
their archives. The short run is a part of the suite; the long one prints what became of its cases.
"""

import functools
import io
import itertools
import re
import resource
import shutil
import signal
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from builders import ROOT, SAMPLE, draw_noise, encode, load_script, prepare_params
from PIL import Image

from pipeline.core.errors import UserError
from pipeline.core.params_file import parse_params
from pipeline.inference import images
from pipeline.inference.images import ImageError
from pipeline.prepare.stage import prepare

forms = load_script("benchmarks/forms.py")
SECONDS = 20  # of a case; usual ones take some hundredths
MEBIBYTES = 700  # by which the process may grow over all cases
TEXTS = (
    b"\xef\xbb\xbf", b"\x00", b'"', b",", b";", b"\r", b"\n\n", b"nan", b"-1", b"1e999", b"99999999999999999999",
    b"inf", b"../../escaped.png", b"/tmp/escaped.png", b"C:\\escaped.png", b"\xff\xfe", b"\xed\xa0\x80",
    "\u202e表情".encode(), b"=cmd()", b"x" * 70_000, b"{{ 7*7 }}", b"<script>", b"%s%n", b"PAR1", b"PK\x05\x06",
    b"\x1f\x8b",
)  # fmt: skip


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Change bytes: cut off, overwrite, flip, insert, repeat, swap lines, or encode otherwise."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        size = max(1, len(data))
        start = int(rng.integers(size))
        stop = min(size, start + int(2 ** rng.uniform(0, 9)))
        kind = int(rng.integers(9))
        if kind == 0:
            del data[start:]
        elif kind == 1:
            data[start:stop] = rng.bytes(stop - start)
        elif kind == 2 and data:
            data[start % len(data)] ^= 1 << int(rng.integers(8))
        elif kind == 3:
            data[start:start] = TEXTS[int(rng.integers(len(TEXTS)))]
        elif kind == 4:
            data[start:stop] = b"\xff" * (stop - start)
        elif kind == 5:
            del data[start:stop]
        elif kind == 6:
            data[stop:stop] = data[start:stop] * int(rng.integers(1, 40))
        elif kind == 7:
            lines = bytes(data).split(b"\n")
            rng.shuffle(lines)
            data = bytearray(b"\n".join(lines))
        else:
            data[start:stop] = struct.pack("<q", int(rng.choice([-1, 0, 2**31 - 1, 2**31, 2**62])))
    return bytes(data)


def spoil(source: Path, rng: np.random.Generator) -> list[Path]:
    """Damage one or two of the files that a source consists of; the tables more often than the pictures."""
    files = sorted(path for path in ([source] if source.is_file() else source.rglob("*")) if path.is_file())
    tables = [path for path in files if path.suffix in (".csv", ".parquet", ".zip", ".gz")]
    spoilt = []
    for _ in range(int(rng.integers(1, 3))):
        among = tables if tables and rng.random() < 0.8 else files
        path = among[int(rng.integers(len(among)))]
        path.write_bytes(damage(path.read_bytes(), rng))
        spoilt.append(path)
    return spoilt


def png_bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is large, and is: rows of zeros."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(bytes(min(10**8, (width + 1) * height)), 9)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


ODD_NAMES = (
    "../../escaped.png", "/tmp/escaped.png", "train/happy/../../../escaped.png", "C:\\escaped.png", "happy\\a.png",
    "train/happy/" + "n" * 300 + ".png", "train/happy/\u202egnp.exe", "train/happy/a\x00b.png", "train/happy/a\nb.png",
    "train/happy/\udcff.png", "train//happy///a.png", "train/happy/CON.png", "", ".", "..", "/", "train/happy/.png",
    "__MACOSX/train/happy/._a.png", "train/happy/inner.zip", "train/happy/a.png/b.png", "~/a.png", "-rf.png",
)  # fmt: skip


def noise(rng: np.random.Generator) -> bytes:
    """A picture of its own."""
    return draw_noise(int(rng.integers(2**32)))


def plain_files(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """The good files of a bad archive."""
    for split, label, i in itertools.product(("train", "val", "test"), ("happy", "sad"), range(3)):
        yield f"{split}/{label}/{i}.png", noise(rng)


def odd_names(rng: np.random.Generator) -> list[str]:
    """Names for one to three more."""
    chosen = rng.integers(len(ODD_NAMES), size=rng.integers(1, 4))
    return [ODD_NAMES[i].encode("utf-8", "replace").decode() or "x" for i in chosen]


def odd_zip(path: Path, rng: np.random.Generator) -> None:
    """A zip of class folders with some odd members: names, links, bombs, damaged and encrypted ones."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in plain_files(rng):
            archive.writestr(name, data)
        for name in odd_names(rng):
            info = zipfile.ZipInfo("x.png")
            info.filename = name
            kind, content = int(rng.integers(6)), noise(rng)
            if kind == 1:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                content = b"/etc/passwd"
            elif kind == 2:
                content = bytes(30_000_000)
            elif kind == 3:
                content = png_bomb(60_000, 60_000)
            elif kind == 4:
                info.flag_bits |= 1
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)


def odd_tar(path: Path, rng: np.random.Generator) -> None:
    """The same as a tar in some compression, with links, devices and pipes."""
    others = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    files = [(name, tarfile.REGTYPE, data) for name, data in plain_files(rng)]
    for name in odd_names(rng):
        regular = (tarfile.REGTYPE, [noise(rng), bytes(30_000_000)][int(rng.integers(2))])
        files.append((name, *[regular, *((kind, b"") for kind in others)][int(rng.integers(6))]))
    with tarfile.open(path, "w:" + path.name.partition(".tar.")[2]) as archive:
        for name, kind, content in files:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content)
            info.linkname = ["/etc/passwd", "../../..", name][int(rng.integers(3))] if kind != tarfile.REGTYPE else ""
            archive.addfile(info, io.BytesIO(content))


@contextmanager
def limited(case: str) -> Iterator[None]:
    """Fail when a case takes longer than ``SECONDS``; a failure says which case it was."""

    def fail(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"still at it after {SECONDS} s")

    former = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    try:
        yield
    except BaseException as error:
        error.add_note(case)
        raise
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


# What is wrong with no one file: these messages name what the stage was given.
ABOUT_ALL = (
    r"is of no known form", r"has no labelled images", r"has no class folders", r"no files of class", r"no train split",
    r"has no label '", r"has only one class", r"has no images for split", r"several data sets", r"names .* twice",
    r"no paths and labels among", r"is a table of pictures", r"has split folders, but", r"has pixels but no emotions",
    r"no CSV with FER2013's pixels lies beside it",
)  # fmt: skip
# What is wrong with a row, or a member, says which.
ABOUT_A_ROW = (
    r"\d+ cells", r"is no split", r"no label", r"no path", r"does not lead", r"not valid CSV", r"longer than",
    r"votes that", r"is missing or of another split", r"pixels that are not", r"is no weight", r"not UTF-8",
)  # fmt: skip


def check_named(message: str, source: Path, spoilt: Collection[Path]) -> None:
    """A refusal names what is at fault: the file, and the row or the member where there is one."""
    said = message.replace(str(source), "SOURCE")
    if any(re.search(kind, said) for kind in ABOUT_ALL):
        assert "SOURCE" in said, message
    elif "cannot be read, more than" in said:
        assert re.search(r"^SOURCE: .* The first:\n  \S.*: \w", said), message
    else:
        assert any(str(path) in message for path in spoilt), f"none of {spoilt} in: {message}"
        if any(re.search(kind, said) for kind in ABOUT_A_ROW):
            assert re.search(r", (about )?(line|row) \d+: ", said), message
        if ": refused, because" in said:
            assert re.search(r"its member '.*' |unpacks to", said), message


def outcome(case: Path, source: Path, more: dict[str, Any], spoilt: Collection[Path]) -> str:
    """Prepare a source in a folder of its own, and say what came of it; whatever else must not be fails."""
    home = case / "home"
    home.mkdir()
    before = {path for path in case.rglob("*") if home not in path.parents}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        try:
            prepare(prepare_params(source, **({"max_bad_fraction": 0.5} | more)))
            result = "read"
        except UserError as error:
            message = str(error)
            assert "Traceback" not in message
            assert len(message) < 20_000, message[:300]
            assert re.search(r"[.:]\s|[.?)]$", message), message  # a sentence, and mostly the remedy after it
            check_named(message, source, spoilt)
            result = "refused"
    after = {path for path in case.rglob("*") if home not in path.parents}
    assert after == before, f"outside the output folder: {after - before}"
    left = {path.name for path in home.rglob(".*")} - {".hyojo"}
    assert not left, f"left behind: {left}"
    assert ((home / "data" / "prepared").exists()) == (result == "read")
    return result


@functools.cache
def few_faces() -> list[Any]:
    return forms.read_archive(SAMPLE, each=4)


NAMES = (*forms.FORMS, "odd zip", "odd tar.gz", "odd tar.bz2", "odd tar.xz")


def make_source(name: str, case: Path, rng: np.random.Generator) -> tuple[Path, dict[str, Any], list[Path]]:
    """A bad source: where it is, further params, and the files that are spoilt."""
    if name in forms.FORMS:
        (case / "work").mkdir()
        source, more = forms.FORMS[name](few_faces(), case / "work")
        return Path(source), more, spoil(Path(source), rng)
    source = case / f"faces.{name.removeprefix('odd ')}"
    (odd_zip if name == "odd zip" else odd_tar)(source, rng)
    if rng.random() < 0.3:
        source.write_bytes(damage(source.read_bytes(), rng))
    return source, {}, [source]


def grown() -> float:
    """Most memory that this process ever had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("cases", [3, pytest.param(150, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_bad_sources_are_refused_in_words(name: str, cases: int, tmp_path: Path) -> None:
    """``pytest -s -m slow`` shows what became of them."""
    before, results = grown(), Counter()
    for seed in range(cases):
        case = tmp_path / str(seed)
        case.mkdir()
        source, more, spoilt = make_source(name, case, np.random.default_rng([seed, zlib.crc32(name.encode())]))
        with limited(f"form {name!r}, seed {seed}"):
            results[outcome(case, source, more, spoilt)] += 1
        shutil.rmtree(case)
    print(name, dict(results), f"memory grew by {grown() - before:.0f} MiB")
    assert sum(results.values()) == cases
    assert grown() - before < MEBIBYTES


def pictures() -> dict[str, bytes]:
    """A picture in every format that is read."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
    found = {}
    for name in images._formats():
        with suppress(KeyError, OSError):  # Pillow reads some and does not write them
            found[name] = encode(image, "JPEG" if name == "MPO" else name)
    return found


@pytest.mark.parametrize("cases", [60, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_bad_pictures_are_refused_in_words(cases: int) -> None:
    """Damaged files of every picture format, each read or refused."""
    before = grown()
    results: dict[str, Counter[str]] = defaultdict(Counter)
    for name, data in pictures().items():
        for seed in range(cases):
            spoilt = damage(data, np.random.default_rng([seed, zlib.crc32(name.encode())]))
            with limited(f"{name}, seed {seed}"):
                try:
                    image = images.load(spoilt, 24, 1)
                    assert (image.shape, image.dtype) == ((24, 24, 1), np.uint8)
                    results[name]["read"] += 1
                except ImageError:
                    results[name]["refused"] += 1
    print(*(f"{name}: {dict(found)}" for name, found in results.items()), sep="\n")
    assert {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"} <= set(results)
    assert sum(found["refused"] for found in results.values()) > 100
    assert grown() - before < MEBIBYTES


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 1), (9000, 9000)])
def test_pictures_that_grow_are_refused_unread(size: tuple[int, int]) -> None:
    before = grown()
    with pytest.raises(ImageError, match=r"million pixels|truncated|not a picture"):
        images.load(png_bomb(*size), 48, 1)
    assert grown() - before < 200


def test_bad_params_are_refused_in_words() -> None:
    text = (ROOT / "params.yaml").read_bytes()
    read = 0
    for seed in range(300):
        spoilt = damage(text, np.random.default_rng(seed)).decode("utf-8", "replace")
        with limited(f"seed {seed}"), suppress(UserError):
            parse_params(spoilt)
            read += 1
    assert read < 200
