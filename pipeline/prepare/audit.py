"""What is wrong with the source, image by image, and the counts of it all, also in a few lines for whoever runs it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.prepare.catalogue import SPLITS, Listing
from pipeline.prepare.columns import Records, sets_of
from pipeline.prepare.people import People
from pipeline.prepare.pixels.picture import LOOKS
from pipeline.prepare.sources.source import Source
from pipeline.prepare.twins.mark import CONFLICT, TWIN

LEAKS = ("test_in_train", "val_in_train", "test_in_val")
_DROPS = {"twins": TWIN, "conflicts": CONFLICT}


def build_audit(
    records: Records,
    faces: bool = False,
    left_out: Mapping[str, int] | None = None,
    notes: Mapping[str, int] | None = None,
    people: People | None = None,
) -> dict[str, Any]:
    """Count what ``reports/audit.json`` holds of all images, with their final splits, twins and drops.

    ``left_out`` are items of the source that are no images of the data, counted by the reason; ``notes`` say what was
    settled when the source was read, counted likewise; ``people`` are as far as anything tells whom images show.

    Returns:
        ``images`` (all files in class folders), ``splits.<split>.<class>`` (those in the arrays), ``corrupt`` (left
        out), ``dropped`` (left out of training: ``twins`` of val or test images, and ``conflicts``, twins with another
        label), ``blank``, ``dark``, ``bright``, ``enlarged`` and ``stretched`` (kept), ``sizes`` (the ten most common,
        as ``<width>x<height>``), ``imbalance`` (the largest class of train over the smallest), ``exact``, ``leaks`` and
        ``near`` (see below), ``bad_files`` with name and reason, and of photos ``faces``: how many show none, and
        several.

        ``exact`` is about images with equal pixels: ``groups`` of them, ``redundant`` images beyond the first of
        each, ``conflicting_groups`` with more than one label. ``leaks.<a>_in_<b>`` counts images of split a
        with an exact twin in split b, as the source has them: what is dropped counts too. ``near`` has the same
        for near twins, and counts only what the exact ones leave: groups of different pictures, pictures beyond
        the first, images without an exact twin over there.

        ``people``, where they are known: how many (``count``) in how many ``images``, by which ``pattern`` in file
        names (null where source or params say it), whether they are ``kept_apart`` and the source has ``own_splits``,
        and ``leaks``: images in the arrays of split a that show somebody who is in that of split b.
    """
    exact, twins = list(sets_of(records.copies)), list(sets_of(records.twins))
    near = [members for members in twins if _different(records, members) > 1]
    exact_leaks, near_leaks = _count_leaks(records)
    counts = records.counts()
    in_train = counts["train"].values()
    bad = sorted(records.problems)
    audit = {
        "images": len(records),
        "splits": counts,
        "corrupt": int(np.count_nonzero(records.have("corrupt"))),
        "dropped": {name: list(records.drops.values()).count(why) for name, why in _DROPS.items()},
        **{name: int(np.count_nonzero(records.have(name))) for name in LOOKS},
        "sizes": _common_sizes(records),
        "conflicting_groups": _count_sets(records, twins, len)["conflicting_groups"],
        "imbalance": round(max(in_train) / max(1, min(in_train)), 1),
        "exact": _count_sets(records, exact, len),
        "leaks": exact_leaks,
        "near": _count_sets(records, near, partial(_different, records)) | {"leaks": near_leaks},
        "bad_files": [{"file": file, "reason": records.problems[i]} for i, file in zip(bad, records.files(bad))],
    }
    if faces:
        names = {"none": "no_face", "several": "several_faces"}
        audit["faces"] = {name: int(np.count_nonzero(records.have(flag))) for name, flag in names.items()}
    for name, counted in {"left_out": left_out, "notes": notes}.items():
        if counted:
            audit[name] = dict(sorted(counted.items()))
    if people:
        audit["people"] = _count_people(records, people)
    return audit


def headline(audit: dict[str, Any]) -> dict[str, int]:
    """Figures that say how far a score on these data can be trusted.

    Returns:
        ``redundant`` (copies in the data, exact and near ones), ``conflicting_groups`` (sets of twins with more
        than one label) and ``test_in_train`` (test images with a twin in the source's training split); where people
        changed labels, ``relabelled`` and, of these, ``relabelled_test``.
    """
    relabelled = {name: n for name, n in audit.get("corrections", {}).items() if name.startswith("relabelled")}
    changed = {"relabelled": sum(relabelled.values())} if relabelled else {}
    if "relabelled_test" in relabelled:
        changed["relabelled_test"] = relabelled["relabelled_test"]
    return changed | {
        "redundant": audit["exact"]["redundant"] + audit["near"]["redundant"],
        "conflicting_groups": audit["conflicting_groups"],
        "test_in_train": audit["leaks"]["test_in_train"] + audit["near"]["leaks"]["test_in_train"],
    }


def print_summary(audit: dict[str, Any], source: Source, listing: Listing, reused: int, page: Path) -> None:
    """Print what ``build_audit`` found; source and its listing may be closed, ``page`` is where the audit's page is."""
    names = listing.class_names
    print(f"{source.path}: {source.form}")
    print(f"{audit['images']} images of {len(names)} classes: {', '.join(names)}")
    for split in SPLITS:
        origin = "" if split in listing.given else " (cut from train)"
        print(f"  {split:5} {sum(audit['splits'][split].values()):7}{origin}")
    print(f"  corrupt {audit['corrupt']} (left out), blank {audit['blank']}")
    if "faces" in audit:
        print(
            f"  photos without a face {audit['faces']['none']} (left out), with several {audit['faces']['several']} "
            "(the largest is taken)"
        )
    for name, leaks in (("exact", audit["leaks"]), ("near", audit["near"]["leaks"])):
        kind = audit[name]
        print(
            f"  {name} copies {kind['redundant']} in {kind['groups']} sets, {kind['conflicting_groups']} with "
            f"several labels; of {leaks['test_in_train']} test and {leaks['val_in_train']} val images in train"
        )
    for name, count in audit["dropped"].items():
        if count:
            print(f"  left out of training {count}: {_DROPS[name]}")
    if corrections := audit.get("corrections"):
        counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in corrections.items())
        print(f"  decisions of data/corrections.csv: {counts}")
    print(f"  see {page}")
    for reason, count in audit.get("left_out", {}).items():
        print(f"  left out {count}: {reason}")
    for note, count in audit.get("notes", {}).items():
        print(f"  noted {count}: {note}")
    if "people" in audit:
        print(f"  {describe_people(audit)}")
    if source.ignored_count:
        print(f"  {source.ignored_count} files without a label passed over, such as {source.ignored[0]}")
    if reused:
        share = reused / audit["images"]
        print(f"  {reused} images ({share:.1%}) had been decoded before and were not decoded again")
    for line in doubt_exposure(audit):
        print(line)


