"""STAGE 2: packed arrays -> weights. Run it with ``dvc repro train``.

Reads ``data/prepared`` and the train section of ``params.yaml``; writes ``models/train``: ``weights.pt`` with
``weights.json``, ``history.csv``, ``curves.png`` and ``run.json``. Killed at any moment and run again, it goes on
from its checkpoint and ends with the very same weights, on the same MLflow run.
"""

import copy
import signal
import sys
import time
import uuid
from collections import Counter

import pandas as pd
import torch

from pipeline.core.dataset import load_prepared
from pipeline.core.errors import UserError
from pipeline.core.files import replacing, write_csv
from pipeline.core.params import Params
from pipeline.core.params_file import load_params
from pipeline.core.paths import TRAINED
from pipeline.core.signals import StopRequest, stop_requests
from pipeline.core.stage_files import RunFile
from pipeline.models import costs, formats, model, transforms
from pipeline.models.devices import explain_full_memory, list_precisions, resolve_device, set_determinism
from pipeline.models.weights import save_weights
from pipeline.reporting import plots, training_figures
from pipeline.tracking.origin import origin_tags
from pipeline.tracking.runs import ATTEMPT_TAG, TrainingRun
from pipeline.train import checkpoint, distributed, live, planning
from pipeline.train.distributed import Ranks
from pipeline.train.fit import fit
from pipeline.train.job import Job, Session, build_job, hold, resume, save
from pipeline.train.loader import count_steps
from pipeline.train.loop import Interrupted
from pipeline.train.trainer import Trainer, build_trainer, check_batches


def main() -> None:
    """Train as ``params.yaml`` says."""
    with stop_requests() as stop:
        train(load_params(), stop)


@explain_full_memory(
    "Lower train.batch_size, raise train.accumulate (parts in which a batch is computed), or set train.amp to bf16."
)
def train(params: Params, stop: StopRequest) -> None:
    """Train, or go on training, or restore a finished training whose outs were lost.

    Once ``stop`` is set, it checkpoints and ends the process with the signal's status. Whatever the user can mend is
    raised as ``UserError`` before the first epoch, but for a loss that diverges, a full disk and a full memory.
    """
    ranks = Ranks()
    prepared = load_prepared()
    device = resolve_device(params.train.device, ranks.local, ranks.local_world)
    spec, notes = planning.plan(params.train, prepared.class_names, prepared.img_size, prepared.channels)
    spec.preprocessing["faces"] = prepared.faces  # who serves the model finds them in the same way
    check_batches(params.train, prepared, ranks)
    job = build_job(params, prepared, spec)
    if stop:  # torchrun would not hear of it
        sys.exit(128 + stop.signal)
    distributed.launch(params.train.devices, device)
    set_determinism(params.train.deterministic, device)
    trainer = build_trainer(params.train, prepared, spec, device, ranks)
    if ranks.main:
        if per_sample := trainer.augmentation.per_sample:
            reason = f"no batched kernel for {', '.join(per_sample)}"
            notes.append(f"train.transforms.train runs image by image through torchvision: {reason}")
        if (amp := params.train.amp) not in list_precisions(device):
            notes.append(
                f"train.amp: {amp} is slow here: {device} has no instructions for it; `hyojo probe` finds what is fast"
            )
        for note in notes:
            print(note, flush=True)
    ranks.join(device)
    try:
        with hold(job, ranks, stop):
            _run_job(job, trainer, stop)
    finally:
        ranks.leave()


def _run_job(job: Job, trainer: Trainer, stop: StopRequest) -> None:
    """Fit what the checkpoint leaves to fit; the main rank keeps checkpoint, run and outs."""
    ranks, digest = trainer.ranks, ""
    session = resume(job, trainer)
    run = open_run(job, trainer, session) if ranks.main else None
    try:
        if not ranks.share(session.finished):
            fit(job, trainer, session, run, stop)
        if run:
            session.finished, session.ended_s = True, session.ended_s or time.time()
            save(job, trainer, session)
            digest = write_outs(job, trainer, session)
            live.hide()
            checkpoint.discard_finished(job.folder)
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
        run.finish("FINISHED")
        metric = job.params.train.early_stopping.metric
        best = f"Best {metric}: {session.best_value:.4f} in epoch {session.best_epoch}."
        print(f"{best} Weights of epoch {session.kept_epoch}: {digest[:12]}.")


