"""Figures of the reports: training curves, confusion matrix, per-class bars and worst mistakes.

Every function returns a matplotlib ``Figure`` of its own, drawn by Agg: no pyplot, no global state, no
display. The user's matplotlib settings are left aside and no date or version is written into the PNG, so
that equal input gives equal bytes. Colours are Okabe and Ito's, which colour-blind readers tell apart
(https://jfly.uni-koeln.de/color/); nothing is told by colour alone.
"""

import functools
import html
import io
import itertools
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6B6B6B"
_STYLE: dict[str, Any] = {
    "figure.dpi": 120,
    "savefig.dpi": 120,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    # A class may be called "a$b$".
    "text.parse_math": False,
}
# Matplotlib's own font has no Chinese, Japanese or Korean: class names in them need one of these.
_EASTERN_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "IPAexGothic", "Droid Sans Fallback"),
    *("WenQuanYi Zen Hei", "Hiragino Sans", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic"),
)
# What a page calls the colours that it has of its own, lighter ones where it is dark.
_PAGE_COLOURS = {BLUE: "accent", VERMILLION: "bad", GREEN: "good", GREY: "faint", "#E4E4E4": "line"}
# Past this many classes numbers in the cells of a confusion matrix can't be read.
_MAX_NUMBERED_CLASSES = 20


