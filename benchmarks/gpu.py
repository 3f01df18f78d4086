"""Check and time the way to a GPU, in one go of a few minutes; on a CPU, the same in small.

Run: python benchmarks/gpu.py [--device cpu] [--minutes 7]   (or `make test-gpu`; from the source tree)

It needs torch, torchvision and what usually comes with them, and neither DVC nor MLflow. Missing packages are taken
from a folder of wheels, which `benchmarks/gpu_wheels.py` fills. In this order: the tests marked gpu; images a second of
two nets at 48 px, as they are, compiled and as CUDA graphs, each against a bare loop of the same updates, with launches
and waits; then a recipe, until the minutes are over. What a step gave is in `results.jsonl` and `results.md` as soon as
it is done.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "fer2013-cuda.yaml"
NETS = ("face_resnet_l", "resnet18")
MODES = ("none", "default", "reduce-overhead")
EPOCH = re.compile(r"epoch (\d+)/\d+ .*val loss \S+ accuracy (\S+).* (\d+) s")
RECIPE_S = 60  # the least that is left for the recipe


class Results:
    """What was found, written after each step."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows, self.begun = folder, [], time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.jsonl").unlink(missing_ok=True)

    def add(self, step: str, **found: Any) -> None:
        """Add a row, say it, and write both files."""
        row = {"step": step, "at_s": round(time.monotonic() - self.begun), **found}
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        with (self.folder / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        lines = ["| step | after | found |", "|---|---|---|"]
        for each in self.rows:
            said = ", ".join(f"{key} {value}" for key, value in each.items() if key not in ("step", "at_s"))
            lines.append(f"| {each['step']} | {each['at_s']} s | {said} |")
        (self.folder / "results.md").write_text("\n".join(lines) + "\n")

    @contextmanager
    def telling(self, step: str) -> Iterator[None]:
        """Have an error of a step be its result: the steps after it may still tell something."""
        try:
            yield
        except Exception as error:
            self.add(step, failed=f"{type(error).__name__}: {str(error)[:300]}")


def unpack(wheels: Path, folder: Path) -> None:
    """Make the packages of a folder of wheels importable, here and in processes that are started."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    sys.path[:0] = [str(folder), str(ROOT)]
    there = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT), *([there] if there else [])])


def describe(device: Any) -> dict[str, str]:
    """Versions, and the device's name."""
    import timm
    import torch

    name = getattr(torch.get_device_module(device), "get_device_name", lambda _: f"{os.cpu_count()} cores")(device)
    return {"device": f"{device}: {name}", "torch": torch.__version__, "timm": timm.__version__}


def run_tests(device: Any, limit_s: float) -> dict[str, str]:
    """Run the tests marked gpu."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py", "-p", "no:cacheprovider"]
    environment = {**os.environ, "HYOJO_DEVICE": str(device)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace")  # bytes, here alone
        return {"failed": f"not done after {limit_s:.0f} s", "said": said[-300:]}
    failed = [line.split(" - ")[0] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {"outcome": (done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1], "failed": ", ".join(failed)}


def start(name: str, mode: str, device: Any, small: bool, folder: Path) -> tuple[Any, Any, Any]:
    """A trainer of the recipe for CUDA with another net, its batches, and one batch as the net gets it."""
    import torch

    from pipeline.core.dataset import load_prepared
    from pipeline.core.params_file import apply_overrides, apply_recipe, parse_params
    from pipeline.train import planning
    from pipeline.train.loader import build_loader
    from pipeline.train.trainer import build_trainer, wrap

    changes = [f"train.backbone={name}", f"train.compile={mode}", f"train.batch_size={16 if small else 512}"]
    changes += ["train.backbone_args={}", "train.epochs=9999", "train.progressive=[]"]
    text = apply_recipe((ROOT / "recipes" / RECIPE).read_text(), RECIPE)
    params = parse_params(apply_overrides(text, changes)).train
    prepared = load_prepared(folder)
    torch.compiler.reset()
    spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
    trainer = build_trainer(params, prepared, spec, device)
    wrap(trainer)
    loader = build_loader(prepared.split("train"), params, device)
    batch = next(loader.batches(0, plan=trainer.augmentation.plan))
    images = trainer.augmentation.run(batch.images, batch.plan).clone().to(memory_format=trainer.memory_format)
    return trainer, loader, (images, batch.targets)


def measure(name: str, mode: str, device: Any, small: bool, folder: Path) -> dict[str, str]:
    """img/s of the loop of training and of bare updates, which take turns, and what an update launches and awaits."""
    import engine
    from torch.profiler import profile, supported_activities

    trainer, loader, batch = start(name, mode, device, small, folder)
    updates, rounds = (2, 2) if small else (min(50, loader.steps), 7)
    ours, bare = [], []
    for number in range(rounds + 1):
        pair = engine.ours(trainer, loader, updates), engine.bare(trainer, *batch, updates)
        if number:  # the first compiles and allocates
            ours.append(pair[0])
            bare.append(pair[1])
    with profile(activities=supported_activities()) as seen:
        engine.ours(trainer, loader, 2)
    counts = {"launches": "LaunchKernel|GraphLaunch", "waits": "Synchronize"}  # of CUDA
    found = {
        what: sum(event.count for event in seen.key_averages() if re.search(pattern, event.key)) // 2
        for what, pattern in counts.items()
    }
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    return {
        "img/s": f"{statistics.median(ours):.0f} ({min(ours):.0f} to {max(ours):.0f})",
        "bare img/s": f"{statistics.median(bare):.0f}",
        "of bare": f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        **{f"{what} an update": str(count) for what, count in found.items()},
    }


def write_noise(folder: Path, count: int) -> Path:
    """Prepared data of no meaning, 48 px and grey, for timing."""
    sys.path.insert(0, str(ROOT / "tests"))
    import numpy as np
    from builders import write_arrays

    rng = np.random.default_rng(0)
    sizes = {"train": count, "val": 64, "test": 64}
    splits = {
        name: (rng.integers(0, 256, (size, 48, 48, 1), dtype=np.uint8), [row % 7 for row in range(size)])
        for name, size in sizes.items()
    }
    return write_arrays(folder, splits, [*"abcdefg"])


def run_recipe(device: Any, source: Path, small: bool, folder: Path, seconds: float) -> dict[str, str]:
    """Prepare a source and train the recipe for CUDA, in a project of its own, until the time is over."""
    from pipeline.core.params_file import apply_overrides, apply_recipe

    end = time.monotonic() + seconds
    (folder / ".dvc").mkdir(parents=True)
    shutil.copy(ROOT / "dvc.yaml", folder)
    changes = [f"prepare.source={source.resolve()}", f"train.device={device.type}"]
    changes += ["train.backbone=face_resnet_s", "train.backbone_args={}", "train.compile=none"] if small else []
    text = apply_overrides(apply_recipe((ROOT / "recipes" / RECIPE).read_text(), RECIPE), changes)
    (folder / "params.yaml").write_text(text)
    prepared = subprocess.run(
        [sys.executable, "-m", "pipeline.prepare"], cwd=folder, capture_output=True, text=True, check=False
    )
    if prepared.returncode:
        return {"failed": prepared.stderr[-300:]}
    with (folder / "train.log").open("w") as log:
        training = subprocess.Popen([sys.executable, "-m", "pipeline.train"], cwd=folder, stdout=log, stderr=log)
        try:
            training.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            training.send_signal(signal.SIGTERM)  # it keeps a checkpoint
            training.wait(60)
    text = (folder / "train.log").read_text()
    epochs = [(int(number), float(accuracy), int(took)) for number, accuracy, took in EPOCH.findall(text)]
    if not epochs:
        return {"failed": f"no epoch was done: {text[-300:]}"}
    best = max(epochs, key=lambda epoch: epoch[1])
    return {
        "source": source.name,
        "epochs": str(len(epochs)),
        "s an epoch": f"{sum(epoch[2] for epoch in epochs) / len(epochs):.1f}",
        "val accuracy": f"{best[1]} in epoch {best[0]}",
        "not tracked": str("needs mlflow" in text),
        "status": str(training.returncode),
    }


def find_source() -> Path:
    """FER2013 where it is, else the drawn faces of the repository."""
    there = sorted((ROOT / "data/raw").glob("fer2013.*")) if (ROOT / "data/raw").is_dir() else []
    return there[0] if there else ROOT / "data/sample.zip"


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="as train.device (%(default)s)")
    parser.add_argument("--minutes", type=float, help="in all; 7, or 4 on a CPU")
    parser.add_argument("--source", type=Path, help="of the recipe; default: data/raw/fer2013.*, else data/sample.zip")
    parser.add_argument("--wheels", type=Path, default=ROOT / "build/wheels", help="default: build/wheels")
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu", help="results; default: build/gpu")
    arguments = parser.parse_args()
    work = arguments.out / "work"
    shutil.rmtree(work, ignore_errors=True)
    results = Results(arguments.out)
    unpack(arguments.wheels, work / "site")
    from pipeline.models.devices import is_accelerator, resolve_device, set_determinism

    device = resolve_device(arguments.device)
    small = not is_accelerator(device)
    seconds = 60 * (arguments.minutes or (4 if small else 7))

    def left() -> float:
        return seconds - (time.monotonic() - results.begun)

    results.add("machine", **describe(device))
    with results.telling("tests"):
        results.add("tests", **run_tests(device, max(RECIPE_S, 0.6 * left())))
    set_determinism(False, device)
    noise = write_noise(work / "noise", 64 if small else 28709)
    for name in NETS[:1] if small else NETS:
        for mode in MODES[:1] if small else MODES:
            if left() < RECIPE_S:
                results.add(f"{name}, compile: {mode}", failed="left out: no time")
                continue
            with results.telling(f"{name}, compile: {mode}"):
                results.add(f"{name}, compile: {mode}", **measure(name, mode, device, small, noise))
    with results.telling("recipe"):
        source = arguments.source or find_source()
        results.add("recipe", **run_recipe(device, source, small, work / "project", max(RECIPE_S / 2, left())))
    print(f"Wrote {arguments.out / 'results.jsonl'} and {arguments.out / 'results.md'}.")


if __name__ == "__main__":
    main()
