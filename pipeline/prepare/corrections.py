"""Decisions of people about labels, ``data/corrections.csv``, applied to what a source says."""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.core.errors import UserError, suggest
from pipeline.core.files import unescape_cell, write_csv
from pipeline.prepare.catalogue import SPLITS
from pipeline.prepare.columns import Records

HEADER = ("sha256", "file", "old", "new", "who", "when")
_SHA256 = re.compile("[0-9a-f]{64}")
DROPPED = "left out by data/corrections.csv"


@dataclass(frozen=True)
class Correction:
    """What somebody decided about pictures with the same pixels and the same label.

    Attributes:
        sha256: Of their pixels at full size, as in ``manifest.csv``, hexadecimal.
        file: Name of one, for people.
        new: The label that they should have, which may be the old one; empty: they are left out.
    """

    sha256: str
    file: str
    old: str
    new: str
    who: str
    when: str


def read_corrections(path: Path) -> list[Correction]:
    """Read decisions, of a missing file none; raises ``UserError`` for what is no such file, or contradicts itself."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            found = list(_parse(path, csv.DictReader(file)))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None
    decided: dict[tuple[str, str], Correction] = {}
    for each in found:
        former = decided.setdefault((each.sha256, each.old), each)
        if former.new != each.new:
            raise UserError(
                f"{path}: {each.file} with label {each.old!r} is decided twice, as {former.new!r} and as {each.new!r}. "
                "Keep one of them."
            )
    return list(decided.values())


def _parse(path: Path, rows: "csv.DictReader[str]") -> Iterator[Correction]:
    if tuple(rows.fieldnames or ()) != HEADER:
        raise UserError(f"{path}: its first line has to be {','.join(HEADER)}.")
    for row in rows:
        if None in row.values() or None in row or not _SHA256.fullmatch(row["sha256"]) or not row["old"]:
            raise UserError(f"{path}, line {rows.line_num}: wants a sha256 of 64 digits, a file, the old label, ...")
        yield Correction(**{name: unescape_cell(row[name]) for name in HEADER})


def write_corrections(path: Path, corrections: list[Correction]) -> None:
    """Write decisions in order of file, so that two people's files merge line by line."""
    rows = [asdict(each) for each in sorted(corrections, key=lambda each: (each.file, each.sha256, each.old))]
    write_csv(path, pd.DataFrame(rows, columns=list(HEADER)))


def apply_corrections(records: Records, corrections: list[Correction], scope: str, path: Path) -> dict[str, int]:
    """Give pictures the labels that people decided on, and leave out those that they left out; in place.

    Args:
        records: All images, decoded, with their final splits: a cut goes by the source's labels, so that it stays.
        corrections: From ``read_corrections``.
        scope: ``train``: val and test stay as they are; ``all``; ``none``.
        path: Of the decisions, for messages.

    Returns:
        For the audit: images that were ``relabelled_<split>`` or ``dropped_<split>``, those ``confirmed``, those of
        val and test ``left_as_they_are``, and ``unmatched`` decisions, whose picture the source does not have, or has
        with another label. Nothing that is 0.

    Raises:
        UserError: A decision names no class of the data.
    """
    if scope == "none" or not corrections:
        return {}
    classes = {name: number for number, name in enumerate(records.class_names)}
    for each in corrections:
        if each.new and each.new not in classes:
            hint = suggest(each.new, classes, f"the data has {', '.join(classes)}")
            raise UserError(f"{path}: {each.file} is to be {each.new!r}, which is no class: {hint}")
    rows, before = _find_rows(records, corrections), records.labels.copy()
    counts: Counter[str] = Counter()
    for each in corrections:
        matching = [row for row in rows.get(each.sha256, ()) if before[row] == classes.get(each.old, -1)]
        counts["unmatched"] += not matching
        for row in matching:
            split = SPLITS[records.splits[row]]
            if scope == "train" and split != "train":
                counts["left_as_they_are"] += 1
            elif each.new == each.old:
                counts["confirmed"] += 1
            elif each.new:
                records.labels[row] = classes[each.new]
                records.mark(row, "relabelled")
                counts[f"relabelled_{split}"] += 1
            else:
                records.mark(row, "dropped")
                records.drops[row] = DROPPED
                counts[f"dropped_{split}"] += 1
    return {name: count for name, count in sorted(counts.items()) if count}


def _find_rows(records: Records, corrections: list[Correction]) -> dict[str, list[int]]:
    """The images with the pixels of each decision."""
    wanted = {each.sha256 for each in corrections}
    begins = np.ascontiguousarray(records.digests[:, :8]).view(np.uint64).ravel()
    sought = np.frombuffer(b"".join(bytes.fromhex(sha256)[:8] for sha256 in wanted), np.uint64)
    found: dict[str, list[int]] = {}
    for row in np.flatnonzero(np.isin(begins, sought)):
        found.setdefault(records.digests[row].tobytes().hex(), []).append(int(row))
    return found
