"""STAGE 2: packed arrays -> weights. Run it with ``dvc repro train``.

Reads ``data/prepared`` and the train section of ``params.yaml``; writes ``models/train``: ``weights.pt`` with
``weights.json``, ``history.csv``, ``curves.png`` and ``run.json``. Killed at any moment and run again, it goes on
from its checkpoint and ends with the very same weights, on the same MLflow run.
"""

import copy
import json
import os
import shutil
import signal
import sys
import time
import uuid
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch

from pipeline.core.dataset import Prepared, load_prepared
from pipeline.core.errors import UserError
from pipeline.core.params import Params, TrainParams, flatten
from pipeline.core.params_file import load_params
from pipeline.core.project import find_checkpoint, project_root
from pipeline.core.signals import StopRequest, stop_requests
from pipeline.models import costs, formats, model
from pipeline.reporting import plots
from pipeline.tracking.runs import ATTEMPT_TAG, TrainingRun
from pipeline.train import checkpoint, distributed, loop, planning
from pipeline.train.distributed import Ranks
from pipeline.train.loader import Loader
from pipeline.train.loop import Interrupted, Progress
from pipeline.train.trainer import (
    Trainer,
    augmentation_notes,
    build_trainer,
    check_batches,
    resolve_device,
    set_determinism,
    wrap,
)  # fmt: skip

OUT = Path("models/train")
# What stands in a job's hash: an edit to one of these trains anew.
RESULT_MODULES = (
    "train/augment/batched.py",
    "models/backbones.py",
    "models/costs.py",
    "core/dataset.py",
    "train/distributed.py",
    "train/augment/counter_rng.py",
    "train/loop.py",
    "train/augment/resampling.py",
    "train/augment/kernels.py",
    "train/loader.py",
    "train/losses.py",
    "models/maps.py",
    "metrics/metrics.py",
    "models/model.py",
    "train/augment/geometric.py",
    "train/optim.py",
    "train/planning.py",
    "train/pretrained.py",
    "train/schedule.py",
    "models/stem.py",
    "train/stage.py",
    "train/trainer.py",
)
# Not part of a result, so not of a job's hash either.
RUNTIME_PARAMS = {"device", "devices"}
CHECKPOINT_INTERVAL_S = 30.0


@dataclass
class Session:
    """The state of a run that a checkpoint holds, besides net and optimizer."""

    progress: Progress = field(default_factory=Progress)
    run_id: str | None = None
    attempt: str = ""
    formats: dict[str, str | None] | None = None
    best_value: float | None = None
    best_epoch: int = 0
    best_state: dict[str, torch.Tensor] = field(default_factory=dict)
    train_s: float = 0.0
    finished: bool = False


def main() -> None:
    """Train as ``params.yaml`` says."""
    with stop_requests() as stop:
        train(load_params(), stop)


def train(params: Params, stop: StopRequest) -> None:
    """Train, or go on training, or restore a finished training whose outs were lost.

    Args:
        params: All params; only prepare's and train's matter to the result.
        stop: Once it is set, training checkpoints and ends the process with the signal's status.

    Raises:
        UserError: Whatever the user can mend; before the first epoch, but for a loss that diverges and a full disk.
    """
    ranks = Ranks()
    prepared = load_prepared()
    device = resolve_device(params.train.device, ranks.local)
    recipe, notes = planning.plan(params.train, prepared.class_names, prepared.img_size, prepared.channels)
    recipe.preprocessing["faces"] = prepared.faces  # who serves the model finds them in the same way
    check_batches(params.train, prepared, ranks)
    if stop:  # torchrun would not hear of it
        sys.exit(128 + stop.signal)
    distributed.launch(params.train.devices, device)
    set_determinism(params.train.deterministic, device)
    trainer = build_trainer(params.train, prepared, recipe, device, ranks)
    if ranks.main:
        for note in [*notes, *augmentation_notes(trainer.augmentation)]:
            print(note, flush=True)
    ranks.join(device)
    try:
        _train_together(params, prepared, recipe, trainer, stop)
    finally:
        ranks.leave()


