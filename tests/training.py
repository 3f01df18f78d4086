"""Trainings as tests run them: quick, stopped at an update, with their runs and ranks."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from builders import forget_store

from pipeline.core.params_file import apply_overrides, parse_params
from pipeline.core.signals import StopRequest
from pipeline.models import formats
from pipeline.reporting import plots, training_figures
from pipeline.tracking import store
from pipeline.train import loop, stage
from pipeline.train.distributed import Ranks

if TYPE_CHECKING:
    from mlflow.entities import Run


def rank_of(rank: int, world: int) -> Ranks:
    """A rank as torchrun would number it; it never meets the others."""
    ranks = Ranks()
    ranks.rank, ranks.world = rank, world
    return ranks


def hasten_training(patch: pytest.MonkeyPatch) -> None:
    """Leave out what takes seconds and has tests of its own: whether a net can be exported, and drawing curves."""
    patch.setattr(formats, "check_exportable", lambda *_: {"pt2": None})
    patch.setattr(plots, "save", lambda _figure, path: path.write_bytes(b"\x89PNG"))
    patch.setattr(training_figures, "training_curves", lambda *_: None)


@contextlib.contextmanager
def training_in(folder: Path) -> Iterator[None]:
    """Train in a project's folder, with its own store, and hastened."""
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        hasten_training(patch)
        forget_store()
        yield
        forget_store()


def before_update(patch: pytest.MonkeyPatch, action: Callable[[int], None]) -> None:
    """Have ``action`` called before every optimizer update, with how many were begun before in this process."""
    update, count = loop.update, iter(range(10**6))

    def wrapped(*args: Any) -> Any:
        action(next(count))
        return update(*args)

    patch.setattr(loop, "update", wrapped)


def stop_at(patch: pytest.MonkeyPatch, update: int | None) -> StopRequest:
    """A request to stop that arrives during an update."""
    stop = StopRequest()

    def action(count: int) -> None:
        if count == update:
            stop.signal = signal.SIGTERM

    before_update(patch, action)
    return stop


def train(*overrides: str, stop: StopRequest | None = None) -> None:
    """Run the train stage in this process, in the working directory."""
    params = parse_params(apply_overrides(Path("params.yaml").read_text(), list(overrides)))
    stage.train(params, StopRequest() if stop is None else stop)


def find_runs() -> "list[Run]":
    """All active runs of the project's store."""
    client = store.connect()
    return list(client.search_runs([store.experiment_id(client)]))


def find_steps(run_id: str, metric: str = "train/loss") -> list[int]:
    """The steps that a run has points for, in order."""
    return [point.step for point in store.connect().get_metric_history(run_id, metric)]
