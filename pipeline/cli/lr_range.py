"""Raise the learning rate update by update and plot the loss.

A learning-rate range test of params.yaml's training on the prepared data.
"""

import argparse
from pathlib import Path

from pipeline.core.errors import UserError


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--from", dest="lowest", type=float, default=1e-5, help="first rate (%(default)s)")
    command.add_argument("--to", dest="highest", type=float, default=3.0, help="last rate (%(default)s)")
    command.add_argument("--updates", type=int, default=100, help="updates between them (%(default)s)")
    command.add_argument("--plot", default="reports/lr_range.png", help="picture to write (%(default)s)")


def run(arguments: argparse.Namespace) -> None:
    from pipeline.core.params_file import load_params
    from pipeline.experiments import tuning
    from pipeline.reporting import plots, training_figures

    if not 0 < arguments.lowest < arguments.highest or arguments.updates < 10:
        raise UserError("lr-range wants 0 < --from < --to and at least 10 --updates")
    params = load_params().train
    curve = tuning.lr_range(params, arguments.lowest, arguments.highest, arguments.updates)
    suggestion = tuning.suggested_lr(curve)
    path = Path(arguments.plot)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(training_figures.lr_range(curve, suggestion), path)
    print(
        f"{len(curve)} updates from {curve['lr'].iloc[0]:.2g} to {curve['lr'].iloc[-1]:.2g}; the loss falls most "
        f"steeply at {suggestion:.2g} (train.lr is {params.lr:g}). Curve: {path}"
    )
