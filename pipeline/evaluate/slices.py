"""Where a classifier is worse than elsewhere: ``reports/slices.csv``."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from pipeline.core.dataset import Split
from pipeline.inference.descriptors import measure_brightness, measure_sharpness
from pipeline.metrics.intervals import ALPHA, accuracy_interval
from pipeline.metrics.selection import accuracy

COLUMNS = ("by", "slice", "images", "accuracy", "low", "high", "rest", "p", "worse")
# Of a column of the manifest: fewer images say too little, and more values are not looked through.
MIN_IMAGES, MAX_VALUES = 20, 30


def cut(values: np.ndarray, parts: int, names: tuple[str, str]) -> np.ndarray:
    """Name for each sample its part of equal size by a value, such as ``1 of 4, darkest``; text (N,).

    Equal values stay together, so that there may be fewer ``parts``; ``names`` are of the lowest and the highest.
    """
    edges = np.quantile(values, np.arange(1, parts) / parts)
    places = np.searchsorted(edges, values, side="left")
    ends = {0: f", {names[0]}", parts - 1: f", {names[1]}"}
    return np.array([f"{place + 1} of {parts}{ends.get(place, '')}" for place in places], object)


def tabulate(
    split: Split,
    probs: np.ndarray,
    class_names: Sequence[str],
    parts: int,
    columns: Mapping[str, Iterable[str]],
) -> pd.DataFrame:
    """Score a split by class, by columns of the manifest, and by brightness and sharpness.

    Whether a slice is worse than the rest of the split is judged by Fisher's exact test, one-sided. Slices overlap and
    are many: the p-values are corrected so that of all slices called worse 5 % at most are expected not to be (Y.
    Benjamini and D. Yekutieli, "The control of the false discovery rate in multiple testing under dependency", 2001).

    Args:
        split: N images and their classes.
        probs: The answers to them, floats (N, K).
        class_names: The K class names.
        parts: Parts by brightness and by sharpness; 1 for none.
        columns: Further values, text (N,), by name; those with ``MIN_IMAGES`` or more are slices, the ``MAX_VALUES``
            most frequent at most, unless all have the same.

    Returns:
        ``COLUMNS``: ``by`` what, which ``slice``, ``images`` in it, their ``accuracy`` with its 95 % Wilson interval
        (``low``, ``high``), the accuracy of the ``rest``, the corrected ``p``, and ``worse``, whether it is below
        ``ALPHA``. Slices without images are missing.
    """
    groups = {"class": (np.array(class_names, object)[split.targets], list(class_names))}
    for name, values in columns.items():
        values = np.array(list(values), object)
        counts = pd.Series(values[values != ""]).value_counts(sort=False)
        often = counts[counts >= MIN_IMAGES].sort_values(ascending=False, kind="stable")
        if len(counts) > 1:
            groups[name] = (values, sorted(often.index[:MAX_VALUES]))
    if parts > 1:
        for name, measure, ends in (
            ("brightness", measure_brightness, ("darkest", "brightest")),
            ("sharpness", measure_sharpness, ("blurriest", "sharpest")),
        ):
            places = cut(measure(split.images), parts, ends)
            groups[name] = (places, sorted(set(places), key=lambda place: int(place.split()[0])))
    masks = {(by, value): values == value for by, (values, wanted) in groups.items() for value in wanted}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    rows = np.array(list(masks.values()), np.float64)
    accuracies = zip(*(accuracy(split.targets, probs, weights) for weights in (rows, 1 - rows)))
    lines = [(*name, *_compare(mask, own, rest)) for (name, mask), (own, rest) in zip(masks.items(), accuracies)]
    table = pd.DataFrame(lines, columns=list(COLUMNS[:-1]))
    table["p"] = stats.false_discovery_control(table["p"], method="by")
    table["worse"] = table["p"] < ALPHA
    return table


def worse_slices(table: pd.DataFrame) -> list[str]:
    """A line for each slice that is worse than the rest, the worst first."""
    worse = table[table["worse"]].sort_values("accuracy", kind="stable")
    return [
        f"{row['by']} {row['slice']}: accuracy {row['accuracy']:.4f} [{row['low']:.4f}, {row['high']:.4f}] on "
        f"{row['images']:,} images, {row['rest']:.4f} on the rest"
        for row in worse.to_dict("records")
    ]


def _compare(mask: np.ndarray, own: float, rest: float) -> tuple[int, float, float, float, float, float]:
    """Images, accuracy, its interval, the rest's accuracy (NaN if none) and how likely chance makes it so low."""
    images, others = int(mask.sum()), int((~mask).sum())
    right = round(own * images)
    p = 1.0
    if others:
        right_others = round(rest * others)
        counts = [[right, images - right], [right_others, others - right_others]]
        p = float(stats.fisher_exact(counts, alternative="less").pvalue)
    return images, own, *accuracy_interval(right, images), rest, p
