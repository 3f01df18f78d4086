"""Speed of the train stage's epochs, as a ratio to the bare updates of the same net, in the same run.

Run: python benchmarks/engine.py   (after `dvc repro prepare`; needs a quiet machine)

Ours: ``train_one_epoch`` as params.yaml says, from the prepared arrays: picking rows, augmentation, mixing, loss,
update, averaged weights, schedule, sums and progress bar. The peer: forward, backward and step of the same net with
the same optimizer, dtype and layout on one constant batch. Both take turns, round by round.
"""

import argparse
import statistics
import time
from contextlib import suppress

import torch
from torch import nn

from pipeline.core.dataset import load_prepared
from pipeline.core.params import TrainParams
from pipeline.core.params_file import load_params
from pipeline.models.devices import resolve_device, synchronize
from pipeline.models.predict import use_precision
from pipeline.train import loop, planning
from pipeline.train.loader import Loader, build_loader
from pipeline.train.loop import Progress
from pipeline.train.trainer import Trainer, build_trainer


class RoundOver(Exception):
    """Enough updates for one measurement."""


def start(params: TrainParams) -> tuple[Trainer, Loader]:
    """A trainer at its first update, and its data."""
    prepared = load_prepared()
    spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
    device = resolve_device(params.device)
    trainer = build_trainer(params, prepared, spec, device)
    return trainer, build_loader(prepared.split("train"), params, device)


def ours(trainer: Trainer, loader: Loader, updates: int) -> float:
    """img/s of the next updates of an epoch."""
    progress, done = Progress(), 0

    def after_step() -> None:
        nonlocal done
        done += 1
        if done == updates:
            raise RoundOver

    synchronize(trainer.device)
    begin = time.perf_counter()
    with suppress(RoundOver):
        loop.train_one_epoch(trainer, loader, progress, after_step)
    synchronize(trainer.device)
    return done * loader.batch_size / (time.perf_counter() - begin)


def bare(trainer: Trainer, images: torch.Tensor, targets: torch.Tensor, updates: int) -> float:
    """img/s of forward, backward and step on one batch."""
    trainer.model.train()
    synchronize(trainer.device)
    begin = time.perf_counter()
    for _ in range(updates):
        with use_precision(trainer.params.amp, trainer.device):
            loss = nn.functional.cross_entropy(trainer.model(images), targets)
        trainer.scaler.scale(loss).backward()
        trainer.scaler.step(trainer.optimizer)
        trainer.scaler.update()
        trainer.optimizer.zero_grad()
    synchronize(trainer.device)
    return updates * len(images) / (time.perf_counter() - begin)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each (%(default)s)")
    parser.add_argument("--updates", type=int, default=15, help="updates of a measurement (%(default)s)")
    arguments = parser.parse_args()
    params = load_params().train.model_copy(update={"progressive": []})  # both sides at full size
    trainer, loader = start(params)
    updates = min(arguments.updates, loader.steps)
    batch = next(loader.batches(0))
    images = trainer.augmentation(batch.images, batch.numbers, 0).to(memory_format=trainer.memory_format)
    rates: dict[str, list[float]] = {"bare updates": [], "train stage": []}
    for round_number in range(arguments.rounds + 1):
        pair = bare(trainer, images, batch.targets, updates), ours(trainer, loader, updates)
        if round_number:  # the first allocates
            for values, rate in zip(rates.values(), pair, strict=True):
                values.append(rate)
    print(
        f"{params.backbone}, {images.shape[-1]} px, batch {len(images)}, amp {params.amp}, {trainer.device}, "
        f"{torch.get_num_threads()} threads, n = {arguments.rounds} rounds of {updates} updates; median (range)\n"
    )
    print("| | img/s | of bare |\n|---|---|---|")
    for name, values in rates.items():
        ratios = [value / other for value, other in zip(values, rates["bare updates"], strict=True)]
        print(
            f"| {name} | {statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f}) "
            f"| {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
        )


if __name__ == "__main__":
    main()
