"""Seconds to a val accuracy on FER2013: ours, a tutorial's pipeline and ultralytics' classifier, in the same run.

Run: python benchmarks/time_to_accuracy.py --ultralytics-python ultra/bin/python

It wants a quiet machine, and `hyojo use recipes/fer2013-fast.yaml; dvc repro prepare` before. All have the same faces,
the peers as PNG files in a folder of each class. A ratio is a peer's seconds over ours; one that says "over" is of a
peer that did not reach the target in its time.

Ours: the epochs of params.yaml, scored on val after each, until val accuracy reaches the target; evaluation counts.

The tutorial: ImageFolder, Resize 256, RandomCrop 224, both flips, rotation, ToTensor, Normalize, batches of 128, Adam.
Its time for a few batches is multiplied out to the epochs after which it states the target. Its own net has 1.8 M
parameters and is 2.7 to 3 times as fast as resnet18 at 224 px. Of 15 stock nets timed on one core, none from 1 M to
3 M parameters and of plain convolutions came nearer: mobilenetv4_conv_small, 2.5 M, 2.6 times or more. Parameters and
operations alone do not tell: mobilenetv2_100 has 2.2 M, a sixth of resnet18's operations, and trains slower.

Ultralytics: YOLO11n-cls (1.5 M) from scratch at 64 px with its own settings, but for batches of 128: its default of 16
is about five times slower on a CPU. It is scored on val after each epoch, by its own clock, which leaves its start out.
Each of the minutes is a training whose schedule ends with them; it stops as soon as it reaches the target. Its license
is the AGPL: it is only run, as a program of an environment of its own (pip install ultralytics), and nothing of it is
imported or copied here. It is told that it is offline; then it sends nothing.
"""

import argparse
import csv
import itertools
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from pipeline.core.dataset import Prepared, load_prepared
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
Curve = list[tuple[float, float]]  # seconds of training and val accuracy, after each epoch


def ours(prepared: Prepared, target: float, device: torch.device) -> Curve:
    """Training as params.yaml says, until val accuracy reaches the target."""
    params, curve = load_params().train, []
    spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
    trainer = build_trainer(params, prepared, spec, device)
    loader = Loader(prepared.split("train"), params.batch_size, params.seed, device)
    val = prepared.split("val")
    start = time.perf_counter()
    for epoch in range(params.epochs):
        loop.train_one_epoch(trainer, loader, Progress(epoch=epoch), lambda: None, f"epoch {epoch + 1}/{params.epochs}")
        accuracy = loop.evaluate(model.Classifier(trainer.candidate, spec).to(device), val, trainer)["accuracy"]
        trainer.schedule.step_epoch(accuracy)
        curve.append((time.perf_counter() - start, accuracy))
        if accuracy >= target:
            break
    return curve


def write_folders(prepared: Prepared, folder: Path) -> None:
    """The faces of train and val as PNG files: folder/split/class/row.png."""
    for name in ("train", "val"):
        split = prepared.split(name)
        for label in prepared.class_names:
            (folder / name / label).mkdir(parents=True)
        for row, (image, target) in enumerate(zip(split.images, split.targets, strict=True)):
            Image.fromarray(image.squeeze()).save(folder / name / prepared.class_names[target] / f"{row}.png")


def tutorial(folder: Path, backbone: str, batches: int, workers: int, device: torch.device) -> list[float]:
    """img/s of the tutorial's training, one figure a batch; the first two batches do not count."""
    faces = datasets.ImageFolder(folder / "train", TRANSFORM)
    net = timm.create_model(backbone, num_classes=len(faces.classes)).to(device).train()
    optimizer = torch.optim.Adam(net.parameters())
    loader = DataLoader(faces, BATCH_SIZE, shuffle=True, num_workers=workers, drop_last=True)
    endless = itertools.chain.from_iterable(itertools.repeat(loader))
    rates, begin = [], time.perf_counter()
    for images, targets in itertools.islice(endless, batches + 2):
        loss = nn.functional.cross_entropy(net(images.to(device)), targets.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        rates.append(BATCH_SIZE / (time.perf_counter() - begin))
        begin = time.perf_counter()
    return rates[2:]


def read_curve(results: Path) -> Curve:
    """What ultralytics has written so far, one whole line an epoch."""
    lines = results.read_text().splitlines(keepends=True) if results.exists() else []
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))
    return [(float(row["time"]), float(row["metrics/accuracy_top1"])) for row in rows]


