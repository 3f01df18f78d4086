"""How time and memory of the prepare stage grow with the source, up to a million images.

Run: python benchmarks/growth.py [--sizes 10000 100000 1000000]   (a quiet machine; 10 GB of disk at a million)

Each source is a zip of grey JPEGs of 48 px in 7 classes and 3 splits: smooth random patterns, no two alike. The stage
runs on it in a process of its own, with an empty cache of decoded pictures; then again, with a tenth more images
in the archive. ``hashes`` are the 32 bytes an image by which exact twins are found.
"""

import argparse
import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from stage import run_prepare
from tqdm import tqdm

CLASSES = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
SPLITS = ("train",) * 8 + ("val", "test")
HASH_BYTES = 32


def add_pictures(path: Path, start: int, stop: int) -> None:
    """Add pictures number ``start`` to ``stop`` to a zip."""
    with zipfile.ZipFile(path, "a") as archive:
        for i in tqdm(range(start, stop), desc="drawing", unit="img", mininterval=5):
            # Eight by eight random greys, enlarged: an entropy of 64 bytes, so no two are alike.
            greys = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
            data = io.BytesIO()
            Image.fromarray(greys).resize((48, 48), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
            archive.writestr(f"{SPLITS[i // 7 % 10]}/{CLASSES[i % 7]}/{i:07d}.jpg", data.getvalue())


def run_with_more(home: Path, source: Path, size: int) -> tuple[str, str]:
    """Run again with a tenth more images: seconds, and how many were not decoded again."""
    add_pictures(source, size, size + size // 10)
    grown = run_prepare(home, source)
    line = next(line.strip() for line in grown.output.splitlines() if "decoded before" in line)
    return f"{grown.seconds:.1f}", f"{int(line.split(' ')[0]):,}"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], metavar="N")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    parser.add_argument("--once", action="store_true", help="not again with a tenth more images")
    arguments = parser.parse_args()
    print("| images | s | img/s | peak, MB | without hashes, MB | a tenth more, s | not decoded again |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
            home, source = Path(temporary), Path(temporary, "faces.zip")
            (home / ".dvc").mkdir()  # makes it a project, which has a cache
            add_pictures(source, 0, size)
            first = run_prepare(home, source)
            more = ("", "") if arguments.once else run_with_more(home, source, size)
        row = (
            f"{size:,}", f"{first.seconds:.1f}", f"{size / first.seconds:.0f}", f"{first.peak_mb:.0f}",
            f"{first.peak_mb - size * HASH_BYTES / 2**20:.0f}", *more,
        )  # fmt: skip
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
