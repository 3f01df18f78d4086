"""The page of label suspects."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.dataset import Split
from pipeline.reporting.suspects import render


def fake(count: int, conflicts: int = 0, **splits: np.ndarray) -> Any:
    """Prepared data of which the first images of each split are twins with different labels."""

    def identities(name: str) -> pd.DataFrame:
        rows = np.arange(count)
        columns = {"sha256": [f"{row:064x}" for row in rows], "twins": np.where(rows < conflicts, 1.0, np.nan)}
        return pd.DataFrame(columns | {"conflict": rows < conflicts})

    opened = {
        name: Split(images, np.arange(count) % 2, [f"{name}{i}.png" for i in range(count)])
        for name, images in splits.items()
    }
    names = ["<happy>", "angry"]
    return SimpleNamespace(split=opened.__getitem__, identities=identities, class_names=names, digest="d")


def test_render_shows_every_suspect_and_takes_names_for_text() -> None:
    images = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 1), dtype=np.uint8)
    prepared = fake(100, conflicts=3, val=images, test=images)
    lines = [
        ("a.png", "val", 3, "angry", "<happy>", 0.1, 0.9),
        ("b.png", "test", 5, "<happy>", "angry", 0.2, 0.7),
    ]
    columns = ["file", "split", "row", "label", "suggested", "prob_label", "prob_suggested"]
    table = pd.DataFrame(lines, columns=columns)
    html = render(table, prepared, ["val", "test"])
    assert "2 of 200 val and test images" in html
    assert html.count("<img ") == 2 + 2 * 3
    assert f'data-sha256="{3:064x}" data-file="a.png" data-old="angry"' in html
    assert "2 sets of one picture with several labels" in html
    assert "<happy>" not in html
    assert "0 of 200" in render(table.head(0), prepared, ["val", "test"])


def test_render_says_that_a_model_is_too_weak() -> None:
    html = render(None, fake(7, test=np.zeros((7, 2, 2, 1), np.uint8)), ["test"])
    assert "too weak to tell which of 7 test images have a wrong label" in html
    assert "in doubt" not in html.partition("<body")[2].partition("<p>")[2]
