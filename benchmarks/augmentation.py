"""Speed of batched augmentation, as a ratio to an ImageFolder loader with a tutorial's list, in the same run.

Run: python benchmarks/augmentation.py   (needs a quiet machine; `--help` for sizes and rounds)

Ours: flip, affine (bilinear), crop and normalize on prepared 48 px grey faces in memory, from picking a batch's
rows to its float tensor. The peer: the same faces as JPEG files, opened by torchvision's ImageFolder and DataLoader
with Resize 256, RandomCrop 224, both flips, RandomRotation, ToTensor and Normalize through Pillow, in this process
and with worker processes; the faster of the two counts. The rounds alternate between all of them. Faces are those
of the prepared data if there are any of 48 px in grey, else those of the embedded sample.
"""

import argparse
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from pipeline.core.dataset import load_prepared
from pipeline.core.errors import UserError
from pipeline.inference.images import load
from pipeline.models.transforms import resolve
from pipeline.train.augment import batched

SIZE = 48
OURS = [
    "RandomHorizontalFlip",
    {
        "RandomAffine": {
            "degrees": 15,
            "translate": [0.1, 0.1],
            "scale": [0.9, 1.1],
            "interpolation": "bilinear",
        }
    },
    {"RandomCrop": {"size": 44}},
    {"Normalize": {"mean": [0.5], "std": [0.25]}},
]
PEER = [
    transforms.Resize(256),
    transforms.RandomCrop(224),
    transforms.RandomHorizontalFlip(),
    transforms.RandomVerticalFlip(),
    transforms.RandomRotation(15),
    transforms.ToTensor(),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
]
SAMPLE = Path(__file__).parents[1] / "data" / "sample.zip"
OUR_IMAGES = 30_000  # a measurement of ours takes that many, to last about as long as one of the peer


def load_faces(count: int) -> tuple[np.ndarray, str]:
    """Faces, uint8 (count, 48, 48, 1), and where they are from."""
    try:
        prepared = load_prepared()
        images = prepared.split("train").images
        if images.shape[1:] == (SIZE, SIZE, 1) and len(images) >= count:
            return np.array(images[:count]), "data/prepared"
    except UserError:
        pass
    with zipfile.ZipFile(SAMPLE) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][:count]
        return np.stack([load(archive.read(name), SIZE, 1) for name in names]), SAMPLE.name


def peer(folder: Path, batch_size: int, workers: int) -> Callable[[], float]:
    """A function that runs a loader over all files and returns img/s; workers stay up between calls."""
    dataset = datasets.ImageFolder(folder, transforms.Compose(PEER))
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

    def measure() -> float:
        start = time.perf_counter()
        seen = sum(len(images) for images, _ in loader)
        return seen / (time.perf_counter() - start)

    return measure


def ours(faces: np.ndarray, batch_size: int) -> Callable[[], float]:
    """A function that augments faces in batches of random rows and returns img/s."""
    images = torch.from_numpy(faces)
    augmentation = batched.Augmentation(resolve(OURS, [0.5], [0.25], "OURS"), 0, SIZE, 1)
    epoch = 0

    def measure() -> float:
        nonlocal epoch
        seen, start = 0, time.perf_counter()
        while seen < OUR_IMAGES:
            epoch += 1
            for rows in torch.randperm(len(images)).split(batch_size):
                seen += len(augmentation(images[rows], rows, epoch))
        return seen / (time.perf_counter() - start)

    return measure


def summary(values: list[float], digits: int = 0) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each (%(default)s)")
    parser.add_argument("--images", type=int, default=1024, help="faces, and files of the peer (%(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128, 256], help="ours (%(default)s)")
    parser.add_argument("--peer-batch-size", type=int, default=128, help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of the peer (%(default)s)")
    arguments = parser.parse_args()
    faces, source = load_faces(arguments.images)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "faces").mkdir()
        for number, face in enumerate(faces):
            Image.fromarray(face[:, :, 0]).save(Path(folder) / "faces" / f"{number:05d}.jpg")
        measures = {
            "peer, in process": peer(Path(folder), arguments.peer_batch_size, 0),
            f"peer, {arguments.workers} workers": peer(Path(folder), arguments.peer_batch_size, arguments.workers),
        }
        peers = list(measures)
        measures |= {f"ours, batch {size}": ours(faces, size) for size in arguments.batch_sizes}
        for measure in measures.values():
            measure()  # starts workers, allocates
        rates = {name: [] for name in measures}
        for _ in range(arguments.rounds):
            for name, measure in measures.items():
                rates[name].append(measure())
    best = [max(together) for together in zip(*(rates[name] for name in peers), strict=True)]
    print(f"{torch.get_num_threads()} threads, {len(faces)} faces of {source}, n = {arguments.rounds} rounds;")
    print("median (range)\n\n| loader | img/s | of the faster peer |\n|---|---|---|")
    for name, values in rates.items():
        ratios = [value / other for value, other in zip(values, best, strict=True)]
        print(f"| {name} | {summary(values)} | {summary(ratios, 1)} |")


if __name__ == "__main__":
    main()
