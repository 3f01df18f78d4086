"""Planted copies: how many of each kind the audit finds, and how many of its finds are right.

    python benchmarks/duplicates.py                              # the embedded drawn faces
    python benchmarks/duplicates.py --source data/raw/fer2013.zip

Copies of images, each changed in one way, are put among all images of a source, and the audit's own search runs
over the lot. Recall: the part of the copies that are in one group with their original. Precision: of all that is in
a group with a copy, the part that belongs there.

What belongs there is the original and its exact twins. A source may have near duplicates of its own, though, and a
copy may find one that its original alone did not. So originals are drawn from the images that have no near twin
before anything is planted, and what is found besides is held against the original by a slow and plain method that
shares nothing with the audit: the correlation of grey levels at every shift, at ten sizes, mirrored and not. From
0.9 on it is the same picture (of FER2013's unlike pairs that the audit looked at and refused, none of 150 reached
it), below it counts as wrong. Blank images are not drawn: there is nothing in them to tell.
"""

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageEnhance

from pipeline.core.params_file import load_params
from pipeline.core.paths import PREPARED
from pipeline.metrics.intervals import accuracy_interval
from pipeline.prepare.columns import Records, bits
from pipeline.prepare.pixels.picture import look_at, pixel_digest
from pipeline.prepare.stage import prepare
from pipeline.prepare.twins.mark import find_twins

MAX_SHIFT = 3 / 48  # of the size: 3 px on a face of 48 px
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
BORDERS = ("edge", "constant", "reflect")
SAME_PICTURE = 0.9


def jpeg(face: Image.Image, rng: np.random.Generator, lowest: int = 40, highest: int = 90) -> Image.Image:
    buffer = io.BytesIO()
    face.save(buffer, "JPEG", quality=int(rng.integers(lowest, highest + 1)))
    return Image.open(buffer)


def resized(face: Image.Image, rng: np.random.Generator, least: float = 0.75, most: float = 1.5) -> Image.Image:
    side, way = round(face.width * rng.uniform(least, most)), FILTERS[rng.integers(len(FILTERS))]
    return face.resize((side, side), way).resize(face.size, way)


def mirrored(face: Image.Image, rng: np.random.Generator) -> Image.Image:
    return face.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def shifted(face: Image.Image, rng: np.random.Generator) -> Image.Image:
    reach = round(MAX_SHIFT * face.width)
    while not (shift := rng.integers(-reach, reach + 1, 2)).any():
        pass
    pixels = np.asarray(face)
    around = ((reach, reach), (reach, reach), (0, 0))[: pixels.ndim]
    padded = np.pad(pixels, around, mode=BORDERS[rng.integers(len(BORDERS))])
    top, left = reach + shift
    return Image.fromarray(padded[top : top + face.height, left : left + face.width])


def recropped(face: Image.Image, rng: np.random.Generator) -> Image.Image:
    reach = round(MAX_SHIFT * face.width)
    while not (cut := rng.integers(0, reach + 1, 4)).any():
        pass
    box = (cut[0], cut[1], face.width - cut[2], face.height - cut[3])
    return face.resize(face.size, FILTERS[rng.integers(len(FILTERS))], box=tuple(map(float, box)))


