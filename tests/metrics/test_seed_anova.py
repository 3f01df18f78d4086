"""Groups of seeds against a hand-worked case and simulations of which the truth is known."""

import numpy as np
import pytest
from scipy import stats

from pipeline.metrics.seed_anova import compare_groups, mean_interval


def simulate(
    rng: np.random.Generator, seeds: int, samples: int, shift: np.ndarray | float, sd: float = 0.01
) -> tuple[np.ndarray, np.ndarray]:
    """Right answers of two groups: samples of unlike difficulty, each seed a bit better or worse than another."""
    ease = rng.beta(1, 1, samples)
    groups = []
    for add in (shift, 0.0):
        chances = ease + add + rng.normal(0, sd, (seeds, 1))
        groups.append(rng.random((seeds, samples)) < chances)
    return groups[0], groups[1]


def test_by_hand() -> None:
    ours = np.array([[1, 1, 0, 1], [1, 1, 1, 1]])  # means 3/4 and 1: variance 1/32
    theirs = np.array([[0, 1, 0, 0], [0, 1, 1, 0]])  # means 1/4 and 1/2: variance 1/32
    found = compare_groups(ours, theirs)
    assert found.difference == pytest.approx(0.5)
    assert found.from_seeds == pytest.approx(1 / 64 + 1 / 64)
    # Sample means differ by 1, 0, 0, 1: variance 1/3. Residuals are 1/8, 1/8, -3/8, 1/8 up to sign, twice a table:
    # mean square 2 * (3 / 64 + 9 / 64) / 3 = 1/8 each, which stands in the 1/3 as 1/16 each.
    assert found.from_images == pytest.approx((1 / 3 - 1 / 16 - 1 / 16) / 4)
    assert found.df == pytest.approx(found.standard_error**4 / (2 * (1 / 64) ** 2))
    same = np.tile([True, False, True], (2, 1))
    assert compare_groups(same, same).p_value == 1.0  # nothing varies
    half = stats.t.ppf(0.975, found.df) * found.standard_error
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half))


def test_sides_can_be_changed() -> None:
    ours, theirs = simulate(np.random.default_rng(0), 3, 200, 0.05)
    one, other = compare_groups(ours, theirs), compare_groups(theirs, ours)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.p_value == pytest.approx(other.p_value)


@pytest.mark.parametrize("seeds", [3, 5])
def test_reruns_of_one_setting_are_called_different_no_more_than_promised(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    pairs = [simulate(rng, seeds, 400, 0.0, 0.02) for _ in range(800)]
    assert np.mean([compare_groups(*pair).p_value < 0.05 for pair in pairs]) <= 0.07


def test_other_images_count_too() -> None:
    # Settings that differ image by image, not on the whole: a test on seeds alone mistakes these images for all.
    rng, ours, alone = np.random.default_rng(1), [], []
    for _ in range(600):
        pair = simulate(rng, 4, 200, rng.choice([-0.4, 0.4], 200), 0.001)
        ours.append(compare_groups(*pair).p_value < 0.05)
        alone.append(stats.ttest_ind(*(group.mean(axis=1) for group in pair)).pvalue < 0.05)
    assert np.mean(alone) > 0.15
    assert np.mean(ours) < 0.08


def test_a_real_difference_is_found_and_covered() -> None:
    rng = np.random.default_rng(2)
    found = [compare_groups(*simulate(rng, 5, 1000, 0.05, 0.005)) for _ in range(200)]
    truth = np.mean([one.difference for one in found])
    assert np.mean([one.p_value < 0.05 for one in found]) > 0.9
    assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.9


@pytest.mark.parametrize("shapes", [((1, 5), (2, 5)), ((2, 5), (2, 4)), ((2, 1), (2, 1))])
def test_what_cannot_be_compared_is_refused(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    with pytest.raises(ValueError):
        compare_groups(np.ones(shapes[0]), np.ones(shapes[1]))


def test_mean_interval_is_scipys() -> None:
    values = np.array([0.61, 0.63, 0.6, 0.64])
    found = mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.mean, found.sd, found.count) == pytest.approx((0.62, values.std(ddof=1), 4))
    assert np.isnan(mean_interval(np.array([0.5])).low)
    with pytest.raises(ValueError):
        mean_interval(np.array([]))


def test_mean_interval_stays_within_the_range() -> None:
    """Two seeds far apart: Student's interval of 0.01 and 0.99 goes from -5.7 to 6.7, where no share is."""
    found = mean_interval(np.array([0.01, 0.99]), highest=1.0)
    assert (found.low, found.high) == (0, 1)
