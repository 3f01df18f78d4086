"""The scores that pick weights in odd cases; with scikit-learn they are held in test_table."""

import warnings
from typing import get_args

import numpy as np
import pytest

from pipeline.core.params import EarlyStopping
from pipeline.metrics import selection

EMPTY = np.array([], dtype=int)


def test_selection_scores_are_those_that_params_can_name() -> None:
    """A params file may name any of them to pick the weights by, and no other."""
    scores = selection.selection_scores(np.array([0, 1]), np.array([[0.25, 0.75], [0.5, 0.5]]))
    assert all(type(value) is float for value in scores.values())
    names = {f"val/{name}" for name in scores}
    metric = EarlyStopping.model_fields["metric"].annotation
    assert set(get_args(metric)) == names - {"val/nll"} | {"val/loss"}


def test_certain_and_wrong_is_finite() -> None:
    scores = selection.selection_scores(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]], np.float32))
    assert scores["nll"] == pytest.approx(-np.log(np.finfo(np.float64).eps) / 2)


def test_rounded_rows_are_normalised() -> None:
    # Half precision: the rows sum to 0.996 and 1.004.
    rounded = np.array([[0.498, 0.498], [0.251, 0.753]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = selection.selection_scores(np.array([0, 1]), rounded)
    assert scores["nll"] == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 2)


@pytest.mark.parametrize(
    "targets,probs,message",
    [
        ([0], [0.5, 0.5], r"shape \(N, K\).*\(2,\)"),
        ([0], [[1.0]], r"K >= 2"),
        ([[0]], [[0.5, 0.5]], r"shape \(N,\).*\(1, 1\)"),
        ([0, 1], [[0.5, 0.5]], "2 rows and probs has 1"),
        ([0, 1], [[0.5, 0.5], [np.nan, 1]], "NaN.*1 rows, first in row 1"),
        ([0], [[np.inf, 0]], "infinite"),
        ([0], [[2.0, -1.0]], "smallest value -1"),
        ([0], [[3.0, 1.5]], "sum 4.5"),
        ([2], [[0.5, 0.5]], r"targets\[0\] is 2, outside \[0, 2\)"),
        ([-1], [[0.5, 0.5]], r"targets\[0\] is -1"),
        ([0.0], [[0.5, 0.5]], "integer class indices, not float64"),
        (EMPTY, np.empty((0, 3)), "probs is empty"),
    ],
)
def test_bad_input_is_named(targets: list, probs: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selection.selection_scores(np.array(targets), np.array(probs))
