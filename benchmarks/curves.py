"""Val accuracy of our own nets and of timm's against minutes of training, as a table and a PNG.

Run: python benchmarks/curves.py [NAME ...] --minutes 10 --out curves.png   (after `dvc repro prepare`)

All nets are trained from scratch with the same settings for the same time (see `budget.py`), timm's as it builds them
(`train.stem: keep`) and, if that changes them, adapted to small faces (`auto`). One training each: the points of a line
are of the same run, whose learning rate has only fallen to 0 at the last.
"""

import argparse
import math
import re

import backbones
import budget
import torch
from matplotlib.figure import Figure

from pipeline import plots
from pipeline.data import load_prepared

NAMES = [backbones.PEER, *backbones.NAMES]
OURS = r"face_"


def main() -> None:
    """Print a row for each net, and draw a line for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help="timm names")
    parser.add_argument("--stems", nargs="+", choices=("keep", "auto"), default=("keep", "auto"))
    parser.add_argument("--points", type=int, default=5, help="of a line (%(default)s)")
    parser.add_argument("--out", default="curves.png", help="(%(default)s)")
    budget.add_arguments(parser, minutes=10)
    arguments = parser.parse_args()
    prepared = load_prepared()
    base, count = budget.settings(arguments, prepared), len(prepared.split("val"))
    parts = [(point + 1) / arguments.points for point in range(arguments.points)]
    print(f"{torch.get_num_threads()} threads, {count} val images\n")
    print(
        f"| backbone | parameters, M | {' | '.join(f'{part * arguments.minutes:.3g} min' for part in parts)} |"
    )
    print(f"|---|---|{'---|' * len(parts)}")
    lines: dict[str, list[budget.Mark]] = {}
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        for name in arguments.names:
            plans = []
            for stem in arguments.stems:
                params = base.model_copy(update={"backbone": name, "stem": stem, "seed": seed})
                recipe = budget.plan(params, prepared)
                if recipe in plans:
                    continue
                plans.append(recipe)
                done = budget.train(params, prepared, arguments.minutes, parts)
                label = f"{name}{' adapted' if recipe.stem or len(plans) > 1 else ''}"
                label += f", seed {seed}" if arguments.seeds > 1 else ""
                lines[label] = done.marks
                cells = " | ".join(_cell(mark.accuracy, count) for mark in done.marks)
                print(f"| {label} | {done.parameters / 1e6:.1f} | {cells} |", flush=True)
                plots.save(_draw(lines), arguments.out)


def _cell(accuracy: float, count: int) -> str:
    """An accuracy with its standard error over the images."""
    return f"{accuracy:.3f} ± {math.sqrt(accuracy * (1 - accuracy) / count):.3f}"


def _draw(lines: dict[str, list[budget.Mark]]) -> Figure:
    """A line for each net, our own strong, with its name where it ends."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    longest = max(mark.minutes for marks in lines.values() for mark in marks)
    names: list[float] = []  # their heights, one above the other
    for label, marks in sorted(lines.items(), key=lambda line: line[1][-1].accuracy):
        ours = re.match(OURS, label)
        colour = plots.BLUE if ours else plots.VERMILLION if "adapted" in label else plots.GREY
        minutes, values = [mark.minutes for mark in marks], [mark.accuracy for mark in marks]
        axes.plot(minutes, values, "o-", color=colour, linewidth=2.4 if ours else 1.2, markersize=3)
        names.append(max(values[-1], names[-1] + _gap(lines) if names else 0.0))
        axes.annotate(
            label, (minutes[-1], values[-1]), (1.05 * longest, names[-1]), color=colour, fontsize=8, va="center",
            arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.6, "relpos": (0, 0.5)},
        )  # fmt: skip
    axes.set_xlim(0, 1.45 * longest)
    axes.set_ylim(top=names[-1] + _gap(lines))
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("val accuracy")
    axes.grid(axis="y", alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _gap(lines: dict[str, list[budget.Mark]]) -> float:
    """Height of a name, as accuracy."""
    values = [mark.accuracy for marks in lines.values() for mark in marks]
    return max(0.001, (max(values) - min(values)) / 26)


if __name__ == "__main__":
    main()
