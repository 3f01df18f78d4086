"""Figures of the answers to a test split: classes, mistakes, trust, robustness."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pipeline.reporting.plots import BLUE, GREEN, GREY, VERMILLION, new_figure, shorten, styled

# Past this many classes numbers in the cells of a confusion matrix can't be read.
_MAX_NUMBERED_CLASSES = 20


@styled
def confusion_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix: colour and per cent by row (the share of the actual class), and counts.

    Args:
        matrix: Counts, integers (K, K); rows are actual classes, columns predicted ones.
        class_names: The K class names.

    Raises:
        ValueError: If ``matrix`` is not (K, K).
    """
    matrix, num_classes = np.asarray(matrix), len(class_names)
    if matrix.shape != (num_classes, num_classes):
        raise ValueError(f"matrix must have shape ({num_classes}, {num_classes}), not {matrix.shape}")
    support = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(support, 1)
    numbered = num_classes <= _MAX_NUMBERED_CLASSES
    cell_in = 0.78 if numbered else 0.25
    side_in = max(3.2, cell_in * num_classes)
    figure = new_figure(side_in + 2.8, side_in + 1.6)
    figure.set_layout_engine("compressed")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    names = [shorten(name, 18) for name in class_names]
    slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if numbered else {"rotation": 90}
    size = 10 if numbered else 6
    axes.set_xticks(range(num_classes), names, fontsize=size, **slant)
    rows = [f"{name}  (n = {count:,})" for name, count in zip(names, support[:, 0])]
    axes.set_yticks(range(num_classes), rows if numbered else names, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(num_classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(num_classes + 1) - 0.5, minor=True)
    axes.grid(True, which="minor", color="white", linewidth=1.5 if numbered else 0.3)
    axes.tick_params(which="minor", length=0)
    if numbered:
        for row, column in np.ndindex(matrix.shape):
            share, bold = shares[row, column], "bold" if row == column else "normal"
            colour = "white" if share > 0.7 else ("black" if matrix[row, column] else GREY)
            text = f"{matrix[row, column]:,}\n{share:.0%}" if matrix[row, column] else "0"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour, weight=bold)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    axes.set_title(f"Confusion matrix, {int(matrix.sum()):,} test samples")
    colours = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, format=PercentFormatter(xmax=1))
    colours.set_label("share of the actual class")
    colours.outline.set_visible(False)
    return figure


@styled
def per_class_bars(table: pd.DataFrame) -> Figure:
    """Draw precision, recall and F1 of every class, with its support, as ``by_class.per_class`` returns them."""
    num_classes = len(table)
    figure = new_figure(7.6, 1.5 + 0.62 * num_classes)
    axes = figure.subplots()
    centres = np.arange(num_classes)
    series = (("precision", BLUE, ""), ("recall", VERMILLION, "////"), ("f1", GREEN, "...."))
    for place, (name, colour, hatch) in enumerate(series):
        height = 0.27
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.6}
        label = "F1" if name == "f1" else name
        bars = axes.barh(centres + (place - 1) * height, table[name], height, label=label, **look)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8, color="#333333")
    rows = [f"{shorten(name, 24)}\nn = {n:,}" for name, n in zip(table["class"], table["support"])]
    axes.set_yticks(centres, rows)
    axes.set_ylim(num_classes - 0.45, -0.55)
    axes.set_xlim(0, 1.08)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    figure.suptitle(f"Per class, {int(table['support'].sum()):,} test samples", x=0.02, ha="left", fontsize=11)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


