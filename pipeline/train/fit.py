"""The epochs of a training: each is trained and scored on val; one net remains, the best or the last."""

import time
from collections.abc import Callable

from pipeline.core.params import EarlyStopping
from pipeline.core.signals import StopRequest
from pipeline.models import model
from pipeline.tracking.runs import TrainingRun
from pipeline.train import live, loop
from pipeline.train.job import Job, Keeper, Session
from pipeline.train.loader import build_loader, place_images
from pipeline.train.trainer import Trainer, wrap


def fit(job: Job, trainer: Trainer, session: Session, run: TrainingRun | None, stop: StopRequest) -> None:
    """Train the epochs that are left; ``session`` follows, with the weights to keep, and the main rank's ``run``.

    Raises:
        Interrupted: It was asked to stop; the checkpoint is kept.
        UserError: A loss that diverges, or a full disk.
    """
    params, progress = job.params.train, session.progress
    stopping = params.early_stopping
    wrap(trainer)
    epochs, keeper = Epochs(job, trainer, session), Keeper(job, trainer, session, run, stop)
    while progress.epoch < params.epochs:
        if stopping.patience is not None and progress.epoch - session.best_epoch >= stopping.patience:
            if run:
                print(f"No better {stopping.metric} for {stopping.patience} epochs: stopping early.", flush=True)
            break
        started = time.monotonic()
        row = epochs.run_next(keeper.keep_in_time)
        if run:
            best = "  best" if session.best_epoch == row["epoch"] else ""
            print(f"{_row_text(row, params.epochs)}  {time.monotonic() - started:.0f} s{best}", flush=True)
        keeper.keep_in_time()
        if run:
            live.show(progress.history)
    keeper.keep()


class Epochs:
    """Epochs of a job, one after the other; what they need of the data is put on the device once."""

    def __init__(self, job: Job, trainer: Trainer, session: Session) -> None:
        self.params, self.trainer, self.session = job.params.train, trainer, session
        self.loader = build_loader(job.prepared.split("train"), self.params, trainer.device)
        self.val = job.prepared.split("val")
        self.share, _ = place_images(trainer.ranks.take_share(self.val.images), trainer.device)
        self.classifier = model.Classifier(trainer.candidate, job.spec)

    def run_next(self, after_step: Callable[[], None]) -> dict[str, float]:
        """Train the session's epoch and score it; returns its row of the history, with which the session goes on."""
        trainer, progress = self.trainer, self.session.progress
        label = f"epoch {progress.epoch + 1}/{self.params.epochs}"
        if progress.step == 0:
            progress.lr = max(group["lr"] for group in trainer.optimizer.param_groups)
        trained = loop.train_one_epoch(trainer, self.loader, progress, after_step, label)
        trainer.ranks.align(trainer.candidate)
        # At the precision of training, which takes half the time with bf16; evaluate's scores are in float32.
        scores = loop.evaluate(self.classifier, self.val, trainer, f"{label} val", self.share)
        row = {"epoch": progress.epoch + 1, "lr": progress.lr}
        row |= {f"train/{k}": v for k, v in trained.items()} | {f"val/{k}": v for k, v in scores.items()}
        progress.history.append(row)
        self._keep(row, self.params.early_stopping)
        trainer.schedule.step_epoch(row[self.params.early_stopping.metric])
        progress.begin_next_epoch()
        return row

    def _keep(self, row: dict[str, float], stopping: EarlyStopping) -> None:
        """Take over the weights of an epoch that is better than all before it, or of every one."""
        session, value, sign = self.session, row[stopping.metric], -1 if stopping.metric == "val/loss" else 1
        better = session.best_value is None or sign * value > sign * session.best_value
        if better:
            session.best_value, session.best_epoch = value, int(row["epoch"])
        if better or stopping.keep == "last":
            session.kept_epoch = int(row["epoch"])
            session.kept_state = {k: v.detach().clone() for k, v in self.trainer.candidate.state_dict().items()}


def _row_text(row: dict[str, float], epochs: int) -> str:
    """An epoch's scores for the log."""
    return (
        f"epoch {row['epoch']}/{epochs}  train loss {row['train/loss']:.4f} accuracy {row['train/accuracy']:.4f}  "
        f"val loss {row['val/loss']:.4f} accuracy {row['val/accuracy']:.4f} macro-F1 {row['val/macro_f1']:.4f}"
    )
