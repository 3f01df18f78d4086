"""``reports/audit.html``: what the audit found, with pictures.

They are faces: the page is a cached out of prepare and an artifact of the run, and never goes into git.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import pages
from pipeline.audit import FLAGS, SPLITS, Record, conflicting, grouped

# How much is shown of what there may be thousands of; the manifest has it all.
SAMPLES, SETS, MEMBERS, PICTURES, BAD_FILES = 12, 24, 8, 24, 200
PICTURE_FLAGS = ("blank", "dark", "bright", "enlarged", "stretched")
# The gravest first. A set of twins may be in two of them.
EXHIBITS = {
    "leaks": ("Twins across splits", "Equal pixels in more than one split: they flatter a score."),
    "near leaks": (
        "Changed copies across splits",
        "The same picture in more than one split, re-encoded, resized, mirrored, moved or lit otherwise.",
    ),
    "conflicts": ("Twins with different labels", "At most one of the labels can be right."),
    "near copies": ("Changed copies within a split", "All with one label."),
    "copies": ("Exact copies within a split", "All with one label."),
    **{flag: (f"{flag.capitalize()} images", f"{FLAGS[flag].capitalize()}.") for flag in PICTURE_FLAGS},
}


@dataclass(frozen=True)
class Exhibit:
    """The first of ``total`` sets of twins, or of single images, which then make one set."""

    title: str
    about: str
    total: int
    unit: str
    cut: bool
    sets: list[list[dict[str, str]]]


def render(
    source: str, audit: dict[str, Any], records: list[Record], pixels: np.ndarray, class_names: list[str]
) -> str:
    """Write the page.

    Args:
        source: Name of the source, for the title.
        audit: What ``build_audit`` returns.
        records: All records, final.
        pixels: Their images, uint8 (N, S, S, C), in the same order.
        class_names: All classes.

    Returns:
        HTML, the same for the same data: no times and no places in it.
    """
    index = {id(record): i for i, record in enumerate(records)}

    def show(chosen: list[Record]) -> list[dict[str, str]]:
        return [
            {"picture": pages.thumbnail(pixels[index[id(record)]])}
            | {name: getattr(record, name) for name in ("file", "label", "split", "dropped")}
            for record in chosen
        ]

    exhibits = []
    for name, sets in _find_exhibits(records).items():
        single = name in PICTURE_FLAGS
        total = sum(map(len, sets)) if single else len(sets)
        shown = [group[: PICTURES if single else MEMBERS] for group in sets[:SETS]]
        unit, cut = ("images", total > PICTURES) if single else ("sets", total > SETS)
        exhibits.append(Exhibit(*EXHIBITS[name], total, unit, cut, list(map(show, shown))))
    return pages.render(
        "audit.html",
        title="Data audit",
        source=source,
        audit=audit,
        splits=SPLITS,
        largest=max(1, *(count for counts in audit["splits"].values() for count in counts.values())),
        class_names=class_names,
        samples=[(name, show(_sample(records, name))) for name in class_names],
        exhibits=exhibits,
        bad_files=audit["bad_files"][:BAD_FILES],
    )


def _sample(records: list[Record], label: str) -> list[Record]:
    """Some training images of a class, evenly spread over it."""
    own = [record for record in records if record.label == label and record.split == "train" and record.used]
    return [own[i] for i in np.linspace(0, len(own) - 1, min(SAMPLES, len(own))).astype(int)]


def _find_exhibits(records: list[Record]) -> dict[str, list[list[Record]]]:
    """The sets of ``EXHIBITS`` that there are; the largest sets first, and train first in each."""
    found: dict[str, list[list[Record]]] = {name: [] for name in EXHIBITS}
    for group in grouped(records, "group"):
        group = sorted(group, key=lambda record: (SPLITS.index(record.split), record.file))
        near = "near " if len({record.sha256 for record in group}) > 1 else ""
        across = group[0].split != group[-1].split
        if across:
            found[f"{near}leaks"].append(group)
        if conflicting(group):
            found["conflicts"].append(group)
        elif not across:
            found[f"{near}copies"].append(group)
    for flag in PICTURE_FLAGS:
        if marked := [record for record in records if flag in record.marks]:
            found[flag].append(marked)
    for sets in found.values():
        sets.sort(key=lambda group: (-len(group), group[0].file))
    return {name: sets for name, sets in found.items() if sets}
