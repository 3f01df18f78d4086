"""The training loop: ``train_one_epoch`` and ``evaluate``.

Every epoch's order of samples, every sample's augmentation and every step's draws of dropout follow from seed,
epoch, step and sample alone, so an epoch can be entered at any step.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from pipeline.core.dataset import Split
from pipeline.core.errors import UserError
from pipeline.metrics.selection import selection_scores
from pipeline.models import devices
from pipeline.models.model import Classifier
from pipeline.models.predict import predict, use_precision
from pipeline.train.augment.counter_rng import derive_seed
from pipeline.train.distributed import Ranks
from pipeline.train.loader import Batch, Loader
from pipeline.train.trainer import Trainer

BAR_INTERVAL_S = 0.5


class Interrupted(Exception):
    """The run was asked to stop; the progress made so far is in ``Progress``."""


@dataclass
class Progress:
    """Where a run stands: ``step`` counts the updates done in ``epoch``, which began with the rate ``lr``.

    The sums are over these updates, and over this rank's samples.
    """

    epoch: int = 0
    step: int = 0
    lr: float = 0.0
    samples: int = 0
    loss_sum: float | Tensor = 0.0
    correct: int | Tensor = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def begin_next_epoch(self) -> None:
        """Count from the start of the epoch that follows."""
        self.epoch, self.step, self.samples = self.epoch + 1, 0, 0
        self.loss_sum, self.correct = 0.0, 0

    def summed(self, ranks: Ranks) -> "Progress":
        """The same with the sums over all ranks, each of which must call this."""
        samples, loss_sum, correct = map(ranks.total, (self.samples, self.loss_sum, self.correct))
        return replace(self, samples=int(samples), loss_sum=loss_sum, correct=correct)


def train_one_epoch(
    trainer: Trainer, loader: Loader, progress: Progress, after_step: Callable[[], None], label: str | None = None
) -> dict[str, float]:
    """Train from ``progress.step`` to the end of ``progress.epoch``; ``progress`` is brought forward at every step.

    Returns ``loss`` and ``accuracy`` over the epoch's samples, as trained on; raises ``UserError`` where the loss is no
    longer finite, and whatever ``after_step`` raises. A progress bar needs a label.
    """
    ranks, epoch = trainer.ranks, progress.epoch
    trainer.train_mode()
    trainer.updates = epoch * loader.steps + progress.step
    start, first, shown = time.monotonic(), progress.samples, 0.0
    done, total = (steps * min(loader.batch_size, len(loader.split)) for steps in (progress.step, loader.steps))
    hidden = None if ranks.main and label is not None else True
    with tqdm(initial=done, total=total, desc=label, unit="img", leave=False, disable=hidden) as bar:
        positions, plan = ranks.positions(loader.batch_size), trainer.augmentation.plan
        for batch in loader.batches(epoch, progress.step, positions, plan):
            loss_sum, correct = update(trainer, batch, epoch, progress.step)
            progress.step += 1
            progress.samples += len(batch.targets)
            # Sums stay on the device: reading one would wait for it.
            progress.loss_sum = progress.loss_sum + loss_sum
            progress.correct = progress.correct + correct
            trainer.schedule.step_update(trainer.updates)
            bar.update(len(batch.targets) * ranks.world)
            if not bar.disable and time.monotonic() - shown > BAR_INTERVAL_S:
                shown = time.monotonic()
                rate = (progress.samples - first) * ranks.world / (shown - start)
                bar.set_postfix_str(
                    f"loss {float(progress.loss_sum) / progress.samples:.3f}, "
                    f"accuracy {int(progress.correct) / progress.samples:.3f}, {rate:.0f} img/s",
                    refresh=False,
                )
            after_step()
    whole = progress.summed(ranks)
    loss, accuracy = float(whole.loss_sum) / whole.samples, float(whole.correct) / whole.samples
    if not np.isfinite(loss):
        raise UserError(
            f"the training loss is {loss} in epoch {progress.epoch + 1}: lower train.lr, set train.grad_clip_norm "
            "(1.0, say) or train.amp to bf16 or none"
        )
    return {"loss": loss, "accuracy": accuracy}


def _prepare(trainer: Trainer, batch: Batch, epoch: int, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Augmented images (B, C, H, W) of a batch, what they are to be told as, and a teacher's logits (B, K) for them.

    Targets are int64 (B,) or float (B, K). The teacher sees the images before they are made smaller.
    """
    images = trainer.augmentation.run(batch.images, batch.plan)
    targets = batch.targets if batch.soft is None else batch.soft
    if trainer.mixer.active(epoch):
        if batch.soft is None:
            targets = F.one_hot(targets, trainer.mixer.num_classes).float()
        images, targets = trainer.mixer(images, targets, epoch, step)
    answers = None
    if trainer.teacher is not None:
        with use_precision(trainer.params.amp, trainer.device):
            answers = trainer.teacher(images.to(memory_format=trainer.memory_format))
    size = trainer.size_in(epoch)
    if size is not None and size != images.shape[-1]:
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return images.to(memory_format=trainer.memory_format), targets, answers


