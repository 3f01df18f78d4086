"""Faces pasted into photos at known places: how many are found, and how many finds are none.

    python benchmarks/faces.py --prepared data/prepared --bundle models/bundle

Test faces of prepared data, blown up to 40 to 240 px, are laid into the two photographs that scikit-learn ships, up to
six a picture, none over another. A face counts as found where a box has its middle in the face's middle half and a
quarter to twice its area; every other box is a false one, as are all in parts of the photographs without faces. With a
bundle, its accuracy on the faces as they are is compared with that on what the detector cuts out, at several margins.
What a photo takes is measured on such photos with 250 to 1,000 px on the longer side, each finder in turn on each
photo, in time of the processor, so that other work on the machine does not count; and from JPEG to pixels, as prepare
does it. Peers, where they are installed: OpenCV's Haar cascade, pip install "opencv-python-headless<5"; and another
MTCNN, pip install --no-deps facenet-pytorch.
"""

import argparse
import contextlib
import importlib.util
import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.core.cores import available
from pipeline.core.dataset import PREPARED, load_prepared
from pipeline.inference.faces import DEFAULTS, THRESHOLDS, Face, NoFace, cut_out, detect, to_channels
from pipeline.inference.images import resize
from pipeline.inference.predictor import Predictor
from pipeline.metrics.intervals import accuracy_interval
from pipeline.prepare.pixels.picture import decode_picture

SIDES = (40, 64, 110, 240)  # px of a pasted face; bounds of the three groups that are told apart
LONGEST = (250, 1000)  # px of the longer side of photos whose time is taken
MARGINS = (-0.05, 0.0, 0.05, 0.1, 0.2)
Detect = Callable[[np.ndarray, int], list[Face]]


def haar() -> Detect:
    """OpenCV's cascade for frontal faces, with the settings of its tutorial."""
    import cv2

    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")

    def find(image: np.ndarray, min_size: int) -> list[Face]:
        grey = to_channels(image, 1)[..., 0]
        boxes = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=(min_size, min_size))
        return [Face(tuple(int(side) for side in box), 1.0) for box in boxes]

    return find


def facenet() -> Detect:
    """The MTCNN of facenet-pytorch, on one thread."""
    import torch
    from facenet_pytorch import MTCNN

    torch.set_num_threads(1)
    nets = MTCNN(min_face_size=DEFAULTS["min_size"], thresholds=list(THRESHOLDS), keep_all=True)

    def find(image: np.ndarray, min_size: int) -> list[Face]:
        boxes, probs = nets.detect(Image.fromarray(image))
        corners = [] if boxes is None else np.rint(boxes.astype(float)).astype(int).tolist()
        return [Face((x, y, right - x, low - y), float(prob)) for (x, y, right, low), prob in zip(corners, probs)]

    return find


