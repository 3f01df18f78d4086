"""Pictures on disk -> expression probabilities, for ``hyojo predict``.

The model is a bundle folder, or a version in the registry (``models:/hyojo@champion``). A file that can't be
read or decoded gives a row with an error, and the others go on.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from pipeline.core.errors import UserError
from pipeline.inference import images
from pipeline.serve import locate
from pipeline.serve.answers import SIDES, Predict, Row, answer_pictures, flatten_row

BATCH_SIZE = 64
PROGRESS_FROM = 200  # files; fewer are done before a bar is worth looking at


def predict_paths(paths: Sequence[str | Path], model: str | Path, faces: bool | None = None) -> Iterator[Row]:
    """Classify files, and all pictures in folders and their subfolders.

    Files are read and classified in batches while the result is iterated; a progress bar goes to stderr where
    that is a terminal and there are many.

    Args:
        paths: Files of any name, and folders, in which files are picked by their suffix.
        model: As in ``locate.locate``.
        faces: Whether to find faces in each picture and classify those; None: as the model was trained.

    Returns:
        Rows of ``answers.answer_pictures``.

    Raises:
        UserError: At once: a path or model that isn't there, or a folder without pictures.
    """
    files = find_files(paths)
    return _classify(files, locate.open_predictor(locate.locate(str(model)), faces))


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """List the files that paths stand for, each once, folders in order of name.

    Raises:
        UserError: If a path doesn't exist, or a folder holds no pictures.
    """
    known = images.suffixes()
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in known and file.is_file())
            if not found:
                raise UserError(f"{path} holds no pictures (files with a suffix such as .jpg, .png or .webp).")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"{path} does not exist. Give picture files, or folders of them.")
    return list(dict.fromkeys(files))


def format_table(rows: Iterable[Row]) -> str:
    """Write rows as aligned text: file, box of the face if there is one, label and probability, or the error."""
    rows = list(rows)
    boxes = any(row["box"] for row in rows)
    cells = [
        (row["file"], *([_box_text(row["box"])] if boxes else []))
        + (
            (f"error: {row['error']}", "")
            if row["error"]
            else (row["label"], f"{row['probability']:.3f}{' (unsure)' if row['abstain'] else ''}")
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
    writer.writerows(map(flatten_row, rows))
    return text.getvalue().rstrip("\n")


def _classify(files: list[Path], predict: Predict) -> Iterator[Row]:
    """Read, classify and yield batch by batch."""
    disable = None if len(files) >= PROGRESS_FROM else True  # None: only where stderr is a terminal
    with tqdm(total=len(files), unit="img", disable=disable) as bar:
        for start in range(0, len(files), BATCH_SIZE):
            batch = files[start : start + BATCH_SIZE]
            yield from answer_pictures([(str(file), file.read_bytes) for file in batch], predict)
            bar.update(len(batch))
