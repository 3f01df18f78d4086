"""Labels in doubt, against the paper's definition written out."""

import numpy as np

from pipeline.core.dataset import Split
from pipeline.metrics.suspects import find_suspects, tabulate


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
