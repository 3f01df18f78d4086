"""Tables and figures of the test split, as files."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.core.files import write_csv
from pipeline.evaluate.findings import Findings
from pipeline.metrics import by_class, calibration
from pipeline.reporting import evaluation_figures, plots


def write_tables(folder: Path, found: Findings) -> None:
    """Write ``predictions.csv``, ``confusion.csv`` and ``per_class.csv``."""
    class_names, split = found.class_names, found.test
    names = np.array(class_names, dtype=object)
    actual, predicted = names[split.targets], names[found.preds]
    rows = pd.DataFrame({"file": split.files, "label": actual, "predicted": predicted})
    columns = pd.DataFrame(found.probs, columns=[f"prob_{name}" for name in class_names])
    write_csv(folder / "predictions.csv", pd.concat([rows, columns], axis=1))
    # One row a sample, which is what DVC's confusion template counts.
    write_csv(folder / "confusion.csv", pd.DataFrame({"actual": actual, "predicted": predicted}))
    write_csv(folder / "per_class.csv", by_class.per_class(split.targets, found.preds, class_names))


def draw_figures(folder: Path, found: Findings) -> None:
    """Draw the test split: its mistakes, and how far its probabilities can be believed."""
    class_names, split, preds = found.class_names, found.test, found.preds
    rows = by_class.worst_mistakes(split.targets, found.probs, found.worst)
    counted = f"{int((preds != split.targets).sum()):,} of {len(split):,} test images are classified wrongly"
    figures = {
        "confusion_matrix": evaluation_figures.confusion_matrix(
            by_class.confusion(split.targets, preds, len(class_names)), class_names
        ),
        "per_class": evaluation_figures.per_class_bars(by_class.per_class(split.targets, preds, class_names)),
        "worst_mistakes": evaluation_figures.worst_mistakes(
            split.images[rows],
            split.targets[rows],
            found.probs[rows],
            class_names,
            files=[split.files[row] for row in rows],
            title=f"{counted}; the model was surest of these {len(rows)}" if len(rows) > 1 else counted,
        ),
        "reliability": evaluation_figures.reliability(reliabilities(found), found.trust["temperature"]),
        "risk_coverage": evaluation_figures.risk_coverage(
            calibration.risk_coverage(split.targets, found.probs), found.trust["abstain"].get("test")
        ),
    }
    if len(found.robust):
        figures["robustness"] = evaluation_figures.robustness(found.robust)
    folder.mkdir()
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")


def reliabilities(found: Findings) -> dict[str, pd.DataFrame]:
    """How often the model is right by how sure it is, ``before`` and ``after`` the temperature."""
    sides = {"before": found.answers.plain["test"], "after": found.probs}
    return {name: calibration.reliability(found.test.targets, probs) for name, probs in sides.items()}
