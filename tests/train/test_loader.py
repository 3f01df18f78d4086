"""Batches: their order by hand, and that what becomes of a sample depends on seed, epoch and sample alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from training import rank_of

from pipeline.core.dataset import Split, load_prepared
from pipeline.models import transforms
from pipeline.train.augment.batched import Augmentation
from pipeline.train.distributed import Ranks
from pipeline.train.loader import Loader, count_steps, order_epoch

CPU = torch.device("cpu")
BATCHED = [{"RandomAffine": {"degrees": 20, "translate": [0.1, 0.1]}}, "RandomHorizontalFlip", "RandomErasing"]
# The last one has no kernel of its own, so that the whole list runs sample by sample.
ONE_BY_ONE = ["RandomHorizontalFlip", {"RandomCrop": {"size": 16, "padding": 2}}, "RandomEqualize"]


@pytest.fixture
def split(prepared_dir: Path) -> Split:
    """72 samples, 24 of each of 3 classes."""
    return load_prepared(prepared_dir).split("train")


def test_an_order_is_a_permutation_and_follows_from_seed_and_epoch() -> None:
    targets = np.arange(50) % 3
    orders = {(seed, number): order_epoch(targets, seed, number) for seed in (0, 1) for number in (0, 1, 2)}
    for order in orders.values():
        assert sorted(order.tolist()) == list(range(50))
    assert len({tuple(order) for order in orders.values()}) == len(orders)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    for (seed, number), order in orders.items():
        np.testing.assert_array_equal(order_epoch(targets, seed, number), order)
    assert torch.equal(torch.get_rng_state(), state)  # and leaves no trace


def test_balanced_every_class_comes_equally_often_and_every_showing_has_its_number() -> None:
    targets = np.array([0, 0, 1, 0, 2, 0, 0, 1, 0, 0])  # 7, 2 and 1 of them
    shown: Counter[int] = Counter()
    orders = [order_epoch(targets, 3, epoch, balanced=True) for epoch in range(60)]
    for order in orders:
        assert len(order) == len(set(order.tolist())) == 10
        rows, repeats = order % 10, order // 10
        # 10 over 3 classes: 4, 3 and 3.
        assert Counter(targets[rows].tolist()) == {0: 4, 1: 3, 2: 3}
        assert set(repeats[targets[rows] == 0].tolist()) == {0}
        assert sorted(repeats[targets[rows] == 1].tolist()) == [0, 0, 1]
        assert sorted(order[targets[rows] == 2].tolist()) == [4, 14, 24]
        shown.update(rows.tolist())
    assert set(shown) == set(range(10))  # of a large class another part each time
    assert len({tuple(order) for order in orders}) == len(orders)
    first_class = [targets[order % 10][0] for order in orders]
    assert set(first_class) == {0, 1, 2}  # shuffled, not class after class
    np.testing.assert_array_equal(order_epoch(targets, 3, 5, balanced=True), orders[5])


@pytest.mark.parametrize(
    "targets, shown, repeats",
    [([0, 1, 2] * 10, {0: 10, 1: 10, 2: 10}, 0), ([0, 2, 0, 0], {0: 2, 2: 2}, 1)],
    ids=["even already", "a class without samples"],
)
def test_balanced_extremes(targets: list[int], shown: dict[int, int], repeats: int) -> None:
    count = len(targets)
    order = order_epoch(np.array(targets), 0, 0, balanced=True)
    assert len(set(order.tolist())) == count
    assert Counter(np.array(targets)[order % count].tolist()) == shown
    assert order.max() // count == repeats


@pytest.mark.parametrize("samples, batch_size, steps", [(72, 16, 4), (64, 16, 4), (15, 16, 1), (1, 16, 1), (17, 16, 1)])
def test_a_last_smaller_batch_is_dropped_unless_it_is_the_only_one(samples: int, batch_size: int, steps: int) -> None:
    assert count_steps(samples, batch_size) == steps


@pytest.mark.parametrize("balanced", [False, True])
def test_a_batch_holds_the_rows_that_its_numbers_say(split: Split, balanced: bool) -> None:
    rows = np.flatnonzero((split.targets != 2) | (np.arange(72) % 6 == 0))
    rng = np.random.default_rng(0)
    count = len(rows)
    soft = rng.dirichlet(np.ones(3), count).astype(np.float32)
    weights = rng.uniform(size=count).astype(np.float32)
    part = Split(split.images[rows], split.targets[rows], [split.files[row] for row in rows], soft, weights)
    loader = Loader(part, 16, 7, CPU, balanced)
    batches = list(loader.batches(4))
    assert len(batches) == loader.steps == count // 16
    numbers = np.concatenate([batch.numbers.numpy() for batch in batches])
    np.testing.assert_array_equal(numbers, order_epoch(part.targets, 7, 4, balanced)[: loader.steps * 16])
    assert (numbers.max() >= count) == balanced
    for batch in batches:
        own = batch.numbers.numpy() % count
        np.testing.assert_array_equal(batch.images.numpy(), part.images[own])
        np.testing.assert_array_equal(batch.targets.numpy(), part.targets[own])
        np.testing.assert_array_equal(batch.soft.numpy(), soft[own])
        np.testing.assert_array_equal(batch.weights.numpy(), weights[own])
    plain = next(Loader(split, 16, 7, CPU).batches(0))
    assert plain.soft is None
    assert plain.weights is None


def seen(
    split: Split, specs: list, batch_size: int, first_step: int = 0, ranks: Ranks | None = None, epoch: int = 3
) -> dict[int, Tensor]:
    """Each sample number of a balanced epoch with its augmented image."""
    augmentation = Augmentation(transforms.resolve(specs, [0.5], [0.25], "train"), 11, 16, 1)
    assert bool(augmentation.per_sample) == (specs is ONE_BY_ONE)
    loader = Loader(split, batch_size, 11, CPU, balanced=True)
    positions = (ranks or Ranks()).positions(batch_size)
    found: dict[int, Tensor] = {}
    for batch in loader.batches(epoch, first_step, positions, augmentation.plan):
        out = augmentation.run(batch.images, batch.plan)
        found |= dict(zip(batch.numbers.tolist(), out))
    return found


@pytest.mark.parametrize("specs", [BATCHED, ONE_BY_ONE], ids=["batched", "one by one"])
def test_a_sample_is_augmented_alike_whatever_is_around_it(split: Split, specs: list) -> None:
    rows = np.concatenate([np.flatnonzero(split.targets < 2), np.flatnonzero(split.targets == 2)[:12]])
    part = Split(split.images[rows], split.targets[rows], [split.files[row] for row in rows])
    whole = seen(part, specs, 60)
    assert len(whole) == 60

    def same(found: dict[int, Tensor]) -> None:
        assert all(torch.equal(image, whole[number]) for number, image in found.items())

    for batch_size in (1, 6, 20):
        found = seen(part, specs, batch_size)
        assert len(found) == 60
        same(found)
    resumed = seen(part, specs, 6, first_step=4)
    assert len(resumed) == 60 - 24
    same(resumed)
    for world in (2, 3):
        shares = [seen(part, specs, 12, ranks=rank_of(number, world)) for number in range(world)]
        assert [len(share) for share in shares] == [60 // world] * world
        assert len(set().union(*shares)) == 60
        for share in shares:
            same(share)
    # A row that is shown again is augmented anew, and so is every sample in another epoch.
    again = [number for number in whole if number >= 60]
    assert again
    assert not any(torch.equal(whole[number], whole[number % 60]) for number in again if number % 60 in whole)
    other = seen(part, specs, 60, epoch=4)
    assert sum(torch.equal(other[number], whole[number]) for number in whole if number in other) < 5


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_out_the_global_batches(split: Split, world: int) -> None:
    loader = Loader(split, 24, 0, CPU)
    whole = [set(batch.numbers.tolist()) for batch in loader.batches(1)]
    shares = [
        [batch.numbers.tolist() for batch in loader.batches(1, positions=rank_of(number, world).positions(24))]
        for number in range(world)
    ]
    for step, numbers in enumerate(whole):
        parts = [share[step] for share in shares]
        assert [len(part) for part in parts] == [24 // world] * world
        assert set().union(*parts) == numbers