@styled
def worst_mistakes(
    faces: np.ndarray,
    targets: np.ndarray,
    probs: np.ndarray,
    class_names: Sequence[str],
    files: Sequence[str],
    title: str,
) -> Figure:
    """Draw wrongly classified faces with the predicted and the actual class, and the probability of each.

    Args:
        faces: The M faces in drawing order, uint8 (M, H, W, C) with C = 1 or 3.
        targets: Their actual classes, integers (M,).
        probs: Their class probabilities, floats (M, K).
        class_names: The K class names.
        files: Their source names, whose last part stands under each face.
        title: Stands above the grid, and alone when there is no face.

    Raises:
        ValueError: If ``faces`` is not (M, H, W, 1 or 3) with M as in the other arrays.
    """
    if faces.ndim != 4 or faces.shape[3] not in (1, 3):
        raise ValueError(f"faces must have shape (M, H, W, C) with C = 1 or 3, not {faces.shape}")
    if not len(faces) == len(targets) == len(probs) == len(files):
        raise ValueError(f"{len(faces)} faces, {len(targets)} targets, {len(probs)} probs, {len(files)} files")
    columns = max(4, math.ceil(math.sqrt(len(faces))))
    lines = math.ceil(len(faces) / columns)
    figure = new_figure(1.75 * columns, 2.25 * lines + 0.6)
    figure.suptitle(title, x=0.015, ha="left", fontsize=11)
    if lines == 0:
        return figure
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, face, target, row, file in zip(grid, faces, targets, probs, files):
        grey = face.shape[2] == 1
        axes.imshow(face[:, :, 0] if grey else face, cmap="gray" if grey else None, vmin=0, vmax=255)
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 7.5}
        for word, index, colour, offset in (
            ("predicted", row.argmax(), VERMILLION, 13),
            ("actual", target, BLUE, 3),
        ):
            text = f"{word} {shorten(class_names[index], 11)} {row[index]:.0%}"
            axes.annotate(text, (0, 1), (0, offset), color=colour, **place)
        axes.annotate(shorten(Path(file).name, 26), (0, 0), (0, -9), color=GREY, **place | {"fontsize": 6})
    return figure


@styled
def reliability(tables: Mapping[str, pd.DataFrame], temperature: float) -> Figure:
    """Draw how often the model is right against how sure it is, before and after temperature scaling.

    ``tables`` are ``before`` and ``after``, as ``calibration.reliability`` returns them.
    """
    figure = new_figure(6, 5)
    axes, counts = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="perfect")
    for (name, table), colour, marker in zip(tables.items(), (VERMILLION, BLUE), "so", strict=True):
        filled = table[table["count"] > 0]
        axes.plot(filled["confidence"], filled["accuracy"], color=colour, marker=marker, markersize=4, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"Reliability, test; temperature {temperature:g}")
    axes.grid()
    axes.legend()
    last = table
    counts.bar((last["low"] + last["high"]) / 2, last["count"], (last["high"] - last["low"]) * 0.9, color=BLUE)
    counts.set(xlabel="confidence", ylabel="images")
    return figure


@styled
def risk_coverage(curve: pd.DataFrame, chosen: Mapping[str, float] | None) -> Figure:
    """Draw the part of wrong answers against the part of images answered, as ``calibration.risk_coverage`` has them.

    ``chosen`` is ``coverage`` and ``risk`` at the served threshold, if there is one.
    """
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    axes.plot(curve["coverage"], curve["risk"], color=BLUE)
    if chosen and "risk" in chosen:
        axes.plot(chosen["coverage"], chosen["risk"], "o", color=VERMILLION, label="served threshold")
        axes.legend()
    axes.set(xlim=(0, 1), ylim=(0, None), title="Risk and coverage, test")
    axes.set(xlabel="coverage: part of the images answered", ylabel="risk: part answered wrongly")
    axes.grid()
    return figure


@styled
def robustness(table: pd.DataFrame) -> Figure:
    """Draw the accuracy that is left under each corruption, from pictures as they are (0) to the strongest.

    ``table`` is as ``robustness.measure`` returns it, with rows.
    """
    figure = new_figure(6, 4.4)
    axes = figure.add_subplot()
    clean = table[table["level"] == 0]
    looks = zip(itertools.cycle((BLUE, VERMILLION, GREEN, "#CC79A7", "#56B4E9", "#E69F00", GREY)), "osD^vPX<>*")
    for (name, lines), (colour, marker) in zip(table[table["level"] > 0].groupby("corruption", sort=False), looks):
        whole = pd.concat([clean, lines])
        axes.plot(whole["level"], whole["accuracy"], color=colour, marker=marker, markersize=4, label=name)
    axes.axhline(float(clean["accuracy"].iloc[0]), color=GREY, linewidth=1, linestyle="--")
    title = f"Pictures made worse, {int(clean['images'].iloc[0]):,} test images"
    axes.set(ylim=(0, 1), xlabel="strength", ylabel="accuracy", title=title)
    axes.grid(axis="y")
    axes.legend(ncols=2, fontsize=9)
    return figure
