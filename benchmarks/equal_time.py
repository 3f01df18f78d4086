"""Val accuracy of nets after equal training time: as timm builds them, adapted to small faces, and on larger images.

Run: python benchmarks/equal_time.py [NAME[:LR] ...] --minutes 10 --folder results   (after `dvc repro prepare`)

All are trained from scratch with the same settings for the same time (see `budget.py`), each in float32 or with bf16
autocast, whichever is faster for it, and with its own learning rate where one is given. Of each net, `as it is` is
`train.stem: keep` on the prepared images, `adapted` is `train.stem: adapt`, `upsampled` is `train.stem: keep` on
images resized to `--size`, and `default` is `train.stem: auto`. What comes to the same net is trained once. The points
of a line are of one training, whose learning rate has fallen to 0 only at the last.
"""

import argparse
import json
import math
import re
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import budget
import torch
from matplotlib.figure import Figure

from pipeline.core.dataset import Prepared, load_prepared
from pipeline.core.params import TrainParams
from pipeline.models.model import ModelSpec
from pipeline.reporting import plots

NAMES = [
    "face_resnet_s", "face_resnet_m", "resnet18", "mobilenetv3_small_100", "tf_efficientnet_lite0", "regnetx_002",
    "convnext_atto", "vit_tiny_patch16_224:0.0005",  # which learns nothing at 0.002
]  # fmt: skip
VARIANTS = ("as it is", "adapted", "upsampled", "default")
OURS = r"face_"
ORANGE = "#E69F00"  # of the same palette as those of plots


def main() -> None:
    """Print a row for each training, then a table of val accuracy; draw all lines."""
    arguments = _parse()
    prepared = load_prepared()
    base, count = budget.settings(arguments, prepared), len(prepared.split("val"))
    parts = [(point + 1) / arguments.points for point in range(arguments.points)]
    print(f"{torch.get_num_threads()} threads, {arguments.minutes:g} minutes a training, {count} val images\n")
    times = " | ".join(f"{part * arguments.minutes:.3g} min" for part in parts)
    print(f"| backbone | variant | seed | last map | parameters, M | amp | img/s | {times} |")
    print(f"|---|---|---|---|---|---|---|{'---|' * len(parts)}")
    trainings: dict[tuple[str, str, int], dict[str, Any]] = {}
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        for name, _, lr in (word.partition(":") for word in arguments.names):
            plans: list[tuple[ModelSpec, dict[str, Any]]] = []
            for variant in arguments.variants:
                params = base.model_copy(
                    update={
                        "backbone": name, "seed": seed, "lr": float(lr or arguments.lr),
                        **_change(variant, arguments.size),
                    }
                )  # fmt: skip
                if variant == "upsampled" and re.match(OURS, name):
                    continue
                plan = budget.plan(params, prepared)
                same = next((done for other, done in plans if other == plan), None)
                done = same or _train(params, prepared, arguments, parts, f"{name} {variant} {seed}")
                trainings[name, variant, seed] = done
                if same:
                    continue
                plans.append((plan, done))
                end = done["marks"][-1]
                cells = " | ".join(f"{mark['accuracy']:.4f}" for mark in done["marks"])
                print(
                    f"| {name} | {variant} | {seed} | {done['side'] or '?'} | {done['parameters'] / 1e6:.1f} "
                    f"| {done['amp']} | {end['images'] / end['minutes'] / 60:.0f} | {cells} |",
                    flush=True,
                )
    _print_table(trainings, arguments, count)
    plots.save(_draw(trainings), arguments.out)


def _parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME[:LR]", help="timm names")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--size", type=int, default=96, help="of the upsampled images, px (%(default)s)")
    parser.add_argument("--points", type=int, default=5, help="of a line (%(default)s)")
    parser.add_argument("--folder", type=Path, help="for finished trainings, which are not run again")
    parser.add_argument("--out", default="equal_time.png", help="the drawing (%(default)s)")
    budget.add_arguments(parser, minutes=10)
    return parser.parse_args()


