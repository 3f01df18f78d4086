"""One data set in every form of source: do all give the same arrays, labels and splits, and how fast?

Run: python benchmarks/sources.py data/sample.zip   (or FER2013's archive of class folders; needs a quiet machine)

The archive's pictures are written again in each form, each form is prepared in a process of its own, and what comes
out is compared with what the archive itself gives. Pixels go into the CSV forms as Pillow decodes them.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
from forms import FORMS, read_archive
from stage import run_prepare

Content = dict[str, list[tuple[str, bytes]]]


def load(folder: Path) -> Content:
    """Label and pixels of every image, by split, in the order of the arrays."""
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["row"]) >= 0]
    found: Content = {}
    for split in ("train", "val", "test"):
        images = np.load(folder / f"{split}.npy", mmap_mode="r")
        own = sorted((row for row in rows if row["split"] == split), key=lambda row: int(row["row"]))
        found[split] = [(row["label"], image.tobytes()) for row, image in zip(own, images, strict=True)]
    return found


def compare(found: Content, expected: Content, only_train: bool) -> str:
    """``same``, ``same, in another order``, or ``DIFFERENT``."""
    if only_train:  # what was one split is three
        found, expected = {"": [pair for pairs in found.values() for pair in pairs]}, {"": expected["train"]}
    if found == expected:
        return "same"
    alike = all(sorted(found[split]) == sorted(expected[split]) for split in expected)
    return "same, in another order" if alike else "DIFFERENT"


def main() -> None:
    """Print a Markdown table; exit 1 if a form differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="zip of split and class folders")
    faces = read_archive(parser.parse_args().archive)
    print(f"{len(faces)} images\n")
    print("| form | source, MB | prepare, s | peak, MB | against the zip |\n|---|---|---|---|---|")
    expected: Content = {}
    verdicts = set()
    for name, form in FORMS.items():
        with tempfile.TemporaryDirectory() as temporary:
            work, home = Path(temporary, "source"), Path(temporary, "home")
            work.mkdir(), home.mkdir()
            source, more = form(faces, work)
            size = sum(file.stat().st_size for file in work.rglob("*") if file.is_file()) / 1e6
            # All twins are kept: which ones are left out of training hangs on the splits, which train.csv lacks.
            seconds, peak, _ = run_prepare(home, source, duplicates="keep", conflicts="keep", **more)
            found = load(home / "data" / "prepared")
        expected = expected or found
        verdicts.add(verdict := compare(found, expected, only_train=name == "train.csv"))
        print(f"| {name} | {size:.0f} | {seconds:.1f} | {peak:.0f} | {verdict} |", flush=True)
    raise SystemExit("DIFFERENT" in verdicts)


if __name__ == "__main__":
    main()
