"""A picture's file -> its prepared pixels, and what is seen in it before it is resized."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline.inference.faces import cut_faces
from pipeline.inference.images import decode, resize

# Standard deviation in grey levels below which a picture shows nothing. JPEG noise on a plain area stays
# below 2; the flattest real face of FER2013 has 42, and a face in fog about 10.
BLANK_STD = 2.0
# Exposure: this part of a picture's pixels is in the darkest or in the brightest quarter of the range.
EXPOSED_FRACTION, DARK_LEVEL, BRIGHT_LEVEL = 0.95, 64, 191
# Made square, a picture whose sides differ more than this shows a face out of shape.
MAX_ASPECT = 1.5
_SAMPLE_PX = 256  # blankness and exposure are judged on every n-th pixel of a larger picture

LOOKS = ("blank", "dark", "bright", "enlarged", "stretched")
SEEN = ("several_faces", *LOOKS)


class Decoded(NamedTuple):
    """A picture and what was seen in it before it was resized."""

    pixels: np.ndarray  # uint8 (S, S, C)
    digest: bytes  # SHA-256 of its pixels at full size
    size: tuple[int, int]  # height and width at full size, px
    seen: tuple[str, ...]  # some of ``SEEN``, in that order


def decode_picture(data: bytes, shape: tuple[int, int, int], faces: Mapping[str, Any] | None) -> Decoded:
    """Decode a picture from its file's bytes, to pixels of a shape (S, S, C); of a photo, its largest face.

    ``faces`` says how that is cut out, as ``faces.cut_faces`` takes it; None if pictures are faces.

    Raises:
        ImageError: It is no usable picture, or a photo in which no face is found (``NoFace``).
    """
    seen: set[str] = set()
    if faces:
        found = cut_faces(data, shape[2], faces)
        _, image = next(found)
        if next(found, None) is not None:
            seen.add("several_faces")
    else:
        image = decode(data, shape[2])
    seen |= look_at(image, shape[0])
    pixels, digest = resize(image, shape[0]), bytes.fromhex(pixel_digest(image))
    return Decoded(pixels, digest, image.shape[:2], tuple(name for name in SEEN if name in seen))


def pixel_digest(image: np.ndarray) -> str:
    """SHA-256 of an image's shape and pixels, uint8 (H, W, C): equal for twins in different file formats."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()


def look_at(image: np.ndarray, img_size: int) -> frozenset[str]:
    """Which of ``LOOKS`` a picture, uint8 (H, W, C), has that will be resized to ``img_size`` px a side."""
    height, width, _ = image.shape
    sample = image[:: 1 + height // _SAMPLE_PX, :: 1 + width // _SAMPLE_PX]
    found = {
        "blank": (sample.std(axis=(0, 1)) < BLANK_STD).all(),
        "dark": (sample < DARK_LEVEL).mean() >= EXPOSED_FRACTION,
        "bright": (sample > BRIGHT_LEVEL).mean() >= EXPOSED_FRACTION,
        "enlarged": min(height, width) < img_size,
        "stretched": max(height, width) > MAX_ASPECT * min(height, width),
    }
    return frozenset(name for name, applies in found.items() if applies)