def _change(variant: str, size: int) -> dict[str, Any]:
    """What a variant is, as train params."""
    return {
        "as it is": {"stem": "keep"},
        "adapted": {"stem": "adapt"},
        "upsampled": {"stem": "keep", "input_size": size},
        "default": {"stem": "auto"},
    }[variant]


def _train(
    params: TrainParams, prepared: Prepared, arguments: argparse.Namespace, parts: list[float], label: str
) -> dict[str, Any]:
    """Train, or take what the folder has of an equal training."""
    settings = {"train": params.model_dump(mode="json"), "amp": arguments.amp}
    settings |= {"minutes": arguments.minutes, "parts": parts}
    path = arguments.folder and arguments.folder / f"{label.replace(' ', '_')}.json"
    if path and path.exists():
        found = json.loads(path.read_text())
        if found["settings"] == settings:
            return found["training"]
        raise SystemExit(f"{path} is of other settings: give another --folder")
    if arguments.amp == "quicker":
        params = budget.with_quicker_amp(params, prepared)
    done = {"amp": params.amp, **asdict(budget.train(params, prepared, arguments.minutes, parts))}
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"settings": settings, "training": done}))
    return done


def _print_table(
    trainings: dict[tuple[str, str, int], dict[str, Any]], arguments: argparse.Namespace, count: int
) -> None:
    """Final accuracy by net and variant."""
    print(f"\n| backbone | {' | '.join(arguments.variants)} |\n|---|{'---|' * len(arguments.variants)}")
    for name in dict.fromkeys(name for name, *_ in trainings):
        found = {
            variant: [
                done["marks"][-1]["accuracy"]
                for (net, kind, _), done in trainings.items()
                if (net, kind) == (name, variant)
            ]
            for variant in arguments.variants
        }
        print(f"| {name} | {' | '.join(_cell(values, count) for values in found.values())} |")


def _cell(values: list[float], count: int) -> str:
    """Mean accuracy of some trainings, with the standard error of one over the images, and their range."""
    if not values:
        return ""
    mean = statistics.mean(values)
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{mean:.3f} ± {math.sqrt(mean * (1 - mean) / count):.3f}{spread}"


def _draw(trainings: dict[tuple[str, str, int], dict[str, Any]]) -> Figure:
    """A line for each training, our own nets strong, with its name where it ends."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    seeds = len({seed for *_, seed in trainings})
    values = [mark["accuracy"] for done in trainings.values() for mark in done["marks"]]
    gap = max(0.001, (max(values) - min(values)) / 30)
    longest = max(done["marks"][-1]["minutes"] for done in trainings.values())
    colours = {
        "as it is": plots.GREY, "adapted": plots.VERMILLION, "upsampled": plots.GREEN, "default": ORANGE
    }  # fmt: skip
    heights: list[float] = []  # of the names, one above the other
    # What is the same net under several names is one line, with the first name.
    lines = {id(done): (key, done) for key, done in reversed(trainings.items())}.values()
    for (name, variant, seed), done in sorted(lines, key=lambda line: line[1]["marks"][-1]["accuracy"]):
        ours = bool(re.match(OURS, name))
        colour = plots.BLUE if ours else colours[variant]
        minutes = [mark["minutes"] for mark in done["marks"]]
        scores = [mark["accuracy"] for mark in done["marks"]]
        axes.plot(minutes, scores, "o-", color=colour, linewidth=2.4 if ours else 1.2, markersize=3)
        label = name if ours else f"{name}, {variant}"
        label += f", seed {seed}" if seeds > 1 else ""
        heights.append(max(scores[-1], heights[-1] + gap if heights else 0.0))
        axes.annotate(
            label, (minutes[-1], scores[-1]), (1.05 * longest, heights[-1]), color=colour, fontsize=8, va="center",
            arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.6, "relpos": (0, 0.5)},
        )  # fmt: skip
    axes.set_xlim(0, 1.5 * longest)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 1.01 * longest])
    axes.set_ylim(top=heights[-1] + gap)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("val accuracy")
    axes.grid(axis="y", alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