def _train_together(
    params: Params, prepared: Prepared, recipe: model.Recipe, trainer: Trainer, stop: StopRequest
) -> None:
    """The part of ``train`` in which the ranks know each other: the main one keeps checkpoint, run and outs."""
    ranks, key = trainer.ranks, job_key(params, prepared)
    directory = find_checkpoint(project_root(), key)

    def give_up() -> bool:
        ranks.share("wait")
        return bool(stop)

    with checkpoint.locked(directory, give_up) if ranks.main else nullcontext(True) as held:
        while ranks.share("go" if held else "stop") == "wait":
            pass
        if not held:
            sys.exit(128 + stop.signal)
        session = Session()
        state = ranks.share(checkpoint.load(directory) if ranks.main else None)
        if state is not None:
            restore(state, trainer, session)
            if ranks.main:
                print(f"Going on from the checkpoint at epoch {session.progress.epoch + 1}.", flush=True)
        run = open_run(params, prepared, recipe, trainer, session, directory, key) if ranks.main else None
        try:
            if not ranks.share(session.finished):
                fit(params.train, prepared, recipe, trainer, session, run, directory, stop)
            if run:
                session.finished = True
                checkpoint.save(directory, snapshot(trainer, session))
                digest = write_outs(params, prepared, recipe, trainer, session, key)
        except Interrupted:
            if run:
                run.finish("KILLED")
                print("Stopped; the next `dvc repro` goes on from here.", file=sys.stderr)
            sys.exit(128 + (stop.signal or signal.SIGTERM))
        except BaseException:
            if run:
                run.finish("FAILED")
            raise
    if run:
        run.tag("hyojo.weights_sha256", digest)
        run.log_history(session.progress.history)
        figures = {"train/time_s": session.train_s, "train/best_epoch": session.best_epoch}
        run.finish("FINISHED", OUT, figures | _cost(recipe, prepared))
        print(
            f"Best {params.train.early_stopping.metric}: {session.best_value:.4f} in epoch {session.best_epoch}. "
            f"Weights {digest[:12]}."
        )


def open_run(
    params: Params, prepared: Prepared, recipe: model.Recipe, trainer: Trainer, session: Session,
    directory: Path, key: str,
) -> TrainingRun:  # fmt: skip
    """Open this job's MLflow run, new or from its checkpoint, so that a crash at any moment leaves one run."""
    if session.formats is None:
        session.formats = check_formats(params, trainer, recipe, prepared)
    if not session.run_id:
        # Saved before the run is made: a crash between the two leaves a run that the next start can tell.
        session.attempt = session.attempt or uuid.uuid4().hex
        checkpoint.save(directory, snapshot(trainer, session))
    run = TrainingRun(
        flatten(params.prepare, "prepare") | flatten(params.train, "train"),
        {"hyojo.data_digest": prepared.digest, "hyojo.job": key, ATTEMPT_TAG: session.attempt},
        session.run_id,
    )
    session.run_id = run.run_id
    if not session.finished:
        # The run id must survive a crash in the first seconds, or the next start would open a second run.
        checkpoint.save(directory, snapshot(trainer, session))
        run.start_monitor()
    return run


