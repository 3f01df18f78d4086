"""What the stage writes into ``data/prepared``: arrays, the manifest, and pictures for the check of parity."""

import csv
import itertools
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.lib.format import write_array_header_1_0

from pipeline.core.files import escape_cell
from pipeline.core.stage_files import BLOCK, begin_digest
from pipeline.prepare.array_file import ArrayFile
from pipeline.prepare.catalogue import SPLITS, Listing
from pipeline.prepare.columns import Records, bits, flags, sets_of
from pipeline.prepare.sources.source import Source

PARITY_PICTURES = 16


def write_arrays(folder: Path, records: Records, listing: Listing, pixels: ArrayFile) -> dict[str, str]:
    """Write each split's arrays; returns each split's digest: of its pixels, labels, votes and weights."""
    digests = {}
    names, shape = records.class_names, pixels.shape[1:]
    for split in SPLITS:
        chosen = records.members(split)
        digest = begin_digest(split, names, shape, records.labels[chosen])
        pieces: dict[str, tuple[Any, tuple[int, ...], Callable[[np.ndarray], np.ndarray]]]
        pieces = {f"{split}.npy": (np.uint8, shape, pixels.__getitem__)}
        if listing.soft:
            pieces[f"{split}_soft.npy"] = (np.float32, (len(names),), partial(_read_shares, records, listing))
        for name, (dtype, inner, read) in pieces.items():
            with (folder / name).open("wb") as file:
                header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (len(chosen), *inner)}
                write_array_header_1_0(file, header)
                for start in range(0, len(chosen), BLOCK):
                    content = read(chosen[start : start + BLOCK])
                    file.write(content)
                    digest.update(content)
        if records.weights is not None:
            digest.update(records.weights[chosen])
        digests[split] = digest.hexdigest()
    return digests


def _read_shares(records: Records, listing: Listing, numbers: np.ndarray) -> np.ndarray:
    """What people voted for images, floats (n, K); where a label was decided since, all of it."""
    shares = listing.shares(numbers)
    decided = records.marks[numbers] & bits(["relabelled"]) != 0
    shares[decided] = np.eye(shares.shape[1], dtype=shares.dtype)[records.labels[numbers[decided]]]
    return shares


def write_manifest(path: Path, records: Records, listing: Listing) -> None:
    """Write a line a source file, sorted by path; twins have the same number, others none.

    The last columns are there only if the source has them.
    """
    twins = np.zeros(len(records), np.int32)
    for number, members in enumerate(sets_of(records.twins), 1):
        twins[members] = number
    more: dict[str, Iterable[Any]] = {}
    if listing.merged:
        more["root"] = listing.roots()
    if listing.person_count:
        more["person"] = listing.people()
    if records.weights is not None:
        more["weight"] = records.weights
    columns = (records.labels, records.splits, records.used, records.digests, records.marks, twins)
    rows = [itertools.count() for _ in SPLITS]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "label", "split", "row", "sha256", "flags", "twins", *more])
        for name, label, split, used, digest, marks, number, *rest in zip(listing.files(), *columns, *more.values()):
            row, sha256 = next(rows[split]) if used else -1, digest.tobytes().hex() if digest.any() else ""
            own = (
                escape_cell(name),
                escape_cell(records.class_names[label]),
                SPLITS[split],
                row,
                sha256,
                flags(marks),
                number or "",
            )
            writer.writerow((*own, *map(escape_cell, rest)))


def write_parity_pictures(path: Path, records: Records, listing: Listing, source: Source) -> None:
    """Write the untouched bytes of a few test images of every class, for checks that start from a file."""
    test = records.members("test")
    labels = range(len(records.class_names))
    by_label = [np.flatnonzero(records.labels[test] == label)[:PARITY_PICTURES] for label in labels]
    in_turn = [row for turn in itertools.zip_longest(*by_label) for row in turn if row is not None]
    rows = sorted(in_turn[:PARITY_PICTURES])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for row, file, fetch in zip(rows, listing.files(test[rows]), source.fetch(listing.places(test[rows]))):
            info = zipfile.ZipInfo(f"{row:06d}{PurePosixPath(file).suffix.lower()}")
            info.create_system = 3  # else the bytes differ between platforms
            archive.writestr(info, fetch())