@contextmanager
def _style() -> Iterator[None]:
    """Our look whatever the user's matplotlibrc says, for the time of one drawing."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        installed = set(font_manager.get_font_names())
        fonts = ["DejaVu Sans", *(name for name in _EASTERN_FONTS if name in installed)]
        matplotlib.rcParams.update({**_STYLE, "font.family": fonts})
        # A letter that no font has is drawn as a box; the csv beside the picture has the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run a drawing function in our style."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with _style():
            return draw(*args, **kwargs)

    return wrapper


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG, in one step (temporary file, then rename), with nothing in it that varies.

    Args:
        figure: What a function of this module returned.
        path: A ``.png`` file in an existing folder; replaced if there.

    Raises:
        ValueError: If ``path`` does not end in ``.png``.
        OSError: If it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"a figure is saved as .png, not as {path.name!r}")
    partial = path.with_name(f"{path.name}.partial")
    try:
        with _style():
            # Software is matplotlib's version; None leaves the field out.
            figure.savefig(partial, format="png", metadata={"Software": None})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@_styled
def lr_range(curve: pd.DataFrame, suggestion: float) -> Figure:
    """Draw a learning-rate range test.

    Args:
        curve: Columns ``lr``, ``loss`` and ``smoothed``.
        suggestion: The rate to mark.
    """
    figure = _new_figure(7, 4)
    axes = figure.add_subplot()
    axes.plot(curve["lr"], curve["loss"], color=GREY, alpha=0.4, linewidth=1, label="loss of each update")
    axes.plot(curve["lr"], curve["smoothed"], color=BLUE, label="smoothed")
    axes.axvline(suggestion, color=VERMILLION, linestyle="--", label=f"steepest: {suggestion:.2g}")
    axes.set(
        xscale="log", xlabel="learning rate", ylabel="training loss, nats", title="Learning-rate range test"
    )
    axes.grid(axis="y")
    axes.legend()
    return figure


@_styled
def seed_scores(
    scores: Mapping[str, Sequence[float]], intervals: Mapping[str, tuple[float, float, float]], title: str
) -> Figure:
    """Draw the scores of several seeds as points, with mean and interval beside them.

    Args:
        scores: Label of a score to its value under each seed.
        intervals: Label to mean, low and high; low and high are NaN for a single seed.
        title: Stands above.
    """
    figure = _new_figure(7.2, 1.1 + 0.55 * len(scores))
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


@_styled
def training_curves(
    history: pd.DataFrame, best_epoch: int | None, names: Sequence[str] = ("loss", "accuracy")
) -> Figure:
    """Draw loss and accuracy of train and val over the epochs.

    Args:
        history: Columns ``epoch``, ``train/loss``, ``train/accuracy``, ``val/loss``, ``val/accuracy``;
            one row an epoch. A NaN is left out of its line.
        best_epoch: Value of ``epoch`` whose weights were kept, marked in every chart; None marks none.
        names: Which of the two to draw, side by side.

    Raises:
        ValueError: If a column is missing.
    """
    wanted = ["epoch", *(f"{split}/{name}" for split in ("train", "val") for name in names)]
    if missing := [column for column in wanted if column not in history.columns]:
        raise ValueError(f"history lacks the columns {', '.join(missing)}")
    figure = _new_figure(4.8 * len(names), 3.8)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        # A lone point is no line: with few epochs every point is shown.
        marker = "o" if len(history) <= 30 else None
        for split, colour, line in (("train", BLUE, "--"), ("val", VERMILLION, "-")):
            values = history[f"{split}/{name}"]
            axes.plot(
                history["epoch"], values, line, color=colour, marker=marker, markersize=3.5, label=split
            )
        best = history[history["epoch"] == best_epoch]
        if len(best):
            value = float(best[f"val/{name}"].iloc[0])
            label = f"best: epoch {best_epoch}, val {name} {value:.3f}"
            axes.axvline(best_epoch, color=GREY, linewidth=1, linestyle=":")
            axes.plot([best_epoch], [value], "*", color=VERMILLION, mec="black", markersize=13, label=label)
        axes.set_title(name.capitalize())
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        if len(history):
            axes.set_xlim(history["epoch"].min() - 0.5, history["epoch"].max() + 0.5)
        axes.grid(True, axis="y")
        axes.legend()
    return figure


@_styled
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
    figure = _new_figure(side_in + 2.8, side_in + 1.6)
    figure.set_layout_engine("compressed")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    names = [_shorten(name, 18) for name in class_names]
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


@_styled
def per_class_bars(table: pd.DataFrame) -> Figure:
    """Draw precision, recall and F1 of every class, with its support.

    Args:
        table: Columns ``class``, ``precision``, ``recall``, ``f1``, ``support``, as
            ``metrics.per_class`` returns them.
    """
    num_classes = len(table)
    figure = _new_figure(7.6, 1.5 + 0.62 * num_classes)
    axes = figure.subplots()
    centres = np.arange(num_classes)
    series = (("precision", BLUE, ""), ("recall", VERMILLION, "////"), ("f1", GREEN, "...."))
    for place, (name, colour, hatch) in enumerate(series):
        height = 0.27
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.6}
        label = "F1" if name == "f1" else name
        bars = axes.barh(centres + (place - 1) * height, table[name], height, label=label, **look)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8, color="#333333")
    rows = [f"{_shorten(name, 24)}\nn = {n:,}" for name, n in zip(table["class"], table["support"])]
    axes.set_yticks(centres, rows)
    axes.set_ylim(num_classes - 0.45, -0.55)
    axes.set_xlim(0, 1.08)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    figure.suptitle(
        f"Per class, {int(table['support'].sum()):,} test samples", x=0.02, ha="left", fontsize=11
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


@_styled
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
        raise ValueError(
            f"{len(faces)} faces, {len(targets)} targets, {len(probs)} probs, {len(files)} files"
        )
    columns = max(4, math.ceil(math.sqrt(len(faces))))
    lines = math.ceil(len(faces) / columns)
    figure = _new_figure(1.75 * columns, 2.25 * lines + 0.6)
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
            text = f"{word} {_shorten(class_names[index], 11)} {row[index]:.0%}"
            axes.annotate(text, (0, 1), (0, offset), color=colour, **place)
        axes.annotate(_shorten(Path(file).name, 26), (0, 0), (0, -9), color=GREY, **place | {"fontsize": 6})
    return figure


@_styled
def reliability(tables: Mapping[str, pd.DataFrame], temperature: float) -> Figure:
    """Draw how often the model is right against how sure it is, before and after temperature scaling.

    Args:
        tables: ``before`` and ``after``, as ``calibration.reliability`` returns them.
        temperature: What lies between them.
    """
    figure = _new_figure(6, 5)
    axes, counts = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="perfect")
    for (name, table), colour, marker in zip(tables.items(), (VERMILLION, BLUE), "so", strict=True):
        filled = table[table["count"] > 0]
        axes.plot(
            filled["confidence"], filled["accuracy"], color=colour, marker=marker, markersize=4, label=name
        )
    axes.set(
        xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"Reliability, test; temperature {temperature:g}"
    )
    axes.grid()
    axes.legend()
    last = table
    counts.bar(
        (last["low"] + last["high"]) / 2, last["count"], (last["high"] - last["low"]) * 0.9, color=BLUE
    )
    counts.set(xlabel="confidence", ylabel="images")
    return figure


@_styled
def risk_coverage(curve: pd.DataFrame, chosen: Mapping[str, float] | None) -> Figure:
    """Draw the part of wrong answers against the part of images answered.

    Args:
        curve: As ``calibration.risk_coverage`` returns it.
        chosen: ``coverage`` and ``risk`` at the served threshold, if there is one.
    """
    figure = _new_figure(6, 4)
    axes = figure.add_subplot()
    axes.plot(curve["coverage"], curve["risk"], color=BLUE)
    if chosen and "risk" in chosen:
        axes.plot(chosen["coverage"], chosen["risk"], "o", color=VERMILLION, label="served threshold")
        axes.legend()
    axes.set(
        xlim=(0, 1), ylim=(0, None), title="Risk and coverage, test",
        xlabel="coverage: part of the images answered", ylabel="risk: part answered wrongly",
    )  # fmt: skip
    axes.grid()
    return figure


@_styled
def robustness(table: pd.DataFrame) -> Figure:
    """Draw the accuracy that is left under each corruption, from as they are (0) to the strongest.

    Args:
        table: As ``robustness.measure`` returns it, with rows; those of level 0 are the pictures as they are.
    """
    figure = _new_figure(6, 4.4)
    axes = figure.add_subplot()
    clean = table[table["level"] == 0]
    looks = zip(
        itertools.cycle((BLUE, VERMILLION, GREEN, "#CC79A7", "#56B4E9", "#E69F00", GREY)), "osD^vPX<>*"
    )
    for (name, lines), (colour, marker) in zip(
        table[table["level"] > 0].groupby("corruption", sort=False), looks
    ):
        whole = pd.concat([clean, lines])
        axes.plot(whole["level"], whole["accuracy"], color=colour, marker=marker, markersize=4, label=name)
    axes.axhline(float(clean["accuracy"].iloc[0]), color=GREY, linewidth=1, linestyle="--")
    axes.set(
        ylim=(0, 1), xlabel="strength", ylabel="accuracy",
        title=f"Pictures made worse, {int(clean['images'].iloc[0]):,} test images",
    )  # fmt: skip
    axes.grid(axis="y")
    axes.legend(ncols=2, fontsize=9)
    return figure


def to_svg(figure: Figure, name: str, label: str, width_in: float = 4.6, height_in: float = 3.4) -> str:
    """Draw a figure as SVG to be put into a page, whose colours it takes: it suits light and dark ones.

    Args:
        figure: What a function of this module returned.
        name: Letters; unlike that of any other figure of the page.
        label: What the figure shows, for those who do not see it.
        width_in: Small enough that a phone does not shrink the letters.
        height_in: Of the drawing, too.

    Returns:
        An ``svg`` element; equal input gives equal text.
    """
    figure.set_size_inches(width_in, height_in)
    buffer = io.StringIO()
    with _style(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hyojo"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', drawing).group()
    head = f'<svg class="chart" role="img" aria-label="{html.escape(label)}" {box}>'
    drawing = head + drawing[drawing.index(">") + 1 :]
    drawing = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", drawing)
    for colour, variable in _PAGE_COLOURS.items():
        drawing = re.sub(colour, f"var(--{variable})", drawing, flags=re.IGNORECASE)
    return drawing.strip()


def _new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure with an Agg canvas, never larger than Agg can draw."""
    figure = Figure(figsize=(min(width_in, 40), min(height_in, 80)))
    FigureCanvasAgg(figure)
    return figure


def _shorten(text: str, length: int) -> str:
    """``text``, with its middle left out when it is longer than ``length``."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"
