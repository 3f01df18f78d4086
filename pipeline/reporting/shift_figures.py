"""Figures of how answers differ between a reference and now."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pipeline.reporting.plots import BLUE, VERMILLION, new_figure, shorten, styled

_BINS = 30


@styled
def labels(rows: list[tuple[str, float, float]]) -> Figure:
    """Draw the share of each label: its name, the reference's, and now's."""
    figure = new_figure(5, 0.4 * len(rows) + 1)
    axes = figure.subplots()
    places = np.arange(len(rows))[::-1]
    for shift, column, colour, name in ((0.2, 1, BLUE, "reference"), (-0.2, 2, VERMILLION, "now")):
        axes.barh(places + shift, [row[column] for row in rows], 0.38, color=colour, label=name)
    axes.set_yticks(places, [shorten(row[0], 18) for row in rows])
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.legend()
    return figure


@styled
def numbers(reference: np.ndarray, now: np.ndarray, name: str) -> Figure:
    """Draw the distributions of a column, floats (M,) and (N,), each as shares of its own."""
    figure = new_figure(5, 2.2)
    axes = figure.subplots()
    low, high = map(float, np.quantile(np.concatenate([reference, now]), (0.005, 0.995)))
    edges = np.linspace(low, high, _BINS + 1) if low < high else np.array([low - 0.5, low + 0.5])
    for values, colour, label, style in ((reference, BLUE, "reference", "-"), (now, VERMILLION, "now", "--")):
        counts, _ = np.histogram(values, edges)
        axes.stairs(counts / len(values), edges, color=colour, label=label, linestyle=style, linewidth=1.8)
    axes.set_xlabel(name)
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.legend()
    return figure
