"""Labels in doubt, against the paper's definition written out."""

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.core.dataset import Split
from pipeline.metrics.suspects import beats_chance, find_suspects, tabulate


def test_as_the_paper_defines_it() -> None:
    rng = np.random.default_rng(0)
    targets, probs = rng.integers(0, 4, 400), rng.dirichlet(np.ones(4) * 0.5, 400)
    usual = [probs[targets == k, k].mean() for k in range(4)]
    expected = {}
    for i in range(400):
        counted = [k for k in range(4) if probs[i, k] >= usual[k]]
        if counted and (best := max(counted, key=lambda k: probs[i, k])) != targets[i]:
            expected[i] = best
    rows, suggested = find_suspects(targets, probs)
    assert dict(zip(rows.tolist(), suggested.tolist())) == expected
    margins = probs[rows, suggested] - probs[rows, targets[rows]]
    assert (np.diff(margins) <= 0).all()


def test_a_class_without_samples_is_never_suggested() -> None:
    rows, _ = find_suspects(np.array([0, 0, 0]), np.array([[0.1, 0.9], [0.6, 0.4], [0.8, 0.2]]))
    assert rows.tolist() == []


def test_suspects_of_several_splits_are_judged_together() -> None:
    rng = np.random.default_rng(1)
    images = np.zeros((120, 2, 2, 1), np.uint8)
    splits = {
        name: Split(images[:count], rng.integers(0, 3, count), [f"{name}/{i}.png" for i in range(count)])
        for name, count in (("val", 120), ("test", 80))
    }
    probs = {name: rng.dirichlet(np.ones(3), len(split)) for name, split in splits.items()}
    for name, split in splits.items():  # right on half, and more
        probs[name][::2] = 0.7 * np.eye(3)[split.targets[::2]] + 0.1
    table = tabulate(splits, probs, ["angry", "happy", "sad"])
    columns = ["file", "split", "row", "label", "suggested", "prob_label", "prob_suggested"]
    assert list(table.columns) == columns
    targets, every = (np.concatenate(parts) for parts in ([s.targets for s in splits.values()], list(probs.values())))
    rows, suggested = find_suspects(targets, every)
    assert [f"{line.split}/{line.row}.png" for line in table.itertuples()] == table["file"].tolist()
    assert (table["row"] + 120 * (table["split"] == "test")).tolist() == rows.tolist()
    for place, names in ((targets[rows], "label"), (suggested, "suggested")):
        assert table[names].tolist() == [["angry", "happy", "sad"][k] for k in place]
        np.testing.assert_array_equal(table[f"prob_{names}"], every[rows, place])


def answers(targets: np.ndarray, right: float, guess: int | None, rng: np.random.Generator) -> np.ndarray:
    """Probabilities, right on a part of the samples; else the guess, or any class."""
    said = np.where(
        rng.random(len(targets)) < right, targets, rng.integers(0, 4, len(targets)) if guess is None else guess
    )
    return np.eye(4)[said]


@pytest.mark.parametrize("shares", [[0.25, 0.25, 0.25, 0.25], [0.85, 0.05, 0.05, 0.05]])
def test_beats_chance_is_rarely_wrong(shares: list[float]) -> None:
    """Nets that learnt nothing pass once in a hundred times; those that learnt a little do, whatever the shares."""
    rng = np.random.default_rng(0)
    passed = {"nothing": 0, "one class": 0, "something": 0}
    for _ in range(40):
        targets = rng.choice(4, 400, p=shares)
        passed["nothing"] += beats_chance(targets, answers(targets, 0.0, None, rng))
        passed["one class"] += beats_chance(targets, answers(targets, 0.0, 0, rng))
        passed["something"] += beats_chance(targets, answers(targets, 0.3, None, rng))
    assert passed["one class"] == 0
    assert binomtest(passed["nothing"], 40, 0.01).pvalue > 0.01
    assert passed["something"] == 40


def test_tabulate_says_nothing_where_the_model_is_at_chance_level() -> None:
    rng = np.random.default_rng(1)
    split = Split(np.zeros((200, 2, 2, 1), np.uint8), rng.integers(0, 3, 200), ["a.png"] * 200)
    assert tabulate({"test": split}, {"test": rng.dirichlet(np.ones(3), 200)}, ["a", "b", "c"]) is None
