"""A new form of source is one module and the line that imports it: it is opened, merged, and named to users."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.prepare.sources import form
from pipeline.prepare.sources.open import open_source

TOY = """
from pipeline.prepare.sources.form import register
from pipeline.prepare.sources.source import Item, Source


class Toy(Source):
    form = "a toy"

    def items(self):
        for line in (self.path / "toy.txt").read_text().split():
            yield Item(line, line[0], None, line)

    def fetch(self, places):
        return ((lambda place=place: place.encode()) for place in places)


register(
    0,
    {"toys: a folder with `toy.txt`": "the first letter"},
    lambda place: (place.path / "toy.txt").exists(),
    lambda place: Toy(place.path),
)
"""


@pytest.fixture
def _toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The toy form, imported as ``open.py`` imports the others."""
    (tmp_path / "toy_form.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(form, "_FORMS", list(form._FORMS))
    importlib.import_module("toy_form")
    yield
    del sys.modules["toy_form"]


@pytest.mark.usefixtures("_toy")
def test_open_source_opens_a_new_form(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "toys" / name).mkdir(parents=True)
        (tmp_path / "toys" / name / "toy.txt").write_text("a1 b2")
    with open_source(tmp_path / "toys" / "one") as source:
        assert [(item.file, item.label) for item in source.items()] == [("a1", "a"), ("b2", "b")]
    with open_source(tmp_path / "toys") as source:
        assert source.form == "one: a toy; two: a toy"
        places = [item.place for item in source.items()]
        assert [fetch() for fetch in source.fetch(places)] == [b"a1", b"b2"] * 2


@pytest.mark.usefixtures("_toy")
def test_errors_and_documentation_name_a_new_form(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"Looked for: class folders.*; toys: a folder with `toy.txt`\."):
        open_source(tmp_path / "a.npy")
    assert form.render_forms().splitlines()[-1] == "| toys: a folder with `toy.txt` | the first letter |"


def test_render_forms_is_a_table_of_all_forms() -> None:
    lines = form.render_forms().splitlines()
    assert lines[:2] == ["| form | labels and splits |", "|---|---|"]
    assert [line.split("|")[1].split()[0] for line in lines[2:]] == [
        "class", "several", "Parquet", "pictures", "a", "FER2013's", "FER+:",
    ]  # fmt: skip
    assert all(line.count("|") == 3 for line in lines)
