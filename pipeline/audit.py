"""What is wrong with the source, image by image, and the counts of it all."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

# Standard deviation in grey levels below which a picture shows nothing. JPEG noise on a plain area stays
# below 2; the flattest real face of FER2013 has 42, and a face in fog about 10.
BLANK_STD = 2.0
# Exposure: this part of a picture's pixels is in the darkest or in the brightest quarter of the range.
EXPOSED_FRACTION, DARK_LEVEL, BRIGHT_LEVEL = 0.95, 64, 191
# Made square, a picture whose sides differ more than this shows a face out of shape.
MAX_ASPECT = 1.5
_SAMPLE_PX = 256  # blankness and exposure are judged on every n-th pixel of a larger picture

SPLITS = ("train", "val", "test")
LEAKS = ("test_in_train", "val_in_train", "test_in_val")
# In the order in which the manifest has them.
FLAGS = {
    "corrupt": "cannot be read, left out",
    "blank": "all of it has nearly one colour",
    "dark": "nearly all of it is in the darkest quarter of the range",
    "bright": "nearly all of it is in the brightest quarter of the range",
    "enlarged": "smaller than prepare.img_size",
    "stretched": "far from square",
    "duplicate": "another image has the same pixels",
    "near": "another image shows the same picture, changed",
    "conflict": "such an image has another label",
    "leak": "val or test image whose twin is trained on",
    "dropped": "left out of training",
}


@dataclass(slots=True)
class Record:
    """One source file and what became of it.

    Attributes:
        file: Path in the source.
        label: Its class.
        split: ``train``, ``val`` or ``test``.
        sha256: Digest of its decoded pixels, empty if it cannot be read.
        group: Smallest digest among its twins, exact and near ones; its own if it has none.
        size: Height and width of the decoded picture, px.
        marks: Those of ``FLAGS`` that apply, but for ``corrupt`` and ``dropped``.
        problem: Why it cannot be read, else empty.
        dropped: Why it is left out of training, else empty.
        row: Index in the split's array, -1 if it is left out.
    """

    file: str
    label: str
    split: str
    sha256: str = ""
    group: str = ""
    size: tuple[int, int] = (0, 0)
    marks: frozenset[str] = frozenset()
    problem: str = ""
    dropped: str = ""
    row: int = -1

    @property
    def used(self) -> bool:
        """Whether it goes into its split's array."""
        return not (self.problem or self.dropped)


def pixel_digest(image: np.ndarray) -> str:
    """SHA-256 of an image's shape and pixels, uint8 (H, W, C): equal for twins in different file formats."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()


def look_at(image: np.ndarray, img_size: int) -> frozenset[str]:
    """Which of ``blank``, ``dark``, ``bright``, ``enlarged`` and ``stretched`` a picture is.

    Args:
        image: As decoded, uint8 (H, W, C).
        img_size: Side to which it will be resized, px.
    """
    height, width, _ = image.shape
    sample = image[:: 1 + height // _SAMPLE_PX, :: 1 + width // _SAMPLE_PX]
    found = {
        "blank": (sample.std(axis=(0, 1)) < BLANK_STD).all(),
        "dark": (sample < DARK_LEVEL).mean() >= EXPOSED_FRACTION,
        "bright": (sample > BRIGHT_LEVEL).mean() >= EXPOSED_FRACTION,
        "enlarged": min(height, width) < img_size,
        "stretched": max(height, width) > MAX_ASPECT * min(height, width),
    }
    return frozenset(name for name, applies in found.items() if applies)


def flags(record: Record) -> str:
    """The record's flags, in the order of ``FLAGS``, joined by ``;``."""
    found = {"corrupt": record.problem, "dropped": record.dropped}
    return ";".join(name for name in FLAGS if name in record.marks or found.get(name))


def grouped(records: list[Record], key: str) -> list[list[Record]]:
    """The sets of readable records, two or more, that are equal in the attribute ``key``."""
    counts = Counter(getattr(record, key) for record in records if record.sha256)
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if counts[getattr(record, key)] > 1:
            groups[getattr(record, key)].append(record)
    return list(groups.values())


