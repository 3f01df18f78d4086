"""Figures of trainings: curves, seeds, the learning-rate range test."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.reporting.plots import BLUE, GREY, VERMILLION, new_figure, styled


@styled
def training_curves(
    history: pd.DataFrame, kept_epoch: int | None, names: Sequence[str] = ("loss", "accuracy")
) -> Figure:
    """Draw loss and accuracy of train and val over the epochs.

    Args:
        history: Columns ``epoch``, ``train/loss``, ``train/accuracy``, ``val/loss``, ``val/accuracy``;
            one row an epoch. A NaN is left out of its line.
        kept_epoch: Value of ``epoch`` whose weights were kept, marked in every chart; None marks none.
        names: Which of the two to draw, side by side.

    Raises:
        ValueError: If a column is missing.
    """
    wanted = ["epoch", *(f"{split}/{name}" for split in ("train", "val") for name in names)]
    if missing := [column for column in wanted if column not in history.columns]:
        raise ValueError(f"history lacks the columns {', '.join(missing)}")
    figure = new_figure(4.8 * len(names), 3.8)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        # A lone point is no line: with few epochs every point is shown.
        marker = "o" if len(history) <= 30 else None
        for split, colour, line in (("train", BLUE, "--"), ("val", VERMILLION, "-")):
            values = history[f"{split}/{name}"]
            axes.plot(history["epoch"], values, line, color=colour, marker=marker, markersize=3.5, label=split)
        kept = history[history["epoch"] == kept_epoch]
        if len(kept):
            value = float(kept[f"val/{name}"].iloc[0])
            label = f"kept: epoch {kept_epoch}, val {name} {value:.3f}"
            axes.axvline(kept_epoch, color=GREY, linewidth=1, linestyle=":")
            axes.plot([kept_epoch], [value], "*", color=VERMILLION, mec="black", markersize=13, label=label)
        axes.set_title(name.capitalize())
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        if len(history):
            axes.set_xlim(history["epoch"].min() - 0.5, history["epoch"].max() + 0.5)
        axes.grid(True, axis="y")
        axes.legend()
    return figure


@styled
def seed_scores(
    scores: Mapping[str, Sequence[float]], intervals: Mapping[str, tuple[float, float, float]], title: str
) -> Figure:
    """Draw the scores of several seeds as points, with mean and interval beside them.

    Args:
        scores: Label of a score to its value under each seed.
        intervals: Label to mean, low and high; low and high are NaN for a single seed.
        title: Stands above.
    """
    figure = new_figure(7.2, 1.1 + 0.55 * len(scores))
    axes = figure.add_subplot()
    for row, (label, values) in enumerate(scores.items()):
        mean, low, high = intervals[label]
        axes.plot(values, [row - 0.12] * len(values), "o", color=BLUE, alpha=0.5, markersize=5, mew=0)
        if not math.isnan(low):
            axes.plot([low, high], [row + 0.18] * 2, color=VERMILLION, linewidth=2, solid_capstyle="butt")
        axes.plot([mean], [row + 0.18], "D", color=VERMILLION, markersize=6)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_title(title)
    return figure


@styled
def lr_range(curve: pd.DataFrame, suggestion: float) -> Figure:
    """Draw a learning-rate range test: columns ``lr``, ``loss`` and ``smoothed``, and the rate to mark."""
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    axes.plot(curve["lr"], curve["loss"], color=GREY, alpha=0.4, linewidth=1, label="loss of each update")
    axes.plot(curve["lr"], curve["smoothed"], color=BLUE, label="smoothed")
    axes.axvline(suggestion, color=VERMILLION, linestyle="--", label=f"steepest: {suggestion:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, nats", title="Learning-rate range test")
    axes.grid(axis="y")
    axes.legend()
    return figure