def brightened(face: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(face).enhance(rng.uniform(0.8, 1.2))


def contrasted(face: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Contrast(face).enhance(rng.uniform(0.8, 1.2))


def several(face: Image.Image, rng: np.random.Generator) -> Image.Image:
    if rng.random() < 0.5:
        face = mirrored(face, rng)
    return jpeg(brightened(recropped(face, rng), rng), rng)


Change = Callable[[Image.Image, np.random.Generator], Image.Image]
CHANGES: dict[str, Change] = {
    "exact copy": lambda face, rng: face,
    "JPEG, quality 40 to 90": jpeg,
    "JPEG, quality 40": lambda face, rng: jpeg(face, rng, 40, 40),
    "resized to 75 to 150 % and back": resized,
    "resized to 75 % and back": lambda face, rng: resized(face, rng, 0.75, 0.75),
    "mirrored": mirrored,
    "shifted by up to 3 px": shifted,
    "re-cropped by up to 3 px a side": recropped,
    "brightness, up to 20 %": brightened,
    "contrast, up to 20 %": contrasted,
    "crop, light, JPEG, half mirrored": several,
}


def read(source: str) -> np.ndarray:
    """All images of a source, uint8 (N, S, S, C), packed by the prepare stage itself; tells its time."""
    params = load_params().prepare
    changes = {"source": str(Path(source).resolve()), "duplicates": "keep", "conflicts": "keep"}
    with tempfile.TemporaryDirectory(prefix="hyojo-duplicates-") as scratch, contextlib.chdir(scratch):
        start = time.perf_counter()
        prepare(params.model_copy(update=changes))
        print(f"prepare with its audit: {time.perf_counter() - start:.1f} s\n")
        return np.concatenate([np.load(PREPARED / f"{split}.npy") for split in ("train", "val", "test")])


def search(images: np.ndarray) -> tuple[Records, float]:
    """The audit's records of some images, with their groups, and the seconds that finding them took."""
    count = len(images)
    records = Records(lambda rows: map(str, rows), ["face"], np.zeros(count, np.int16), np.zeros(count, np.int8))
    for row, image in enumerate(images):
        records.digests[row] = np.frombuffer(bytes.fromhex(pixel_digest(image)), np.uint8)
        records.marks[row] = bits(look_at(image, len(image)))
    start = time.perf_counter()
    find_twins(records, images)
    return records, time.perf_counter() - start


def plant(images: np.ndarray, originals: np.ndarray, change: Change, rng: np.random.Generator) -> np.ndarray:
    """Changed copies of the ``originals``, rows of ``images``."""
    grey = images.shape[-1] == 1
    faces = (Image.fromarray(images[row, ..., 0] if grey else images[row]) for row in originals)
    copies = [np.asarray(change(face, rng)) for face in faces]
    return np.stack(copies).reshape(len(copies), *images.shape[1:])


def likeness(first: np.ndarray, second: np.ndarray) -> float:
    """The best correlation of the middle of a picture, uint8 (S, S), with any part of another at any of ten sizes."""
    size, margin = len(first), len(first) // 8
    middle = first[margin : size - margin, margin : size - margin].astype(np.float64)
    middle = (middle - middle.mean()) / np.linalg.norm(middle - middle.mean())
    best = 0.0
    for scale in np.linspace(0.8, 1.25, 10):
        side = round(size * scale)
        other = np.asarray(Image.fromarray(second).resize((side, side), Image.Resampling.BICUBIC), np.float64)
        for turned in (other, other[:, ::-1]):
            parts = sliding_window_view(turned, middle.shape).reshape(-1, middle.size)
            parts = parts - parts.mean(axis=1, keepdims=True)
            found = parts @ middle.ravel() / np.maximum(np.linalg.norm(parts, axis=1), 1e-9)
            best = max(best, found.max())
    return best


def interval(hits: int, total: int) -> str:
    """A share with its 95 % Wilson interval."""
    low, high = accuracy_interval(hits, total)
    return f"{hits / total:.4f} [{low:.4f}, {high:.4f}]"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="data/sample.zip", help="as prepare.source (%(default)s)")
    parser.add_argument("--copies", type=int, default=150, help="planted copies of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice and the changes (%(default)s)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    images = read(arguments.source)
    records, seconds = search(images)
    print(f"{len(images):,} images, near twins looked for in {seconds:.1f} s\n")
    free = np.flatnonzero(~records.have("near", "blank"))
    originals = rng.permutation(free)[: len(CHANGES) * arguments.copies].reshape(len(CHANGES), -1)
    planted = [plant(images, rows, change, rng) for rows, change in zip(originals, CHANGES.values())]
    everything = np.concatenate([images, *planted])
    records, _ = search(everything)
    print("| change | copies | recall | precision | in groups with a copy | of these own twins |")
    print("|---|---|---|---|---|---|")
    for number, (name, rows) in enumerate(zip(CHANGES, originals)):
        found = family = own = total = 0
        for place, original in enumerate(rows):
            copy = len(images) + number * len(rows) + place
            others = np.flatnonzero(records.twins == records.twins[copy])
            others = others[others != copy]
            known = (records.digests[others] == records.digests[original]).all(axis=1)
            found += bool(known.any())
            family, total = family + int(known.sum()), total + len(others)
            grey = everything[[original, *others[~known]]].mean(axis=3).astype(np.uint8)
            own += sum(likeness(grey[0], other) >= SAME_PICTURE for other in grey[1:])
        shares = f"{interval(found, len(rows))} | {interval(family + own, total)}"
        print(f"| {name} | {len(rows)} | {shares} | {total} | {own} |", flush=True)


if __name__ == "__main__":
    main()
