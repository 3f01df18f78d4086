"""Pictures on disk -> expression probabilities, for ``hyojo predict``.

The model is a bundle folder, or a version in the registry (``models:/hyojo@champion``). A file that can't be
read or decoded gives a row with an error, and the others go on.
"""

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from pipeline.core.errors import UserError
from pipeline.core.files import escape_cell
from pipeline.core.terminal import show
from pipeline.inference import images
from pipeline.inference.images import ImageError
from pipeline.prepare.sources.archive import MAX_FILE_BYTES
from pipeline.prepare.sources.tables import SURE
from pipeline.prepare.sources.tree import ARCHIVES
from pipeline.prepare.sources.unlabelled import Fetch, Pictures, open_pictures
from pipeline.serve import locate
from pipeline.serve.answers import SIDES, Predict, Row, answer_pictures, flatten_row

BATCH_SIZE = 64
PROGRESS_FROM = 200  # files; fewer are done before a bar is worth looking at


def predict_paths(
    paths: Sequence[str | Path],
    model: str | Path,
    faces: bool | None = None,
    column: str | None = None,
    trust: tuple[bool, str | None] = (False, None),
) -> Iterator[Row]:
    """Classify files, and all pictures in folders, archives and tables.

    Files are read and classified in batches while the result is iterated; a progress bar goes to stderr where
    that is a terminal and there are many.

    Args:
        paths: Pictures of any name, and what ``unlabelled.open_pictures`` takes.
        model: As in ``locate.locate``.
        faces: Whether to find faces in each picture and classify those; None: as the model was trained.
        column: Of tables, as of ``open_pictures``.
        trust: As ``trust`` and ``public_key`` of ``locate.locate``.

    Returns:
        Rows of ``answers.answer_pictures``, one a picture and not one a mention.

    Raises:
        UserError: At once: a path or model that isn't there, or a source without pictures.
    """
    with ExitStack() as stack:
        sources = [stack.enter_context(_open(Path(path), column)) for path in paths]
        for path, source in zip(paths, sources):
            if source.passed_over:
                print(f"{path}: {source.passed_over} files passed over that are no pictures by suffix", file=sys.stderr)
        predict = locate.open_predictor(locate.locate(str(model), None, *trust), faces)
        return _classify(sources, predict, stack.pop_all())


class _File(Pictures):
    """A picture by itself, which may be a pipe that another program writes to."""

    count = 1

    def __init__(self, path: Path) -> None:
        self.root, self.digest, self._path = path.parent, "", path

    def stream(self, start: int) -> Iterator[tuple[str, Fetch]]:
        return iter([(self._path.name, self._read)][start:])

    def _read(self) -> bytes:
        # Opened like this, a pipe that nobody writes to is empty; otherwise it would be waited for.
        with open(os.open(self._path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if hasattr(os, "set_blocking"):
                os.set_blocking(file.fileno(), True)
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ImageError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
        return data


def _open(path: Path, column: str | None) -> Pictures:
    """What a path stands for; raises ``UserError``."""
    if path.is_dir() or not path.exists():
        return open_pictures(path, column)
    if path.is_file() and path.suffix.lower() not in images.suffixes():
        try:
            return open_pictures(path, column)
        except UserError:
            if path.suffix.lower() in (*SURE, *ARCHIVES):
                raise
    return _File(path)


def format_table(rows: Iterable[Row]) -> str:
    """Write rows as aligned text: file, box of the face if there is one, label and probability, or the error."""
    rows = list(rows)
    boxes = any(row["box"] for row in rows)
    cells = [
        (show(row["file"]), *([_box_text(row["box"])] if boxes else []))
        + (
            (f"error: {show(row['error'])}", "")
            if row["error"]
            else (show(row["label"]), f"{row['probability']:.3f}{' (unsure)' if row['abstain'] else ''}")
        )
        for row in rows
    ]
    widths = [max(len(cell[i]) for cell in cells) for i in range(len(cells[0]))] if cells else []
    return "\n".join(
        "  ".join(f"{text:{width}}" for text, width in zip(cell, widths, strict=True)).rstrip() for cell in cells
    )


def _box_text(box: list[int] | None) -> str:
    """A box as ``<width>x<height>+<left>+<top>``, as X11 and ImageMagick write geometry."""
    return f"{box[2]}x{box[3]}+{box[0]}+{box[1]}" if box else ""


def format_csv(rows: Iterable[Row]) -> str:
    """Write rows as CSV with a header: file, label, probability, ``prob_<class>`` for each class, abstain, error.

    Where faces were looked for and found, ``left``, ``top``, ``width`` and ``height`` follow the file.
    """
    rows = list(rows)
    boxes = any(row["box"] for row in rows)
    names = next(([f"prob_{name}" for name in row["probabilities"]] for row in rows if row["probabilities"]), [])
    columns = ["file", *(SIDES if boxes else ()), "label", "probability", *names, "abstain", "error"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: escape_cell(cell) for name, cell in flatten_row(row).items()})
    return text.getvalue().rstrip("\n")


def _classify(sources: Sequence[Pictures], predict: Predict, stack: ExitStack) -> Iterator[Row]:
    """Read, classify and yield batch by batch."""
    total = sum(source.count for source in sources)
    pictures = _stream_once(sources)
    disable = None if total >= PROGRESS_FROM else True  # None: only where stderr is a terminal
    with stack, tqdm(total=total, unit="img", disable=disable) as bar:
        while batch := list(islice(pictures, BATCH_SIZE)):
            yield from answer_pictures(batch, predict)
            bar.update(len(batch))


def _stream_once(sources: Iterable[Pictures]) -> Iterator[tuple[str, Fetch]]:
    """All pictures by their paths, each once."""
    seen: set[str] = set()
    for source in sources:
        for name, fetch in source.stream(0):
            path = str(source.root / name)
            if path not in seen:
                seen.add(path)
                yield path, fetch
