"""What decoding a picture may cost: at most about 300 MB and a second on one core, known from its header.

Files that ``APART`` matches tell too little beforehand: ``apart`` decodes them in another process.
"""

import re
import struct

from PIL import Image, ImageFile, JpegImagePlugin

# Pixels of any picture, and its bytes as Pillow holds them. JPEGs beyond are decoded at a half, quarter or eighth.
MAX_PIXELS, MAX_BYTES = 2**25, 2**26
# JPEG: above a phone's 50-megapixel mode; and values held at once where there are several scans, 2 bytes each.
MAX_JPEG_PIXELS, MAX_JPEG_HELD = 2**26, 3 * 2**25
# Values that its scans go through, at 0.35 ns each. A byte takes as long as 32 of them, 64 where there are several.
MAX_JPEG_WORK = 7 * 2**28
# Decoders written in Python, such as those of QOI and of BMP by run lengths: a value takes half a microsecond.
MAX_PYTHON_VALUES = 2**21
_MAX_PIXELS_OF = {"WEBP": 3 * 2**22, "AVIF": 3 * 2**22, "JPEG2000": 2**21, "TIFF": 2**24, "HEIF": 3 * 2**23}

# TIFF, WebP, AVIF and HEIF, JPEG 2000: by the bytes that Pillow knows them by.
APART = re.compile(rb"II|MM|RIFF....WEBP|....ftyp|\0\0\0\x0cjP  |\xff\x4f\xff\x51", re.DOTALL)

# A marker (ITU-T T.81, B.1.1.2), but for those that stand alone within a scan.
_MARKER = re.compile(b"\xff+([^\x00\x01\xd0-\xd8\xff])")
_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3)  # baseline, extended, progressive, lossless; all with Huffman's code
_PROGRESSIVE, _ARITHMETIC = 0xC2, (0xC9, 0xCA, 0xCB)
_SCAN, _END = 0xDA, 0xD9


class TooLarge(ValueError):
    """A picture that costs too much; the message is a sentence without a subject."""


def check_cost(image: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse a picture that was opened but not decoded, if decoding costs too much; large JPEGs are told to shrink.

    Raises:
        TooLarge: It has too many pixels or scans.
    """
    pixels = image.width * image.height
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        _require(pixels, MAX_JPEG_PIXELS)
        _check_jpeg(data)
        _shrink(image)
        return
    codecs = {str(tile[0]) for tile in image.tile}
    if codecs & set(Image.DECODERS):
        _require(pixels, MAX_PYTHON_VALUES // len(image.getbands()))
    wide = any(";16" in str(tile[3]) for tile in image.tile)
    _require(
        pixels,
        min(
            MAX_PIXELS,
            MAX_BYTES // _bytes_a_pixel(image.mode, wide),
            _MAX_PIXELS_OF.get(image.format or "", MAX_PIXELS),
        ),
    )


def _require(pixels: int, most: int) -> None:
    if pixels > most:
        raise TooLarge(f"more than {most / 1e6:.2g} million pixels, the most for a picture of this kind")


def _bytes_a_pixel(mode: str, wide: bool) -> int:
    """As Pillow holds it; twice as much if samples of 16 bits are made 8."""
    if mode in ("1", "L", "P"):
        return 1
    return 2 if mode.startswith("I;") else 8 if wide and mode != "I" else 4


def _shrink(image: JpegImagePlugin.JpegImageFile) -> None:
    """Have a JPEG that would take too much memory decoded at a half of its size, or less."""
    shrink = 1
    while image.width * image.height > shrink**2 * MAX_BYTES // 2:
        shrink *= 2
    if shrink > 1:
        image.draft(None, (image.width // shrink, image.height // shrink))


def _check_jpeg(data: bytes) -> None:
    """Bound what a JPEG's scans go through; markers are found as libjpeg finds them, and damaged ones left to it."""
    values: dict[int, int] = {}
    kind, place, work = 0, 2, 64 * len(data)
    while (marker := _MARKER.search(data, place)) and marker[1][0] != _END:
        place = marker.end()
        segment = data[place + 2 : place + int.from_bytes(data[place : place + 2], "big")]
        if marker[1][0] in _ARITHMETIC:
            raise TooLarge("a JPEG in arithmetic code; save it with Huffman's, as is usual")
        if marker[1][0] in _FRAMES and not values:
            kind, values = marker[1][0], _count_values(segment)
        elif marker[1][0] == _SCAN and segment:
            single = kind != _PROGRESSIVE and segment[0] == len(values)
            if not single and sum(values.values()) > MAX_JPEG_HELD:
                raise TooLarge("a progressive JPEG of too many pixels; save it as a baseline one")
            work += sum(values.get(component, 0) for component in segment[1 : 2 * segment[0] : 2])
            if work - single * 32 * len(data) > MAX_JPEG_WORK:
                raise TooLarge("a JPEG of too many bytes or scans; save it anew")
            if single:  # nothing behind it is read
                return
        place += 2 + len(segment)


def _count_values(frame: bytes) -> dict[int, int]:
    """By component, as a frame header (T.81, B.2.2) without its length says it: 64 for each block."""
    if len(frame) < 6:
        return {}
    height, width, count = struct.unpack_from(">HHB", frame, 1)
    parts = [
        (frame[at], frame[at + 1] >> 4, frame[at + 1] & 15) for at in range(6, min(6 + 3 * count, len(frame) - 2), 3)
    ]
    across, down = (max([1, *(part[i] for part in parts)]) for i in (1, 2))
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    return {name: 64 * units * x * y for name, x, y in parts}
