"""The page of label suspects, ``reports/label_suspects.html`` and the like of train, on which people decide."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from pipeline.core.dataset import Prepared, Split
from pipeline.reporting import html

SHOWN_FACES, SHOWN_PAIRS, SHOWN_SETS = 96, 10, 50
DECIDED_FACES = 500  # on the page to decide on


def render(
    found: pd.DataFrame | None, prepared: Prepared, splits: Sequence[str], file: str = "label_suspects.csv"
) -> str:
    """Return the page of what ``metrics.suspects.tabulate`` returns of some splits, HTML; ``file`` has all of it.

    Twins with different labels are shown too. What is decided on the page is saved as a file for ``hyojo relabel``.
    """
    doubts = describe(found, {name: prepared.split(name) for name in splits}, file, DECIDED_FACES)
    digests = {name: prepared.identities(name)["sha256"] for name in splits}
    for face in doubts["faces"]:
        face["sha256"] = digests[face["split"]][face["row"]]
    sets = [members for name in splits for members in _find_conflicts(prepared, name)]
    return html.render(
        "label_suspects.html",
        title="Labels in doubt",
        doubts=doubts,
        sets=sets[:SHOWN_SETS],
        set_count=len(sets),
        class_names=prepared.class_names,
        digest=prepared.digest,
    )


def describe(
    found: pd.DataFrame | None,
    splits: Mapping[str, Split],
    file: str = "label_suspects.csv",
    shown: int = SHOWN_FACES,
) -> dict[str, Any]:
    """Return what ``doubts.html`` says of the same, as a part of some page."""
    table = pd.DataFrame(columns=["label", "suggested"]) if found is None else found
    pairs = table.groupby(["label", "suggested"]).size().sort_values(ascending=False, kind="stable")
    faces = table.head(shown).to_dict("records")
    for face in faces:
        face["picture"] = html.thumbnail(splits[face["split"]].images[face["row"]])
    return dict(
        too_weak=found is None,
        images=sum(map(len, splits.values())),
        total=len(table),
        where=" and ".join("training" if name == "train" else name for name in splits),
        file=file,
        pairs=[(*pair, count) for pair, count in pairs.head(SHOWN_PAIRS).items()],
        faces=faces,
    )


def _find_conflicts(prepared: Prepared, name: str) -> Iterator[list[dict[str, Any]]]:
    """Sets of twins in a split that have different labels there."""
    known, split = prepared.identities(name), prepared.split(name)
    for _, group in known[known["conflict"]].groupby("twins"):
        if len(set(split.targets[group.index])) > 1:
            yield [
                {
                    "file": split.files[row],
                    "split": name,
                    "label": prepared.class_names[split.targets[row]],
                    "sha256": sha256,
                    "picture": html.thumbnail(split.images[row]),
                }
                for row, sha256 in group["sha256"].items()
            ]
