"""Paired tests against hand-worked cases and scipy's own bootstrap."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from pipeline.metrics.paired import difference_interval, mcnemar


def answers(both: int, ours: int, theirs: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Right answers of two classifiers, by how many samples both, one or none of them got right."""
    counts = [both, ours, theirs, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_mcnemar_by_hand() -> None:
    # Of 5 samples that one alone got right, all 5 on one side: 2 / 2**5; 4 to 1: 2 * (1 + 5) / 2**5.
    assert mcnemar(*answers(10, 5, 0, 3)) == pytest.approx(2 / 32)
    assert mcnemar(*answers(10, 4, 1, 3)) == pytest.approx(12 / 32)
    # Neither who is first counts nor what both say.
    assert mcnemar(*answers(0, 30, 12, 0)) == mcnemar(*answers(900, 12, 30, 50))
    assert mcnemar(*answers(7, 0, 0, 3)) == 1.0


def test_interval_is_scipys_paired_bootstrap() -> None:
    ours, theirs = answers(600, 120, 80, 200)
    low, high = difference_interval(ours, theirs)
    rng, differences = np.random.default_rng(1), ours.astype(float) - theirs.astype(float)
    expected = stats.bootstrap((differences,), np.mean, method="percentile", rng=rng).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.002)
    assert low < 0.04 < high


@pytest.mark.parametrize("shapes", [(3, 2), (0, 0), ((2, 2), (2, 2))])
@pytest.mark.parametrize("function", [mcnemar, difference_interval])
def test_unpaired_answers_are_refused(function: Callable, shapes: tuple) -> None:
    with pytest.raises(ValueError):
        function(*(np.ones(shape, bool) for shape in shapes))
    with pytest.raises(ValueError, match="boolean"):
        function(np.ones(3, int), np.ones(3, bool))
