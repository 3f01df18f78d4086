"""Which files are tables, and of which kind."""

from collections.abc import Callable
from pathlib import Path

from pipeline.prepare.sources.parquet_table import ParquetTable
from pipeline.prepare.sources.table import Opener, Table
from pipeline.prepare.sources.text_table import CsvTable, JsonLinesTable, JsonTable, ListTable

# Of some suffixes it is sure that a file is a table; notes and settings have others of them too.
SURE = (".csv", ".tsv", ".parquet")
KINDS: dict[str, Callable[[Path, Opener | None], Table]] = {
    ".csv": CsvTable, ".tsv": CsvTable, ".parquet": ParquetTable, ".txt": ListTable, ".lst": ListTable,
    ".json": JsonTable, ".jsonl": JsonLinesTable, ".ndjson": JsonLinesTable,
}  # fmt: skip


def open_table(path: Path, opener: Opener | None = None) -> Table | None:
    """A table by its suffix or its first bytes, None for any other file.

    Args:
        path: Where it is.
        opener: Opens its bytes, if it is no file of its own.

    Raises:
        UserError: It is damaged.
    """
    if opener is None and not path.is_file():
        return None
    with opener() if opener else path.open("rb") as file:
        start = file.read(4)
    kind = ParquetTable if start == b"PAR1" else KINDS.get(path.suffix.lower())
    return kind(path, opener) if kind else None
