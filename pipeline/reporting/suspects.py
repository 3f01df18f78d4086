"""The page of label suspects, ``reports/label_suspects.html`` and the like of train."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipeline.core.dataset import Split
from pipeline.reporting import html

SHOWN_FACES, SHOWN_PAIRS = 96, 10


def render(found: pd.DataFrame | None, splits: Mapping[str, Split], file: str = "label_suspects.csv") -> str:
    """Return the page of what ``metrics.suspects.tabulate`` returns, HTML; ``file`` has all of it."""
    return html.render("label_suspects.html", title="Labels in doubt", doubts=describe(found, splits, file))


def describe(
    found: pd.DataFrame | None, splits: Mapping[str, Split], file: str = "label_suspects.csv"
) -> dict[str, Any]:
    """Return what ``doubts.html`` says of the same, as a part of some page."""
    table = pd.DataFrame(columns=["label", "suggested"]) if found is None else found
    pairs = table.groupby(["label", "suggested"]).size().sort_values(ascending=False, kind="stable")
    faces = table.head(SHOWN_FACES).to_dict("records")
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
