"""Any labelled faces -> a stream of labelled items: which form a source has is found by looking.

The forms are those that are imported here: each registers itself.
"""
# ruff: noqa: F401

from pathlib import Path

import pipeline.prepare.sources.class_folders
import pipeline.prepare.sources.fer2013
import pipeline.prepare.sources.file_names
import pipeline.prepare.sources.merged
import pipeline.prepare.sources.parquet_pictures
import pipeline.prepare.sources.table_of_files
from pipeline.core.errors import UserError
from pipeline.prepare.sources.form import Place, Reading, list_forms, open_place
from pipeline.prepare.sources.members import refuse_linked_folders
from pipeline.prepare.sources.source import Source
from pipeline.prepare.sources.tree import Tree


def open_source(path: Path | str, reading: Reading | None = None) -> Source:
    """Open a source of whatever form; raises ``UserError`` for what has none, is damaged, or not to be trusted."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"prepare.source: {path} does not exist. {list_forms()}")
    refuse_linked_folders(path)
    place = Place(Tree(path), reading or Reading())
    source = open_place(place)
    if place.reading.columns and not source.has_columns:
        source.close()
        tables = ", ".join(table.path.name for table in place.tables_below.values())
        there = f"none of its tables ({tables}) names" if tables else "it has no table that names"
        raise UserError(
            f"prepare.columns: {path} is read as {source.form}, which have no columns, for {there} its files in the "
            "column of paths. Mend that, or take prepare.columns away."
        )
    return source
