"""The table that ``hyojo batch`` writes: a folder of Parquet parts, as pyarrow, pandas and Spark read it.

Each part is whole or not there, so that a run that is killed goes on behind the last of them. ``_SUCCESS`` says that
none is missing. Readers pass over names that begin with ``_``.
"""

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from pipeline.core.errors import UserError
from pipeline.core.files import replacing, write_json
from pipeline.inference.descriptors import DESCRIPTORS
from pipeline.serve.answers import SIDES, Row, flatten_row

FINISHED = "_SUCCESS"  # as Hadoop and Spark have it
_SETTINGS = "_settings.json"
_REMEDY = "Give another --out, or --restart to score anew."


def check_path(path: Path) -> None:
    """Refuse what cannot be a folder of parts; raises ``UserError``."""
    if not path.parent.is_dir():
        raise UserError(f"--out: there is no folder {path.parent}. Make it, or give another --out.")
    if path.exists() and not path.is_dir():
        raise UserError(f"--out: {path} is a file. Give the name of a folder to make, such as scores.")
    if path.is_dir() and any(path.iterdir()) and not (path / _SETTINGS).exists():
        raise UserError(f"--out: {path} has files that `hyojo batch` did not make. Give another --out.")


class AnswerParts:
    """The table in the making; a context manager that holds its lock.

    Args:
        folder: Of the parts, as ``check_path`` lets it pass.
        settings: What its content depends on, in words that JSON has; a run under others is refused. ``version`` is
            of the model.
        class_names: The K classes.
        faces: Whether there is a row a face, with its box.
        restart: Whether to throw away what is there.

    Attributes:
        parts: How many are there.
        finished: Whether these are all.

    Raises:
        UserError: What is there was made under other settings; another process is at it; it cannot be written.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], class_names: Sequence[str], faces: bool, restart: bool
    ) -> None:
        self._folder, self._settings = folder, dict(settings)
        fields = {"file": pa.string(), **dict.fromkeys(SIDES if faces else (), pa.int32()), "label": pa.string()}
        fields |= dict.fromkeys(["probability", *(f"prob_{name}" for name in class_names)], pa.float32())
        fields |= {"abstain": pa.bool_()} | dict.fromkeys(DESCRIPTORS, pa.float32())
        self._schema = pa.schema(fields | {"error": pa.string(), "version": pa.string()})
        self._lock = self._acquire()
        try:
            with self._writing():
                if restart and (folder / _SETTINGS).exists():
                    self._clear()
                self.parts = self._resume()
            self.finished = (folder / FINISHED).exists()
        except BaseException:
            self._lock.release()
            raise

    def count_rows(self) -> tuple[int, Counter[str]]:
        """Count the rows, and those that are errors by what they say."""
        rows, reasons = 0, Counter[str]()
        for number in range(self.parts):
            errors = pq.read_table(self._part(number), columns=["error"]).column("error")
            rows += len(errors)
            reasons.update(errors.drop_null().to_pylist())
        return rows, reasons

    def write(self, rows: Sequence[Row]) -> None:
        """Write the next part: rows of ``answers.answer_pictures``."""
        named = {"version": self._settings["version"]}
        table = pa.Table.from_pylist([flatten_row(row) | named for row in rows], schema=self._schema)
        with self._writing(), replacing(self._part(self.parts)) as scratch:
            pq.write_table(table, scratch, compression="zstd", row_group_size=max(1, len(rows)))
        self.parts += 1

    def finish(self) -> None:
        """Say that all parts are there."""
        with self._writing():
            (self._folder / FINISHED).touch()
        self.finished = True

    def __enter__(self) -> "AnswerParts":
        return self

    def __exit__(self, *_: object) -> None:
        Path(self._lock.lock_file).unlink(missing_ok=True)  # while it is held, so that nobody holds one that is gone
        self._lock.release()

    def _acquire(self) -> FileLock:
        """Keep others away."""
        lock = FileLock(self._folder.with_name(f".{self._folder.name}.lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"--out: another process is writing {self._folder}. Wait for it, or give another --out."
            ) from None
        except OSError as error:
            raise UserError(f"--out: {self._folder} cannot be written ({error.strerror}).") from None
        return lock

    def _resume(self) -> int:
        """The number of parts that are there."""
        plan = self._folder / _SETTINGS
        self._folder.mkdir(exist_ok=True)
        if not plan.exists():
            write_json(plan, self._settings)
        made_with = json.loads(plan.read_text(encoding="utf-8"))
        other = [name for name, value in self._settings.items() if made_with.get(name) != value]
        if other:
            raise UserError(f"--out: {self._folder} was made with other {', '.join(other)}. {_REMEDY}")
        with contextlib.suppress(pa.ArrowException, OSError):  # none, or torn: the machine may have lost its power
            for number in itertools.count():
                if not pq.read_schema(self._part(number)).equals(self._schema):
                    break
        return number

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}.parquet"

    def _clear(self) -> None:
        """Remove what a run made; what says so goes last."""
        for path in (self._folder / FINISHED, *self._folder.glob("part-*.parquet"), self._folder / _SETTINGS):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"--out: {self._folder} cannot be written ({error.strerror or error}). What is finished is kept: make "
                "room and run again."
            ) from None
