"""Picture bytes -> uint8 arrays: the one place, for ``prepare``, ``predict`` and serving.

Needs numpy and Pillow only; where ``pillow-heif`` is installed, HEIC is read too.
"""

import contextlib
import io
from functools import cache

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from .apart import decode_apart
from .limits import APART, TooLarge, check_cost

# Formats that Pillow decodes by itself. Left out are those that start another program (EPS, WMF), those that
# have no signature, so that garbage passes for them (TGA, PCX), and containers whose inner picture can be
# larger than the size they declare (ICO, ICNS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF", "QOI", "HEIF")
# Pictures by their suffix also where this build of Pillow has no decoder, so that they are named and not passed over.
_PICTURE_SUFFIXES = {".avif", ".heic", ".heif", ".hif", ".jxl"}

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")  # ISO 23008-12, annex B

# What Pillow reads of TIFF as the file means it: bits a sample, by photometric interpretation (TIFF 6.0), which is grey
# with white at 0, grey, RGB, palette, CMYK, YCbCr or CIELAB. Others it decodes too: as negatives, in the dark, garbage.
_TIFF_BITS = {0: (1, 2, 4, 8), 1: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 5: (8,), 6: (8,), 8: (8,)}
# Tags and their defaults: photometric interpretation, compression, fill order, planar configuration.
_TIFF_TAGS = {262: 0, 259: 1, 266: 1, 284: 1}
_STRIP = 2**20  # pixels that are converted at once, to bound memory
# A picture whose brightest sample is darker has samples of 10 or 12 bits in 16, say, or floats of some other range.
_DIM = 64

_ORIENTATION_TAG = 0x0112
# By EXIF orientation: steps along columns and along rows, and whether these are exchanged then.
_ORIENTATIONS = {
    2: (-1, 1, False),
    3: (-1, -1, False),
    4: (1, -1, False),
    5: (1, 1, True),
    6: (1, -1, True),
    7: (-1, -1, True),
    8: (-1, 1, True),
}


class ImageError(ValueError):
    """These bytes are no usable picture; the message is short and names no path."""


def decode(data: bytes, channels: int) -> np.ndarray:
    """Decode a picture of any mode and size.

    The first frame is taken and EXIF rotation is undone. Transparent pixels are laid on white. 16-bit samples
    keep their upper 8 bits, grey ones rounded. Floats go from 0 to 1 or to 255. Colour becomes grey by ITU-R 601-2
    luma. Colour profiles are ignored. JPEGs of more than 33 million pixels come at a half of their size.

    Args:
        data: A file's content, in one of ``FORMATS``.
        channels: 1 for grey, 3 for RGB.

    Returns:
        The pixels, uint8 (H, W, channels).

    Raises:
        ImageError: Empty, truncated, damaged or not a picture; more than ``limits`` allows; or samples whose black and
            white are not known: TIFFs of unusual kinds, floats of another range, 16 bits of which fewer are used.
    """
    return decode_scaled(data, channels)[0]


def decode_scaled(data: bytes, channels: int) -> tuple[np.ndarray, float]:
    """``decode``, and the side of the picture to that of the pixels: 1 but for very large JPEGs."""
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, not {channels}")
    if APART.match(data):
        with contextlib.suppress(OSError):  # where no other process can be had, there is this one
            found = decode_apart(data, channels)
            if isinstance(found, str):
                raise ImageError(found)
            return found, 1
    return decode_here(data, channels)


def decode_here(data: bytes, channels: int) -> tuple[np.ndarray, float]:
    """``decode_scaled``, in this process whatever the format."""
    file, full_width = _open(data)
    name, scale, wide = file.format, full_width / file.width, _has_16_bits(file)
    try:
        file.load()
        pixels = _to_array(file, channels, wide)
        turn = _ORIENTATIONS.get(_orientation(file))
    except (MemoryError, ImageError):
        raise
    except Exception:  # a decoder answers damaged bytes with almost any exception
        raise ImageError(f"truncated or damaged {name}") from None
    file.close()
    del file  # before another copy is made
    if turn is not None:
        columns, rows, transposed = turn
        pixels = pixels[::rows, ::columns]
        pixels = np.ascontiguousarray(pixels.swapaxes(0, 1) if transposed else pixels)
    return pixels, scale


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
    """Suffixes of pictures, such as ``.jpg``."""
    _formats()  # may register one
    return _PICTURE_SUFFIXES | {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}


@cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this build of Pillow has, or an installed plugin."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(data: bytes) -> tuple[ImageFile.ImageFile, int]:
    """Identify the picture and check what it costs, before any pixel is decoded; and its full width."""
    if not data:
        raise ImageError("empty file")
    if data.startswith((b"II", b"MM")):
        _check_tiff(data)
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels") from None
    except MemoryError:
        raise
    except Exception:  # plugins let struct, zlib and value errors through
        raise ImageError(_name_unread(data)) from None
    width = image.width
    try:
        check_cost(image, data)
    except TooLarge as error:
        raise ImageError(str(error)) from None
    return image, width


