"""Corruptions against sums worked out otherwise, and properties that each must have."""

import io
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from pipeline.core.params import EvaluateParams
from pipeline.evaluate.corruptions import LEVELS, STRENGTHS, corrupt

SIZE, COUNT = 32, 12
ROWS = np.arange(100, 100 + COUNT)


def faces(channels: int = 1) -> np.ndarray:
    """Smooth pictures, in the middle of the range, that no corruption leaves as they are."""
    coarse = np.random.default_rng(0).uniform(90, 160, (COUNT, channels, 6, 6))
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse), (SIZE, SIZE), mode="bilinear")
    return smooth.numpy().transpose(0, 2, 3, 1).round().astype(np.uint8)


def test_params_name_every_corruption() -> None:
    (names,) = get_args(EvaluateParams.model_fields["corruptions"].annotation)
    assert get_args(names) == tuple(STRENGTHS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", STRENGTHS)
def test_every_level_is_farther_from_the_picture(name: str, channels: int) -> None:
    images = faces(channels)
    before = images.copy()
    distances = []
    for level in range(1, LEVELS + 1):
        worse = corrupt(images, ROWS, name, level)
        assert (worse.dtype, worse.shape) == (images.dtype, images.shape)
        distances.append(np.abs(worse.astype(float) - images).mean())
    assert distances == sorted(distances)
    assert distances[0] > 0
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("name", STRENGTHS)
def test_what_becomes_of_a_picture_depends_on_it_alone(name: str) -> None:
    images = faces()
    whole = corrupt(images, ROWS, name, 4)
    some = [7, 2]
    np.testing.assert_array_equal(corrupt(images[some], ROWS[some], name, 4), whole[some])


def test_brightness_goes_either_way_by_its_amount() -> None:
    images = faces()
    change = corrupt(images, ROWS, "brightness", 2).astype(float) - images
    signs = np.sign(change.mean(axis=(1, 2, 3)))
    assert set(signs) == {-1, 1}
    np.testing.assert_allclose(change, np.broadcast_to(25.5 * signs[:, None, None, None], change.shape), atol=0.51)
    black = corrupt(np.zeros_like(images), ROWS, "brightness", 2).max(axis=(1, 2, 3))
    assert black.tolist() == [26 * (sign > 0) for sign in signs]
    # Hue and saturation stay.
    sides = faces(3), corrupt(faces(3), ROWS, "brightness", 5)
    before, after = (side / side.max(axis=3, keepdims=True) for side in sides)
    np.testing.assert_allclose(after, before, atol=0.05)


def test_contrast_is_torchvisions() -> None:
    images = faces()
    expected = reference.adjust_contrast(torch.from_numpy(images).permute(0, 3, 1, 2), 0.5)
    found = corrupt(images, ROWS, "contrast", 2)
    assert np.abs(found.astype(int) - expected.permute(0, 2, 3, 1).numpy()).max() <= 1


@pytest.mark.parametrize("size", [32, 64])
def test_blur_is_torchvisions_and_grows_with_the_picture(size: int) -> None:
    images = faces().repeat(size // SIZE, axis=1).repeat(size // SIZE, axis=2)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    expected = reference.gaussian_blur(pixels, [13, 13], [0.8 * size / 32] * 2).permute(0, 2, 3, 1).numpy()
    inner = (slice(None), slice(7, -7), slice(7, -7))
    found = corrupt(images, ROWS, "blur", 4)
    assert np.abs(found.astype(int) - expected)[inner].max() <= 1


def test_noise_has_its_deviation_and_no_mean() -> None:
    noise = corrupt(np.full((COUNT, 64, 64, 3), 128, np.uint8), ROWS, "noise", 3).astype(float) - 128
    assert noise.std() == pytest.approx(0.08 * 255, rel=0.02)
    assert abs(noise.mean()) < 0.2
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05


def test_jpeg_is_pillows() -> None:
    images = faces(3)
    buffer = io.BytesIO()
    Image.fromarray(images[4]).save(buffer, "JPEG", quality=40)
    np.testing.assert_array_equal(corrupt(images, ROWS, "jpeg", 5)[4], np.asarray(Image.open(buffer)))


def test_rotation_is_torchvisions_either_way() -> None:
    images = faces()
    inner = (slice(8, -8), slice(8, -8), 0)
    signs = set()
    for face, turned in zip(images, corrupt(images, ROWS, "rotation", 4)):
        errors = {}
        for sign in (-1, 1):
            pixels = torch.from_numpy(face).permute(2, 0, 1).float()
            expected = reference.rotate(pixels, 20 * sign, reference.InterpolationMode.BILINEAR)
            errors[sign] = np.abs(turned.astype(float) - expected.permute(1, 2, 0).numpy())[inner].max()
        assert min(errors.values()) < 2 < max(errors.values())
        signs.add(min(errors, key=errors.get))
    assert signs == {-1, 1}


def test_downscaling_loses_what_is_fine_and_keeps_what_is_even() -> None:
    stripes = np.broadcast_to(np.where(np.arange(SIZE) % 2, 255, 0)[:, None, None], (1, SIZE, SIZE, 1)).astype(np.uint8)
    worse = corrupt(stripes, ROWS[:1], "downscaling", 5)
    assert worse.std() < 0.6 * stripes.std()
    even = np.full((1, SIZE, SIZE, 3), 77, np.uint8)
    np.testing.assert_array_equal(corrupt(even, ROWS[:1], "downscaling", 5), even)
