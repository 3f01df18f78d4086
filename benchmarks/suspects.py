"""Planted wrong labels: how many of them ``hyojo suspects`` finds, and how many of its finds were planted.

Run: python benchmarks/suspects.py [--params recipes/fer2013-fast.yaml]   (after `dvc repro prepare`)

A part of the training labels is changed to another class at random. The peer is the cheap
way: one net, trained on all of these labels for as many epochs, judges the very images that it was trained on. A real
data set has wrong labels of its own, which count against precision here.
"""

import argparse
import time
from dataclasses import replace

import numpy as np

from pipeline.core.dataset import load_prepared
from pipeline.core.params_file import apply_recipe, parse_params, read_text
from pipeline.experiments import suspects
from pipeline.metrics.intervals import accuracy_interval
from pipeline.metrics.suspects import find_suspects


def flip(targets: np.ndarray, classes: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """A copy of some class indices (N,), of which a share is another class."""
    rows = rng.choice(len(targets), round(share * len(targets)), replace=False)
    flipped = targets.copy()
    flipped[rows] = (targets[rows] + rng.integers(1, classes, len(rows))) % classes
    return flipped


def interval(hits: int, total: int) -> str:
    """A share with its 95 % Wilson interval."""
    if not total:
        return "none"
    low, high = accuracy_interval(hits, total)
    return f"{hits / total:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", default="params.yaml", help="how nets are trained (%(default)s)")
    parser.add_argument("--share", type=float, default=0.05, help="of labels made wrong (%(default)s)")
    parser.add_argument("--folds", type=int, default=4, help="as of hyojo suspects (%(default)s)")
    parser.add_argument("--epochs", type=int, help="as of hyojo suspects")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (%(default)s)")
    arguments = parser.parse_args()
    recipe = apply_recipe(read_text(arguments.params), arguments.params)
    prepared, params = load_prepared(), parse_params(recipe, arguments.params).train
    epochs = arguments.epochs or params.epochs
    params, split = params.model_copy(update={"epochs": epochs}), prepared.split("train")
    rng = np.random.default_rng(arguments.seed)
    changed = replace(split, targets=flip(split.targets, len(prepared.class_names), arguments.share, rng))
    planted = changed.targets != split.targets
    print(f"{len(split):,} training labels, {planted.sum():,} of them made wrong; {epochs} epochs a net\n")
    groups = suspects.twin_groups(prepared)
    ways = {
        f"{arguments.folds} folds": lambda: suspects.held_out_probs(params, prepared, changed, groups, arguments.folds),
        "one net, its own images": lambda: suspects.judge(
            suspects.train_on(params, prepared, changed), params, changed.images
        ),
    }
    print(
        "| judged by | s | right, by the labels before | doubted | planted ones found | doubted ones planted ",
        end="",
    )
    print("| of as many as were planted, the surest |\n|---|---|---|---|---|---|---|")
    for name, judge in ways.items():
        start = time.perf_counter()
        probs = judge()
        seconds = time.perf_counter() - start
        doubted, _ = find_suspects(changed.targets, probs)
        found, surest = planted[doubted].sum(), doubted[: planted.sum()]
        row = (
            name, f"{seconds:.0f}", f"{(probs.argmax(axis=1) == split.targets).mean():.3f}", f"{len(doubted):,}",
            interval(found, planted.sum()), interval(found, len(doubted)), interval(planted[surest].sum(), len(surest)),
        )  # fmt: skip
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