def build_audit(records: list[Record], class_names: list[str]) -> dict[str, Any]:
    """Count what ``reports/audit.json`` holds.

    Args:
        records: All source files, with their final splits, twins and drops.
        class_names: All classes.

    Returns:
        ``images`` (all files in class folders), ``splits.<split>.<class>`` (those in the arrays), ``corrupt`` and
        ``dropped`` (left out), ``blank``, ``dark``, ``bright``, ``enlarged`` and ``stretched`` (kept), ``sizes``
        (the ten most common, as ``<width>x<height>``), ``imbalance`` (the largest class of train over the
        smallest), ``exact``, ``leaks`` and ``near`` (see below), and ``bad_files`` with name and reason.

        ``exact`` is about images with equal pixels: ``groups`` of them, ``redundant`` images beyond the first of
        each, ``conflicting_groups`` with more than one label. ``leaks.<a>_in_<b>`` counts images of split a
        with an exact twin in split b, as the source has them: what is dropped counts too. ``near`` has the same
        for near twins, and counts only what the exact ones leave: groups of different pictures, pictures beyond
        the first, images without an exact twin over there.
    """
    used = Counter((record.split, record.label) for record in records if record.used)
    bad = [record for record in records if record.problem]
    marks = Counter(mark for record in records for mark in record.marks)
    sizes = Counter("{1}x{0}".format(*record.size) for record in records if record.sha256)
    in_train = [used["train", name] for name in class_names]
    exact = grouped(records, "sha256")
    near = [group for group in grouped(records, "group") if _different(group) > 1]
    exact_leaks, near_leaks = _count_leaks(records)
    return {
        "images": len(records),
        "splits": {split: {name: used[split, name] for name in class_names} for split in SPLITS},
        "corrupt": len(bad),
        "dropped": sum(bool(record.dropped) for record in records),
        **{name: marks[name] for name in ("blank", "dark", "bright", "enlarged", "stretched")},
        "sizes": dict(sorted(sizes.most_common(10), key=lambda item: (-item[1], item[0]))),
        "conflicting_groups": sum(map(conflicting, grouped(records, "group"))),
        "imbalance": round(max(in_train) / max(1, min(in_train)), 1),
        "exact": {
            "groups": len(exact),
            "redundant": sum(map(len, exact)) - len(exact),
            "conflicting_groups": sum(map(conflicting, exact)),
        },
        "leaks": exact_leaks,
        "near": {
            "groups": len(near),
            "redundant": sum(map(_different, near)) - len(near),
            "conflicting_groups": sum(map(conflicting, near)),
            "leaks": near_leaks,
        },
        "bad_files": [{"file": record.file, "reason": record.problem} for record in bad],
    }


def headline(audit: dict[str, Any]) -> dict[str, int]:
    """Three figures that say how far a score on these data can be trusted.

    Returns:
        ``redundant`` (copies in the data, exact and near ones), ``conflicting_groups`` (sets of twins with more
        than one label) and ``test_in_train`` (test images with a twin in the source's training split).
    """
    return {
        "redundant": audit["exact"]["redundant"] + audit["near"]["redundant"],
        "conflicting_groups": audit["conflicting_groups"],
        "test_in_train": audit["leaks"]["test_in_train"] + audit["near"]["leaks"]["test_in_train"],
    }


def conflicting(group: list[Record]) -> bool:
    """Whether twins have different labels."""
    return len({record.label for record in group}) > 1


def _different(group: list[Record]) -> int:
    """How many different pictures there are among twins."""
    return len({record.sha256 for record in group})


def _count_leaks(records: list[Record]) -> tuple[dict[str, int], dict[str, int]]:
    """Images with an exact twin in another split, and those that have near ones only, by ``LEAKS``."""
    exact, near = dict.fromkeys(LEAKS, 0), dict.fromkeys(LEAKS, 0)
    for group in grouped(records, "group"):
        of_exact_twins: dict[str, set[str]] = defaultdict(set)
        for record in group:
            of_exact_twins[record.sha256].add(record.split)
        of_twins = set().union(*of_exact_twins.values())
        for record in group:
            for name in LEAKS:
                split, _, other = name.partition("_in_")
                if record.split == split and other in of_twins:
                    (exact if other in of_exact_twins[record.sha256] else near)[name] += 1
    return exact, near
