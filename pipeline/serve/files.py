"""Pictures on disk -> expression probabilities, for ``hyojo predict``.

The model is a bundle folder, or a version in the registry (``models:/hyojo@champion``). A file that can't be
read or decoded gives a row with an error, and the others go on.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.core.errors import UserError
from pipeline.inference import images

BATCH_SIZE = 64
PROGRESS_FROM = 200  # files; fewer are done before a bar is worth looking at

Row = dict[str, Any]
Predict = Callable[
    [list[bytes]], list[Row]
]  # encoded pictures in, one answer of serving.Predictor for each out


def predict_paths(paths: Sequence[str | Path], model: str | Path, faces: bool | None = None) -> Iterator[Row]:
    """Classify files, and all pictures in folders and their subfolders.

    Files are read and classified in batches while the result is iterated; a progress bar goes to stderr where
    that is a terminal and there are many.

    Args:
        paths: Files of any name, and folders, in which files are picked by their suffix.
        model: A bundle folder, or a model URI of MLflow.
        faces: Whether to find faces in each picture and classify those; None: as the model was trained.

    Returns:
        For each file, and where faces are looked for, for each face of it, the largest first, a dict: ``file``,
        ``box`` (left, top, width, height of the face, px; None if faces are not looked for), ``label`` (str),
        ``probability`` (float, of that label), ``probabilities`` (dict of class to float), ``abstain`` (bool: too
        unsure to be relied on) and ``error`` (None). For a bad file, and one without a face, ``error`` is a text and
        the others are None.

    Raises:
        UserError: At once: a path or model that isn't there, or a folder without pictures.
    """
    files = find_files(paths)
    predict = load_predictor(model, faces)
    return _rows(files, predict)


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files that paths stand for, each once, folders in order of name.

    Raises:
        UserError: If a path doesn't exist, or a folder holds no pictures.
    """
    known = images.suffixes()
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in known and file.is_file()
            )
            if not found:
                raise UserError(
                    f"{path} holds no pictures (files with a suffix such as .jpg, .png or .webp)."
                )
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"{path} does not exist. Give picture files, or folders of them.")
    return list(dict.fromkeys(files))


def load_predictor(
    model: str | Path, faces: bool | None = None, threads: int | None = None, runtime: str | None = None
) -> Predict:
    """Load a model; ``faces`` as in ``predict_paths``, ``threads`` and ``runtime`` as in ``predictor.Predictor``.

    Raises:
        UserError: If there is no such bundle or model.
    """
    if ":/" in str(model) and not Path(model).exists():
        return _load_registered(str(model), faces, {"threads": threads, "runtime": runtime})
    from pipeline.inference.predictor import Predictor

    try:
        return partial(Predictor(model, runtime, threads).predict_bytes, faces=faces)
    except FileNotFoundError:
        raise UserError(
            f"{model} is no bundle: bundle.json or the model is missing. `dvc repro` makes one; a registered "
            "model is given as models:/hyojo@champion."
        ) from None


def format_table(rows: Iterable[Row]) -> str:
    """Rows as aligned text: file, box of the face if there is one, label and probability, or the error."""
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
        "  ".join(f"{text:{width}}" for text, width in zip(cell, widths, strict=True)).rstrip()
        for cell in cells
    )


def _box_text(box: list[int] | None) -> str:
    """A box as ``<width>x<height>+<left>+<top>``, as X11 and ImageMagick write geometry."""
    return f"{box[2]}x{box[3]}+{box[0]}+{box[1]}" if box else ""


def format_json(rows: Iterable[Row]) -> str:
    """Rows as a JSON array."""
    return json.dumps(list(rows), indent=2, ensure_ascii=False)


def format_csv(rows: Iterable[Row]) -> str:
    """Rows as CSV with a header: file, label, probability, ``prob_<class>`` for each class, abstain, error.

    Where faces were looked for and found, ``left``, ``top``, ``width`` and ``height`` follow the file.
    """
    rows = list(rows)
    boxes = any(row["box"] for row in rows)
    names = next((list(row["probabilities"]) for row in rows if row["probabilities"]), [])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    sides = ["left", "top", "width", "height"] if boxes else []
    writer.writerow(
        ["file", *sides, "label", "probability", *(f"prob_{name}" for name in names), "abstain", "error"]
    )
    for row in rows:
        probs = row["probabilities"] or {}
        given = [probs.get(name) for name in names]
        box = (row["box"] or [None] * 4) if boxes else []
        writer.writerow(
            [row["file"], *box, row["label"], row["probability"], *given, row["abstain"], row["error"]]
        )
    return text.getvalue().rstrip("\n")


def _load_registered(uri: str, faces: bool | None, config: dict[str, Any]) -> Predict:
    """Load from MLflow, with the code that the version was registered with."""
    from pipeline.tracking import store

    store.connect()
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.exceptions import MlflowException

    try:
        model = mlflow.pyfunc.load_model(uri, model_config=config)
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{uri} can't be loaded: {reason} `hyojo register` makes a version.") from None
    known = model.metadata.get_params_schema()
    if faces and not (known and "faces" in [param.name for param in known.params]):
        raise UserError(
            f"{uri} was registered by a version that finds no faces. `dvc repro export` and `hyojo register` make "
            "a new one."
        )
    params = None if faces is None or not known else {"faces": faces}
    return lambda pictures: model.predict(
        pd.DataFrame({"image": pd.Series(pictures, dtype=object)}), params=params
    )


def _rows(files: list[Path], predict: Predict) -> Iterator[Row]:
    """Read, classify and yield batch by batch."""
    disable = None if len(files) >= PROGRESS_FROM else True  # None: only where stderr is a terminal
    with tqdm(total=len(files), unit="img", disable=disable) as bar:
        for start in range(0, len(files), BATCH_SIZE):
            batch = files[start : start + BATCH_SIZE]
            contents = [_read(file) for file in batch]
            answers = iter(predict([data for data in contents if isinstance(data, bytes)]))
            for file, data in zip(batch, contents, strict=True):
                answer = _unreadable(data) if isinstance(data, str) else next(answers)
                for face in answer.get("faces") or [answer]:
                    yield _row(file, face)
            bar.update(len(batch))


def _read(file: Path) -> bytes | str:
    """A file's content, or why it can't be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        return error.strerror or type(error).__name__


def _unreadable(reason: str) -> Row:
    """The answer for a file that couldn't be read."""
    return {"label": None, "probabilities": None, "abstain": None, "error": f"can't be read: {reason}"}


def _row(file: Path, answer: Row) -> Row:
    """An answer of the model for a picture or a face, with the file's name and the label's own probability."""
    label, probs = answer["label"], answer["probabilities"]
    probability = probs[label] if probs else None
    return {"file": str(file), "box": answer.get("box"), "label": label, "probability": probability,
            "probabilities": probs, "abstain": answer.get("abstain"), "error": answer.get("error")}  # fmt: skip
