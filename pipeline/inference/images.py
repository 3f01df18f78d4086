"""Picture bytes -> uint8 arrays: the one place, for ``prepare``, ``predict`` and serving.

Needs numpy and Pillow only.
"""

import io
from functools import cache

import numpy as np
from PIL import Image

# Formats that Pillow decodes by itself. Left out are those that start another program (EPS, WMF), those that
# have no signature, so that garbage passes for them (TGA, PCX), and containers whose inner picture can be
# larger than the size they declare (ICO, ICNS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF", "QOI")

# 67 million pixels: above a phone's 50-megapixel mode, and at most 0.3 GB once decoded.
MAX_PIXELS = 2**26

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """These bytes are no usable picture; the message is short and names no path."""


def decode(data: bytes, channels: int) -> np.ndarray:
    """Decode a picture of any mode and size.

    The first frame is taken and EXIF rotation is undone. Transparent pixels are laid on white. 16-bit samples
    keep their upper 8 bits, rounded. Colour becomes grey by ITU-R 601-2 luma. Colour profiles are ignored.

    Args:
        data: A file's content, in one of ``FORMATS``.
        channels: 1 for grey, 3 for RGB.

    Returns:
        The pixels, uint8 (H, W, channels).

    Raises:
        ImageError: Empty, truncated, damaged or not a picture, or more than ``MAX_PIXELS``.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, not {channels}")
    image = _open(data)
    name = image.format
    try:
        image.load()
        orientation = _orientation(image)
        image = _to_mode(image, "L" if channels == 1 else "RGB")
        if orientation in _ORIENTATIONS:
            image = image.transpose(_ORIENTATIONS[orientation])
    except (MemoryError, ImageError):
        raise
    except Exception:  # a decoder answers damaged bytes with almost any exception
        raise ImageError(f"truncated or damaged {name}") from None
    return np.array(image).reshape(image.height, image.width, channels)


def resize(image: np.ndarray, img_size: int) -> np.ndarray:
    """Scale to a square with Pillow's antialiased bilinear filter; the aspect ratio is not kept.

    Args:
        image: uint8 (H, W, C), C 1 or 3.
        img_size: Side of the result, px.

    Returns:
        uint8 (img_size, img_size, C); ``image`` itself where it has that size already.
    """
    height, width, channels = image.shape
    if (height, width) == (img_size, img_size):
        return image
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    scaled = picture.resize((img_size, img_size), Image.Resampling.BILINEAR)
    return np.array(scaled).reshape(img_size, img_size, channels)


def load(data: bytes, img_size: int, channels: int) -> np.ndarray:
    """``decode`` and then ``resize``: what the model sees of a file, uint8 (img_size, img_size, channels)."""
    return resize(decode(data, channels), img_size)


def suffixes() -> set[str]:
    """Suffixes of files in one of ``FORMATS``, such as ``.jpg``."""
    return {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}


@cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(data: bytes) -> Image.Image:
    """Identify the picture and check its size, before any pixel is decoded."""
    if not data:
        raise ImageError("empty file")
    too_large = ImageError(f"more than {MAX_PIXELS // 10**6} million pixels")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large from None
    except MemoryError:
        raise
    except Exception:  # plugins let struct, zlib and value errors through
        raise ImageError("not a picture, or not in a format that can be read") from None
    if image.width * image.height > MAX_PIXELS:
        raise too_large
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where there is none or the EXIF block is damaged."""
    try:
        orientation: int = image.getexif().get(_ORIENTATION_TAG, 1)
        return orientation
    except Exception:
        return 1


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert a loaded picture of any mode to ``L`` or ``RGB``."""
    if image.mode.startswith(("I", "F")):
        return _to_8_bit(image).convert(mode)
    if image.has_transparency_data:
        # Straight to L or RGB would show what lies under transparent pixels, which is arbitrary.
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        return canvas.convert(mode)
    if image.mode in ("LAB", "HSV", "YCbCr", "CMYK", "RGBX"):
        image = image.convert("RGB")
    return image.convert(mode)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit (I;16, I) and float (F) samples to L; Pillow itself would clip them at 255."""
    values = np.asarray(image)
    if image.mode == "F":
        if not np.isfinite(values).all():
            raise ImageError("pixels that are not numbers")
        # Float pictures go by [0, 1] or by [0, 255].
        scaled = np.rint(values * 255 if values.max() <= 1 else values).clip(0, 255)
    else:
        # 65535 = 255 * 257, so an 8-bit picture stored as 16 bits comes back exactly.
        scaled = (values.clip(0, 65535).astype(np.uint32) + 128) // 257
    return Image.fromarray(scaled.astype(np.uint8))
