"""The page of label suspects."""

import numpy as np
import pandas as pd

from pipeline.core.dataset import Split
from pipeline.reporting.suspects import render


def test_render_shows_every_suspect_and_takes_names_for_text() -> None:
    images = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 1), dtype=np.uint8)
    splits = {name: Split(images, np.zeros(100, int), [""] * 100) for name in ("val", "test")}
    lines = [
        ("a.png", "val", 3, "angry", "<happy>", 0.1, 0.9),
        ("b.png", "test", 5, "<happy>", "sad", 0.2, 0.7),
    ]
    columns = ["file", "split", "row", "label", "suggested", "prob_label", "prob_suggested"]
    table = pd.DataFrame(lines, columns=columns)
    html = render(table, splits)
    assert "2 of 200 val and test images" in html
    assert html.count("<img ") == 2
    assert "<happy>" not in html
    assert "0 of 200" in render(table.head(0), splits)


def test_render_says_that_a_model_is_too_weak() -> None:
    splits = {"test": Split(np.zeros((7, 2, 2, 1), np.uint8), np.zeros(7, int), [""] * 7)}
    html = render(None, splits)
    assert "too weak to tell which of 7 test images have a wrong label" in html
    assert "in doubt" not in html.partition("<body")[2].partition("<p>")[2]
