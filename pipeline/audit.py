"""What is wrong with the source: unreadable, blank and duplicate images, and counts of the rest."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Standard deviation in grey levels below which a picture shows nothing. JPEG noise on a plain area stays
# below 2; the flattest real face of FER2013 has 42, and a face in fog about 10.
BLANK_STD = 2.0
_SAMPLE_PX = 256  # blankness is judged on every n-th pixel of a larger picture


@dataclass(slots=True)
class Record:
    """One source file and what became of it.

    Attributes:
        file: Path in the source.
        label: Its class.
        split: ``train``, ``val`` or ``test``.
        sha256: Digest of its decoded pixels, empty if it cannot be read.
        blank: All of it has nearly one colour.
        problem: Why it is left out, else empty.
        row: Index in the split's array, -1 if it is left out.
    """

    file: str
    label: str
    split: str
    sha256: str = ""
    blank: bool = False
    problem: str = ""
    row: int = -1


def pixel_digest(image: np.ndarray) -> str:
    """SHA-256 of an image's shape and pixels, uint8 (H, W, C): equal for twins in different file formats."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()


def is_blank(image: np.ndarray) -> bool:
    """Whether an image, uint8 (H, W, C), is constant or nearly so in every channel."""
    height, width, _ = image.shape
    sample = image[:: 1 + height // _SAMPLE_PX, :: 1 + width // _SAMPLE_PX]
    return bool((sample.std(axis=(0, 1)) < BLANK_STD).all())


def count_twins(records: Iterable[Record]) -> dict[str, int]:
    """Digests that more than one readable image has, and how many have it."""
    counts = Counter(record.sha256 for record in records if record.sha256)
    return {digest: count for digest, count in counts.items() if count > 1}


def flags(record: Record, twins: dict[str, int]) -> str:
    """``corrupt``, ``blank`` and ``duplicate`` as they apply, joined by ``;``; every one of the twins is flagged."""
    found = {"corrupt": record.problem, "blank": record.blank, "duplicate": record.sha256 in twins}
    return ";".join(name for name, applies in found.items() if applies)


def build_audit(records: list[Record], class_names: list[str]) -> dict[str, Any]:
    """Count what ``reports/audit.json`` holds.

    Args:
        records: All source files, with their final splits.
        class_names: All classes.

    Returns:
        ``images`` (all files in class folders), ``splits.<split>.<class>`` (those that are usable),
        ``corrupt`` (left out), ``blank`` (kept), ``exact.groups`` (sets of twins), ``exact.redundant`` (images
        beyond the first of each set), and ``bad_files`` with name and reason.
    """
    usable = Counter((record.split, record.label) for record in records if not record.problem)
    bad = [record for record in records if record.problem]
    twins = count_twins(records)
    return {
        "images": len(records),
        "splits": {
            split: {name: usable[split, name] for name in class_names} for split in ("train", "val", "test")
        },
        "corrupt": len(bad),
        "blank": sum(record.blank for record in records),
        "exact": {"groups": len(twins), "redundant": sum(twins.values()) - len(twins)},
        "bad_files": [{"file": record.file, "reason": record.problem} for record in bad],
    }
