"""A training job: what it is made of, what it is named by, how far it has come, and how a checkpoint holds that."""

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGTERM
from typing import Any

import timm
import torch

from pipeline.core.code_hash import find_stage_code, hash_code
from pipeline.core.dataset import Prepared
from pipeline.core.params import Params, flatten
from pipeline.core.project import find_checkpoint, project_root
from pipeline.core.signals import StopRequest
from pipeline.models.model import ModelSpec
from pipeline.tracking.runs import TrainingRun
from pipeline.train import checkpoint
from pipeline.train.distributed import Ranks
from pipeline.train.loop import Interrupted, Progress
from pipeline.train.trainer import Trainer

# Not part of a result, so not of a job's key either.
RUNTIME_PARAMS = {"device", "devices"}
CHECKPOINT_INTERVAL_S = 30.0


@dataclass(frozen=True)
class Job:
    """What a training is made of; its key, from ``hash_job``, and the folder of its checkpoint.

    Of the params, only prepare's and train's matter to the result.
    """

    params: Params
    prepared: Prepared
    spec: ModelSpec
    key: str
    folder: Path

    @property
    def flat_params(self) -> dict[str, str]:
        """The params that decided the result, by dotted names."""
        return flatten(self.params.prepare, "prepare") | flatten(self.params.train, "train")


@dataclass
class Session:
    """The state of a run that a checkpoint holds, besides net and optimizer."""

    progress: Progress = field(default_factory=Progress)
    run_id: str | None = None
    attempt: str = ""
    formats: dict[str, str | None] | None = None
    best_value: float | None = None
    best_epoch: int = 0
    kept_epoch: int = 0
    kept_state: dict[str, torch.Tensor] = field(default_factory=dict)
    train_s: float = 0.0
    origin: dict[str, str] = field(default_factory=dict)
    started_s: float = field(default_factory=time.time)  # since 1970
    ended_s: float | None = None  # None: not finished
    finished: bool = False


def build_job(params: Params, prepared: Prepared, spec: ModelSpec) -> Job:
    """Name a job, and find the place of its checkpoint; raises ``UserError`` outside a project."""
    key = hash_job(params, prepared)
    return Job(params, prepared, spec, key, find_checkpoint(project_root(), key))


def hash_job(params: Params, prepared: Prepared) -> str:
    """Hash what determines the weights: params, data, the stage's code and the libraries that compute."""
    parts = {
        "train": params.train.model_dump(exclude=RUNTIME_PARAMS),
        "data": prepared.digest,
        "code": hash_code(find_stage_code("train")),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def hold(job: Job, ranks: Ranks, stop: StopRequest) -> Iterator[None]:
    """Hold a job's lock; the main rank waits for it, the others for the main rank. A request to stop ends the wait."""

    def give_up() -> bool:
        ranks.share("wait")
        return bool(stop)

    with checkpoint.hold_lock(job.folder, give_up) if ranks.main else nullcontext(True) as held:
        while (word := ranks.share("go" if held else "stop")) == "wait":
            pass
        if word == "stop":
            sys.exit(128 + (stop.signal or SIGTERM))
        yield


def resume(job: Job, trainer: Trainer) -> Session:
    """Read the job's checkpoint, if there is one, into the trainer; returns where the run stands."""
    state = trainer.ranks.share(checkpoint.load(job.folder) if trainer.ranks.main else None)
    if state is None:
        return Session()
    values = state.pop("session")
    progress = Progress(**values.pop("progress"))
    for name, part in _stateful(trainer).items():
        part.load_state_dict(state[name])
    if trainer.ranks.main:
        print(f"Going on from the checkpoint at epoch {progress.epoch + 1}.", flush=True)
    else:  # the main rank counts on from the sums
        progress.samples, progress.loss_sum, progress.correct = 0, 0.0, 0
    return Session(progress, **values)


def save(job: Job, trainer: Trainer, session: Session) -> None:
    """Write all that a run needs to go on as if nothing had happened; raises ``UserError`` if the disk is full.

    Draws follow from the position in the run, so there is no generator's state to keep.
    """
    state = {name: part.state_dict() for name, part in _stateful(trainer).items()}
    state["session"] = {**vars(session), "progress": vars(session.progress)}
    checkpoint.save(job.folder, state, session.finished)


def _stateful(trainer: Trainer) -> dict[str, Any]:
    """What of a trainer a checkpoint holds."""
    parts = {name: getattr(trainer, name) for name in ("model", "optimizer", "schedule", "scaler")}
    return parts | ({"ema": trainer.ema.module} if trainer.ema else {})


class Keeper:
    """Keeps a job's checkpoint while it trains, now and then and before it stops; its run knows what is kept."""

    def __init__(
        self, job: Job, trainer: Trainer, session: Session, run: TrainingRun | None, stop: StopRequest
    ) -> None:
        self.job, self.trainer, self.session, self.run, self.stop = job, trainer, session, run, stop
        self.saved_s = time.monotonic()

    def keep(self) -> None:
        """Write the checkpoint, then log the epochs that are in it; all ranks must call this."""
        self.session.train_s += time.monotonic() - self.saved_s
        summed = replace(self.session, progress=self.session.progress.summed(self.trainer.ranks))
        if self.trainer.ranks.main:
            save(self.job, self.trainer, summed)
        self.saved_s = time.monotonic()
        if self.run:
            self.run.log_history(self.session.progress.history)

    def keep_in_time(self) -> None:
        """Keep what has not been for a while, after an update or an epoch; ``Interrupted`` if a rank is to stop."""
        ranks = self.trainer.ranks
        due = ranks.main and time.monotonic() - self.saved_s > CHECKPOINT_INTERVAL_S
        stopped, due = ranks.any(bool(self.stop), due)
        if stopped or due:
            self.keep()
        if stopped:
            raise Interrupted
