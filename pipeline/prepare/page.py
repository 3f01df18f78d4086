"""``reports/audit.html``: what the audit found, with pictures.

They are faces: the page is a cached out of prepare and an artifact of the run, and never goes into git.
"""

from typing import Any

import numpy as np

from pipeline.prepare.array_file import ArrayFile
from pipeline.prepare.audit import describe_people
from pipeline.prepare.catalogue import SPLITS
from pipeline.prepare.columns import FLAGS, Records, sets_of
from pipeline.prepare.pixels.picture import LOOKS, SEEN
from pipeline.reporting import html

# How much is shown of what there may be thousands of; the manifest has it all.
SAMPLES, SETS, MEMBERS, PICTURES, BAD_FILES = 12, 24, 8, 24, 200
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
    "several_faces": ("Photos with several faces", "The largest was taken, which is shown."),
    **{flag: (f"{flag.capitalize()} images", f"{FLAGS[flag].capitalize()}.") for flag in LOOKS},
}


def render_page(audit: dict[str, Any], records: Records, pixels: ArrayFile | np.ndarray) -> str:
    """Render the page of an audit of these records and their pixels, uint8 (N, S, S, C).

    Returns:
        HTML, the same for the same data: no times and no places in it.
    """
    class_names = records.class_names

    def show(chosen: np.ndarray) -> list[dict[str, str]]:
        return [
            {
                "picture": html.thumbnail(image),
                "file": file,
                "label": class_names[records.labels[i]],
                "split": SPLITS[records.splits[i]],
                "dropped": records.drops.get(int(i), ""),
            }
            for i, image, file in zip(chosen, pixels[chosen], records.files(chosen))
        ]

    exhibits = []
    for name, sets in _find_exhibits(records).items():
        single = name in SEEN  # shown one by one, without twins, as if they were one set
        total = sum(map(len, sets)) if single else len(sets)
        count, unit = (PICTURES, "images") if single else (MEMBERS, "sets")
        # The first pictures of each of the largest sets, and the number of those that are not shown.
        shown = [(show(members[:count]), max(0, len(members) - count)) for members in sets[:SETS]]
        title, about = EXHIBITS[name]
        cut = len(sets) > SETS
        exhibits.append({"title": title, "about": about, "total": total, "unit": unit, "cut": cut, "sets": shown})
    return html.render(
        "audit.html",
        title="Data audit",
        audit=audit,
        people=describe_people(audit) if "people" in audit else "",
        splits=SPLITS,
        largest=max(1, *(count for counts in audit["splits"].values() for count in counts.values())),
        class_names=class_names,
        samples=[(name, show(_sample(records, label))) for label, name in enumerate(class_names)],
        exhibits=exhibits,
        bad_files=audit["bad_files"][:BAD_FILES],
    )


def _sample(records: Records, label: int) -> np.ndarray:
    """Some training images of a class, evenly spread over it."""
    training = records.members("train")
    own = training[records.labels[training] == label]
    return own[np.linspace(0, len(own) - 1, min(SAMPLES, len(own))).astype(int)]


def _find_exhibits(records: Records) -> dict[str, list[np.ndarray]]:
    """The sets of ``EXHIBITS`` that there are; the largest sets first, and test before val and train in each."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in EXHIBITS}
    nearly, clash = records.have("near"), records.have("conflict")
    for members in sets_of(records.twins):
        members = members[np.argsort(-records.splits[members], kind="stable")]
        near = "near " if nearly[members[0]] else ""
        across = records.splits[members[0]] != records.splits[members[-1]]
        if across:
            found[f"{near}leaks"].append(members)
        if clash[members[0]]:
            found["conflicts"].append(members)
        elif not across:
            found[f"{near}copies"].append(members)
    for flag in SEEN:
        if len(marked := np.flatnonzero(records.have(flag))):
            found[flag].append(marked)
    for sets in found.values():
        sets.sort(key=lambda members: (-len(members), members[0]))
    return {name: sets for name, sets in found.items() if sets}
