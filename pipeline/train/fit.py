"""The epochs of a training: each is trained, scored on val and kept; the best net is what remains."""

import time
from collections.abc import Callable

from pipeline.core.signals import StopRequest
from pipeline.models import model
from pipeline.tracking.runs import TrainingRun
from pipeline.train import live, loop
from pipeline.train.job import Job, Keeper, Session
from pipeline.train.loader import Loader, build_loader
from pipeline.train.loop import Interrupted
from pipeline.train.trainer import Trainer, wrap


def fit(job: Job, trainer: Trainer, session: Session, run: TrainingRun | None, stop: StopRequest) -> None:
    """Train the epochs that are left; ``session`` follows, with the best weights, and ``run``, of the main rank alone.

    Raises:
        Interrupted: It was asked to stop; the checkpoint is kept.
        UserError: A loss that diverges, or a full disk.
    """
    params, progress = job.params.train, session.progress
    stopping = params.early_stopping
    loader = build_loader(job.prepared.split("train"), params, trainer.device)
    wrap(trainer)
    keeper = Keeper(job, trainer, session, stop)
    while progress.epoch < params.epochs:
        if stopping.patience is not None and progress.epoch - session.best_epoch >= stopping.patience:
            if run:
                print(f"No better {stopping.metric} for {stopping.patience} epochs: stopping early.", flush=True)
            break
        started = time.monotonic()
        row = _run_epoch(job, trainer, session, loader, keeper.after_step)
        if run:
            best = "  best" if session.best_epoch == row["epoch"] else ""
            print(f"{_row_text(row, params.epochs)}  {time.monotonic() - started:.0f} s{best}", flush=True)
        keeper.keep()
        if run:
            run.log_history(progress.history)
            live.show(progress.history)
        if trainer.ranks.any(bool(stop))[0]:
            raise Interrupted


def _run_epoch(
    job: Job, trainer: Trainer, session: Session, loader: Loader, after_step: Callable[[], None]
) -> dict[str, float]:
    """Train an epoch and score it; returns its row of the history, with which the session goes on."""
    params, progress = job.params.train, session.progress
    label = f"epoch {progress.epoch + 1}/{params.epochs}"
    if progress.step == 0:
        progress.lr = max(group["lr"] for group in trainer.optimizer.param_groups)
    trained = loop.train_one_epoch(trainer, loader, progress, after_step, label)
    trainer.ranks.align(trainer.candidate)
    classifier = model.Classifier(trainer.candidate, job.spec).to(trainer.device)
    # At the precision of training, which takes half the time with bf16; evaluate's scores are in float32.
    scores = loop.evaluate(classifier, job.prepared.split("val"), trainer, f"{label} val")
    row = {"epoch": progress.epoch + 1, "lr": progress.lr}
    row |= {f"train/{k}": v for k, v in trained.items()} | {f"val/{k}": v for k, v in scores.items()}
    progress.history.append(row)
    _keep_best(session, trainer, row, params.early_stopping.metric)
    trainer.schedule.step_epoch(row[params.early_stopping.metric])
    progress.begin_next_epoch()
    return row


def _keep_best(session: Session, trainer: Trainer, row: dict[str, float], metric: str) -> None:
    """Take over the weights of an epoch that is better than all before it."""
    sign = -1 if metric == "val/loss" else 1
    if session.best_value is None or sign * row[metric] > sign * session.best_value:
        session.best_value, session.best_epoch = row[metric], row["epoch"]
        session.best_state = {k: v.detach().cpu().clone() for k, v in trainer.candidate.state_dict().items()}


def _row_text(row: dict[str, float], epochs: int) -> str:
    """An epoch's scores for the log."""
    return (
        f"epoch {row['epoch']}/{epochs}  train loss {row['train/loss']:.4f} accuracy {row['train/accuracy']:.4f}  "
        f"val loss {row['val/loss']:.4f} accuracy {row['val/accuracy']:.4f} macro-F1 {row['val/macro_f1']:.4f}"
    )
