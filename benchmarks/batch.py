"""Scoring many pictures: ``hyojo batch`` against eager PyTorch, one picture after the other.

    python benchmarks/batch.py data/raw/fer2013.zip --weights models/train --bundle models/bundle

Both decode the archive's pictures and classify them in float32; ``hyojo batch`` also lists the archive and writes its
Parquet file. Rounds alternate, so that both see the machine's moods. Then the peak memory of the command itself is
compared between few pictures and many, made by repeating those of the archive.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import torch

from pipeline.inference.images import load
from pipeline.inference.predictor import Predictor
from pipeline.models.weights import load_classifier
from pipeline.serve.batch import Settings, score_pictures

ROOT = Path(__file__).resolve().parents[1]
# The kernel's own high-water mark of this program: `ru_maxrss` would hold that of the benchmark, too.
_RUN = """
import sys
from pipeline.serve.batch import score_pictures
score_pictures(*sys.argv[1:])
with open("/proc/self/status") as status:
    print(*(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def read_pictures(archive: Path, count: int) -> list[bytes]:
    """Pictures of a zip archive, evenly picked."""
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if name.lower().endswith((".jpg", ".png"))]
        return [file.read(name) for name in names[:: max(1, len(names) // count)][:count]]


def write_archive(path: Path, pictures: Sequence[bytes], count: int) -> Path:
    """A zip of so many pictures, repeated if need be."""
    with zipfile.ZipFile(path, "w") as file:
        for i, data in enumerate(islice(cycle(pictures), count)):
            file.writestr(f"{i % 100:02d}/{i:08d}.jpg", data)
    return path


def one_by_one(weights: Path, pictures: Sequence[bytes], img_size: int, channels: int) -> float:
    """Pictures a second in eager PyTorch, float32."""
    classifier = load_classifier(weights)
    start = time.perf_counter()
    with torch.inference_mode():
        for data in pictures:
            classifier(torch.from_numpy(load(data, img_size, channels))[None]).argmax(1).item()
    return len(pictures) / (time.perf_counter() - start)


def peak_mb(source: Path, out: Path, bundle: Path) -> float:
    """Peak memory of a run in a process of its own, MB."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(source), str(out), str(bundle)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return int(done.stdout.split()[-1]) / 1024


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="zip of pictures")
    parser.add_argument("--weights", type=Path, default=Path("models/train"), help="of train (%(default)s)")
    parser.add_argument("--bundle", type=Path, default=Path("models/bundle"), help="of export (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    parser.add_argument("--pictures", type=int, default=4096, help="of a round (%(default)s)")
    parser.add_argument("--few", type=int, default=10_000, help="pictures for the first peak (%(default)s)")
    parser.add_argument("--many", type=int, default=0, help="for the second, such as 120000; 0: leave it out")
    arguments = parser.parse_args()
    pictures = read_pictures(arguments.archive, arguments.pictures)
    predictor = Predictor(arguments.bundle)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = write_archive(folder / "round.zip", pictures, arguments.pictures)
        rates, peers = [], []
        for _ in range(arguments.rounds + 1):
            few = pictures[: max(1, len(pictures) // 8)]
            peers.append(one_by_one(arguments.weights, few, predictor.img_size, predictor.channels))
            result = score_pictures(source, folder / "round.parquet", arguments.bundle, Settings(restart=True))
            rates.append(result.scored / result.seconds)
        rates, peers = rates[1:], peers[1:]  # the first round warms up
        ratios = [rate / peer for rate, peer in zip(rates, peers)]
        for name, values, unit in (
            ("hyojo batch", rates, " img/s"),
            ("eager PyTorch", peers, " img/s"),
            ("ratio", ratios, ""),
        ):
            spread = f"({min(values):,.2f} to {max(values):,.2f})"
            print(f"{name}: {statistics.median(values):,.2f} {spread}{unit}, n={len(values)}", flush=True)
        for count in (arguments.few, arguments.many):
            if arguments.many and count:
                many = write_archive(folder / f"{count}.zip", pictures, count)
                print(
                    f"{count:,} pictures: peak {peak_mb(many, folder / f'{count}.parquet', arguments.bundle):.0f} MB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
