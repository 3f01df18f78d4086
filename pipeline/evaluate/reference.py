"""The answers to the test split, as a reference for later ones: ``reports/reference.json``, also in the bundle."""

import numpy as np
import pandas as pd

from pipeline.core.stage_files import ReferenceFile
from pipeline.evaluate import robustness
from pipeline.evaluate.findings import Findings
from pipeline.inference.descriptors import measure_brightness, measure_sharpness

MOST = 2000  # answers that are kept, drawn by class


def make_reference(found: Findings) -> ReferenceFile:
    """Put together labels, confidences and descriptors of the test split's answers; no picture and no name."""
    rows = robustness.choose(found.test.targets, MOST)
    probs = found.probs[rows]
    preds, images = probs.argmax(axis=1), found.test.images[rows]
    threshold = found.trust["abstain"].get("threshold")
    columns = {
        "label": [found.class_names[pred] for pred in preds],
        "probability": np.round(probs.max(axis=1), 5).tolist(),
        "abstain": (probs.max(axis=1) < (threshold or 0)).tolist(),
        "brightness": np.round(measure_brightness(images), 2).tolist(),
        "sharpness": np.round(measure_sharpness(images), 1).tolist(),
        "right": (preds == found.test.targets[rows]).tolist(),
    }
    return ReferenceFile(
        images=len(found.test),
        accuracy=found.result["test"]["accuracy"],
        estimate_off=measure_estimates(found.robust),
        columns=columns,
    )


def measure_estimates(table: pd.DataFrame) -> dict[str, float]:
    """How far accuracies that were estimated without labels are off on pictures made worse; empty without such."""
    changed = table[table["corruption"] != robustness.CLEAN]
    off = (changed["estimated"] - changed["accuracy"]).abs()
    return {"mean": float(off.mean()), "most": float(off.max())} if len(off) else {}
