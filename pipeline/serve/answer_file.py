"""The table that ``hyojo batch`` writes: in parts while it is made, one Parquet file when it is finished.

Parts lie in ``<out>.parts/`` beside it, each whole or not there, so that a run that is killed goes on behind the
last of them. The finished file takes its name only when all is in it; then the parts are gone.
"""

import contextlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from pipeline.core.errors import UserError
from pipeline.core.files import replacing, write_json
from pipeline.serve.answers import SIDES, Row, flatten_row

_NOTE = b"hyojo"  # key of the file's metadata that says what was scored
_REMEDY = "Give another --out, or --restart to score anew."


def check_path(path: Path) -> None:
    """Refuse a name that no table can have; raises ``UserError``."""
    if path.is_dir():
        raise UserError(f"--out: {path} is a folder. Give the name of a file, such as {path}/scores.parquet.")
    if path.suffix.lower() != ".parquet":
        raise UserError(f"--out: {path}: Parquet is what is written. Give {path.with_suffix('.parquet')}, say.")
    if not path.parent.is_dir():
        raise UserError(f"--out: there is no folder {path.parent}. Make it, or give another --out.")


class AnswerFile:
    """The table in the making; a context manager that holds its lock.

    Args:
        path: Of the finished file.
        settings: What its content depends on, in words that JSON has; a run under others is refused.
        class_names: The K classes.
        faces: Whether there is a row a face, with its box.
        restart: Whether to throw away what is there.

    Attributes:
        parts: How many are finished.
        finished: Whether the file itself is.

    Raises:
        UserError: What is there was made under other settings, or something else lies there; another process is at
            it; the folder cannot be written.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], class_names: Sequence[str], faces: bool, restart: bool
    ) -> None:
        self.path = path
        self._folder = path.with_name(f"{path.name}.parts")
        self._settings = dict(settings)
        fields = {"file": pa.string(), **dict.fromkeys(SIDES if faces else (), pa.int32()), "label": pa.string()}
        fields |= dict.fromkeys(["probability", *(f"prob_{name}" for name in class_names)], pa.float32())
        self._schema = pa.schema(fields | {"abstain": pa.bool_(), "error": pa.string()})
        self._lock = self._acquire()
        try:
            if restart:
                self._clear()
                path.unlink(missing_ok=True)
            self.finished = path.exists() and self._is_ours()
            self.parts = 0 if self.finished else self._resume()
        except BaseException:
            self._lock.release()
            raise

    def count_rows(self) -> tuple[int, Counter[str]]:
        """Count the rows, and those that are errors by what they say; of a finished file."""
        errors = pq.read_table(self.path, columns=["error"]).column("error")
        return len(errors), Counter(errors.drop_null().to_pylist())

    def write(self, rows: Sequence[Row]) -> None:
        """Write the next part: rows of ``answers.answer_pictures``."""
        table = pa.Table.from_pylist([flatten_row(row) for row in rows], schema=self._schema)
        part = self._part(self.parts)
        with self._writing(part), replacing(part) as scratch:
            pq.write_table(table, scratch, compression="zstd", row_group_size=max(1, len(rows)))
        self.parts += 1

    def finish(self, pictures: int) -> None:
        """Put all parts into one file, a row group each, and give it its name; ``pictures`` is how many were scored."""
        parts = [self._part(number) for number in range(self.parts)]
        note = self._settings | {"pictures": pictures}
        schema = self._schema.with_metadata({_NOTE: json.dumps(note, sort_keys=True).encode()})
        with (
            self._writing(self.path),
            replacing(self.path) as scratch,
            pq.ParquetWriter(scratch, schema, compression="zstd") as file,
        ):
            for part in parts:
                table = pq.read_table(part).replace_schema_metadata(schema.metadata)
                file.write_table(table, row_group_size=max(1, len(table)))
        self.finished = True
        self._clear()

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, *_: object) -> None:
        Path(self._lock.lock_file).unlink(missing_ok=True)  # while it is held, so that nobody holds one that is gone
        self._lock.release()

    def _acquire(self) -> FileLock:
        """Keep others away."""
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"--out: another process is writing {self.path}. Wait for it, or give another --out."
            ) from None
        except OSError as error:
            raise UserError(f"--out: {self.path} cannot be written ({error.strerror}).") from None
        return lock

    def _is_ours(self) -> bool:
        """Whether the finished file is what this run would make; raises ``UserError`` otherwise."""
        note = _note(self.path)
        if note is None:
            raise UserError(f"--out: {self.path} exists, and `hyojo batch` did not make it. {_REMEDY}")
        self._compare(self.path, note)
        self._clear()  # killed right after the file had got its name
        return True

    def _resume(self) -> int:
        """The number of parts that are there."""
        plan = self._folder / "settings.json"
        with self._writing(self._folder):
            self._folder.mkdir(exist_ok=True)
            if not plan.exists():
                write_json(plan, self._settings)
        self._compare(self._folder, json.loads(plan.read_text(encoding="utf-8")))
        with contextlib.suppress(pa.ArrowException, OSError):  # none, or torn: the machine may have lost its power
            for number in itertools.count():
                if not pq.read_schema(self._part(number)).equals(self._schema):
                    break
        return number

    def _compare(self, what: Path, made_with: Mapping[str, Any]) -> None:
        """Refuse what was made under other settings."""
        other = [name for name, value in self._settings.items() if made_with.get(name) != value]
        if other:
            raise UserError(f"--out: {what} was made with other {', '.join(other)}. {_REMEDY}")

    def _part(self, number: int) -> Path:
        return self._folder / f"{number:08d}.parquet"

    def _clear(self) -> None:
        """Remove the parts, those that are read first last: what is left when this is killed starts at 0."""
        if self._folder.exists():
            (self._folder / "settings.json").unlink(missing_ok=True)
            shutil.rmtree(self._folder)

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"--out: {path} cannot be written ({error.strerror or error}). What is finished is kept: make room and "
                "run again."
            ) from None


def _note(path: Path) -> dict[str, Any] | None:
    """What a finished file says of itself; None if it is none of ours."""
    try:
        return json.loads((pq.read_schema(path).metadata or {})[_NOTE])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None