def background(rng: np.random.Generator) -> np.ndarray:
    """A part of one of the photographs, mirrored or not."""
    photo = load_sample_images().images[rng.integers(2)]
    top, left = rng.integers(0, photo.shape[0] // 4), rng.integers(0, photo.shape[1] // 4)
    return np.ascontiguousarray(photo[top:, left:][:, :: rng.choice((-1, 1))])


def paste(faces: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """A photo with faces in it; for each its number, left, top and side."""
    photo, placed = background(rng), []
    for _ in range(40):
        if len(placed) == 6:
            break
        side = int(np.exp(rng.uniform(np.log(SIDES[0]), np.log(SIDES[-1]))))
        left, top = rng.integers(0, photo.shape[1] - side), rng.integers(0, photo.shape[0] - side)
        if all(
            abs(2 * left + side - 2 * x - s) > 1.2 * (side + s) or abs(2 * top + side - 2 * y - s) > 1.2 * (side + s)
            for _, x, y, s in placed
        ):
            number = int(rng.integers(len(faces)))
            face = Image.fromarray(np.broadcast_to(faces[number], (*faces.shape[1:3], 3)))
            photo[top : top + side, left : left + side] = face.resize((side, side), Image.Resampling.BICUBIC)
            placed.append((number, int(left), int(top), side))
    return photo, placed


def shows(face: Face, left: int, top: int, side: int) -> bool:
    """Whether a box is that of a pasted face."""
    x, y, width, height = face.box
    middle = max(abs(x + width / 2 - left - side / 2), abs(y + height / 2 - top - side / 2)) <= side / 4
    return middle and side**2 / 4 <= width * height <= 2 * side**2


def measure(name: str, find: Detect, photos: list, empty: list[np.ndarray]) -> None:
    """Print a detector's recall by size, its false boxes, and its time."""
    found: list[tuple[int, bool]] = []
    false, times = 0, []
    for photo, placed in photos:
        start = time.perf_counter()
        boxes = find(photo, DEFAULTS["min_size"])
        times.append(time.perf_counter() - start)
        hits = [any(shows(box, *where) for box in boxes) for _, *where in placed]
        found += [(side, hit) for (*_, side), hit in zip(placed, hits)]
        false += sum(not any(shows(box, *where) for _, *where in placed) for box in boxes)
    sides, hit = (np.array(column) for column in zip(*found))
    low, high = accuracy_interval(int(hit.sum()), len(hit))
    by_size = ", ".join(
        f"{least} to {most} px {hit[(sides >= least) & (sides < most)].mean():.3f}" for least, most in pairwise(SIDES)
    )
    extra = sum(len(find(photo, DEFAULTS["min_size"])) for photo in empty)
    print(
        f"{name}: recall {hit.mean():.3f} ({low:.3f} to {high:.3f}, {len(hit)} faces; {by_size}), false boxes {false} "
        f"in {len(photos)} photos with faces, {extra} in {len(empty)} without; median {np.median(times) * 1e3:.0f} ms "
        f"({np.min(times) * 1e3:.0f} to {np.max(times) * 1e3:.0f})"
    )


def resize_longest(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A photo with a side of ``LONGEST``."""
    ratio = rng.uniform(*LONGEST) / max(photo.shape)
    size = (round(photo.shape[1] * ratio), round(photo.shape[0] * ratio))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))


def compare_times(photos: list[np.ndarray], finders: dict[str, Detect]) -> None:
    """Print what a photo takes with each, and how many times that of the first it is; then photos a second."""
    times = np.empty((len(finders), len(photos)))
    for column, photo in enumerate(photos):
        for row, find in enumerate(finders.values()):
            start = time.process_time()
            find(photo, DEFAULTS["min_size"])
            times[row, column] = time.process_time() - start
    for name, own in zip(finders, times[:, 1:]):
        low, high = np.quantile(own, (0.05, 0.95)) * 1e3
        ratio = np.quantile(own / times[0, 1:], (0.5, 0.05, 0.95))
        print(
            f"{name}: {own.mean() * 1e3:.0f} ms of processor time a photo ({low:.0f} to {high:.0f} for nine of ten), "
            f"{ratio[0]:.2f} times the first ({ratio[1]:.2f} to {ratio[2]:.2f})"
        )
    files = [encode(photo, "JPEG") for photo in photos]
    with ThreadPoolExecutor(threads := available()) as pool:
        start, used = time.perf_counter(), time.process_time()
        list(pool.map(prepare, files))
        wall, used = time.perf_counter() - start, (time.process_time() - used) / len(files)
    print(
        f"prepare, JPEG to pixels on {threads} threads: {len(files) / wall:.1f} photos a second; {used * 1e3:.0f} ms "
        f"of processor time each, so {threads / used:.1f} a second on {threads} cores with nothing else to do"
    )


def prepare(data: bytes) -> None:
    """What the prepare stage does with a photo."""
    with contextlib.suppress(NoFace):
        decode_picture(data, (48, 48, 1), DEFAULTS)


def encode(image: np.ndarray, kind: str) -> bytes:
    """A file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, kind)
    return buffer.getvalue()


def compare_accuracy(photos: list, faces: np.ndarray, labels: list[str], bundle: Path) -> None:
    """Print a model's accuracy on found faces, as they are and as they are cut out."""
    predictor = Predictor(bundle)
    pairs = []
    for photo, placed in photos:
        boxes = detect(photo, DEFAULTS["min_size"])
        for number, *where in placed:
            pairs += [(number, photo, box) for box in boxes if shows(box, *where)][:1]
    truth = [labels[number] for number, _, _ in pairs]

    def accuracy(images: list[np.ndarray]) -> float:
        answers = predictor.predict_bytes([encode(image, "PNG") for image in images], faces=False)
        return sum(answer["label"] == label for answer, label in zip(answers, truth)) / len(truth)

    size, channels = predictor.img_size, predictor.channels
    print(f"accuracy on {len(pairs)} found faces as they are {accuracy([faces[number] for number, *_ in pairs]):.3f}")
    for margin in MARGINS:
        cut = [resize(to_channels(cut_out(photo, box, margin), channels), size) for _, photo, box in pairs]
        print(f"  cut out with a margin of {margin:5.2f}: {accuracy(cut):.3f}")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", default=PREPARED, type=Path, help="prepared photographed faces (%(default)s)")
    parser.add_argument("--bundle", type=Path, help="a bundle, to see what cutting out does to its accuracy")
    parser.add_argument("--photos", type=int, default=200, help="photos with faces (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    prepared = load_prepared(arguments.prepared)
    test = prepared.split("test")
    photos = [paste(test.images, rng) for _ in range(arguments.photos)]
    empty = [background(rng) for _ in range(arguments.photos // 4)]
    finders = {"MTCNN, ours": detect}
    finders |= {"MTCNN, facenet-pytorch": facenet()} if importlib.util.find_spec("facenet_pytorch") else {}
    finders |= {"Haar cascade": haar()} if importlib.util.find_spec("cv2") else {}
    for name, find in finders.items():
        measure(name, find, photos, empty)
    compare_times([resize_longest(photo, rng) for photo, _ in photos], finders)
    if arguments.bundle:
        labels = [prepared.class_names[target] for target in test.targets]
        compare_accuracy(photos, test.images, labels, arguments.bundle)


if __name__ == "__main__":
    main()
