"""Sets of images that show the same picture: found, marked, and kept out of training where they flatter a score."""

from collections import Counter
from pathlib import Path

import numpy as np

from pipeline.audit import Record, conflicting, grouped
from pipeline.duplicates import connect, near_pairs


def find_twins(
    records: list[Record], pixels: np.ndarray, scratch: Path | None = None, progress: bool = False
) -> None:
    """Give every readable record its ``group``, and the marks ``duplicate``, ``near`` and ``conflict``, in place.

    Blank images are exact twins of equal ones only: there is nothing in them to compare.

    Args:
        records: All records, with their digests.
        pixels: Their images, uint8 (N, S, S, C), in the same order.
        scratch: Folder for a temporary file; the system's if None.
        progress: Show progress bars.
    """
    # By digest, so that neither names nor order of the files change what is found.
    digests = sorted({record.sha256 for record in records if record.sha256})
    number = {digest: i for i, digest in enumerate(digests)}
    rows = np.full(len(digests), -1, np.int64)
    for row, record in enumerate(records):
        if record.sha256 and "blank" not in record.marks:
            rows[number[record.sha256]] = row
    looked_at = np.flatnonzero(rows >= 0)
    pairs = near_pairs(pixels, rows[looked_at], scratch, progress)
    labels = connect(len(digests), looked_at[pairs.first], looked_at[pairs.second])
    smallest = np.unique(labels, return_index=True)[1]  # the first of each group
    for record in records:
        if record.sha256:
            record.group = digests[smallest[labels[number[record.sha256]]]]
    for group in grouped(records, "group"):
        copies = Counter(record.sha256 for record in group)
        common = {"near": len(copies) > 1, "conflict": conflicting(group)}
        for record in group:
            found = common | {"duplicate": copies[record.sha256] > 1}
            record.marks |= {name for name, applies in found.items() if applies}


def drop_twins(records: list[Record], duplicates: str, conflicts: str) -> None:
    """Decide which training images are left out, and mark the val and test images that still leak; in place.

    Val and test stay as they are.

    Args:
        records: All records, with their final splits and groups.
        duplicates: ``drop_from_train`` drops twins of val and test images, exact and near ones;
            ``drop_exact_from_train`` drops exact ones only; ``keep`` none.
        conflicts: What is done with training images that are twins with different labels: ``drop`` drops them all,
            ``majority`` those whose label is not that of more than half of the set, ``keep`` none.
    """
    if duplicates != "keep":
        for group in grouped(records, "group" if duplicates == "drop_from_train" else "sha256"):
            if any(record.split != "train" for record in group):
                _drop(group, "twin of a val or test image")
    if conflicts != "keep":
        training = [record for record in records if record.split == "train" and record.used]
        for group in grouped(training, "group"):
            if conflicting(group):
                label, votes = Counter(record.label for record in group).most_common(1)[0]
                agreed = conflicts == "majority" and 2 * votes > len(group)
                wrong = [record for record in group if not (agreed and record.label == label)]
                _drop(wrong, "twin with another label")
    for group in grouped(records, "group"):
        if any(record.split == "train" and record.used for record in group):
            for record in group:
                if record.split != "train":
                    record.marks |= {"leak"}


def _drop(group: list[Record], why: str) -> None:
    """Leave the training images among twins out."""
    for record in group:
        if record.split == "train":
            record.dropped = why
