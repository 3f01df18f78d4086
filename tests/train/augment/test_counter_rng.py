"""Counter-based draws: SplitMix64's published numbers, uniform, unrelated, and a sample's own."""

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.train.augment import counter_rng
from pipeline.train.augment.counter_rng import Draws

STREAMS = [(position, draw) for position in range(4) for draw in range(4)]
SAMPLES = torch.arange(1 << 14)
LIMIT = 1e-4  # a p-value below this would be a flaw; the seeds are fixed, so a test passes always or never


def test_the_hash_is_splitmix64() -> None:
    """The first numbers from seed 1234567, as Rosetta Code lists them for the reference code."""
    states = 1234567 + counter_rng.GAMMA * torch.arange(1, 6)
    found = [number % 2**64 for number in counter_rng.splitmix64(states).tolist()]
    assert found == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


def test_keys_and_states_are_hashed_alike() -> None:
    """``key`` hashes the same way on the host, number by number."""
    one = counter_rng.splitmix64(torch.tensor([counter_rng.GAMMA + 1]))
    two = counter_rng.splitmix64(one + counter_rng.GAMMA + 77)
    assert counter_rng.hash_numbers(77) == two.item()
    several = [(0,), (0, 0), (1, 0), (0, 1), (-1, 0), (2**63, 0)]
    assert len({counter_rng.hash_numbers(*numbers) for numbers in several}) == 6


@pytest.mark.parametrize("seed, epoch", [(0, 0), (1, 7), (2**40, 300)])
def test_draws_are_uniform(seed: int, epoch: int) -> None:
    """Multiples of 2**-24 in [0, 1): high digits by Kolmogorov-Smirnov, low ones by chi-square, for each stream."""
    found = Draws(seed, STREAMS)(SAMPLES, epoch)
    assert found.shape == (len(STREAMS), len(SAMPLES))
    assert found.dtype == torch.float32
    whole = found.double() * 2**24
    assert torch.equal(whole, whole.round())
    assert 0 <= whole.min() < 2**13
    assert 2**24 - 2**13 < whole.max() < 2**24
    for row in found.numpy():
        assert stats.kstest(row, "uniform").pvalue > LIMIT
    counts = torch.stack([torch.bincount(row, minlength=256) for row in whole.long() % 256])
    assert stats.chisquare(counts.numpy(), axis=1).pvalue.min() > LIMIT


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """How many standard deviations the correlation of two rows of draws is from 0."""
    return abs(np.corrcoef(a.numpy(), b.numpy())[0, 1]) * np.sqrt(len(a))


def test_neighbours_have_nothing_to_do_with_each_other() -> None:
    """Next sample, next draw, next transform, next epoch, next seed: correlations stay within chance."""
    here = Draws(3, STREAMS)(SAMPLES, 5)
    pairs = [(row[:-lag], row[lag:]) for row in here for lag in (1, 2, 64)]
    pairs += [(here[i], here[j]) for i in range(len(STREAMS)) for j in range(i)]
    pairs += list(zip(here, Draws(3, STREAMS)(SAMPLES, 6)))
    pairs += list(zip(here, Draws(4, STREAMS)(SAMPLES, 5)))
    pairs += list(zip(here[1:], Draws(3, STREAMS)(SAMPLES, 6)))
    assert max(correlation(a, b) for a, b in pairs) < 4.5  # of some 200, chance exceeds it once in 750 seeds
    # Pairs of neighbours fill the unit square evenly, too.
    cells = (here[:, :-1] * 8).long() * 8 + (here[:, 1:] * 8).long()
    counts = torch.stack([torch.bincount(row, minlength=64) for row in cells[:, ::2]])
    assert stats.chisquare(counts.numpy(), axis=1).pvalue.min() > LIMIT


def test_one_changed_bit_changes_half_of_the_bits() -> None:
    """Avalanche, the property that lets counters stand in for a random state."""
    states = counter_rng.splitmix64(torch.arange(2000)) & (2**62 - 1)
    for bit in (0, 7, 31, 45, 61):
        changed = counter_rng.splitmix64(states) ^ counter_rng.splitmix64(states ^ (1 << bit))
        share = np.unpackbits(changed.numpy().view(np.uint8)).mean()
        assert share == pytest.approx(0.5, abs=0.01)


def test_a_draw_is_its_counters_alone() -> None:
    """Any order, any part, any other streams beside it: the same number."""
    together = Draws(9, STREAMS)(SAMPLES, 2)
    order = torch.randperm(len(SAMPLES), generator=torch.Generator().manual_seed(0))
    assert torch.equal(Draws(9, STREAMS)(SAMPLES[order], 2), together[:, order])
    parts = [Draws(9, STREAMS)(part, 2) for part in SAMPLES.split(1000)]
    assert torch.equal(torch.cat(parts, 1), together)
    assert torch.equal(Draws(9, [STREAMS[6]])(SAMPLES, 2)[0], together[6])
    assert Draws(9, [])(SAMPLES, 2).shape == (0, len(SAMPLES))


def test_seeds_epochs_and_streams_all_matter() -> None:
    """No two of them give the same numbers, whatever was swapped."""
    found = [Draws(seed, STREAMS)(SAMPLES[:8], epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    rows = torch.cat(found)
    assert len(torch.unique(rows, dim=0)) == len(rows)