def doubt_exposure(audit: Mapping[str, Any]) -> list[str]:
    """What to say if most pictures that could be read show next to nothing, as ``LOOKS`` has it."""
    readable = audit["images"] - audit["corrupt"] - audit.get("faces", {}).get("none", 0)
    return [
        f"warning: {audit[name]} of {readable} images are {name}. Look at some: they may be stored in another range of "
        "brightness than their files say, as negatives, or empty."
        for name in ("blank", "dark", "bright")
        if 2 * audit[name] > readable
    ]


def describe_people(audit: dict[str, Any]) -> str:
    """Say in a few sentences how many people there are, who of them is in two splits, and what keeps them apart."""
    people, leaks = audit["people"], audit["people"]["leaks"]
    if people["kept_apart"]:
        unknown = audit["images"] - people["images"]
        rest = f"; whom {unknown} images show is not known" if unknown else ""
        return f"{people['count']} people by prepare.person, none of them in two splits{rest}"
    value = "auto" if people["pattern"] is None else f"'{people['pattern']}'"
    who = "The source" if people["pattern"] is None else "File names"
    counts = (f"{leaks[f'{s}_in_train']} of {sum(audit['splits'][s].values())} {s}" for s in ("test", "val"))
    remedy = " and take the source's own splits away, so that others are cut" if people["own_splits"] else ""
    return (
        f"{who} may tell who is who: {people['count']} people in {people['images']} of {audit['images']} images. "
        f"{' and '.join(counts)} images show somebody who is in train. To keep people apart, set "
        f"prepare.person: {value}{remedy}."
    )


def _count_people(records: Records, people: People) -> dict[str, Any]:
    """What the audit says of people."""
    known = (people.numbers >= 0) & records.used
    groups = {split: people.numbers[known & (records.splits == i)] for i, split in enumerate(SPLITS)}
    pairs = {name: name.split("_in_") for name in LEAKS}
    return {
        "count": len(np.unique(people.numbers[people.numbers >= 0])),
        "images": int(np.count_nonzero(people.numbers >= 0)),
        "pattern": people.pattern,
        "kept_apart": people.kept_apart,
        "own_splits": people.own_splits,
        "leaks": {name: int(np.isin(groups[a], groups[b]).sum()) for name, (a, b) in pairs.items()},
    }


def _count_sets(records: Records, sets: Sequence[np.ndarray], count: Callable[[np.ndarray], int]) -> dict[str, int]:
    """How many sets there are, images in them beyond the first, as ``count`` has it, and sets with several labels."""
    return {
        "groups": len(sets),
        "redundant": sum(map(count, sets)) - len(sets),
        "conflicting_groups": sum(len(np.unique(records.labels[members])) > 1 for members in sets),
    }


def _different(records: Records, members: np.ndarray) -> int:
    """How many different pictures there are among twins."""
    return len(np.unique(records.copies[members]))


def _common_sizes(records: Records) -> dict[str, int]:
    """The ten most common sizes of what can be read, as width and height, and how many have them."""
    both = records.sizes.view(np.uint32).ravel()  # height and width as one number
    found, counts = np.unique(both[~records.have("corrupt", "no_face")], return_counts=True)
    pairs = found.view(np.uint16).reshape(-1, 2)
    named = {f"{width}x{height}": int(count) for (height, width), count in zip(pairs, counts)}
    return dict(sorted(named.items(), key=lambda item: (-item[1], item[0]))[:10])


def _count_leaks(records: Records) -> tuple[dict[str, int], dict[str, int]]:
    """Images with an exact twin in another split, and those that have near ones only, by ``LEAKS``."""
    twinned = records.twinned
    splits, copies, twins = (column[twinned] for column in (records.splits, records.copies, records.twins))
    exact, near = {}, {}
    for name in LEAKS:
        own, other = (splits == SPLITS.index(split) for split in name.split("_in_"))
        has_exact, has_any = (np.isin(keys[own], keys[other]) for keys in (copies, twins))
        exact[name] = int(np.count_nonzero(has_exact))
        near[name] = int(np.count_nonzero(has_any & ~has_exact))
    return exact, near