def job_key(params: Params, prepared: Prepared) -> str:
    """Hash of what determines the weights: params, data, code and the libraries that compute."""
    train_params = params.train.model_dump(exclude=RUNTIME_PARAMS)
    parts = {
        "train": train_params,
        "data": prepared.digest,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    return checkpoint.job_key(parts, [Path(__file__).parents[1] / name for name in RESULT_MODULES])


def check_formats(
    params: Params, trainer: Trainer, recipe: model.Recipe, prepared: Prepared
) -> dict[str, str | None]:
    """Find out before the first epoch, not after the last, which formats this net can be exported to."""
    classifier = model.Classifier(copy.deepcopy(trainer.model), recipe).cpu().eval()
    wanted = list(params.export.formats)
    found = formats.probe(classifier, prepared.img_size, prepared.channels, wanted, params.export.opset)
    for name, reason in found.items():
        if reason:
            print(f"{recipe.backbone} cannot be exported to {name}: {reason}", flush=True)
    if all(found.values()):
        raise UserError(
            f"train.backbone: {recipe.backbone} can be exported to none of {', '.join(wanted)}, so it could not be "
            "served. Choose another backbone, or add a format to export.formats."
        )
    return found


def fit(
    params: TrainParams, prepared: Prepared, recipe: model.Recipe, trainer: Trainer, session: Session,
    run: TrainingRun | None, directory: Path, stop: StopRequest,
) -> None:  # fmt: skip
    """Train the epochs that are left, keeping the best weights in ``session``; only the main rank has a ``run``."""
    balanced = params.imbalance.method == "sampling"
    loader = Loader(prepared.split("train"), params.batch_size, params.seed, trainer.device, balanced)
    val_split, ranks, progress = prepared.split("val"), trainer.ranks, session.progress
    metric, patience = params.early_stopping.metric, params.early_stopping.patience
    sign = -1 if metric == "val/loss" else 1
    wrap(trainer, params)
    clock = saved = time.monotonic()

    def keep() -> None:
        nonlocal clock, saved
        session.train_s += time.monotonic() - clock
        summed = replace(session, progress=progress.summed(ranks))
        if run:
            checkpoint.save(directory, snapshot(trainer, summed))
        clock = saved = time.monotonic()

    def after_step() -> None:
        due = ranks.main and time.monotonic() - saved > CHECKPOINT_INTERVAL_S
        stopped, due = ranks.any(bool(stop), due)
        if stopped or due:
            keep()
        if stopped:
            raise Interrupted

    while progress.epoch < params.epochs:
        if patience is not None and progress.epoch - session.best_epoch >= patience:
            if run:
                print(f"No better {metric} for {patience} epochs: stopping early.", flush=True)
            break
        started = time.monotonic()
        label = f"epoch {progress.epoch + 1}/{params.epochs}"
        if progress.step == 0:
            progress.lr = max(group["lr"] for group in trainer.optimizer.param_groups)
        trained = loop.train_one_epoch(trainer, loader, progress, after_step, label)
        candidate = trainer.ema.module if trainer.ema else trainer.model
        ranks.align(candidate)
        classifier = model.Classifier(candidate, recipe).to(trainer.device)
        # At the precision of training, which takes half the time with bf16; evaluate's scores are in float32.
        scores = loop.evaluate(
            classifier, val_split, params.batch_size, trainer.device, f"{label} val", ranks, trainer.amp
        )
        row = {"epoch": progress.epoch + 1, "lr": progress.lr}
        row |= {f"train/{k}": v for k, v in trained.items()} | {f"val/{k}": v for k, v in scores.items()}
        progress.history.append(row)
        better = session.best_value is None or sign * row[metric] > sign * session.best_value
        if better:
            session.best_value, session.best_epoch = row[metric], progress.epoch + 1
            session.best_state = {k: v.detach().cpu().clone() for k, v in candidate.state_dict().items()}
        trainer.schedule.step_epoch(row[metric])
        progress.epoch, progress.step, progress.samples = progress.epoch + 1, 0, 0
        progress.loss_sum, progress.correct = 0.0, 0
        if run:
            print(
                f"{label}  train loss {trained['loss']:.4f} accuracy {trained['accuracy']:.4f}  "
                f"val loss {scores['loss']:.4f} accuracy {scores['accuracy']:.4f} macro-F1 {scores['macro_f1']:.4f}  "
                f"{time.monotonic() - started:.0f} s{'  best' if better else ''}",
                flush=True,
            )
        keep()
        if run:
            run.log_history(progress.history)
        if ranks.any(bool(stop))[0]:
            raise Interrupted


def snapshot(trainer: Trainer, session: Session) -> dict[str, Any]:
    """All that a run needs to go on as if nothing had happened; tensors and plain values.

    Draws follow from the position in the run, so there is no generator's state to keep.
    """
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "ema": trainer.ema.module.state_dict() if trainer.ema else None,
        "session": {**vars(session), "progress": vars(session.progress)},
    }


def restore(state: dict[str, Any], trainer: Trainer, session: Session) -> None:
    """Put a ``snapshot`` back."""
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.schedule.load_state_dict(state["schedule"])
    trainer.scaler.load_state_dict(state["scaler"])
    if trainer.ema:
        trainer.ema.module.load_state_dict(state["ema"])
    values = dict(state["session"])
    session.progress = Progress(**values.pop("progress"))
    vars(session).update(values)
    if not trainer.ranks.main:  # the main rank counts on from the sums
        session.progress.samples, session.progress.loss_sum, session.progress.correct = 0, 0.0, 0


def _cost(recipe: model.Recipe, prepared: Prepared) -> dict[str, int]:
    """What an answer of the net takes, as metrics."""
    classifier = model.Classifier(model.build_model(recipe), recipe).eval()
    found = costs.count(classifier, prepared.img_size, prepared.channels)
    return {f"cost/{name}": value for name, value in found.items()}


def write_outs(
    params: Params, prepared: Prepared, recipe: model.Recipe, trainer: Trainer, session: Session, key: str
) -> str:
    """Write ``models/train`` at one stroke; returns the digest of the weights."""
    temporary = OUT.with_name(f".{OUT.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        best = model.build_model(recipe)
        best.load_state_dict(session.best_state)
        flat = flatten(params.prepare, "prepare") | flatten(params.train, "train")
        extra = {"data_digest": prepared.digest, "best_epoch": session.best_epoch, "params": flat}
        digest = model.save_weights(temporary, best, recipe, extra)
        history = pd.DataFrame(session.progress.history)
        history.to_csv(temporary / "history.csv", index=False)
        plots.save(plots.training_curves(history, session.best_epoch), temporary / "curves.png")
        run = {"run_id": session.run_id, "job": key, "formats": session.formats}
        (temporary / "run.json").write_text(json.dumps(run, indent=2) + "\n")
        shutil.rmtree(OUT, ignore_errors=True)
        os.replace(temporary, OUT)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return digest
