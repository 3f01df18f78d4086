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
    """A picture and what was seen in it before it was resized.

    Attributes:
        pixels: uint8 (S, S, C).
        digest: SHA-256 of its pixels at full size.
        size: Height and width at full size, px.
        seen: Some of ``SEEN``, in that order.
    """

    pixels: np.ndarray
    digest: bytes
    size: tuple[int, int]
    seen: tuple[str, ...]


def decode_picture(data: bytes, shape: tuple[int, int, int], faces: Mapping[str, Any] | None) -> Decoded:
    """Decode a picture from its file's bytes; of a photo, its largest face.

    Args:
        data: The file's bytes.
        shape: Of the pixels to make, (S, S, C).
        faces: How the face of a photo is cut out, as ``faces.cut_faces`` takes it; None if pictures are faces.

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
    """Which of ``blank``, ``dark``, ``bright``, ``enlarged`` and ``stretched`` a picture is.

    Args:
        image: As decoded, uint8 (H, W, C).
        img_size: Side to which it will be resized, px.
    """
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