def ultralytics(python: Path, folder: Path, minutes: float, target: float, device: torch.device) -> Curve:
    """One training of YOLO11n-cls, until its minutes are over or val accuracy reaches the target."""
    with tempfile.TemporaryDirectory() as home, (Path(home) / "log").open("w+") as log:
        options = (
            "classify", "train", "model=yolo11n-cls.yaml", "pretrained=False", "plots=False", "imgsz=64",
            f"batch={BATCH_SIZE}", f"data={folder}", f"time={minutes / 60}", f"device={device}", f"project={home}",
            "name=peer",
        )  # fmt: skip
        environment = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": home}
        command = [python.absolute().with_name("yolo"), *options]
        process = subprocess.Popen(command, cwd=home, stdout=log, stderr=log, env=os.environ | environment)
        curve, ended = [], False
        try:
            while not ended and not any(accuracy >= target for _, accuracy in curve):
                time.sleep(0.5)
                ended = process.poll() is not None
                curve = read_curve(Path(home) / "peer/results.csv")
        finally:
            process.terminate()
            process.wait()
        if not curve or process.returncode > 0:
            log.seek(0)
            raise SystemExit(f"ultralytics failed: {log.read()[-2000:]}")
    return curve


def show(name: str, curve: Curve, images: int, target: float, reference: float) -> str:
    """Print a curve, and give its row of the table: until the target, or else until its best val accuracy."""
    print(f"{name}: " + ", ".join(f"{accuracy:.3f} after {seconds:.0f} s" for seconds, accuracy in curve), flush=True)
    whole = curve[:-1]  # ultralytics cuts the last epoch short
    rate = f"{images * len(whole) / whole[-1][0]:.0f}" if whole else ""
    best = max(accuracy for _, accuracy in curve)
    reached = next(seconds for seconds, accuracy in curve if accuracy >= min(best, target))
    ratio = f"{reached / reference:.1f}" if best >= target else f"over {curve[-1][0] / reference:.1f}"
    return f"| {name} | {rate} | {best:.4f} | {reached:.0f} | {ratio} |"


def main() -> None:
    """Print the curves and one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=float, default=0.584, help="val accuracy (%(default)s)")
    parser.add_argument("--backbone", default="mobilenetv4_conv_small", help="the tutorial's net (%(default)s)")
    parser.add_argument("--batches", type=int, default=6, help="of the tutorial, to measure (%(default)s)")
    parser.add_argument("--epochs", type=int, default=35, help="of the tutorial until the target (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="of the tutorial's loader (%(default)s)")
    parser.add_argument("--ultralytics-python", type=Path, help="a Python that has the package ultralytics")
    about = "of each of ultralytics' trainings; 0: as long as ours (%(default)s)"
    parser.add_argument("--peer-minutes", type=float, nargs="+", default=[0, 10], help=about)
    arguments = parser.parse_args()
    if arguments.ultralytics_python and not arguments.ultralytics_python.with_name("yolo").exists():
        parser.error(f"no program yolo beside {arguments.ultralytics_python}: pip install ultralytics there")
    prepared, target = load_prepared(), arguments.target
    device, images = resolve_device(load_params().train.device), len(prepared.split("train"))
    curve = ours(prepared, target, device)
    seconds, accuracy = curve[-1]
    rows = [show("ours", curve, images, target, seconds)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folders(prepared, folder)
        rates = tutorial(folder, arguments.backbone, arguments.batches, arguments.workers, device)
        whole = sorted(images * arguments.epochs / rate for rate in rates)
        middle, low, high = statistics.median(whole), whole[0], whole[-1]
        rows.append(
            f"| tutorial, {arguments.backbone} at 224 px | {statistics.median(rates):.1f} | {target}, stated "
            f"| {middle:.0f} ({low:.0f} to {high:.0f}), {arguments.epochs} epochs multiplied out "
            f"| {middle / seconds:.0f} ({low / seconds:.0f} to {high / seconds:.0f}) |"
        )
        for minutes in arguments.peer_minutes if arguments.ultralytics_python else []:
            curve = ultralytics(arguments.ultralytics_python, folder, minutes or seconds / 60, target, device)
            rows.append(show(f"YOLO11n-cls, {minutes or seconds / 60:.1f} min", curve, images, target, seconds))
    print(f"\n{torch.get_num_threads()} threads; tutorial: n = {len(rates)} batches, median (range)\n")
    print("| | img/s | val accuracy | seconds | ratio |\n|---|---|---|---|---|", *rows, sep="\n")
    if accuracy < target:
        raise SystemExit(f"val accuracy {target} was not reached")


if __name__ == "__main__":
    main()
