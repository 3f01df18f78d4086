"""Parquet, read in batches; pyarrow is imported only here, because it is large."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.prepare.sources.table import Opener, Table, cell_text

_BATCH = 4096  # rows at a time
_PICTURES = 32  # likewise of pictures, which may be photographs


class ParquetTable(Table):
    """A Parquet file; ``opener`` is for one that is no file of its own.

    Attributes:
        schema: As pyarrow has it.
        row_groups: The number of rows in each row group.
    """

    def __init__(self, path: Path, opener: Opener | None = None) -> None:
        import pyarrow as pa

        super().__init__(path, opener or (lambda: path.open("rb")))
        self._packed = opener is not None
        self._types = pa.types
        self._errors = (pa.ArrowException, OSError, KeyError)
        with self.open() as file:
            self.schema: pa.Schema = file.schema_arrow
            self.row_groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self.columns = list(self.schema.names)

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The file as a ``pyarrow.parquet.ParquetFile``; what fails with it open is a ``UserError``."""
        import pyarrow.parquet as pq

        try:
            # Without these a column of a row group, which may be the whole file, is read at once.
            with pq.ParquetFile(
                self.open_bytes() if self._packed else self.path, buffer_size=2**20, pre_buffer=False
            ) as file:
                yield file
        except self._errors as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{self.path} is damaged or no Parquet file ({reason}). Fetch it again.") from None

    def rows(
        self, columns: Sequence[str], bad: Callable[[UserError], None] | None = None
    ) -> Iterator[tuple[str, list[str]]]:
        number = 0
        with self.open() as file:
            for batch in file.iter_batches(_BATCH, columns=list(columns)):
                # A batch has its columns in the order of the file.
                for cells in zip(*(self._column(batch, name).to_pylist() for name in columns)):
                    number += 1
                    yield f"{self.path}, row {number}", list(map(cell_text, cells))

    def values(self, column: str, row_group: int) -> Iterator[Any]:
        """A column of a row group, few values at a time."""
        with self.open() as file:
            for batch in file.iter_batches(_PICTURES, row_groups=[row_group], columns=[column]):
                yield from self._column(batch, column).to_pylist()

    def pictures(self, column: str, row_group: int) -> Iterator[bytes | None]:
        """The pictures of a row group, from a column of bytes or of structs with a field ``bytes``."""
        return self.values(f"{column}.bytes" if self.has_inner(column, "bytes") else column, row_group)

    def has_inner(self, column: str, inner: str) -> bool:
        """Whether a column is a struct with a field of that name."""
        kind = self.schema.field(column).type
        return bool(self._types.is_struct(kind) and kind.get_field_index(inner) >= 0)

    def _holds_bytes(self, column: str) -> bool:
        """Whether a column is binary, or a struct whose field ``bytes`` is."""
        kind = self.schema.field(column).type
        if self.has_inner(column, "bytes"):
            kind = kind.field("bytes").type
        return bool(self._types.is_binary(kind) or self._types.is_large_binary(kind))

    @property
    def text_columns(self) -> list[str]:
        return [name for name in self.columns if not self._holds_bytes(name)]

    def find_pictures(self, given: Mapping[str, str]) -> str | None:
        """The column that holds pictures, which is the one given for ``path`` if any is; None if there is none."""
        asked = given.get("path")
        return next((name for name in self.columns if asked in (None, name) and self._holds_bytes(name)), None)

    def _column(self, batch: Any, name: str) -> Any:
        """A column of a batch, also one inside a struct, as ``image.bytes``."""
        if name in self.columns:
            return batch.column(name)
        outer, _, inner = name.rpartition(".")
        return batch.column(outer).field(inner)

    def names(self, column: str) -> list[str] | None:
        """The names of a ``ClassLabel`` of Hugging Face's datasets, which stand in the file's metadata."""
        try:
            names = json.loads(self.schema.metadata[b"huggingface"])["info"]["features"][column]["names"]
            return [str(names[i]) for i in (sorted(names, key=int) if isinstance(names, dict) else range(len(names)))]
        except (KeyError, TypeError, ValueError):
            return None
