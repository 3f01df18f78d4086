"""What evaluate writes and says of the test split: tables, figures, summary."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.dataset import Split
from pipeline.metrics import by_class, calibration
from pipeline.metrics.table import TITLES
from pipeline.reporting import plots


def summary(
    split: Split,
    probs: np.ndarray,
    scores: dict[str, float],
    intervals: dict[str, tuple[float, float]],
    class_names: list[str],
) -> str:
    """Return the scores of the test split as a short table, with the recall of every class."""
    preds = probs.argmax(axis=1)
    table = by_class.per_class(split.targets, preds, class_names)
    width = max(17, *(len(name) for name in class_names))
    rows = [
        f"test split, {len(split):,} images",
        *(
            f"  {TITLES[name]:{width}}  {value:.4f}  (95 % interval {low:.4f} to {high:.4f})"
            for (name, value), (low, high) in zip(
                scores.items(), map(intervals.__getitem__, scores), strict=True
            )
        ),
        f"  {'class':{width}}  recall  images",
    ]
    rows += [
        f"  {name:{width}}  {recall:.4f}  {support:6,}"
        for name, recall, support in zip(table["class"], table["recall"], table["support"])
    ]
    return "\n".join(rows)


def trust_text(trust: dict[str, Any]) -> str:
    """A sentence on calibration and one on abstention."""
    ece, abstain = trust["ece"]["test"], trust["abstain"]
    lines = [
        f"calibrated at temperature {trust['temperature']:g}: ECE {ece['before']:.4f} before, {ece['after']:.4f} after"
    ]
    if abstain["threshold"] is None:
        lines.append(f"no confidence keeps the wrong answers to {abstain['risk']:.0%} on val")
    else:
        found = abstain["test"]
        lines.append(
            f"sure enough ({abstain['threshold']:.2f}) for {found['coverage']:.0%} of test, of which "
            f"{found.get('risk', 0):.1%} are wrong (wanted: {abstain['risk']:.0%})"
        )
    return "\n".join(lines)


def views_text(tta: dict[str, Any], beside: dict[str, float], ms: float) -> str:
    """A sentence on what the mean over views scores, or, where that is the model, the image alone."""
    mean = f"the mean over {tta['passes']} views ({', '.join(tta['views'])})"
    scores = f"accuracy {beside['accuracy']:.4f}, {ms:.2f} ms an image"
    if tta["served"]:
        return f"all of this is of {mean}, which is what is served\nthe image alone: {scores}"
    return f"{mean}, at {tta['passes']} forward passes: {scores}"


def write_tables(folder: Path, split: Split, probs: np.ndarray, class_names: list[str]) -> None:
    """Write the three csv files of the test split."""
    preds = probs.argmax(axis=1)
    names = np.array(class_names, dtype=object)
    actual, predicted = names[split.targets], names[preds]
    rows = pd.DataFrame({"file": split.files, "label": actual, "predicted": predicted})
    columns = pd.DataFrame(probs, columns=[f"prob_{name}" for name in class_names])
    tables = {
        "predictions": pd.concat([rows, columns], axis=1),
        # One row a sample, which is what DVC's confusion template counts.
        "confusion": pd.DataFrame({"actual": actual, "predicted": predicted}),
        "per_class": by_class.per_class(split.targets, preds, class_names),
    }
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    table.to_csv(path, index=False, lineterminator="\n", encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def draw_figures(folder: Path, split: Split, probs: np.ndarray, class_names: list[str], worst: int) -> None:
    """Draw the three pictures of the test split."""
    preds = probs.argmax(axis=1)
    matrix = by_class.confusion(split.targets, preds, len(class_names))
    rows = by_class.worst_mistakes(split.targets, probs, worst)
    wrong = int((preds != split.targets).sum())
    counted = f"{wrong:,} of {len(split):,} test images are classified wrongly"
    title = f"{counted}; the model was surest of these {len(rows)}" if len(rows) > 1 else counted
    faces, files = split.images[rows], [split.files[row] for row in rows]
    figures = {
        "confusion_matrix": plots.confusion_matrix(matrix, class_names),
        "per_class": plots.per_class_bars(by_class.per_class(split.targets, preds, class_names)),
        "worst_mistakes": plots.worst_mistakes(
            faces, split.targets[rows], probs[rows], class_names, files, title
        ),
    }
    folder.mkdir()
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")


def draw_trust(
    folder: Path, targets: np.ndarray, plain: np.ndarray, probs: np.ndarray, trust: dict[str, Any]
) -> None:
    """Draw how far the test split's probabilities can be believed."""
    tables = {
        "before": calibration.reliability(targets, plain),
        "after": calibration.reliability(targets, probs),
    }
    plots.save(plots.reliability(tables, trust["temperature"]), folder / "reliability.png")
    curve = calibration.risk_coverage(targets, probs)
    plots.save(plots.risk_coverage(curve, trust["abstain"].get("test")), folder / "risk_coverage.png")


def write_robustness(folder: Path, table: pd.DataFrame) -> None:
    """Write the table of pictures made worse and, if it has rows, draw it."""
    write_csv(folder / "robustness.csv", table)
    if len(table):
        plots.save(plots.robustness(table), folder / "figures" / "robustness.png")
