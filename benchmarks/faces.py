"""Faces pasted into photos at known places: how many are found, and how many finds are none.

    python benchmarks/faces.py --prepared data/prepared --bundle models/bundle

Test faces of prepared data, blown up to 40 to 240 px, are laid into the two photographs that scikit-learn ships, up to
six a picture, none over another. A face counts as found where a box has its middle in the face's middle half and a
quarter to twice its area; every other box is a false one, as are all in parts of the photographs without faces. With a
bundle, its accuracy on the faces as they are is compared with that on what the detector cuts out, at several margins.
The peer is OpenCV's Haar cascade, where it is installed: pip install "opencv-python-headless<5".
"""

import argparse
import importlib.util
import io
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.core.dataset import PREPARED, load_prepared
from pipeline.inference.faces import DEFAULTS, Face, cut_out, detect, to_channels
from pipeline.inference.images import resize
from pipeline.inference.predictor import Predictor
from pipeline.metrics.intervals import accuracy_interval

SIDES = (40, 64, 110, 240)  # px of a pasted face; bounds of the three groups that are told apart
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


def png(image: np.ndarray) -> bytes:
    """A file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "PNG")
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
        answers = predictor.predict_bytes([png(image) for image in images], faces=False)
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
    measure("MTCNN, ours", detect, photos, empty)
    if importlib.util.find_spec("cv2"):
        measure("Haar cascade", haar(), photos, empty)
    if arguments.bundle:
        labels = [prepared.class_names[target] for target in test.targets]
        compare_accuracy(photos, test.images, labels, arguments.bundle)


if __name__ == "__main__":
    main()
