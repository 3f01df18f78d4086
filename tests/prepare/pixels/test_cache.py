"""What was decoded before is not decoded again, and trouble with the cache costs time only."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import draw_noise, prepare_params, write_zip

from pipeline.prepare.pixels import cache as decode_cache
from pipeline.prepare.pixels import picture
from pipeline.prepare.pixels.cache import Cache
from pipeline.prepare.pixels.picture import SEEN, Decoded
from pipeline.prepare.stage import prepare

SHAPE = (4, 4, 1)


def some(seed: int) -> Decoded:
    rng = np.random.default_rng(seed)
    return Decoded(rng.integers(0, 256, SHAPE, dtype=np.uint8), rng.bytes(32), (seed + 1, 7), SEEN[: seed % 7])


def key(seed: int) -> bytes:
    return seed.to_bytes(32, "little")


def same(one: Decoded | None, other: Decoded) -> bool:
    return one is not None and one[1:] == other[1:] and np.array_equal(one.pixels, other.pixels)


def cache_in(folder: Path | None, *settings: str) -> AbstractContextManager[Cache]:
    return closing(Cache(folder, settings, SHAPE))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A cache's file, in the test's folder, with two pictures in it."""
    with cache_in(tmp_path) as cache:
        cache.put({key(0): some(0), key(1): some(1)})
    (file,) = tmp_path.glob("*.db")
    return file


def test_keeps_what_it_is_given(tmp_path: Path) -> None:
    with cache_in(tmp_path, "a") as cache:
        cache.put({key(i): some(i) for i in range(10)})
        assert all(same(cache.get(key(i)), some(i)) for i in range(10))
        assert cache.get(key(10)) is None
    with cache_in(tmp_path, "a") as again:
        assert same(again.get(key(3)), some(3))


def test_other_settings_are_another_cache_and_old_ones_go(tmp_path: Path) -> None:
    for i in range(8):
        with cache_in(tmp_path, f"setting {i}") as cache:
            assert cache.get(key(0)) is None
            cache.put({key(0): some(i)})
    assert len(list(tmp_path.glob("*.db"))) == 4
    with cache_in(tmp_path, "setting 7") as last:
        assert same(last.get(key(0)), some(7))


def test_damaged_pixels_are_decoded_again(tmp_path: Path, file: Path) -> None:
    with closing(sqlite3.connect(file)) as base, base:
        value = bytearray(base.execute("SELECT value FROM decoded WHERE key = ?", (key(0),)).fetchone()[0])
        value[-1] ^= 1
        base.execute("UPDATE decoded SET value = ? WHERE key = ?", (bytes(value), key(0)))
    with cache_in(tmp_path) as again:
        assert again.get(key(0)) is None
        assert same(again.get(key(1)), some(1))


def test_a_file_that_is_no_cache_is_replaced(tmp_path: Path, file: Path) -> None:
    file.write_bytes(b"not a database at all" * 1000)
    with cache_in(tmp_path) as again:
        again.put({key(0): some(0)})
        assert same(again.get(key(0)), some(0))


def test_one_that_grew_too_large_is_begun_anew(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_cache, "MAX_BYTES", 1000)
    with cache_in(tmp_path) as again:
        assert again.get(key(0)) is None


@pytest.mark.parametrize("place, warnings", [(None, 0), ("file/cache", 1)])
def test_nowhere_to_keep_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str | None, warnings: int
) -> None:
    """Trouble is told once, and stops nothing."""
    (tmp_path / "file").write_text("in the way")
    with cache_in(place and tmp_path / place) as cache:
        cache.put({key(0): some(0)})
        assert cache.get(key(0)) is None
    assert capsys.readouterr().err.count("warning: the cache of decoded pictures is not used") == warnings


def test_many_threads_and_two_at_once(tmp_path: Path) -> None:
    """As two experiments in DVC's queue would use it."""
    with cache_in(tmp_path) as one, cache_in(tmp_path) as other, ThreadPoolExecutor(8) as pool:

        def work(i: int) -> bool:
            cache = (one, other)[i % 2]
            cache.put({key(i): some(i), key(i // 2): some(i // 2)})
            return same(cache.get(key(i)), some(i))

        assert all(pool.map(work, range(200)))


# In the stage


@pytest.fixture
def home(home: Path) -> Path:
    """A project's root, which is the working folder."""
    (home / ".dvc").mkdir()
    return home


def write_noise(path: Path, count: int, folder: str = "") -> Path:
    """Pictures of 20 px, all different, of which every tenth cannot be read."""
    pictures = ((i, draw_noise(i, 20) if i % 10 else b"not a picture") for i in range(count))
    return write_zip(path, {f"{folder}{'ab'[i % 2]}/{i:03}.png": data for i, data in pictures})


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every picture that is really decoded."""
    seen: list[bytes] = []

    def decode(data: bytes, channels: int, decode: Any = picture.decode) -> np.ndarray:
        seen.append(data)
        return decode(data, channels)

    monkeypatch.setattr(picture, "decode", decode)
    return seen


def written() -> dict[str, bytes]:
    """All that the stage writes, but for the page, which names the source."""
    files = [*Path("data").rglob("*"), *Path("reports").rglob("*.json")]
    return {str(path): path.read_bytes() for path in files if path.is_file()}


def test_only_what_is_new_is_decoded(
    home: Path, tmp_path: Path, decodings: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(prepare_params(write_noise(tmp_path / "a.zip", 100)))
    assert len(decodings) == 100
    assert "decoded before" not in capsys.readouterr().out
    decodings.clear()
    # More images, in another arrangement: by content, not by name.
    prepare(prepare_params(write_noise(tmp_path / "b.zip", 120, "faces/")))
    assert len(decodings) == 20 + 10  # what cannot be read is tried again
    assert "90 images (75.0%) had been decoded before and were not decoded again" in capsys.readouterr().out
    cached = written()
    decodings.clear()
    (home / ".hyojo").rename(tmp_path / "away")
    prepare(prepare_params(tmp_path / "b.zip"))
    assert len(decodings) == 120
    assert written() == cached


@pytest.mark.parametrize("changes", [{"img_size": 13}, {"channels": 3}])
def test_other_settings_decode_anew(home: Path, tmp_path: Path, decodings: list[bytes], changes: Any) -> None:
    source = write_noise(tmp_path / "a.zip", 40)
    prepare(prepare_params(source))
    decodings.clear()
    prepare(prepare_params(source, **changes))
    assert len(decodings) == 40


def test_what_an_interrupted_run_decoded_is_not_lost(
    home: Path, tmp_path: Path, decodings: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_noise(tmp_path / "a.zip", 200)
    reading = picture.decode

    def stop(data: bytes, channels: int) -> np.ndarray:
        if len(decodings) >= 120:
            raise KeyboardInterrupt
        return reading(data, channels)

    monkeypatch.setattr(picture, "decode", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(prepare_params(source))
    assert not list(home.glob("data/**/*.npy"))
    assert not list(home.glob("data/.*"))
    decodings.clear()
    monkeypatch.setattr(picture, "decode", reading)
    prepare(prepare_params(source))
    assert len(decodings) <= 200 - 64


def test_an_experiment_in_a_temporary_copy_uses_the_projects_cache(
    home: Path, tmp_path: Path, decodings: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_noise(tmp_path / "a.zip", 40)
    prepare(prepare_params(source))
    copy = home / ".dvc" / "tmp" / "exps" / "one"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(home))
    decodings.clear()
    prepare(prepare_params(source))
    assert len(decodings) == 4
    assert not (copy / ".hyojo").exists()