def open_run(job: Job, trainer: Trainer, session: Session) -> TrainingRun:
    """Open this job's MLflow run, new or from its checkpoint, so that a crash at any moment leaves one run."""
    if session.formats is None:
        session.formats = check_formats(job, trainer)
    if not session.run_id:
        # Saved before the run is made: a crash between the two leaves a run that the next start can tell.
        session.attempt = session.attempt or uuid.uuid4().hex
        save(job, trainer, session)
    session.origin = session.origin or origin_tags()
    tags = {"hyojo.data_digest": job.prepared.digest, "hyojo.job": job.key, ATTEMPT_TAG: session.attempt}
    run = TrainingRun(job.flat_params, session.origin | tags, session.run_id)
    session.run_id = run.run_id
    if not session.finished:
        # The run id must survive a crash in the first seconds, or the next start would open a second run.
        save(job, trainer, session)
        run.start_monitor()
    return run


def check_formats(job: Job, trainer: Trainer) -> dict[str, str | None]:
    """Find out before the first epoch, not after the last, which formats this net can be exported to; some must be."""
    backbone, wanted, prepared = job.spec.backbone, list(job.params.export.formats), job.prepared
    classifier = model.Classifier(copy.deepcopy(trainer.model), job.spec).cpu().eval()
    found = formats.check_exportable(classifier, prepared.img_size, prepared.channels, wanted, job.params.export.opset)
    for name, reason in found.items():
        if reason:
            print(f"{backbone} cannot be exported to {name}: {reason}", flush=True)
    if all(found.values()):
        raise UserError(
            f"train.backbone: {backbone} can be exported to none of {', '.join(wanted)}, so it could not be "
            "served. Choose another backbone, or add a format to export.formats."
        )
    return found


def write_outs(job: Job, trainer: Trainer, session: Session) -> str:
    """Write ``models/train`` at one stroke; returns the digest of the weights."""
    with replacing(TRAINED) as folder:
        folder.mkdir()
        kept = model.build_model(job.spec)
        kept.load_state_dict(session.kept_state)
        training = {"kept_epoch": session.kept_epoch, "params": job.flat_params}
        digest = save_weights(folder, kept, job.spec, job.prepared.digest, **training)
        history = pd.DataFrame(session.progress.history)
        write_csv(folder / "history.csv", history)
        plots.save(training_figures.training_curves(history, session.kept_epoch), folder / "curves.png")
        RunFile(
            run_id=session.run_id,
            job=job.key,
            formats=session.formats,
            origin=session.origin,
            started_s=session.started_s,
            ended_s=session.ended_s,
            figures=collect_figures(job, trainer, session),
        ).save(folder)
    return digest


def collect_figures(job: Job, trainer: Trainer, session: Session) -> dict[str, int | float]:
    """Collect what training took, and what an answer of the net takes, as metrics of the run."""
    classifier = model.Classifier(model.build_model(job.spec), job.spec).eval()
    found = costs.count_costs(classifier, job.prepared.img_size, job.prepared.channels)
    figures = {"train/time_s": session.train_s, "train/kept_epoch": session.kept_epoch}
    pflop = count_pflop(job, trainer, classifier.model, len(session.progress.history))
    if pflop is not None:
        figures["train/pflop"] = pflop
    return figures | {f"cost/{name}": value for name, value in found.items()}


def count_pflop(job: Job, trainer: Trainer, net: torch.nn.Module, epochs: int) -> float | None:
    """Operations of a net's updates in so many epochs, 10^15, a backward pass being two forward passes.

    As if no part were frozen; a teacher's answers are not in it. None where torch's counter cannot follow the net.
    """
    given, where, params = job.spec.preprocessing, "train.transforms.train", job.params.train
    transform = transforms.build(given["train"], where)
    side = transforms.find_output_shape(transform, given["img_size"], given["channels"], where)[-1]
    samples = len(job.prepared.split("train"))
    samples = count_steps(samples, params.batch_size) * min(params.batch_size, samples)
    operations = 0
    sizes = Counter(trainer.size_in(epoch) or side or given["input_size"] for epoch in range(epochs))
    for size, times in sizes.items():
        flops = costs.count_flops(net, torch.zeros(1, given["in_chans"], size, size))
        if flops is None:
            return None
        operations += 3 * flops * samples * times
    return operations / 1e15