def _name_unread(data: bytes) -> str:
    """Why bytes cannot be opened: what a picture is that Pillow needs help with, and the help."""
    brands = data[8:64] if data[4:8] == b"ftyp" else b""  # ISO 14496-12, 4.3
    kind = "AVIF" if b"avif" in brands else "HEIF" if any(brand in brands for brand in _HEIF_BRANDS) else None
    if kind and kind not in _formats():
        helps = {"AVIF": "AVIF, which this Pillow lacks", "HEIF": "HEIC, which wants `pip install pillow-heif`"}
        return f"{helps[kind]}; or save it as JPEG"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "JPEG XL, which Pillow does not read; save it as JPEG"
    return "not a picture, or not in a format that can be read"


def _check_tiff(data: bytes) -> None:
    """Refuse a TIFF whose samples Pillow would not read as they are meant; damaged ones are left to Pillow."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        photometric, compression, fill, planes = (tags.get(tag, default) for tag, default in _TIFF_TAGS.items())
        (bits, *others), (kind, *_) = tags.get(258, (1,)), tags.get(339, (1,))
        dark_palette = 0 < max(tags.get(320, (0,))) < 256  # of 8 bits where 16 belong
    except Exception:
        return
    right = kind == 1 and bits in _TIFF_BITS.get(photometric, ()) and set(others) <= {bits} and not dark_palette
    if kind == 3:  # Pillow swaps the bytes of compressed big-endian ones
        right = (photometric, bits) == (1, 32) and (compression == 1 or data.startswith(b"II"))
    if planes == 2:
        right = right and (photometric, bits, fill) == (2, 8, 1)
    if photometric == 6 and compression != 7:  # of JPEG, libtiff minds the subsampling
        right = right and tags.get(530) == (1, 1)
    if not right:
        kinds = {1: "unsigned", 2: "signed", 3: "float"}
        what = f"{bits}-bit {kinds.get(kind, 'undefined')} samples, photometric {photometric}, planar {planes}"
        raise ImageError(f"TIFF of {what}: not read; save it with 8 bits")


def _has_16_bits(image: ImageFile.ImageFile) -> bool:
    """Whether 16-bit samples are taken as they are; formats that are not here say how many of the bits count."""
    marks = {"PNG": (";16",), "TIFF": (";16",), "PPM": (";16", "65535")}
    return any(mark in str(tile[3]) for tile in image.tile for mark in marks.get(image.format or "", ()))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where there is none or the EXIF block is damaged."""
    try:
        orientation: int = image.getexif().get(_ORIENTATION_TAG, 1)
        return orientation
    except Exception:
        return 1


def _to_array(image: Image.Image, channels: int, wide: bool) -> np.ndarray:
    """Convert a loaded picture of any mode to uint8 (H, W, channels), some rows at a time; ``wide``: of 16 bits."""
    width, height = image.size
    rows = max(1, _STRIP // width)
    strips = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    whole = _find_range(image, strips)
    pixels = np.empty((height, width, channels), np.uint8)
    brightest = 0 if wide else 255
    for box in strips:
        strip: Image.Image = image if len(strips) == 1 else image.crop(box)
        if strip.mode.startswith(("I", "F")):
            strip = _to_8_bit(strip, whole)
        if brightest < _DIM:
            brightest = max(brightest, int(np.asarray(strip.convert("RGB")).max()))
        strip = _to_mode(strip, "L" if channels == 1 else "RGB")
        pixels[box[1] : box[3]] = np.asarray(strip).reshape(-1, width, channels)
    if brightest < _DIM:
        raise ImageError("16-bit samples below a quarter of white; if they have 10 or 12 bits, scale them to 16")
    return pixels


def _find_range(image: Image.Image, strips: list[tuple[int, int, int, int]]) -> float:
    """What is white in a picture of floats, 1 or 255; 0 in others."""
    if image.mode != "F":
        return 0
    low, high = np.inf, -np.inf
    for box in strips:
        values = np.asarray(image.crop(box))
        if not np.isfinite(values).all():
            raise ImageError("pixels that are not numbers")
        low, high = min(low, values.min()), max(high, values.max())
    if low < 0 or high > 255 or 1 < high < _DIM:
        raise ImageError(f"floats from {low:.3g} to {high:.3g}; scale them to 0 to 1, or to 255")
    return 1 if high <= 1 else 255


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert a loaded picture of any mode to ``L`` or ``RGB``."""
    if image.has_transparency_data:
        # Straight to L or RGB would show what lies under transparent pixels, which is arbitrary.
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        return canvas.convert(mode)
    if image.mode in ("LAB", "HSV", "YCbCr", "CMYK", "RGBX"):
        image = image.convert("RGB")
    return image.convert(mode)


def _to_8_bit(image: Image.Image, white: float) -> Image.Image:
    """Scale 16-bit (I;16, I) and float (F) samples to L; Pillow itself would clip them at 255."""
    values = np.asarray(image)
    if image.mode == "F":
        scaled = np.rint(values * 255 if white == 1 else values)
    else:
        # 65535 = 255 * 257, so an 8-bit picture stored as 16 bits comes back exactly.
        scaled = (values.clip(0, 65535).astype(np.uint32) + 128) // 257
    return Image.fromarray(scaled.astype(np.uint8))
