"""Images on disk: written in blocks, read by number, and by several threads at once."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.prepare.array_file import ArrayFile


@pytest.fixture
def stored(tmp_path: Path) -> tuple[ArrayFile, np.ndarray]:
    """300 images that hold their own numbers, written in blocks of 100."""
    images = np.broadcast_to(np.arange(300, dtype=np.uint16).view(np.uint8).reshape(300, 1, 2), (300, 600, 2)).copy()
    pixels = ArrayFile(tmp_path / "pixels", images.shape)
    for start in range(0, 300, 100):
        pixels.append(images[start : start + 100])
    return pixels, images


def test_images_come_back_by_number(stored: tuple[ArrayFile, np.ndarray]) -> None:
    pixels, images = stored
    numbers = np.array([299, 0, 17, 17, 100])
    np.testing.assert_array_equal(pixels[numbers], images[numbers])
    assert pixels[numbers[:0]].shape == (0, 600, 2)
    assert len(pixels) == 300


def test_threads_read_what_they_asked_for(stored: tuple[ArrayFile, np.ndarray]) -> None:
    pixels, images = stored

    def wrong(seed: int) -> int:
        numbers = np.random.default_rng(seed).integers(0, 300, 200)
        return int((pixels[numbers] != images[numbers]).any(axis=(1, 2)).sum())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns at nearly every instruction
    try:
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(wrong, range(60))) == 0
    finally:
        sys.setswitchinterval(interval)
