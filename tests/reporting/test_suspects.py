"""The page of label suspects."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.core.dataset import Split
from pipeline.prepare.corrections import read_corrections
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


@pytest.mark.slow
def test_decisions_by_keyboard_are_saved_in_a_browser(page: Any, tmp_path: Path) -> None:
    """Suggestion, keep, another class, leave out, not sure; they are there again after the page was left."""
    images = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 1), dtype=np.uint8)
    prepared = fake(100, conflicts=3, val=images)
    lines = [(f'{i}, "x".png', "val", 10 + i, "angry", "<happy>", 0.1, 0.9) for i in range(5)]
    columns = ["file", "split", "row", "label", "suggested", "prob_label", "prob_suggested"]
    (tmp_path / "page.html").write_text(render(pd.DataFrame(lines, columns=columns), prepared, ["val"]))
    page.goto((tmp_path / "page.html").as_uri())
    page.fill("#who", "Ann")
    page.locator("figure").first.focus()
    for key in ("Enter", "k", "1", "x", "u"):
        page.keyboard.press(key)
    page.locator("figure select").nth(5).select_option("drop")
    page.reload()
    assert page.inner_text("#count") == "6 decisions"
    with page.expect_download() as saved:
        page.click("#save")
    saved.value.save_as(tmp_path / "corrections.csv")
    found = read_corrections(tmp_path / "corrections.csv")
    assert [(each.file, each.old, each.new, each.who) for each in found] == [
        ("0, \"x\".png", "angry", "<happy>", "Ann"), ("1, \"x\".png", "angry", "angry", "Ann"),
        ("2, \"x\".png", "angry", "<happy>", "Ann"), ("3, \"x\".png", "angry", "", "Ann"),
        ("val0.png", "<happy>", "", "Ann"),
    ]  # fmt: skip
    assert found[0].sha256 == f"{10:064x}"
