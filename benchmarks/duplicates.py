"""Planted copies: how many of each kind the audit finds, and how many of its finds are right.

    python benchmarks/duplicates.py                              # the embedded drawn faces
    python benchmarks/duplicates.py --source data/raw/fer2013.zip

Copies of images, each changed in one way, are put among all images of a source, and the audit's own search runs
over the lot. Recall: the part of the copies that are in one group with their original. Precision: of all that is in
a group with a copy, the part that is its original, or an exact twin of that. A source may have near duplicates of its
own, and a copy of one of them rightly matches the other; so originals are drawn from the images that have no near
twin before anything is planted. Blank images are not drawn: there is nothing in them to tell.
"""

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from pipeline.audit import Record, look_at, pixel_digest
from pipeline.metrics import accuracy_interval
from pipeline.params import load_params
from pipeline.prepare import PREPARED, prepare
from pipeline.twins import find_twins

MAX_SHIFT = 3 / 48  # of the size: 3 px on a face of 48 px
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
BORDERS = ("edge", "constant", "reflect")


def jpeg(face: Image.Image, rng: np.random.Generator, lowest: int = 40, highest: int = 90) -> Image.Image:
    buffer = io.BytesIO()
    face.save(buffer, "JPEG", quality=int(rng.integers(lowest, highest + 1)))
    return Image.open(buffer)


def resized(
    face: Image.Image, rng: np.random.Generator, least: float = 0.75, most: float = 1.5
) -> Image.Image:
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


def search(images: np.ndarray) -> tuple[list[Record], float]:
    """The audit's records of some images, with their groups, and the seconds that finding them took."""
    records = [
        Record(str(row), "", "train", pixel_digest(image), marks=look_at(image, len(image)))
        for row, image in enumerate(images)
    ]
    start = time.perf_counter()
    find_twins(records, images)
    return records, time.perf_counter() - start


def plant(images: np.ndarray, originals: np.ndarray, change: Change, rng: np.random.Generator) -> np.ndarray:
    """Changed copies of the ``originals``, rows of ``images``."""
    grey = images.shape[-1] == 1
    faces = (Image.fromarray(images[row, ..., 0] if grey else images[row]) for row in originals)
    copies = [np.asarray(change(face, rng)) for face in faces]
    return np.stack(copies).reshape(len(copies), *images.shape[1:])


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
    free = [row for row, record in enumerate(records) if not record.marks & {"near", "blank"}]
    originals = rng.permutation(free)[: len(CHANGES) * arguments.copies].reshape(len(CHANGES), -1)
    planted = [plant(images, rows, change, rng) for rows, change in zip(originals, CHANGES.values())]
    records, _ = search(np.concatenate([images, *planted]))
    print("| change | copies | recall | precision | images in groups with a copy |\n|---|---|---|---|---|")
    members: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        members.setdefault(record.group, []).append(row)
    for number, (name, rows) in enumerate(zip(CHANGES, originals)):
        found = right = total = 0
        for place, original in enumerate(rows):
            copy = len(images) + number * len(rows) + place
            others = [row for row in members[records[copy].group] if row != copy]
            family = [row for row in others if records[row].sha256 == records[original].sha256]
            found += bool(family)
            right, total = right + len(family), total + len(others)
        print(
            f"| {name} | {len(rows)} | {interval(found, len(rows))} | {interval(right, total)} | {total} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
