"""What the stage found, in a few lines for whoever runs it."""

from pathlib import Path
from typing import Any

from pipeline.prepare.catalogue import SPLITS, Listing
from pipeline.prepare.sources.source import Source


def print_summary(audit: dict[str, Any], source: Source, listing: Listing, reused: int, page: Path) -> None:
    """Print what there is.

    Args:
        audit: What ``build_audit`` returns.
        source: What was read; may be closed.
        listing: Its items; may be closed.
        reused: How many images were decoded before.
        page: Where the audit's page is.
    """
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
    for name, kind in (("exact", audit["exact"]), ("near", audit["near"])):
        leaks = audit["leaks"] if name == "exact" else audit["near"]["leaks"]
        print(
            f"  {name} copies {kind['redundant']} in {kind['groups']} sets, {kind['conflicting_groups']} with "
            f"several labels; of {leaks['test_in_train']} test and {leaks['val_in_train']} val images in train"
        )
    if audit["dropped"]:
        print(f"  {audit['dropped']} training images left out for their twins")
    print(f"  see {page}")
    for reason, count in audit.get("left_out", {}).items():
        print(f"  left out {count}: {reason}")
    if listing.person_count:
        print(f"  {listing.person_count} people by prepare.person, none of them in two splits")
    if source.ignored_count:
        print(f"  {source.ignored_count} files outside class folders passed over, such as {source.ignored[0]}")
    if reused:
        share = reused / audit["images"]
        print(f"  {reused} images ({share:.1%}) had been decoded before and were not decoded again")
