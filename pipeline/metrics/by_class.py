"""What becomes of each class, and the worst mistakes: tables and rows made from answers.

All K classes are counted, also those that a split happens to lack, so that tables of different splits and experiments
have the same shape and meaning.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline.metrics.selection import check_labels


def per_class(targets: np.ndarray, preds: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """Return one row a class, in the order of ``class_names``; arguments as ``confusion``.

    Returns:
        Columns ``class``, ``precision``, ``recall``, ``f1`` (float64; 0 where undefined) and
        ``support`` (int64: how many of ``targets`` are of the class).
    """
    matrix = confusion(targets, preds, len(class_names))
    right, called, actual = np.diagonal(matrix), matrix.sum(axis=0), matrix.sum(axis=1)
    return pd.DataFrame(
        {
            "class": list(class_names),
            "precision": right / np.maximum(called, 1),
            "recall": right / np.maximum(actual, 1),
            "f1": 2 * right / np.maximum(called + actual, 1),
            "support": actual,
        }
    )


def confusion(targets: np.ndarray, preds: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the confusion matrix, int64 (K, K): rows are actual classes, columns predicted ones.

    Args:
        targets: Class indices, integers (N,).
        preds: Predicted class indices, integers (N,).
        num_classes: K; a class absent from both arrays has a row and a column of zeros.

    Raises:
        ValueError: If lengths differ, the split is empty or an index is outside [0, K).
    """
    targets, preds = (
        check_labels(labels, num_classes, name) for name, labels in (("targets", targets), ("preds", preds))
    )
    if len(targets) != len(preds):
        raise ValueError(f"targets has {len(targets)} rows and preds has {len(preds)}")
    cells = np.bincount(targets * num_classes + preds, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def worst_mistakes(targets: np.ndarray, probs: np.ndarray, count: int) -> np.ndarray:
    """Return the rows of the wrong predictions of which the model was surest, int64 (M,), ``count`` at most.

    The surest comes first; equally sure ones stand in the order of rows. ``probs`` are floats (N, K).
    """
    preds = probs.argmax(axis=1)
    wrong = np.flatnonzero(preds != targets)
    return wrong[np.argsort(-probs[wrong, preds[wrong]], kind="stable")][:count]
