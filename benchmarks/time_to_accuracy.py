"""Training time to a tutorial's best accuracy on FER2013, as a ratio to that tutorial's time, in the same run.

Run: python benchmarks/time_to_accuracy.py

It wants a quiet machine, and `hyojo use recipes/fer2013-fast.yaml; dvc repro prepare` before.

Ours: the epochs of params.yaml, scored on val after each, until val accuracy reaches the target; evaluation counts.
The peer: the same faces as JPEG files through ImageFolder, Resize 256, RandomCrop 224, both flips, rotation, ToTensor,
Normalize, batches of 128, Adam and a stock net; its time for a few hundred images is multiplied out to its epochs.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from pipeline.core.dataset import Split, load_prepared
from pipeline.core.params_file import load_params
from pipeline.models import model
from pipeline.models.devices import resolve_device
from pipeline.train import loop, planning
from pipeline.train.loader import Loader
from pipeline.train.loop import Progress
from pipeline.train.trainer import build_trainer

TRANSFORM = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.RandomCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
        transforms.RandomRotation(15),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)
BATCH_SIZE = 128


def ours(target: float) -> tuple[float, float]:
    """Seconds of training until val accuracy reaches the target, and the accuracy reached."""
    params, prepared = load_params().train, load_prepared()
    device = resolve_device(params.device)
    spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
    trainer = build_trainer(params, prepared, spec, device)
    loader = Loader(prepared.split("train"), params.batch_size, params.seed, device)
    progress, val, accuracy = Progress(), prepared.split("val"), 0.0
    start = time.perf_counter()
    for epoch in range(params.epochs):
        progress = Progress(epoch=epoch)
        loop.train_one_epoch(trainer, loader, progress, lambda: None, f"epoch {epoch + 1}/{params.epochs}")
        classifier = model.Classifier(trainer.candidate, spec).to(device)
        accuracy = loop.evaluate(classifier, val, trainer)["accuracy"]
        trainer.schedule.step_epoch(accuracy)
        print(
            f"epoch {epoch + 1}: val accuracy {accuracy:.4f} after {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        if accuracy >= target:
            break
    return time.perf_counter() - start, accuracy


def peer(split: Split, class_names: list[str], backbone: str, batches: int, workers: int) -> list[float]:
    """Seconds an image of the tutorial's training, one figure a batch; the first two batches do not count."""
    net = timm.create_model(backbone, num_classes=len(class_names)).train()
    optimizer = torch.optim.Adam(net.parameters())
    with tempfile.TemporaryDirectory() as folder:
        rows = np.random.default_rng(0).permutation(len(split))[: BATCH_SIZE * 8]
        for row in rows:
            place = Path(folder) / class_names[split.targets[row]]
            place.mkdir(exist_ok=True)
            Image.fromarray(split.images[row].squeeze()).save(place / f"{row}.jpg")
        loader = DataLoader(
            datasets.ImageFolder(folder, TRANSFORM),
            BATCH_SIZE,
            shuffle=True,
            num_workers=workers,
            drop_last=True,
        )
        endless = itertools.chain.from_iterable(itertools.repeat(loader))
        times, begin = [], time.perf_counter()
        for images, targets in itertools.islice(endless, batches + 2):
            nn.functional.cross_entropy(net(images), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append((time.perf_counter() - begin) / BATCH_SIZE)
            begin = time.perf_counter()
    return times[2:]


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=float, default=0.584, help="val accuracy (%(default)s)")
    parser.add_argument("--backbone", default="resnet18", help="the peer's net (%(default)s)")
    parser.add_argument("--batches", type=int, default=6, help="of the peer, to measure (%(default)s)")
    parser.add_argument("--epochs", type=int, default=35, help="of the peer until its best accuracy (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="of the peer's loader (%(default)s)")
    arguments = parser.parse_args()
    prepared = load_prepared()
    split = prepared.split("train")
    seconds, accuracy = ours(arguments.target)
    times = peer(split, prepared.class_names, arguments.backbone, arguments.batches, arguments.workers)
    whole = [each * len(split) * arguments.epochs for each in times]
    ratios = [each / seconds for each in whole]
    print(f"\n{torch.get_num_threads()} threads; peer: n = {len(times)} batches, median (range)\n")
    print("| | img/s | time | ratio |\n|---|---|---|---|")
    print(f"| ours, to val accuracy {accuracy:.4f} | | {seconds:.0f} s | 1 |")
    print(
        f"| {arguments.backbone} at 224 px, {arguments.epochs} epochs | {1 / statistics.median(times):.1f} "
        f"| {statistics.median(whole):.0f} s ({min(whole):.0f} to {max(whole):.0f}) "
        f"| {statistics.median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f}) |"
    )
    if accuracy < arguments.target:
        raise SystemExit(f"val accuracy {arguments.target} was not reached")


if __name__ == "__main__":
    main()
