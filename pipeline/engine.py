"""The training engine: ``train_one_epoch`` and ``evaluate``.

Every epoch's order of samples and every sample's augmentation follow from seed, epoch and sample alone, so an
epoch can be entered at any step.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.augment import augment_batch, sample_seed
from pipeline.data import Split
from pipeline.errors import UserError
from pipeline.metrics import classification_metrics
from pipeline.model import Classifier
from pipeline.schedule import LRSchedule

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
BAR_INTERVAL_S = 0.5


class Interrupted(Exception):
    """The run was asked to stop; the progress made so far is in ``Progress``."""


@dataclass
class Progress:
    """Where a run stands: ``step`` counts the updates done in ``epoch``, which began with the rate ``lr``.

    The sums are over these updates.
    """

    epoch: int = 0
    step: int = 0
    lr: float = 0.0
    samples: int = 0
    loss_sum: float | Tensor = 0.0
    correct: int | Tensor = 0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Trainer:
    """What an update needs: net, loss, optimizer and what goes with them."""

    model: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRSchedule
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    transform: nn.Module
    device: torch.device
    amp: str
    memory_format: torch.memory_format
    grad_clip_norm: float | None
    batch_size: int
    seed: int
    updates: int = 0  # done so far, over all epochs


def resolve_device(name: str) -> torch.device:
    """Turn ``train.device`` into a device; ``auto`` takes CUDA when there is one.

    Raises:
        UserError: No such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"train.device: {name!r} is not to be had here ({reason}); set auto or cpu") from None
    return device


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Updates in an epoch: the last, smaller batch is dropped, unless it is the only one."""
    return max(1, samples // batch_size)


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of samples in an epoch, int64 (N,); a function of its arguments."""
    generator = torch.Generator().manual_seed(sample_seed(seed, epoch, -1))
    return torch.randperm(samples, generator=generator).numpy()


def train_one_epoch(
    trainer: Trainer, split: Split, progress: Progress, after_step: Callable[[], None], label: str = ""
) -> dict[str, float]:
    """Train from ``progress.step`` to the end of ``progress.epoch``.

    Args:
        trainer: Net and optimizer; updated in place.
        split: Training images and targets.
        progress: Updated in place after every step.
        after_step: Called after every step; it may raise ``Interrupted``.
        label: What stands before the progress bar.

    Returns:
        ``loss`` and ``accuracy`` over the epoch's samples, as trained on.

    Raises:
        UserError: The loss is no longer finite.
    """
    trainer.model.train()
    order = epoch_order(len(split), trainer.seed, progress.epoch)
    steps = steps_per_epoch(len(split), trainer.batch_size)
    trainer.updates = progress.epoch * steps + progress.step
    targets_all = torch.from_numpy(split.targets)
    start, first, shown = time.monotonic(), progress.samples, 0.0
    bar = tqdm(
        total=steps * trainer.batch_size, initial=progress.samples, desc=label, unit="img", leave=False
    )
    with bar:
        for step in range(progress.step, steps):
            # Sorted, so that reading the memory map is sequential; the order inside a batch does not matter.
            indices = np.sort(order[step * trainer.batch_size : (step + 1) * trainer.batch_size])
            images = augment_batch(split.images, indices, trainer.transform, trainer.seed, progress.epoch)
            images = images.to(trainer.device, memory_format=trainer.memory_format, non_blocking=True)
            targets = targets_all[indices].to(trainer.device, non_blocking=True)
            loss, logits = _update(trainer, images, targets)
            progress.step = step + 1
            progress.samples += len(indices)
            # Sums stay on the device: reading one would wait for it.
            progress.loss_sum = progress.loss_sum + loss.detach().double() * len(indices)
            progress.correct = progress.correct + (logits.argmax(1) == targets).sum()
            trainer.schedule.step_update(trainer.updates)
            bar.update(len(indices))
            if time.monotonic() - shown > BAR_INTERVAL_S:
                shown = time.monotonic()
                rate = (progress.samples - first) / (shown - start)
                bar.set_postfix_str(
                    f"loss {float(progress.loss_sum) / progress.samples:.3f}, "
                    f"accuracy {int(progress.correct) / progress.samples:.3f}, {rate:.0f} img/s",
                    refresh=False,
                )
            after_step()
    loss, accuracy = float(progress.loss_sum) / progress.samples, int(progress.correct) / progress.samples
    if not np.isfinite(loss):
        raise UserError(
            f"the training loss is {loss} in epoch {progress.epoch}: lower train.lr, set train.grad_clip_norm "
            "(1.0, say) or train.amp to bf16 or none"
        )
    return {"loss": loss, "accuracy": accuracy}


def _update(trainer: Trainer, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """One optimizer step on a batch (B, C, H, W); returns loss () and logits (B, K)."""
    dtype = AMP_DTYPES.get(trainer.amp)
    with torch.autocast(trainer.device.type, dtype=dtype, enabled=dtype is not None):
        logits = trainer.model(images)
        loss = trainer.criterion(logits.float(), targets)
    trainer.scaler.scale(loss).backward()
    if trainer.grad_clip_norm is not None:
        trainer.scaler.unscale_(trainer.optimizer)
        nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.grad_clip_norm)
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.updates += 1
    if trainer.ema is not None:
        trainer.ema.update(trainer.model, step=trainer.updates)
    return loss, logits


@torch.inference_mode()
def predict(
    classifier: Classifier,
    images: np.ndarray,
    batch_size: int,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> np.ndarray:
    """Classify prepared images, every one of them.

    Args:
        classifier: In eval mode, on ``device``.
        images: uint8 (N, H, W, C).
        batch_size: Images at once.
        device: Where the classifier is.
        progress: Label of a progress bar; none without.

    Returns:
        Probabilities, float32 (N, K).
    """
    parts = []
    bar = tqdm(
        total=len(images), desc=progress, unit="img", disable=True if progress is None else None, leave=False
    )
    with bar:
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.array(images[start : start + batch_size])).to(device)
            parts.append(classifier(batch).cpu())
            bar.update(len(batch))
    return torch.cat(parts).numpy()


def evaluate(
    classifier: Classifier, split: Split, batch_size: int, device: torch.device, progress: str | None = None
) -> dict[str, float]:
    """Score a split: ``loss`` (mean NLL), ``accuracy`` and ``macro_f1``."""
    probs = predict(classifier.eval(), split.images, batch_size, device, progress)
    if not np.isfinite(probs).all():
        raise UserError(
            "the net's val probabilities are not finite: lower train.lr or set train.grad_clip_norm"
        )
    scores = classification_metrics(split.targets, probs)
    return {"loss": scores["nll"], "accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"]}
