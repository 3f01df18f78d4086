"""Brightness and sharpness of pictures, and how the predictor tells them."""

from pathlib import Path

import numpy as np
from builders import grey_png
from scipy import ndimage

from pipeline.inference.descriptors import DESCRIPTORS, measure_brightness, measure_sharpness
from pipeline.inference.predictor import Predictor


def test_brightness_and_sharpness_of_known_pictures() -> None:
    plain = np.full((3, 8, 8, 1), np.array([0, 100, 255], np.uint8)[:, None, None, None])
    assert measure_brightness(plain).tolist() == [0, 100, 255]
    assert measure_sharpness(plain).tolist() == [0, 0, 0]
    board = (np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8)[None, :, :, None]
    # Inside, four neighbours differ by 255 each: the Laplacian is 1020 up or down.
    assert measure_sharpness(board)[0] > 500**2
    noise = np.random.default_rng(0).integers(0, 256, (1, 9, 7, 3), dtype=np.uint8)
    theirs = ndimage.laplace(noise[0].astype(float).mean(axis=2), mode="nearest").var()
    np.testing.assert_allclose(measure_sharpness(noise), [theirs])


def test_predictor_describes_pictures_that_it_answers(bright_bundle: Path) -> None:
    predictor = Predictor(bright_bundle)
    good, bad = predictor.predict_bytes([grey_png(90), b"junk"], describe=True)
    assert [good[name] for name in DESCRIPTORS] == [90, 0, None]
    assert not set(DESCRIPTORS) & {*bad, *predictor.predict_bytes([grey_png(90)])[0]}
    (row,) = predictor.answer([grey_png(90)], {"describe": True})
    assert row["brightness"] == 90
