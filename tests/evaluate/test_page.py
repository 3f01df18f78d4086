"""The page of an evaluation: parsed as a browser would, and held against the files beside it."""

import json
import re

import pytest
from evaluation import CLASS_NAMES, PARAMS, WHOLE, Workspace

from pipeline.reporting import html as pages
from tests.prepare.test_page import Page

SECTIONS = [
    "scores", "classes", "confusion", "calibration", "abstention", "robustness", "slices", "explanations", "mistakes",
    "doubts", "data", "training", "card",
]  # fmt: skip


class Drawn(Page):
    """A page with drawings, in which tags may end themselves."""

    VOID = (*Page.VOID, "hr")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]


@pytest.fixture
def page(workspace: Workspace, undrawn: None) -> tuple[Workspace, str]:
    workspace.evaluate(WHOLE.model_copy(update={"tta": ["flip"]}))
    return workspace, (workspace.reports / "report.html").read_text(encoding="utf-8")


def test_page_is_one_file_with_every_section(page: tuple[Workspace, str]) -> None:
    space, html = page
    read = Drawn(html)
    assert read.values("section", "id") == SECTIONS
    assert read.values("a", "href")[: len(SECTIONS)] == [f"#{name}" for name in SECTIONS]
    # Nothing is fetched: pictures are inside, and drawings refer to what is inside.
    assert not {tag for tag, _, _ in read.attributes} & {"script", "link", "iframe", "object", "image"}
    assert all(source.startswith("data:image/jpeg;base64,") for source in read.values("img", "src"))
    assert not re.search(r"@import|https?:", html)
    assert all(target.startswith("url(#") for target in re.findall(r"url\([^)]*", html))
    # Accessible: everything seen has words, ids are there once, tables have headers with a scope.
    assert len(read.values("img", "alt")) == len(read.values("img", "src")) > 0
    assert all(read.values("img", "alt"))
    assert [bool(label) for label in read.values("svg", "aria-label")] == [True] * 5
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert "col" in read.values("th", "scope")
    assert "row" in read.values("th", "scope")
    assert "prefers-color-scheme: dark" in html
    result = json.loads((space.reports / "evaluation.json").read_text())
    for part, name in (("test", "accuracy"), ("robustness", "mean_corruption_accuracy"), ("test_tta", "macro_f1")):
        assert f"{result[part][name]:.3f}" in " ".join(read.texts)
    assert "Intended use" in read.texts
    assert "Files" not in read.texts
    # Which training it is of; nothing leads out of the page, as MLflow shows it alone.
    rows = read.texts[read.texts.index("run") :]
    origin = dict(zip(rows[::2], rows[1::2]))
    assert (origin["run"], origin["by"], origin["commit"]) == ("run-of-train", "ada", "cccccccccccc, with changes")
    assert origin["trained"] == "2001-09-09 01:46 UTC"


def test_page_says_that_views_are_served(workspace: Workspace) -> None:
    workspace.evaluate(PARAMS.model_copy(update={"tta": ["flip"], "serve_tta": True}))
    text = " ".join(Drawn((workspace.reports / "report.html").read_text(encoding="utf-8")).texts)
    assert "the image alone" in text
    assert "is the mean over 2 views of an image (flip)" in text


def test_page_without_the_optional_parts(workspace: Workspace) -> None:
    workspace.evaluate()
    read = Drawn((workspace.reports / "report.html").read_text(encoding="utf-8"))
    assert read.values("section", "id") == [name for name in SECTIONS if name not in ("robustness", "explanations")]
    assert set(CLASS_NAMES) <= set(read.texts)


def test_markdown_never_becomes_markup() -> None:
    html = pages.from_markdown("# A <script>\n\n| a | b |\n| --- | --- |\n| <b>1</b> | 2 |\n", level=2)
    assert "<h2>" in html
    assert "<td>" in html
    assert "<script" not in html
    assert "<b>" not in html
