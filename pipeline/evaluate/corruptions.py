"""Pictures made worse, as cameras, light and networks make them worse: pure functions of arrays.

In the spirit of D. Hendrycks and T. Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", 2019, https://arxiv.org/abs/1903.12261. The five strengths of all but rotation are those of the paper's
CIFAR-10-C, which is made of small pictures, too (``make_cifar_c.py`` in https://github.com/hendrycks/robustness); px
there are of 32, and grow with the picture here. Light goes up in one half of the pictures and down in the other,
where CIFAR-10-C only has the former; rotation, which it lacks, goes either way. Pictures are made smaller and larger
again by the filter of ``images.resize``, as a small face is when it is prepared; CIFAR-10-C makes blocks of them.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

STRENGTHS = {
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added or taken away, of the whole range
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # what is left of it
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # sigma of a Gaussian, px of 32
    "noise": (0.04, 0.06, 0.08, 0.09, 0.1),  # its standard deviation, of the whole range
    "jpeg": (80, 65, 58, 50, 40),  # quality
    "rotation": (5, 10, 15, 20, 30),  # degrees
    "downscaling": (0.95, 0.9, 0.85, 0.75, 0.65),  # of the side; then enlarged again
}
LEVELS = 5
_REFERENCE_PX = 32


def corrupt(images: np.ndarray, rows: np.ndarray, name: str, level: int) -> np.ndarray:
    """Make pictures worse, in a way that follows from what each is and from nothing else.

    Args:
        images: uint8 (N, H, W, C).
        rows: The pictures' numbers, integers (N,), by which each has its own chance, the same at every level.
        name: One of ``STRENGTHS``.
        level: From 1 to ``LEVELS``.

    Returns:
        uint8 (N, H, W, C).
    """
    return _CORRUPTIONS[name](images, rows, STRENGTHS[name][level - 1])


def _brightness(images: np.ndarray, rows: np.ndarray, amount: float) -> np.ndarray:
    """The largest channel grows by the amount, and the others with it, so that hue and saturation stay."""
    value = images.max(axis=3, keepdims=True) / 255.0
    wanted = np.clip(value + amount * _signs(rows)[:, None, None, None], 0, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(value > 0, images * (wanted / value), 255 * wanted)
    return _to_bytes(scaled)


def _contrast(images: np.ndarray, _rows: np.ndarray, part: float) -> np.ndarray:
    mean = images.mean(axis=(1, 2), keepdims=True)  # of each channel
    return _to_bytes((images - mean) * part + mean)


def _blur(images: np.ndarray, _rows: np.ndarray, sigma: float) -> np.ndarray:
    sigma *= images.shape[1] / _REFERENCE_PX
    return _to_bytes(ndimage.gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0), mode="nearest"))


def _noise(images: np.ndarray, rows: np.ndarray, deviation: float) -> np.ndarray:
    shape = images.shape[1:]
    draws = np.stack([np.random.default_rng((1, row)).standard_normal(shape, np.float32) for row in rows])
    return _to_bytes(images + 255 * deviation * draws)


def _jpeg(images: np.ndarray, _rows: np.ndarray, quality: int) -> np.ndarray:
    def encoded(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return _each(images, encoded)


def _rotation(images: np.ndarray, rows: np.ndarray, degrees: float) -> np.ndarray:
    """About the middle; what comes in from outside goes on as the edge is."""
    turned = [
        ndimage.rotate(image.astype(np.float32), degrees * sign, reshape=False, order=1, mode="nearest")
        for image, sign in zip(images, _signs(rows))
    ]
    return _to_bytes(np.stack(turned))


def _downscaling(images: np.ndarray, _rows: np.ndarray, part: float) -> np.ndarray:
    def rescaled(picture: Image.Image) -> Image.Image:
        small = picture.resize([max(1, int(side * part)) for side in picture.size], Image.Resampling.BILINEAR)
        return small.resize(picture.size, Image.Resampling.BILINEAR)

    return _each(images, rescaled)


_CORRUPTIONS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "rotation": _rotation,
    "downscaling": _downscaling,
}


def _signs(rows: np.ndarray) -> np.ndarray:
    """A 1 or -1 for each picture, float64 (N,)."""
    return np.array([1.0 - 2 * np.random.default_rng((0, row)).integers(2) for row in rows])


def _each(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """What Pillow makes of each picture."""
    changed = [change(Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)) for image in images]
    return np.stack([np.asarray(picture, np.uint8) for picture in changed]).reshape(images.shape)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)
