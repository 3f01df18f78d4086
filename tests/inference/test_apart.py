"""Decoding in another process: the same pixels, and an end to what costs too much."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from builders import encode
from PIL import Image

from pipeline.inference import apart, images
from pipeline.inference.images import ImageError, decode, decode_here

NOISE = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
SMALL = encode(NOISE[:9, :9], "WEBP")


@pytest.fixture(autouse=True)
def _no_process_stays() -> None:
    apart._end_all()


def start_with(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the other process begin with another limit."""
    changed = f"sys.modules['shipped.apart'].{limit}; answer()"
    monkeypatch.setattr(apart, "_START", apart._START.replace("answer()", changed))


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "JPEG2000", "AVIF"])
def test_pixels_are_those_of_this_process_in_any_thread(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [encode(NOISE[: 20 + i, :40], kind) for i in range(12)]
    here = [decode_here(one, 3)[0] for one in data]
    monkeypatch.setattr(images, "decode_here", lambda *_: pytest.fail("decoded here"))
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(lambda one: decode(one, 3), data), here):
            np.testing.assert_array_equal(found, expected)
            assert found.flags.writeable


def test_a_picture_that_takes_too_long_is_ended_and_the_next_one_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    start_with("SECONDS = 0.03", monkeypatch)
    slow = encode(NOISE, "JPEG2000")
    begun = time.monotonic()
    with pytest.raises(ImageError, match="takes more than a second"):
        decode(slow, 1)
    assert time.monotonic() - begun < 10
    assert decode(SMALL, 1).shape == (9, 9, 1)


def test_a_picture_that_takes_too_much_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    start_with("MEMORY = 2**22", monkeypatch)
    with pytest.raises(ImageError, match=r"300 MB|damaged"):
        decode(encode(Image.new("RGB", (3000, 3000)), "TIFF", compression="tiff_lzw"), 3)
    assert decode(SMALL, 1).shape == (9, 9, 1)


def test_a_process_that_was_killed_meanwhile_is_replaced() -> None:
    decode(SMALL, 1)
    (worker,) = apart._idle
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert decode(SMALL, 1).shape == (9, 9, 1)


def test_without_another_process_this_one_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart.sys, "executable", "/nowhere/python")
    assert decode(SMALL, 1).shape == (9, 9, 1)
