"""How much of a classifier's accuracy is left on pictures made worse: ``reports/robustness.csv``."""

from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline.core.dataset import Split
from pipeline.evaluate.corruptions import LEVELS, STRENGTHS, corrupt
from pipeline.evaluate.net import Net
from pipeline.metrics.calibration import temper
from pipeline.metrics.drift import estimate_accuracy
from pipeline.metrics.intervals import accuracy_interval

COLUMNS = ("corruption", "level", "strength", "images", "accuracy", "low", "high", "estimated")
CLEAN = "none"  # stands as the corruption of the pictures as they are, in the first row


def choose(targets: np.ndarray, count: int | None) -> np.ndarray:
    """Draw rows of a split, int64 (M,), rising, in which every class has the share that it has in all.

    ``count`` None, or more than there are: all.
    """
    total = len(targets)
    if count is None or count >= total:
        return np.arange(total)
    by_class = np.lexsort((np.random.default_rng(0).random(total), targets))
    return np.sort(by_class[(2 * np.arange(count) + 1) * total // (2 * count)])


def measure(net: Net, split: Split, names: list[str], count: int | None, temperature: float = 1.0) -> pd.DataFrame:
    """Classify ``count`` pictures of a split, or all, made worse in several ways at five strengths each.

    Returns:
        ``COLUMNS``, with 95 % Wilson intervals, and the accuracy that confidences, at the temperature, let expect
        (``drift.estimate_accuracy``); the pictures as they are come first. No rows without names.
    """
    rows = choose(split.targets, count)
    images, targets = np.asarray(split.images[rows]), split.targets[rows]
    jobs = [(CLEAN, 0), *((name, level) for name in dict.fromkeys(names) for level in range(1, LEVELS + 1))]
    lines, right, sure = [], np.empty(0), np.empty(0)  # the last two of the pictures as they are
    for name, level in tqdm(jobs if names else [], desc="robustness", disable=None, leave=False):
        seen = images if name == CLEAN else corrupt(images, rows, name, level)
        probs = temper(net.predict(seen), temperature)
        hits, confidence = probs.argmax(axis=1) == targets, probs.max(axis=1)
        if name == CLEAN:
            right, sure = hits, confidence
        strength = STRENGTHS[name][level - 1] if level else None
        interval, estimated = accuracy_interval(int(hits.sum()), len(rows)), estimate_accuracy(sure, right, confidence)
        lines.append((name, level, strength, len(rows), hits.mean(), *interval, estimated[0]))
    return pd.DataFrame(lines, columns=list(COLUMNS))


def headline(table: pd.DataFrame) -> dict[str, Any]:
    """Return what ``evaluation.json`` has of a table that ``measure`` returned and that has rows.

    ``mean_corruption_accuracy`` is over all corruptions and levels, ``clean_accuracy`` that of the same ``images`` as
    they are.
    """
    changed = table["corruption"] != CLEAN
    return {
        "mean_corruption_accuracy": float(table["accuracy"][changed].mean()),
        "clean_accuracy": float(table["accuracy"][~changed].iloc[0]),
        "images": int(table["images"].iloc[0]),
    }


def robustness_text(table: pd.DataFrame) -> str:
    """A sentence on a table with rows: the mean, and what costs most at its strongest."""
    found, names = headline(table), table["corruption"].unique()[1:]
    last = table[table["level"] == LEVELS]
    worst = last.loc[last["accuracy"].idxmin()]
    return (
        f"pictures made worse ({', '.join(names)}): accuracy {found['mean_corruption_accuracy']:.4f} on average, "
        f"{found['clean_accuracy']:.4f} as they are; {worst['corruption']} costs most, down to {worst['accuracy']:.4f} "
        f"({found['images']:,} images)"
    )