def update(trainer: Trainer, batch: Batch, epoch: int, step: int) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns the sum of the losses () and the number of right answers (), on the device."""
    params, device = trainer.params, trainer.device
    if params.compile == "reduce-overhead":  # the graphs' outputs are good until here, not until the next graph
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
    images, targets, answers = _prepare(trainer, batch, epoch, step)
    devices.seed_draws(derive_seed(params.seed, epoch, -2 - 2 * step) + trainer.ranks.rank, device)
    net = trainer.wrapped or trainer.model
    size = len(images) // params.accumulate if len(images) % params.accumulate == 0 else len(images)
    starts = range(0, len(images), size)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with devices.use_tf32(params.tf32):
        for begin in starts:
            part = slice(begin, begin + size)
            # Ranks exchange gradients once an update, not once a part.
            waits = isinstance(net, DistributedDataParallel) and begin != starts[-1]
            with net.no_sync() if waits else nullcontext():
                with use_precision(params.amp, device):
                    logits = net(images[part])
                given = (None if each is None else each[part] for each in (batch.weights, answers))
                loss = trainer.criterion(logits.float(), targets[part], *given)
                members = len(logits) // size  # of an ensemble: each learns as if it were alone
                trainer.scaler.scale(loss).backward(torch.full_like(loss, members / len(starts)))
            loss_sum += loss.detach() * size
            logits = logits.detach()
            if members > 1:
                logits = logits.unflatten(0, (members, size)).mean(0)
            correct += (logits.argmax(1) == batch.targets[part]).sum()
        if params.grad_clip_norm is not None:
            trainer.scaler.unscale_(trainer.optimizer)
            nn.utils.clip_grad_norm_(trainer.model.parameters(), params.grad_clip_norm)
        trainer.scaler.step(trainer.optimizer)
        trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.updates += 1
    if trainer.ema is not None:
        trainer.ema.update(trainer.model, step=trainer.updates)
    return loss_sum, correct


def evaluate(
    classifier: Classifier, split: Split, trainer: Trainer, label: str | None = None, share: Tensor | None = None
) -> dict[str, float]:
    """Score a split as the trainer's params say, every sample of it once, whatever the number of ranks.

    ``share`` are the images for this rank, from ``Ranks.take_share``, where they lie on the device already. Returns
    ``loss`` (mean NLL), ``accuracy``, ``balanced_accuracy`` and ``macro_f1``; raises ``UserError`` if probabilities are
    no numbers. A progress bar needs a label.
    """
    ranks, params = trainer.ranks, trainer.params
    images, bar = ranks.take_share(split.images) if share is None else share, label if ranks.main else None
    probs = predict(classifier.eval(), images, params.batch_size, trainer.device, progress=bar, amp=params.amp)
    probs = ranks.gather(probs, len(split))
    if not np.isfinite(probs).all():
        raise UserError("the net's val probabilities are not finite: lower train.lr or set train.grad_clip_norm")
    scores = selection_scores(split.targets, probs)
    return {"loss": scores.pop("nll"), **scores}
