"""Val accuracy after equal training time of nets adapted to small faces, as timm builds them, and on larger images.

Run: python benchmarks/stems.py [NAME ...] --minutes 10   (after `dvc repro prepare`)

Variants of each net, all trained from scratch with the same settings for the same time (see `budget.py`):
`adapted` is `train.stem: auto` on the prepared images, `as it is` is `train.stem: keep` on them, and `upsampled` is
`train.stem: keep` on images resized to `--size`. Two more are for choosing the rule: `late` takes the last halvings
out instead of the first, and `--side` wants another least side of the last map than the pipeline's.
"""

import argparse
import math
import statistics
from unittest import mock

import budget
import torch

from pipeline import stem
from pipeline.data import load_prepared

NAMES = [
    "resnet18", "mobilenetv3_small_100", "tf_efficientnet_lite0", "regnetx_002", "convnext_atto", "densenet121",
    "vit_tiny_patch16_224",
]  # fmt: skip
VARIANTS = ("adapted", "as it is", "upsampled", "late")


def main() -> None:
    """Print a row for each training, and then a table of val accuracy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help="timm names")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS[:3])
    parser.add_argument("--size", type=int, default=96, help="of the upsampled images, px (%(default)s)")
    parser.add_argument(
        "--side", type=int, default=stem.SIDE, help="least side of adapted nets' maps (%(default)s)"
    )
    parser.add_argument(
        "--side-of-one-scale", type=int, default=stem.SIDE_OF_ONE_SCALE, metavar="SIDE",
        help="the same of nets whose maps are all of one size (%(default)s)",
    )  # fmt: skip
    budget.add_arguments(parser, minutes=10)
    arguments = parser.parse_args()
    prepared = load_prepared()
    params, count = budget.settings(arguments, prepared), len(prepared.split("val"))
    changes = {
        "adapted": {"stem": "auto"},
        "late": {"stem": "auto"},
        "as it is": {"stem": "keep"},
        "upsampled": {"stem": "keep", "input_size": arguments.size},
    }
    print(
        f"{torch.get_num_threads()} threads, {arguments.minutes:g} minutes a training, {count} val images\n"
    )
    print("| backbone | variant | seed | last map | minutes | images seen | img/s | val accuracy |")
    print("|---|---|---|---|---|---|---|---|")
    scores: dict[tuple[str, str], list[float]] = {}
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        for name in arguments.names:
            for variant in arguments.variants:
                chosen = params.model_copy(update={"backbone": name, "seed": seed, **changes[variant]})
                with (
                    mock.patch.object(stem, "LATE", variant == "late"),
                    mock.patch.object(stem, "SIDE", arguments.side),
                    mock.patch.object(stem, "SIDE_OF_ONE_SCALE", arguments.side_of_one_scale),
                ):
                    done = budget.train(chosen, prepared, arguments.minutes)
                end = done.marks[-1]
                scores.setdefault((name, variant), []).append(end.accuracy)
                print(
                    f"| {name} | {variant} | {seed} | {done.side or '?'} | {end.minutes:.2f} | {end.images} "
                    f"| {end.images / end.minutes / 60:.0f} | {end.accuracy:.4f} |",
                    flush=True,
                )
    print(f"\n| backbone | {' | '.join(arguments.variants)} |\n|---|{'---|' * len(arguments.variants)}")
    for name in arguments.names:
        cells = [scores[name, variant] for variant in arguments.variants]
        print(f"| {name} | {' | '.join(_cell(values, count) for values in cells)} |")


def _cell(values: list[float], count: int) -> str:
    """Mean accuracy of some trainings, with the standard error of one over the images, and their range."""
    mean = statistics.mean(values)
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{mean:.3f} ± {math.sqrt(mean * (1 - mean) / count):.3f}{spread}"


if __name__ == "__main__":
    main()
