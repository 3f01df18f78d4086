"""Labels in doubt: by hand, against the paper's definition written out, and on labels that were made wrong."""

import numpy as np

from pipeline.core.dataset import Split
from pipeline.metrics.suspects import find_suspects, tabulate


def test_by_hand() -> None:
    # Mean of p(a) over label a: (.9 + .5 + .1) / 3 = .5; of p(b) over label b: (.8 + .3) / 2 = .55.
    probs = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.2, 0.8], [0.7, 0.3]])
    rows, suggested = find_suspects(np.array([0, 0, 0, 1, 1]), probs)
    assert rows.tolist() == [2, 4]  # by .9 - .1 and by .7 - .3
    assert suggested.tolist() == [1, 0]


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


def wrong_labels() -> tuple[dict[str, Split], dict[str, np.ndarray], list[int]]:
    """200 samples in two splits with a good model, and 20 of the val labels made wrong."""
    rng = np.random.default_rng(1)
    splits, probs = {}, {}
    for name, count in (("val", 120), ("test", 80)):
        truth = rng.integers(0, 3, count)
        logits = np.eye(3)[truth] * 6 + rng.normal(size=(count, 3))
        probs[name] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        images = rng.integers(0, 256, (count, 16, 16, 1), dtype=np.uint8)
        targets = truth.copy()
        if name == "val":
            targets[:20] = (truth[:20] + 1) % 3
        splits[name] = Split(images, targets, [f"{name}/{i}.png" for i in range(count)])
    return splits, probs, list(range(20))


def test_wrong_labels_are_found_and_named() -> None:
    splits, probs, wrong = wrong_labels()
    table = tabulate(splits, probs, ["angry", "happy", "sad"])
    columns = ["file", "split", "row", "label", "suggested", "prob_label", "prob_suggested"]
    assert list(table.columns) == columns
    found = table[table["split"] == "val"]["row"].tolist()
    assert len(set(found) & set(wrong)) >= 18
    assert len(table) <= 30
    for line in table.itertuples():
        target = splits[line.split].targets[line.row]
        assert line.file == f"{line.split}/{line.row}.png"
        assert line.label == ["angry", "happy", "sad"][target]
        assert line.prob_label == probs[line.split][line.row, target]
        assert line.prob_suggested == probs[line.split][line.row].max()
