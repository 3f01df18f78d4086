"""Train a backbone for so many minutes on prepared faces and score it on val, for the other benchmarks.

A minute of training is a minute of the processor's time for each thread that torch uses: on a quiet machine the
clock's, and on a busy one not lengthened by its other work. Scoring does not count. The one-cycle schedule of the
project's engine follows that time, not the number of updates, so that all nets end their cycle when the time is up.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from pipeline.core.dataset import Prepared
from pipeline.core.params import TrainParams
from pipeline.core.params_file import apply_overrides, parse_params, read_text
from pipeline.models import maps, model, stem
from pipeline.models.devices import is_accelerator, resolve_device, synchronize
from pipeline.train import loop, planning
from pipeline.train.loader import Batch, Loader, Plan
from pipeline.train.schedule import LRSchedule
from pipeline.train.trainer import build_trainer

TICKS = 1000  # of the schedule
WARMUP = 0.2  # part of the time in which the learning rate rises


@dataclass(frozen=True)
class Mark:
    """Where a training stood after some minutes: images seen and val accuracy."""

    minutes: float
    images: int
    accuracy: float


@dataclass(frozen=True)
class Training:
    """A net that was trained: ``side`` of its last map (None: not known), parameters, and its marks."""

    side: int | None
    parameters: int
    marks: list[Mark]


def add_arguments(parser: argparse.ArgumentParser, minutes: float) -> None:
    """What all nets of a comparison have in common."""
    parser.add_argument("--minutes", type=float, default=minutes, help="of training a net (%(default)s)")
    parser.add_argument("--optimizer", default="adamw", help="of timm's (%(default)s)")
    parser.add_argument("--lr", type=float, default=0.002, help="the highest (%(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.05, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images an update (%(default)s)")
    parser.add_argument(
        "--amp", choices=("none", "bf16", "quicker"), default="quicker",
        help="quicker: that of both in which a net trains faster, tried out for some updates (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="the first (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of a net (%(default)s)")


def settings(arguments: argparse.Namespace, prepared: Prepared) -> TrainParams:
    """The train section of ``params.yaml`` with the arguments, light augmentation and settings that suit any net."""
    crop = f"{{RandomCrop: {{size: auto, padding: {prepared.img_size // 12}}}}}"
    changes: dict[str, Any] = {
        "optimizer": arguments.optimizer, "lr": arguments.lr, "weight_decay": arguments.weight_decay,
        "batch_size": arguments.batch_size, "amp": "none" if arguments.amp == "quicker" else arguments.amp,
        "progressive": "[]", "backbone_args": "{}", "freeze": "[]",
        "transforms.train": f"[{crop}, RandomHorizontalFlip]",
        "transforms.eval": "[]", "schedule.name": "onecycle", "label_smoothing": 0.1, "ema_decay": 0.99,
        "grad_clip_norm": 1.0, "mixing.mixup_alpha": 0.0, "mixing.cutmix_alpha": 0.0, "accumulate": 1,
        "layer_decay": 1.0, "imbalance.method": "none", "pretrained": "false", "weights": "null",
        "weights_sha256": "null", "devices": 1, "input_size": "auto", "compile": "none",
    }  # fmt: skip
    overrides = [f"train.{key}={value}" for key, value in changes.items()]
    return parse_params(apply_overrides(read_text("params.yaml"), overrides)).train


def plan(params: TrainParams, prepared: Prepared) -> model.ModelSpec:
    """The spec of a net; with ``stem: keep`` also of one whose last map collapses, which the pipeline refuses."""
    with mock.patch.object(stem, "COLLAPSED", 0 if params.stem == "keep" else stem.COLLAPSED):
        return planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)[0]


def with_quicker_amp(params: TrainParams, prepared: Prepared, updates: int = 8) -> TrainParams:
    """Params with the precision that takes less time for some updates: convolutions by channel dislike bf16 on CPUs."""
    seconds = {}
    for amp in ("none", "bf16"):
        chosen = params.model_copy(update={"amp": amp})
        device = resolve_device(params.device)
        trainer = build_trainer(chosen, prepared, plan(chosen, prepared), device)
        batches = _endless(Loader(prepared.split("train"), params.batch_size, params.seed, device))
        trainer.train_mode()
        loop.update(trainer, next(batches)[2], 0, 0)  # allocates
        start = _now(device)
        for _ in range(updates):
            epoch, step, batch = next(batches)
            loop.update(trainer, batch, epoch, step)
        seconds[amp] = _now(device) - start
    return params.model_copy(update={"amp": min(seconds, key=seconds.__getitem__)})


def train(params: TrainParams, prepared: Prepared, minutes: float, marks: Sequence[float] = (1.0,)) -> Training:
    """Train from scratch until the time is up.

    Args:
        params: As from ``settings``, with a backbone.
        prepared: Its train split is trained on, its val split scored; test is not looked at.
        minutes: Of training.
        marks: Parts of that time, rising and ending with 1, after which val is scored.
    """
    device = resolve_device(params.device)
    spec = plan(params, prepared)
    trainer = build_trainer(params, prepared, spec, device)
    cycle = params.schedule.model_copy(update={"warmup": WARMUP})
    trainer.schedule = LRSchedule(trainer.optimizer, cycle, params.lr, 1, TICKS, "max")
    loader = Loader(prepared.split("train"), params.batch_size, params.seed, device)
    batches, budget = _endless(loader, trainer.augmentation.plan), 60 * minutes
    used, images, ticks, found = 0.0, 0, 0, []
    for mark in marks:
        trainer.train_mode()
        start = _now(device) - used
        while used < mark * budget:
            epoch, step, batch = next(batches)
            loop.update(trainer, batch, epoch, step)
            images += len(batch.targets)
            used = _now(device) - start
            while ticks < min(TICKS - 1, int(TICKS * used / budget)):
                ticks += 1
                trainer.schedule.step_update(ticks)
        classifier = model.Classifier(trainer.ema.module, spec).to(device)
        accuracy = loop.evaluate(classifier, prepared.split("val"), trainer)["accuracy"]
        found.append(Mark(used / 60, images, accuracy))
    net = trainer.model
    side = maps.find_last_side(net, spec.preprocessing["input_size"], spec.preprocessing["in_chans"])
    return Training(side, sum(parameter.numel() for parameter in net.parameters()), found)


def _endless(loader: Loader, plan: Plan) -> Iterator[tuple[int, int, Batch]]:
    """Epoch, step and batch, one epoch after the other."""
    epoch = 0
    while True:
        for step, batch in enumerate(loader.batches(epoch, plan=plan)):
            yield epoch, step, batch
        epoch += 1


def _now(device: torch.device) -> float:
    """Seconds of the processor for each thread; of the clock where another device computes."""
    if not is_accelerator(device):
        return time.process_time() / torch.get_num_threads()
    synchronize(device)
    return time.perf_counter()
