"""How many threads work, when too many bad files end it, and what is said of the time that photos take."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from builders import Row, draw_noise, records_of

from pipeline.core.errors import UserError
from pipeline.prepare import decoding
from pipeline.prepare.array_file import ArrayFile
from pipeline.prepare.pixels.cache import Cache
from pipeline.prepare.twins import search


@pytest.mark.parametrize("module", [decoding, search])
def test_threads_are_the_cores_of_the_control_group(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's share of a large machine counts, which the affinity does not tell."""
    asked = []
    monkeypatch.setattr(module, "available", lambda: 3)
    monkeypatch.setattr(module, "ThreadPoolExecutor", lambda n: asked.append(n) or ThreadPoolExecutor(n))
    if module is search:
        search.near_pairs(np.zeros((2, 48, 48, 1), np.uint8), np.arange(2))
    else:
        decoding.decode_all(iter([]), [], np.empty((0, 8, 8, 1)), Cache(None, [], (8, 8, 1)))
    assert asked == [3]


def decode(tmp_path: Path, files: list[bytes], read: list[int], **options: object) -> None:
    """Decode files to 12 px; ``read`` gets the numbers of those that are read."""
    records = records_of([Row(str(i), "ab"[i % 2], "train") for i in range(len(files))])

    def fetches() -> Iterator[Callable[[], bytes]]:
        for number, data in enumerate(files):
            yield lambda number=number, data=data: read.append(number) or data

    with closing(ArrayFile(tmp_path / "pixels", (len(files), 12, 12, 1))) as pixels:
        decoding.decode_all(fetches(), records, pixels, Cache(None, [], (12, 12, 1)), **options)


def test_too_many_bad_files_end_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "available", lambda: 2)
    files, read = [draw_noise(i) for i in range(40)] + [b"text"] * 3000, []
    with pytest.raises(UserError, match=r"56 of the first 96 files cannot be read.*\(0.01\) allows of 3040") as caught:
        decode(tmp_path, files, read, max_bad_fraction=0.01)
    assert "40: not a picture" in str(caught.value)
    assert len(read) < 400


@pytest.mark.parametrize("faces", [None, {"margin": 0.0, "min_size": 32}])
def test_the_time_that_photos_take_is_told_after_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], faces: dict[str, float] | None
) -> None:
    times = iter([100.0, 108.0])
    monkeypatch.setattr(decoding, "available", lambda: 2)
    monkeypatch.setattr(decoding.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(decoding, "_decode_task", lambda task, **_: ([decoding.ImageError("none")] * len(task), 0))
    decode(tmp_path, [b""] * 3264, [], faces=faces)
    told = "MTCNN looks for faces in 3200 more photos, at 8 a second: about 7 min"
    assert (told in capsys.readouterr().err) == bool(faces)
