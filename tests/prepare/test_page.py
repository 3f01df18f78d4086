"""The audit's page: parsed as a browser would, and held against the audit it was made from."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from builders import Row, records_of
from PIL import Image

from pipeline.prepare import page as audit_page
from pipeline.prepare.audit import build_audit

CLASS_NAMES = ["angry", "<b>sad</b>"]
PIXELS = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 1), dtype=np.uint8)


TWIN = "twin with another label"


class Page(HTMLParser):
    """What a page shows: its texts, pictures and headings; a tag left open or closed twice is an error."""

    VOID = ("meta", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.texts.append(" ".join(data.split()))

    def values(self, tag: str, name: str) -> list[str]:
        return [value for found, key, value in self.attributes if (found, key) == (tag, name)]


def make_rows() -> list[Row]:
    """Every kind of trouble, with names made to break a page; as many records as there are pixels."""
    kinds = {
        0: {"split": "test", "twins": "set 1", "sha256": "1a", "marks": {"near", "leak"}},
        1: {"twins": "set 1", "sha256": "1b", "marks": {"near"}},
        2: {"twins": "set 2", "sha256": "2", "label": "angry", "marks": {"conflict"}, "dropped": TWIN},
        3: {"twins": "set 2", "sha256": "2", "marks": {"conflict"}, "dropped": TWIN},
        4: {"marks": {"blank"}},
        5: {"marks": {"dark", "stretched"}},
        6: {"sha256": "", "twins": "", "problem": "truncated & damaged <JPEG>"},
        7: {"file": 'x"><script>alert(1)</script>.png', "marks": {"bright"}},
    }
    rows = []
    for i in range(len(PIXELS)):
        values = {"file": f"train/{i:02}.png", "label": CLASS_NAMES[i < 40], "split": "train", "sha256": f"own {i}"}
        rows.append(Row(**(values | {"twins": f"own {i}", "size": (16, 16), **kinds.get(i, {})})))
    return rows


def render(rows: list[Row]) -> str:
    records = records_of(rows, CLASS_NAMES)
    return audit_page.render_page(build_audit(records), records, PIXELS)


def test_page_is_one_file_that_fetches_nothing() -> None:
    html = render(make_rows())
    page = Page(html)
    assert not {tag for tag, _, _ in page.attributes} & {"script", "link", "iframe", "object"}
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.values("img", "src"))
    assert not re.search(r"url\(|@import|https?:", html)
    assert page.values("meta", "name") == ["viewport", "color-scheme"]
    assert "prefers-color-scheme: dark" in html


def test_names_never_become_markup() -> None:
    html = render(make_rows())
    assert "<script" not in html
    assert "<b>sad" not in html
    page = Page(html)
    assert "<b>sad</b>" in page.texts
    assert 'x"><script>alert(1)</script>.png' in page.values("figure", "title")


def test_pictures_are_those_of_the_images() -> None:
    page = Page(render(make_rows()))
    sources = page.values("img", "src")
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(src.split(",")[1])))) for src in sources]
    for name, picture in zip(page.values("img", "alt"), decoded, strict=True):
        row = 7 if "script" in name else int(name[-6:-4])
        assert picture.shape == (16, 16)
        assert np.abs(picture - PIXELS[row, ..., 0].astype(float)).mean() < 25  # JPEG, of noise
        others = np.abs(picture - np.delete(PIXELS, row, axis=0)[..., 0].astype(float)).mean(axis=(1, 2))
        assert others.min() > 60


def test_page_has_what_the_audit_has_and_no_more() -> None:
    rows = make_rows()
    page = Page(render(rows))
    headings = " | ".join(page.texts)
    for title in ("Changed copies across splits", "Twins with different labels", "Blank images", "Dark images"):
        assert title in headings
    for title in ("Twins across splits", "Exact copies within a split", "Enlarged images"):
        assert title not in headings
    assert "truncated & damaged <JPEG>" in page.texts
    assert page.texts.count("left out") == 2
    # Counts are of the arrays: 60 less a corrupt one, two left out and one of test.
    assert "56" in page.texts
    assert not {"57", "60"} & set(page.texts)
    clean = Page(render([Row(r.file, r.label, "train", f"own {i}", f"own {i}") for i, r in enumerate(rows)]))
    assert not [title for title, _ in audit_page.EXHIBITS.values() if title in " | ".join(clean.texts)]
    assert "Files that cannot be read" not in clean.texts


def test_much_trouble_does_not_make_the_page_huge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_page, "SETS", 3)
    monkeypatch.setattr(audit_page, "MEMBERS", 2)
    monkeypatch.setattr(audit_page, "PICTURES", 4)
    rows = make_rows()
    for i, row in enumerate(rows):
        row.twins, row.sha256, row.problem = f"set {i // 5}", f"{i}", ""
        row.marks = {"blank", "near"} | ({"conflict"} if i < 5 else set())
    page = Page(render(rows))
    samples = 2 * audit_page.SAMPLES
    # Sets in conflict, sets across splits (one), and other sets, of three times two pictures at most; four blank ones.
    assert len(page.values("img", "src")) <= samples + 3 * 3 * 2 + 4
    assert any(text.endswith("sets, the largest shown") for text in page.texts)
    assert "60 images" in page.texts
    assert "and 56 more" in page.texts
    assert "and 3 more" in page.texts
